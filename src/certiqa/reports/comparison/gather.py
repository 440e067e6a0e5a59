"""Find run folders below any folder and read each as far as it can be read: some failed, some still go on."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from certiqa.errors import UserError
from certiqa.evaluation.attacked import scored
from certiqa.evaluation.identity import identity_file
from certiqa.evaluation.record_lines import NO_ATTACK
from certiqa.evaluation.records import COLUMNS, FORMAT, read_records
from certiqa.evaluation.summary import read_summary
from certiqa.reports.tables import Summary, range_of, value_of, weights_notice
from certiqa.storage.files import DamagedFileError, read_json

SET_ASIDE = re.compile(r"\.previous-\d+$")
MARKS = ("summary.json", "records.parquet", "records", ".hydra")
"""What a run's folder holds from its first second on, at least one of them."""
UNFINISHED = "unfinished"
STUDIES = ("purification", "metric")
"""Tasks whose folders are no runs of a defense."""
BARE = ("", "none", "identity")
"""Names of no defense."""
NO_NEED = ("format", "task", "seed", "sigma", "num_samples", "weights", "data", "device", "data.name", "defense.name")
"""Keys of a run's identity that have a column of their own, or say where it ran."""
NOT_SETTINGS = re.compile(r"callbacks\.|trainer\.(?!max_)|.*_target_$|.*\.seed$|.*\.sigma$|.*\.num_samples$")


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison: what its folder says, and what could not be read.

    Attributes:
        folder: the run's folder.
        key: a name that is unique in the comparison and fit for a file.
        summary: ``summary.json``, or the few facts that records and configuration give of a run without one.
        records: its records with all of ``COLUMNS``; empty where there are none, or of another format.
        identity: the flat configuration that the records were stamped with.
        problems: what could not be read.
    """

    folder: Path
    key: str
    summary: Summary
    records: pd.DataFrame
    identity: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """``finished``, ``interrupted``, ``failed``; ``unfinished`` of one that goes on or was cut short."""
        return str(self.summary.get("status") or UNFINISHED)

    @property
    def finished(self) -> bool:
        """Whether its figures are of the whole set."""
        return self.status == "finished"

    @property
    def random_weights(self) -> bool:
        """Whether its numbers are meaningless."""
        return weights_notice(self.summary) is not None

    @property
    def bare(self) -> bool:
        """Whether the metric stood there without a defense."""
        return str(self.summary.get("defense") or "") in BARE

    @property
    def attacks(self) -> list[str]:
        """The names of its attacks."""
        given = self.summary.get("attacks")
        return [str(name) for name in given] if isinstance(given, list) else []

    @property
    def score_range(self) -> tuple[float, float] | None:
        """The metric's nominal range."""
        return range_of(self.summary, "metric_range")

    @property
    def quality_sign(self) -> int:
        """-1 where lower scores are better."""
        return -1 if self.summary.get("lower_better") else 1

    @cached_property
    def clean(self) -> pd.DataFrame:
        """Its records without attacks and without failures, indexed by image; several rows where several radii."""
        rows = self.records
        if len(rows):
            rows = rows[(rows["attack"] == NO_ATTACK) & rows["failure"].isna()]
        return rows.set_index("image_id") if "image_id" in rows else rows

    @cached_property
    def attacked(self) -> pd.DataFrame:
        """Its attacked records that have finite scores, indexed by image."""
        rows = self.records
        if len(rows):
            rows = scored(rows[rows["attack"] != NO_ATTACK])
        return rows.set_index("image_id") if "image_id" in rows else rows

    @cached_property
    def references(self) -> dict[str, str]:
        """What each image was made from, by image id; only images of which that is known."""
        if not {"image_id", "reference_id"} <= set(self.records):
            return {}
        known = self.records[["image_id", "reference_id"]].dropna().drop_duplicates("image_id")
        return {str(image): str(made_from) for image, made_from in known.itertuples(index=False) if made_from}

    @cached_property
    def images(self) -> frozenset[str]:
        """The ids of the images it scored."""
        return frozenset(map(str, self.clean.index)) if len(self.clean) else frozenset()


