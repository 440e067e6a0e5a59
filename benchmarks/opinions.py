"""MS, DMS and DMS-IQA on images that people rated, before a metric that was trained on the same split's images.

    python benchmarks/opinions.py livec              # undefended, MS, DMS and DMS-IQA on the test images
    python benchmarks/opinions.py livec --variants   # objectives compared on the validation images of split 0

Each cell is a run of train.py as a user would type it: a finished one is only reported, a stopped one goes on, one with
other options than before is refused. So the command can be stopped and given again at any time. Options of train.py
that follow the data set go to each run, e.g. data.root=PATH.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from certiqa.certification import certified_srocc
from certiqa.evaluation import plcc, read_records, read_summary, srocc

ROOT = Path(__file__).resolve().parents[1]
RADII = (0.03, 0.06, 0.12)
RANGES = {"livec": (0, 100), "agiqa3k": (0, 5)}
STEPS = {
    "ms": [],
    "dms": ["trainer.max_steps=3300"],
    "dms_iqa": ["trainer.max_steps=1600", "objective.mse_share=0.75"],
}
"""Meant to take the same time, which --variants prints: a step through the metric costs about five without it."""
PLCC = [*STEPS["dms_iqa"], "objective.ranking=plcc", "objective.target=plcc"]
CHOSEN = [*PLCC, "objective.ranking_weight=0", "objective.target_weight=0.005"]
VARIANTS = {
    "mse": ["defense=dms", *STEPS["dms"]],
    "mse, twice as long": ["defense=dms", "trainer.max_steps=6600"],
    "hinge .05 and target .05 (l1)": [
        *STEPS["dms_iqa"],
        *("objective.ranking=hinge", "objective.ranking_weight=0.05"),
        *("objective.target=l1", "objective.target_weight=0.05"),
    ],
    "hinge .025": [*CHOSEN, "objective.ranking=hinge", "objective.ranking_weight=0.025", "objective.target_weight=0"],
    "target .1 (mse)": [*PLCC, "objective.target=mse", "objective.ranking_weight=0", "objective.target_weight=0.1"],
    "plcc with opinions .005": [*PLCC, "objective.ranking_weight=0.005", "objective.target_weight=0"],
    "plcc with clean scores .002": [*PLCC, "objective.ranking_weight=0", "objective.target_weight=0.002"],
    "plcc with clean scores .005": CHOSEN,
    "plcc with clean scores .02": [*PLCC, "objective.ranking_weight=0", "objective.target_weight=0.02"],
    "plcc with both .005": [*PLCC, "objective.ranking_weight=0.005", "objective.target_weight=0.005"],
    "plcc with clean scores .005, twice as many steps through the metric": [
        *CHOSEN,
        "trainer.max_steps=2000",
        "objective.mse_share=0.6",
    ],
    "plcc with clean scores .005, crops of 224, batches of 8": [*CHOSEN, "data.crop=224", "data.batch_size=8"],
}
"""Of the objective, beside the defaults of experiment=opinions."""


def train(*overrides: str) -> None:
    """Run train.py, which only reports a run that is finished."""
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    print(shlex.join(["python", "train.py", *overrides]), flush=True)
    if code := subprocess.run(command, check=False, cwd=ROOT).returncode:
        sys.exit(code)  # train.py has said why


class Study:
    """The runs of one data set.

    Args:
        data: its name.
        folder: of all runs.
        extra: options of every run.
    """

    def __init__(self, data: str, folder: Path, extra: Sequence[str]) -> None:
        self.data, self.folder, self.extra = data, folder, list(extra)
        self.trained: set[int] = set()

    def metric(self, split: int) -> Path:
        """Train the metric of a split and return its weights."""
        folder = self.folder / f"{self.data}-split{split}-metric"
        options = ["data.resize=224", "data.prepare=true", f"data.split_seed={split}", f"hydra.run.dir={folder}"]
        if split not in self.trained:
            train("experiment=metric", "metric_fit.fine_tune=true", f"data={self.data}", *options, *self.extra)
            self.trained.add(split)
        return folder / "metric.safetensors"

    def cell(self, split: int, seed: int, name: str, options: Sequence[str]) -> Path:
        """Train and certify one defense and return its folder."""
        folder = self.folder / f"{self.data}-split{split}-seed{seed}-{name}"
        where = [
            "data.prepare=true",
            f"data.split_seed={split}",
            f"seed={seed}",
            f"metric.weights={self.metric(split)}",
        ]
        train("experiment=opinions", f"data={self.data}", *where, f"hydra.run.dir={folder}", *options, *self.extra)
        return folder


def variants_table(study: Study) -> list[list[str]]:
    """Return how objectives do on the validation images of split 0; the test images are left alone."""
    lines = [["objective", "SROCC", "certified delta / sd", "PSNR", "minutes"]]
    for name, options in VARIANTS.items():
        words = "".join(letter if letter.isalnum() else "_" for letter in name)
        folder = study.cell(0, 0, f"validation-{words}", ["optimise=val_srocc", *options])
        summary = read_summary(folder) or {}
        values = [summary[f"val_{key}"] for key in ("srocc", "certified_delta_sd_share", "psnr")]
        lines.append([name, *(f"{value:.3f}" for value in values), f"{summary['seconds'] / 60:.1f}"])
    return lines


class Cell:
    """What one run says of its test images, in the order of their names."""

    def __init__(self, folder: Path, bounds: tuple[float, float]) -> None:
        records = read_records(folder)
        at = {radius: records[records.radius == radius].sort_values("image_id") for radius in RADII}
        first = at[RADII[0]]
        self.bounds, self.ids = bounds, first.image_id.tolist()
        self.mos, self.score, self.clean = (first[key].to_numpy() for key in ("mos", "score", "score_clean"))
        self.delta = {
            radius: np.maximum(rows.upper - rows.score, rows.score - rows.lower).to_numpy()
            for radius, rows in at.items()
        }
        self.joint = {radius: rows[["joint_lower", "joint_upper"]].to_numpy() for radius, rows in at.items()}

    def figures(self, rows: NDArray[np.intp]) -> dict[str, float]:
        """Return the figures of some images."""
        mos, score = self.mos[rows], self.score[rows]
        found = {"SROCC": srocc(score, mos), "PLCC": plcc(score, mos)}
        spread = float(np.std(score, ddof=1))
        for radius in RADII:
            found[f"delta/sd {radius}"] = float(np.median(self.delta[radius][rows])) / spread
        for radius in RADII:
            lower, upper = self.joint[radius][rows].T
            found[f"certified SROCC {radius}"] = certified_srocc(lower, upper, mos, hard_bounds=self.bounds)
        return found

    def undefended(self, rows: NDArray[np.intp]) -> dict[str, float]:
        """Return the figures of the metric itself."""
        return {"SROCC": srocc(self.clean[rows], self.mos[rows]), "PLCC": plcc(self.clean[rows], self.mos[rows])}


def study_table(study: Study, splits: int, seeds: int, repeats: int) -> list[list[str]]:
    """Return means over splits and seeds with 95 % intervals of a bootstrap over splits and over images.

    Each resampling takes the same splits and images for all defenses and seeds, so that differences are paired.
    Splits share images: an image drawn twice counts twice in each split that tests it.
    """
    cells: dict[str, list[list[Cell]]] = {name: [] for name in STEPS}
    for split in range(splits):
        for name in STEPS:
            options = [f"defense={name}", *(CHOSEN if name == "dms_iqa" else STEPS[name])]
            options.append("data.validation_images=8")  # nothing is chosen by them here
            folders = [study.cell(split, seed, name, options) for seed in range(seeds)]
            cells[name].append([Cell(folder, RANGES[study.data]) for folder in folders])
    tested = [of_split[0].ids for of_split in cells["ms"]]
    pool, places = np.unique(np.concatenate(tested), return_inverse=True)
    place_of = np.split(places, np.cumsum([len(ids) for ids in tested])[:-1])
    rows_of = [np.arange(len(ids)) for ids in tested]
    samples = [list(enumerate(rows_of))]
    rng = np.random.default_rng(0)
    for _ in range(repeats):
        times = np.bincount(rng.integers(0, len(pool), len(pool)), minlength=len(pool))
        drawn = rng.integers(0, splits, splits)
        samples.append([(split, np.repeat(rows_of[split], times[place_of[split]])) for split in drawn])

    def mean(of: Callable[[int, NDArray[np.intp]], list[dict[str, float]]]) -> pd.DataFrame:
        return pd.DataFrame(
            [
                pd.DataFrame([row for split, rows in sample for row in of(split, rows)]).mean().to_dict()
                for sample in samples
            ]
        )

    found = {"undefended": mean(lambda split, rows: [cells["ms"][split][0].undefended(rows)])}
    for name in STEPS:
        found[name] = mean(lambda split, rows, name=name: [cell.figures(rows) for cell in cells[name][split]])
    found["dms_iqa - dms"] = found["dms_iqa"] - found["dms"]
    header = list(found["ms"].columns)
    lines = [["defense", *header]]
    for name, table in found.items():
        lines.append([name, *(interval(table[key]) if key in table else "-" for key in header)])
    return lines


def interval(values: pd.Series) -> str:
    """Return the first value, which is of the images themselves, with the quantiles of the others."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return f"{values[0]:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Run what is missing and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=sorted(RANGES))
    parser.add_argument("--variants", action="store_true", help="compare objectives on validation images")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=500, help="of the bootstrap")
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs" / "opinions")
    arguments, extra = parser.parse_known_args()
    study = Study(arguments.data, arguments.outputs.resolve(), extra)
    if arguments.variants:
        lines = variants_table(study)
    else:
        lines = study_table(study, arguments.splits, arguments.seeds, arguments.repeats)
    lines.insert(1, ["---"] * len(lines[0]))
    print("\n".join("| " + " | ".join(line) + " |" for line in lines))


if __name__ == "__main__":
    main()
