"""The table of docs/mini.md: undefended, MS, DMS and DMS-IQA on mini at sigma .12, two seeds.

    python benchmarks/mini_table.py

Trains with `experiment=mini_table` through the command line a user would type, then reads the runs' records.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from certiqa.certification import certified_srocc
from certiqa.evaluation import bootstrap_interval, plcc, read_records, read_summary, srocc

ROOT = Path(__file__).resolve().parents[1]
OUTPUTS = ROOT / "outputs"
SEEDS = (0, 1)
DEFENSES = ("ms", "dms", "dms_iqa")
RADII = (0.06, 0.12)


def run_all() -> None:
    """Run the sweep; finished runs are only reported."""
    defenses, seeds = ",".join(DEFENSES), ",".join(map(str, SEEDS))
    arguments = ["-m", "experiment=mini_table", f"defense={defenses}", f"seed={seeds}", f"paths.outputs={OUTPUTS}"]
    subprocess.run([sys.executable, ROOT / "train.py", *arguments], check=True, cwd=ROOT)


def find_runs() -> dict[tuple[str, int], Path]:
    """Return the folder of each (defense, seed) of the sweep."""
    from omegaconf import OmegaConf

    wanted = OmegaConf.load(ROOT / "conf" / "experiment" / "mini_table.yaml").trainer.max_steps
    found = {}
    for folder in sorted((OUTPUTS / "train").iterdir()):
        summary = read_summary(folder)
        if not summary or summary["status"] != "finished" or ".previous" in folder.name:
            continue
        config = OmegaConf.load(folder / ".hydra" / "config.yaml")
        if config.trainer.max_steps == wanted and config.sigma == 0.12:
            found[summary["defense"], summary["seed"]] = folder
    return found


def with_interval(measure, *columns: np.ndarray, repeats: int = 1000) -> str:
    """Return the value and its 95 % bootstrap interval over images."""
    low, high = bootstrap_interval(measure, *columns, repeats=repeats)
    return f"{measure(*columns):.3f} [{low:.3f}, {high:.3f}]"


def floor_of(lower: np.ndarray, upper: np.ndarray, mos: np.ndarray) -> float:
    """Return the certified SROCC of the joint intervals; its bootstrap interval is for orientation, it is no proof."""
    return certified_srocc(lower, upper, mos, hard_bounds=(1, 5))


def median_share(delta: np.ndarray, score: np.ndarray) -> float:
    """Return the median certified delta as a share of the scores' standard deviation."""
    return float(np.median(delta) / np.std(score, ddof=1))


def row(name: str, seed: int | str, table: pd.DataFrame, *, undefended: bool = False) -> list[str]:
    """Return one line of the table."""
    first = table[table.radius == RADII[0]]
    score, mos = (first.score_clean if undefended else first.score).to_numpy(), first.mos.to_numpy()
    cells = [name, str(seed), with_interval(srocc, score, mos), with_interval(plcc, score, mos)]
    cells.append(f"{np.std(score, ddof=1):.3f}")
    for radius in RADII:
        if undefended:
            cells += ["-", "-", "-"]
            continue
        at = table[table.radius == radius]
        score, delta = at.score.to_numpy(), np.maximum(at.upper - at.score, at.score - at.lower).to_numpy()
        joint = [at[column].to_numpy() for column in ("joint_lower", "joint_upper", "mos")]
        cells += [
            with_interval(lambda values: float(np.median(values)), delta),
            with_interval(median_share, delta, score),
            with_interval(floor_of, *joint, repeats=200),
        ]
    return cells


def main() -> None:
    """Run what is missing and print the table as Markdown."""
    run_all()
    runs = find_runs()
    header = ["defense", "seed", "SROCC", "PLCC", "sd of scores"]
    for radius in RADII:
        header += [f"delta at {radius}", f"delta / sd at {radius}", f"certified SROCC at {radius}"]
    lines = [header, ["---"] * len(header)]
    lines.append(row("undefended", "-", read_records(runs["ms", SEEDS[0]]), undefended=True))
    lines += [row(name, seed, read_records(runs[name, seed])) for name in DEFENSES for seed in SEEDS]
    print("\n".join("| " + " | ".join(line) + " |" for line in lines))


if __name__ == "__main__":
    main()