def find_runs(folders: Iterable[str | Path]) -> list[Path]:
    """Return every run folder at or below ``folders``, sorted, each once.

    Runs that ``fresh=true`` has set aside are left out unless given themselves.

    Raises:
        UserError: where a folder does not exist or holds no run.
    """
    found: dict[Path, Path] = {}
    for given in map(Path, folders):
        if not given.is_dir():
            raise UserError(f"no folder '{given}'; give runs or a folder of runs, e.g. outputs/evaluate")
        before = len(found)
        if is_run(given):
            found.setdefault(given.resolve(), given)
            continue
        repeated = False
        for parent, names, _ in os.walk(given):
            if parent != str(given) and is_run(Path(parent)):
                names.clear()
                repeated |= Path(parent).resolve() in found
                found.setdefault(Path(parent).resolve(), Path(parent))
                continue
            names[:] = sorted(name for name in names if not name.startswith(".") and not SET_ASIDE.search(name))
        if len(found) == before and not repeated:
            raise UserError(
                f"no run in '{given}' or below: no folder there has {', '.join(MARKS[:-1])}; "
                "give e.g. outputs/evaluate, or run train.py or evaluate.py first"
            )
    return sorted(found.values(), key=str)


def is_run(folder: Path) -> bool:
    """Return whether a folder is one run's."""
    return any((folder / mark).exists() for mark in MARKS[:-1]) or (folder / MARKS[-1] / "config.yaml").is_file()


def gather(folders: Iterable[str | Path]) -> list[ComparedRun]:
    """Read every run at or below ``folders``; what cannot be read is told in the run's ``problems``."""
    runs: list[ComparedRun] = []
    taken: Counter[str] = Counter()
    for folder in find_runs(folders):
        name = re.sub(r"[^\w.-]+", "_", folder.resolve().name).strip("._")[:80] or "run"
        taken[name.lower()] += 1
        number = taken[name.lower()]
        runs.append(read_run(folder, name if number == 1 else f"{name}~{number}"))
    return runs


def comparable(runs: Sequence[ComparedRun]) -> tuple[list[ComparedRun], list[str]]:
    """Return the runs without studies, whose cells are no runs, and what is to be said of what is left out.

    Raises:
        UserError: if nothing is left.
    """
    studies = [run for run in runs if run.summary.get("task") in STUDIES]
    left = [run for run in runs if run.summary.get("task") not in STUDIES]
    if not left:
        raise UserError(
            f"'{studies[0].folder}' is a study with a report of its own ({studies[0].folder / 'report.html'}); "
            "give runs of train.py or evaluate.py to compare"
        )
    told = ", ".join(run.key for run in studies)
    return left, [f"Left out, as studies have reports of their own: {told}."] if studies else []


