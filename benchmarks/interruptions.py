"""Kill commands at chosen moments and damage their files: the same command must end as if nothing had happened.

    python benchmarks/interruptions.py                   # the tables of docs/sweeps.md
    python benchmarks/interruptions.py --only training   # the kinds that a pattern fits, e.g. 'damage|sweep'
    python benchmarks/interruptions.py --sample 2        # at most so many of each kind

Every case runs a small command of certiqa on 28 images of 64 pixels, interrupts it, or damages a file of what it left,
and runs the same command again. It passes where the second run gives what an unbroken one gives: weights, records,
figures and pictures to the last bit. After a damage it may also refuse with a sentence that names the file or its
folder, if it leaves all files as they are. After a kill, nothing that was done and kept may be done again: the steps
and images that were are counted.

Prints Markdown; the exit code is 1 if a case fails.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from damaged_files import WAYS
from killed_commands import LOGS, Ended, Moment, load_everything, run
from PIL import Image
from safetensors import safe_open

FIRST, MIDDLE, LAST = 0.0, 0.5, 1.0
RECORD = r"append .*rank-0\.jsonl"
EQUAL, REFUSED, TRACEBACK, DIFFERING, LOST = "equal", "refused", "traceback", "differing", "done again"
OUTCOMES = (EQUAL, REFUSED, TRACEBACK, DIFFERING, LOST)

TINY = [
    *("data=folder", "data.splits=split", "data.crop=48", "data.batch_size=4", "data.eval_batch_size=2"),
    *("data.validation_images=2", "num_samples=40", "certification.radii=[0.03]", "certification.radius=0.03"),
    *("certification.joint_confidence=0.9", "callbacks.gallery.num_images=2", "paths.outputs=outputs"),
]
TRAIN = [
    *("train.py", "trainer.max_steps=16", "trainer.val_check_interval=8", "objective.mse_share=0.5"),
    *("denoiser.channels=[4,8,16]", "certification.validation_samples=20"),
]
COMMANDS = {
    "train": [*TRAIN, "callbacks.checkpoint.minutes=0"],  # a checkpoint after every step
    "train for minutes": TRAIN,  # one before the validation at step 8
    "certify": ["evaluate.py", "defense=ms"],
    "attack": ["evaluate.py", "defense=ms", "attack=ifgsm", "attack.steps=2", "attack.save_images=true"],
    "set attack": ["evaluate.py", "defense=ms", "attack=sma", "attack.steps=2", "attack.score_samples=4"],
    "universal attack": ["evaluate.py", "defense=none", "attack=uap"],
    "sweep": ["evaluate.py", "-m", "defense=ms,jpeg"],
    "study": [
        *("evaluate.py", "experiment=purification_quick", "data.limit_test=null", "~study.purifiers"),
        *("+study.purifiers={jpeg: {quality: [30, 70]}, flip: {}}", "study.attacks.advcf=null"),
        *("study.attacks.ifgsm.steps=2", "study.attacks.ifgsm.eot_samples=1"),
    ],
}
# kind, command, labels of events (patterns), where among the events of each: a share, or a number from 1; torn or not
KILLS: list[tuple[str, str, tuple[str, ...], tuple[float | int, ...], tuple[bool, ...]]] = [
    ("training: in the middle of a pass", "train", ("step",), (2, 3, 6, 7), (False,)),
    ("training: between two passes", "train", ("step",), (5, 9, 13), (False,)),
    ("training: in the ranking phase", "train", ("step",), (10, 12, 15, 16), (False,)),
    ("training: some steps after a checkpoint", "train for minutes", ("step",), (7, 11, 16), (False,)),
    ("training: while a checkpoint is written", "train", (r"rename .*\.ckpt",), (FIRST, MIDDLE, LAST), (False, True)),
    ("training: while its weights are kept", "train", (r"rename .*denoiser\.safetensors",), (FIRST,), (True,)),
    ("training: in the test after it", "train", (RECORD,), (MIDDLE,), (False, True)),
    ("evaluation: while records begin", "certify", (r"rename .*identity\.json",), (FIRST,), (False, True)),
    ("evaluation: while an image is recorded", "certify", (RECORD,), (FIRST, MIDDLE, LAST), (True,)),
    ("evaluation: while pictures are kept", "certify", (r"write .*png", r"rename .*gallery\.json"), (LAST,), (True,)),
    (
        *("evaluation: while it is summed up", "certify"),
        *((r"rename .*parquet", r"rename .*summary\.json", r"rename .*html"), (FIRST,), (True,)),
    ),
    ("attack: while an image is recorded", "attack", (RECORD,), (0.3, 0.6, LAST), (False, True)),
    (
        *("attack: while pictures are kept", "attack"),
        *((r"write .*attacked/.*png", r"rename .*manifest\.csv"), (MIDDLE,), (True,)),
    ),
    ("set attack: at its plan, in its midst, at its end", "set attack", (RECORD,), (9, 12, 16), (True,)),
    ("universal attack: while it is fitted", "universal attack", ("step",), (MIDDLE,), (False,)),
    ("universal attack: while it is kept", "universal attack", (r"rename .*safetensors",), (FIRST,), (False, True)),
    (
        "sweep: while its table is written",
        "sweep",
        (r"rename .*sweep\.json", r"rename .*table\.csv"),
        (MIDDLE,),
        (True,),
    ),
    ("sweep: in its first cell", "sweep", (r"append .*-ms-.*rank-0\.jsonl",), (MIDDLE,), (False,)),
    ("sweep: in its second cell", "sweep", (r"append .*-jpeg-.*rank-0\.jsonl",), (FIRST, MIDDLE), (True,)),
    ("study: while attacks are kept", "study", (r"rename .*npy", r"rename .*complete"), (MIDDLE,), (True,)),
    ("study: while a part is kept", "study", (r"rename .*cells/.*parquet",), (FIRST, MIDDLE), (False, True)),
    (
        *("study: while it is summed up", "study"),
        *((r"rename .*/records\.parquet", r"rename .*/study\.json", r"rename .*/summary\.json"), (FIRST,), (True,)),
    ),
]
# kind, command, when it is stopped (None: it is finished), the file (a pattern), and the ways to damage it (None: all)
DAMAGES: list[tuple[str, str, tuple[str, float] | None, str, tuple[str, ...] | None]] = [
    ("checkpoint", "train", ("step", 11), r"checkpoints/.*\.ckpt", None),
    ("trained weights", "train", (RECORD, 5), r"denoiser\.safetensors", None),
    ("identity of records", "certify", (RECORD, 5), r"identity\.json", None),
    ("records", "certify", (RECORD, 5), r"rank-0\.jsonl", None),
    ("gallery", "certify", (RECORD, 5), r"gallery\.json", None),
    ("records of a finished run", "certify", None, r"rank-0\.jsonl", None),
    ("table of a finished run", "certify", None, r"records\.parquet", None),
    ("summary of a finished run", "certify", None, r"summary\.json", None),
    ("fitted attack", "universal attack", (RECORD, 5), r"attack-.*\.safetensors", None),
    ("manifest of attacked images", "attack", None, r"manifest\.csv", None),
    ("manifest of a sweep", "sweep", (r"append .*-jpeg-.*rank-0\.jsonl", 4), r"sweep\.json", None),
    ("table of a sweep", "sweep", (r"append .*-jpeg-.*rank-0\.jsonl", 4), r"table\.csv", ("emptied", "another shape")),
    ("summary of a sweep's cell", "sweep", (r"append .*-jpeg-.*rank-0\.jsonl", 4), r"-ms-.*summary\.json", None),
    ("part of a study", "study", (r"rename .*cells/.*parquet", 6), r"none.*\.parquet", None),
    ("attacked images of a study", "study", (r"rename .*cells/.*parquet", 4), r"\.npy", None),
    ("mark of a study's attack", "study", (r"rename .*cells/.*parquet", 4), "complete", ("deleted", "another shape")),
    ("facts of a finished study", "study", None, r"study\.json", None),
]
STEPS_AGAIN = {"train": 1, "train for minutes": 8, "universal attack": 20}  # at most, after a kill; nothing of others


@dataclass(frozen=True)
class Case:
    """One interruption of one command.

    Args:
        kind: of the interruption, a row of the table.
        command: a key of ``COMMANDS``.
        moment: when it is killed; None for a run that is finished.
        file: which file is damaged, as a pattern, empty for none.
        way: of the damage, a key of ``WAYS``.
    """

    kind: str
    command: str
    moment: Moment | None
    file: str = ""
    way: str = ""

    def __str__(self) -> str:
        return f"{self.title}: {self.way or self.moment}"

    @property
    def title(self) -> str:
        """The row of the table."""
        return f"{'damage' if self.file else 'kill'}: {self.kind}"


@dataclass
class Result:
    """What became of a case: one of ``OUTCOMES``, why, and the steps and images that were done again."""

    case: Case
    outcome: str
    why: str = ""
    again: Counter[str] = field(default_factory=Counter)

    @property
    def passed(self) -> bool:
        """Only a damage may be answered by a refusal."""
        return self.outcome == EQUAL or (self.outcome == REFUSED and bool(self.case.file))


def make_images(root: Path) -> None:
    """Write the data set: coarse patterns under noise, with an opinion score and a split each."""
    root.mkdir(parents=True)
    generator, rows = np.random.default_rng(0), []
    for number in range(28):
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), np.uint8)).resize(
            (64, 64), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse) + generator.normal(0, 1 + number, (64, 64, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"{number:02}.png")
        split = "train" if number % 7 < 4 else "validation" if number % 7 == 4 else "test"
        rows.append((f"{number:02}.png", round(5 - number / 7, 2), split))
    with (root / "scores.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "mos", "split"), *rows])


class Bench:
    """The folder in which all is run: images, the unbroken runs, and a folder for each case."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = root / "images"
        self.unbroken: dict[str, Ended] = {}

    def run(self, command: str, place: Path, kill: Moment | None = None) -> Ended:
        """Run a command in a working directory."""
        return run([*COMMANDS[command], *TINY, f"data.root={self.images}"], place, kill)

    def folder(self, command: str) -> Path:
        """Return where the unbroken run of a command is."""
        return self.root / "unbroken" / command.replace(" ", "-")

    def reference(self, command: str) -> Ended:
        """Run a command as it should be."""
        return self.run(command, self.folder(command))

    def cases(self) -> list[Case]:
        """Return all cases, whose moments are chosen from the events of the unbroken runs."""
        found = []
        for kind, command, patterns, places, torn in KILLS:
            for moment in dict.fromkeys(self.moment(command, pattern, at) for pattern in patterns for at in places):
                found += [Case(kind, command, replace(moment, torn=each)) for each in torn]
        for kind, command, stopped, file, ways in DAMAGES:
            moment = None if stopped is None else self.moment(command, *stopped)
            found += [Case(kind, command, moment, file, way) for way in ways or WAYS]
        return found

    def moment(self, command: str, pattern: str, place: float) -> Moment:
        """Return the moment of one of a command's events that a pattern fits, at a share of them or a number from 1."""
        events = self.unbroken[command].events
        rows = [row for row, label in enumerate(events) if re.fullmatch(pattern, label)]
        row = rows[place - 1 if isinstance(place, int) else round(place * (len(rows) - 1))]
        return Moment(events[row], events[: row + 1].count(events[row]))

    def examine(self, case: Case) -> Result:
        """Interrupt, run again, and compare."""
        place = Path(tempfile.mkdtemp(prefix="case-", dir=self.root))
        try:
            return self._examine(case, place)
        finally:
            shutil.rmtree(place)

    def _examine(self, case: Case, place: Path) -> Result:
        if case.moment is None:
            shutil.copytree(self.folder(case.command), place, dirs_exist_ok=True)
            first = self.unbroken[case.command]
        else:
            first = self.run(case.command, place, case.moment)
            if first.code != -9:
                return Result(case, DIFFERING, f"was not killed: {first.message}")
        damaged = None
        if case.file:
            files = sorted(path for path in place.rglob("*") if re.search(case.file, str(path)) and path.is_file())
            if not files:
                return Result(case, DIFFERING, f"there is no file {case.file} to damage")
            damaged = files[-1]
            WAYS[case.way](damaged)
        before = digests(place)
        second = self.run(case.command, place)
        again = work(first) + work(second)
        again.subtract(work(self.unbroken[case.command]))
        if "Traceback" in second.output or second.code not in (0, 1):
            return Result(case, TRACEBACK, f"exit code {second.code}: {second.message}", +again)
        if second.code:
            names_it = damaged is None or damaged.name in second.message or str(damaged.parent) in second.message
            if not second.message.startswith("certiqa: ") or not names_it:
                return Result(case, DIFFERING, f"refused, but does not name the file: {second.message}")
            if changed := differences_of(before, digests(place)):
                return Result(case, DIFFERING, f"refused, but changed {', '.join(changed)}: {second.message}")
            return Result(case, REFUSED, second.message)
        if found := differences(self.folder(case.command), place):
            return Result(case, DIFFERING, "; ".join(found[:4]), +again)
        allowed = {"steps": STEPS_AGAIN.get(case.command, 0)}
        too_much = [f"{number} {what}" for what, number in again.items() if number > allowed.get(what, 0)]
        if too_much and not case.file:
            return Result(case, LOST, ", ".join(too_much), +again)
        return Result(case, EQUAL, "", +again)