def read_run(folder: Path, key: str) -> ComparedRun:
    """Read one run's folder, however little of it there is."""
    problems: list[str] = []
    summary = None
    try:
        summary = read_summary(folder)
    except DamagedFileError as error:
        problems.append(f"summary.json cannot be read ({error.reason}); run its command again to write it anew")
    identity = _identity(folder)
    made = identity.get("format")
    records = pd.DataFrame()
    if made is not None and made != FORMAT:
        problems.append(
            f"its records are of format {made}, this version reads {FORMAT}: its summary is shown, its images take no "
            "part in plots and tests"
        )
    else:
        try:
            records = read_records(folder)
            records = records.reindex(columns=[*COLUMNS, *(name for name in records.columns if name not in COLUMNS)])
        except UserError as error:
            if (folder / "records.parquet").is_file():
                problems.append(f"its records cannot be read: {error}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"its records cannot be read ({error})")
    if summary is None:
        count = int(records["image_id"].nunique()) if len(records) else 0
        summary = {"status": UNFINISHED, "name": folder.resolve().name, "num_images": count}
        summary |= _facts(folder, identity, records)
    return ComparedRun(folder, key, summary, records, identity, tuple(problems))


def _identity(folder: Path) -> dict[str, Any]:
    try:
        return read_json(identity_file(folder), dict) or {}
    except DamagedFileError:
        return {}


def _facts(folder: Path, identity: dict[str, Any], records: pd.DataFrame) -> dict[str, Any]:
    """Return what the configuration says of a run without a summary: names and settings, no results."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = folder / ".hydra" / "config.yaml"
    config: Any = None
    with suppress(OSError, ValueError, YAMLError, OmegaConfBaseException):
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if path.is_file() else None
    config = config if isinstance(config, dict) else {}

    def look(dotted: str) -> Any:
        if dotted in identity:
            return identity[dotted]
        node: Any = config
        for part in dotted.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return None if isinstance(node, str) and "${" in node else node

    target = str(look("metric._target_") or "").rpartition(".")[2].removesuffix("Metric")
    metric = look("metric.metric_name") or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", target).lower()
    facts = {key: look(key) for key in ("task", "seed")}
    facts |= {"metric": metric or None, "defense": look("defense.name"), "data": look("data.name")}
    smooth = str(look("defense._target_") or "").endswith("MedianSmoothing")
    facts |= {key: look(key) if smooth else None for key in ("sigma", "num_samples")}
    attack = str(look("attack._target_") or "").rpartition(".")[2].lower()
    names = sorted(records.loc[records["attack"] != NO_ATTACK, "attack"].unique()) if len(records) else []
    facts["attacks"] = names or ([attack] if attack else [])
    return {key: value for key, value in facts.items() if value is not None}


def settings_that_differ(runs: Sequence[ComparedRun]) -> list[dict[str, str]]:
    """Return for each run the settings that tell it from others, those with a column of their own left out.

    A setting that follows from the defense (or, of an attack, from the attack) tells nothing new: it is listed only
    where it differs among runs of one defense. The budget of attacks is listed wherever it differs at all.
    """
    values: dict[tuple[str, str], set[str]] = {}

    def family(run: ComparedRun, key: str) -> str:
        return "" if key == "attack.eps" else str(run.attacks if key.startswith("attack.") else run.summary["defense"])

    known = [run for run in runs if run.summary.get("defense") is not None]
    for run in known:
        for key, value in run.identity.items():
            if key not in NO_NEED and not NOT_SETTINGS.match(key):
                values.setdefault((key, family(run, key)), set()).add(json.dumps(value))
    differing = dict.fromkeys(key for (key, _), found in values.items() if len(found) > 1)
    return [{key: _short(run.identity[key]) for key in differing if key in run.identity} for run in runs]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)


def plural(number: int, what: str = "run") -> str:
    """Return a number and what it counts.

    >>> plural(1), plural(3, "image")
    ('1 run', '3 images')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def notes_on(runs: Sequence[ComparedRun]) -> list[str]:
    """Return what a reader must know before comparing these runs."""
    notes = []
    counts = Counter(run.status for run in runs if not run.finished)
    if counts:
        said = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
        notes.append(
            f"{sum(counts.values())} of {plural(len(runs))} did not reach their end ({said}): their figures are of the "
            "images finished so far. They are marked, take no part in plots, and are never best."
        )
    random = sum(run.random_weights for run in runs)
    if random:
        notes.append(
            f"{random} of {plural(len(runs))} have random weights: their numbers are meaningless. They are marked, "
            "take no part in plots, and are never best."
        )
    versions = Counter(_version(run) for run in runs if run.summary.get("versions"))
    formats = Counter(str(run.identity["format"]) for run in runs if "format" in run.identity)
    for what, counted in (("versions of certiqa", versions), ("formats of records", formats)):
        if len(counted) > 1:
            said = ", ".join(f"{name} ({plural(number)})" for name, number in sorted(counted.items()))
            notes.append(f"These runs were written by different {what}: {said}. Compare across them with care.")
    settings = (("confidence", "confidence per side and image"), ("joint_confidence", "joint confidence"))
    for key, what in settings:
        levels = sorted({value for run in runs if (value := value_of(run.summary, key)) is not None})
        if len(levels) > 1:
            notes.append(
                f"Certificates here are at different {what}: {', '.join(f'{level:g}' for level in levels)}. "
                "They are not ranked against each other."
            )
    sets: dict[str, dict[frozenset[str], int]] = {}
    for run in runs:
        if run.finished and run.images:
            sets.setdefault(str(run.summary.get("data")), {})[run.images] = len(run.images)
    for name, found in sorted(sets.items()):
        if len(found) > 1:
            sizes = ", ".join(map(str, sorted(found.values())))
            notes.append(
                f"Runs on {name} scored {len(found)} different sets of images (of {sizes}): they are not ranked "
                "against each other, and sets of one size that share a figure are not strictly comparable."
            )
    notes += [f"{run.key}: {problem}." for run in runs for problem in run.problems]
    for run in runs:
        if number := int(value_of(run.summary, "num_failed") or 0):
            reason = str(run.summary.get("first_failure") or "see its records")
            notes.append(f"{run.key}: {plural(number, 'image')} not scored, left out of its figures ({reason}).")
    return notes


def _version(run: ComparedRun) -> str:
    versions = run.summary.get("versions")
    return str(versions.get("certiqa", "unknown")) if isinstance(versions, dict) else "unknown"