def work(ended: Ended) -> Counter[str]:
    """Count what was done in a session and kept: optimizer steps, recorded images, parts of a study."""
    kinds = {"steps": "step", "images": r"append .*rank-\d+\.jsonl", "parts": r"rename .*(cells/.*parquet|\.npy)"}
    return Counter({what: sum(bool(re.fullmatch(p, e)) for e in ended.events) for what, p in kinds.items()})


def digests(place: Path) -> dict[str, str]:
    """Return a digest of every file of a case that is no log."""
    files = (path for path in place.rglob("*") if path.is_file())
    named = {str(path.relative_to(place)): path for path in files}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in named.items()
        if not LOGS.search(name) and "multirun.yaml" not in name
    }


def differences_of(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return the files that are not as they were."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


VOLATILE = re.compile(r"seconds|images_per_second|batch_sizes|^checksum$")  # what is of a session, and sums it up


def differences(unbroken: Path, resumed: Path) -> list[str]:
    """Return the files of an unbroken run that a resumed one has otherwise, with what differs."""
    found = []
    for path in sorted(unbroken.rglob("*")):
        name = path.relative_to(unbroken)
        if not path.is_file() or LOGS.search(str(name)) or path.suffix in (".ckpt", ".html", ".yaml"):
            continue
        if re.search(r"\.jsonl|sweeps/", str(name)):
            continue  # records are compared where they are compiled; of a sweep, what became of each cell
        twin = resumed / name
        if not twin.is_file():
            found.append(f"{name} is missing")
        else:
            try:
                difference = differing(path, twin)
            except (ValueError, OSError) as error:
                difference = f"cannot be read: {error}"
            if difference:
                found.append(f"{name}: {difference}")
    for name in ("summary.json", "report.html"):
        for path in unbroken.glob(f"outputs/*/*/{name}"):
            if not (resumed / path.relative_to(unbroken)).is_file():
                found.append(f"{path.relative_to(unbroken)} is missing")
    return found + table_differences(unbroken, resumed)


def table_differences(unbroken: Path, resumed: Path) -> list[str]:
    """Return what the tables of a sweep say otherwise of its cells."""
    found = []
    for path in unbroken.glob("outputs/sweeps/*/table.csv"):
        then, now = (
            {row["cell"]: row["state"] for row in csv.DictReader(file.open(newline=""))}
            for file in (path, resumed / path.relative_to(unbroken))
        )
        found += [f"table.csv: {cell} is {now.get(cell)}" for cell in then if then[cell] != now.get(cell)]
    return found


def differing(then: Path, now: Path) -> str:
    """Return what differs between two files, empty where they hold the same."""
    if then.suffix == ".parquet":
        tables = [pd.read_parquet(path) for path in (then, now)]
        tables = [table[[name for name in table.columns if not VOLATILE.search(name)]] for table in tables]
        if tables[0].equals(tables[1]):
            return ""
        if tables[0].shape != tables[1].shape or list(tables[0]) != list(tables[1]):
            return f"a table of {tables[1].shape} in place of {tables[0].shape}"
        return "columns " + ", ".join(name for name in tables[0] if not tables[0][name].equals(tables[1][name]))
    if then.suffix == ".json":
        values = [plain(json.loads(path.read_text(encoding="utf-8"))) for path in (then, now)]
        if values[0] == values[1]:
            return ""
        if not all(isinstance(value, dict) for value in values):
            return "other content"
        return ", ".join(key for key in {**values[0], **values[1]} if values[0].get(key) != values[1].get(key))
    if then.suffix == ".safetensors":
        return "" if content_of(then) == content_of(now) else "other weights"
    return "" if then.read_bytes() == now.read_bytes() else "other bytes"


def content_of(path: Path) -> tuple[dict[str, str], dict[str, tuple[Any, bytes]]]:
    """Return notes and tensors of a safetensors file, whose notes are in no order."""
    with safe_open(path, "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return file.metadata(), {name: (array.shape, array.tobytes()) for name, array in arrays.items()}


def plain(value: Any) -> Any:
    """Return a JSON value without what is of a session, in which NaN equals itself."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if not VOLATILE.search(key)}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def table(results: list[Result]) -> str:
    """Return the table as Markdown."""
    lines = [
        "| interruption | how many | equal | refused | traceback | differing | done again | steps, images done again |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    kinds: dict[str, list[Result]] = {}
    for result in results:
        kinds.setdefault(result.case.title, []).append(result)
    for title in ("kill", "damage"):
        kinds[f"all of {title}s"] = [
            one for kind, group in kinds.items() if kind.startswith(f"{title}: ") for one in group
        ]
    for kind, group in kinds.items():
        counts = Counter(result.outcome for result in group)
        most = [max((result.again[what] for result in group), default=0) for what in ("steps", "images")]
        cells = [kind, len(group), *(counts[outcome] for outcome in OUTCOMES), ", ".join(map(str, most))]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def sampled(cases: list[Case], number: int | None) -> list[Case]:
    """Return at most so many cases of each kind, spread over them."""
    if number is None:
        return cases
    kinds: dict[str, list[Case]] = {}
    for case in cases:
        kinds.setdefault(case.kind, []).append(case)
    rows = {
        kind: np.linspace(0, len(group) - 1, min(number, len(group))).round().astype(int)
        for kind, group in kinds.items()
    }
    return [group[row] for kind, group in kinds.items() for row in rows[kind]]


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the kinds that this pattern fits")
    parser.add_argument("--sample", type=int, default=None, help="at most so many cases of each kind")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="cases at a time")
    parser.add_argument("--out", type=Path, default=None, help="a file for the table")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # a forked process cannot use the threads of the first
    started = time.monotonic()
    load_everything()
    with tempfile.TemporaryDirectory() as root:
        results = examine(Path(root), chosen)
    print(f"\n{table(results)}\n")
    for result in results:
        if not result.passed:
            print(f"- {result.outcome}: {result.case}: {result.why}")
    print(f"\n{len(results)} cases, {sum(not r.passed for r in results)} failed, {time.monotonic() - started:.0f} s")
    if chosen.out:
        chosen.out.write_text(table(results) + "\n", encoding="utf-8")
    sys.exit(any(not result.passed for result in results))


def examine(root: Path, chosen: argparse.Namespace) -> list[Result]:
    """Run the unbroken commands, then all cases, some at a time."""
    bench = Bench(root.resolve())
    make_images(bench.images)
    KILLS[:] = [entry for entry in KILLS if re.search(chosen.only, f"kill: {entry[0]}")]
    DAMAGES[:] = [entry for entry in DAMAGES if re.search(chosen.only, f"damage: {entry[0]}")]
    commands = [command for command in COMMANDS if any(entry[1] == command for entry in (*KILLS, *DAMAGES))]
    with workers(chosen.processes) as pool:
        bench.unbroken = dict(zip(commands, pool.map(bench.reference, commands), strict=True))
    for command, ended in bench.unbroken.items():
        if ended.code:
            sys.exit(f"the unbroken run of '{command}' failed:\n{ended.output}")
    results = []
    with workers(chosen.processes) as pool:
        for result in pool.map(bench.examine, sampled(bench.cases(), chosen.sample)):
            results.append(result)
            print(f"{result.outcome}: {result.case}" + (f": {result.why}" if result.why else ""), flush=True)
    return results


def workers(number: int) -> ProcessPoolExecutor:
    """Return processes that have imported everything already."""
    return ProcessPoolExecutor(number, mp_context=multiprocessing.get_context("fork"))


if __name__ == "__main__":
    main()
