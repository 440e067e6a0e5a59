"""Which run is best, and from which of the others it cannot be told apart: a paired bootstrap over common images.

Images made from one pristine photograph are alike, and a metric's errors on them too. Where images have a reference,
references are drawn, each with all its images (the cluster bootstrap; Field and Welsh, "Bootstrapping clustered data",
JRSS B 69, 2007): drawing images as if they were independent makes intervals too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from certiqa.evaluation.attacked import worst_case
from certiqa.reports.comparison.columns import Spread, Table, attack_identity
from certiqa.reports.comparison.gather import ComparedRun
from certiqa.reports.tables import value_of

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
Statistic = Callable[[Array], Array]
BEST, LEVEL, DIFFERENT, UNTESTED, PROVEN = "best", "level", "different", "untested", "proven"
"""Marks of a cell: the best of its block; not told apart from it; told apart; no test possible; a proven floor less
than the best one, which is no estimate and needs no test."""
FEWEST = 5  # references in common, or images without one, below which nothing is tested
CHUNK = 2_000_000  # numbers resampled at once
LEVEL_OF_TEST = 0.95


@dataclass(frozen=True)
class Difference:
    """The better run's figure minus the other's over ``num_images`` common images, with its bootstrap interval."""

    value: float
    low: float
    high: float
    num_images: int

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return not self.low <= 0 <= self.high


def paired_bootstrap(
    statistic: Statistic,
    first: Array,
    second: Array,
    *,
    references: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """Return ``statistic(first) - statistic(second)`` with its 95 % percentile interval over images.

    The same images are drawn for both (with replacement), so what makes an image hard for both cancels.

    Args:
        statistic: takes ``(B, N, C)``, B resamples of N images with C columns, returns ``(B,)``.
        first: ``(N, C)``, a row for each image.
        second: ``(N, C)``, row i being the image of row i of ``first``.
        references: what each image was made from, ``(N,)``: these are drawn, each with all its images. None draws
            images.
        resamples: number of resamples.
        seed: of the resampling.
    """
    size = len(first)
    units = np.arange(size) if references is None else np.unique(np.asarray(references), return_inverse=True)[1]
    found = [
        _minus(statistic(first[rows]), statistic(second[rows]))
        for rows in resampled(units, resamples, seed, most=max(1, CHUNK // max(1, first.shape[1])))
    ]
    values = np.concatenate(found)
    values = values[~np.isnan(values)]
    tail = (1 - LEVEL_OF_TEST) / 2
    # without interpolation, since deltas of abstained images are infinite
    low = float(np.quantile(values, tail, method="lower")) if values.size else np.nan
    high = float(np.quantile(values, 1 - tail, method="higher")) if values.size else np.nan
    return Difference(float(_minus(statistic(first[None]), statistic(second[None]))[0]), low, high, size)


def resampled(units: Rows, resamples: int, seed: int, most: int = CHUNK) -> Iterator[Rows]:
    """Yield resamples of rows as index arrays ``(B, n)`` of at most ``most`` numbers.

    Args:
        units: ``(N,)``, the number of the unit that each row belongs to, from 0. Units are drawn with replacement, as
            many as there are, each with all its rows; where their sizes differ so do the lengths n.
        resamples: number of resamples altogether.
        seed: of the draws.
    """
    order, sizes = np.argsort(units, kind="stable"), np.bincount(units)
    starts = np.cumsum(sizes) - sizes
    drawn = np.random.default_rng(seed).integers(0, len(sizes), (resamples, len(sizes)))
    lengths = sizes[drawn].sum(axis=1)
    for length in np.unique(lengths):
        alike = drawn[lengths == length]
        for some in np.array_split(alike, -(-alike.shape[0] * int(length) // most)):
            flat, each = some.ravel(), sizes[some.ravel()]
            # the k-th row of every unit drawn: where its rows start, plus 0, 1, 2, ...
            within = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
            yield order[np.repeat(starts[flat], each) + within].reshape(len(some), -1)


def _minus(first: Array, second: Array) -> Array:
    """Subtract; two equal infinities (both abstain) do not differ."""
    with np.errstate(invalid="ignore"):
        return np.where(first == second, 0.0, first - second)


def pearson_of(columns: Array) -> Array:
    """Return Pearson's correlation ``(B,)`` of the two columns ``(B, N, 2)``; NaN where one is constant."""
    x, y = (columns[..., i] - columns[..., i].mean(axis=1, keepdims=True) for i in (0, 1))
    norm = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(norm > 0, (x * y).sum(axis=1) / norm, np.nan)


def spearman_of(columns: Array) -> Array:
    """Return Spearman's correlation ``(B,)`` of the two columns ``(B, N, 2)``, average ranks for ties."""
    return pearson_of(stats.rankdata(columns, axis=1))


def median_of(columns: Array) -> Array:
    """Return minus the median ``(B,)``, so that more is better."""
    with np.errstate(invalid="ignore"):
        return -np.median(columns[..., 0], axis=1)


def median_of_sd(columns: Array) -> Array:
    """Return minus the median of the first column over the deviation (ddof 1) of the second, ``(B,)``."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return -np.median(columns[..., 0], axis=1) / np.std(columns[..., 1], axis=1, ddof=1)


def gain_of(columns: Array) -> Array:
    """Return minus the size of the mean gain ``(B,)``, so that more is better."""
    return -np.abs(columns[..., 0].mean(axis=1))


def correlated(run: ComparedRun, radius: float | None) -> pd.DataFrame:
    """Return score and opinion score per image, both with higher = better."""
    rows = run.clean[~run.clean.index.duplicated()]
    turned = -1 if run.summary.get("mos_lower_better") else 1
    return pd.DataFrame({"score": run.quality_sign * rows["score"].astype(float), "mos": turned * rows["mos"]})


def deltas(run: ComparedRun, radius: float | None) -> pd.DataFrame:
    """Return certified delta and score per image at the radius, as shares of the range where there is one."""
    rows = run.clean[np.isclose(run.clean["radius"].astype(float), np.nan if radius is None else radius)]
    score, lower, upper = (rows[name].astype(float) for name in ("score", "lower", "upper"))
    width = width_of(run)
    return pd.DataFrame({"delta": np.maximum(upper - score, score - lower) / width, "score": score / width})


def gains(run: ComparedRun, radius: float | None) -> pd.DataFrame:
    """Return the signed gain per image as a share of the range, of the worst attack where there are several."""
    rows = worst_case(run.attacked.reset_index(), run.quality_sign).set_index("image_id")
    gain = run.quality_sign * (rows["score_attacked"].astype(float) - rows["score"].astype(float)) / width_of(run)
    return pd.DataFrame({"gain": gain})


def width_of(run: ComparedRun) -> float:
    """Return the width of the metric's range, 1 where it has none."""
    ends = run.score_range
    return 1.0 if ends is None else ends[1] - ends[0]


Reader = Callable[[ComparedRun, float | None], pd.DataFrame]
TESTS: dict[str, tuple[Reader, Statistic]] = {
    "srocc": (correlated, spearman_of),
    "plcc": (correlated, pearson_of),
    "delta": (deltas, median_of),
    "delta_range": (deltas, median_of),
    "delta_sd": (deltas, median_of_sd),
    "gain": (gains, gain_of),
}
"""The columns that are tested: what is read of a run, and the statistic, of which more is better."""


def block_of(run: ComparedRun) -> tuple[object, ...]:
    """Return what runs must share to be ranked: data set, metric, and the images scored."""
    return (*(str(run.summary.get(key)) for key in ("data", "metric", "data_fingerprint", "num_images")), run.images)


def rivals(table: Table, key: str) -> list[list[int]]:
    """Return the groups of rows that are ranked by a column; a group of one has no best."""
    groups: dict[object, list[int]] = {}
    for number, (run, row) in enumerate(zip(table.runs, table.rows, strict=True)):
        value = row.get(key)
        if not run.finished or run.random_weights or run.bare or not isinstance(value, int | float):
            continue
        group: tuple[object, ...] = block_of(run)
        if key in ("delta", "delta_range", "delta_sd", "certified_srocc"):
            name = "joint_confidence" if key == "certified_srocc" else "confidence"
            group += (value_of(run.summary, name),)
        if key == "gain" and two_sided(run):
            continue
        if key == "gain":
            group += (attack_identity(run),)
        groups.setdefault(group, []).append(number)
    return [group for group in groups.values() if len(group) > 1]


def two_sided(run: ComparedRun) -> bool:
    """Return whether an attack moved some scores up and others down, so that its mean gain says nothing."""
    return run.identity.get("attack.direction") == "away" or any(
        key.startswith("attack_set_size_") for key in run.summary
    )


def marks_of(table: Table, *, resamples: int = 1000, seed: int = 0) -> dict[tuple[int, str], str]:
    """Return the mark of each ranked cell, by (row, column).

    Within a block (same data set, images and metric; for certificates the same confidence; for gains the same attack
    with the same settings) the best value is marked, and each other one by whether the 95 % paired bootstrap interval
    of its difference to the best, over the references of the images both runs have, leaves out zero. Not ranked: the
    metric without a defense, runs that did not finish, runs with random weights. A certified SROCC is a proven floor
    for these images, not an estimate, and is not tested.
    """
    marks: dict[tuple[int, str], str] = {}
    for column in table.columns:
        if not column.best:
            continue
        for group in rivals(table, column.key):
            marks |= _group_marks(table, column.key, column.best, group, resamples, seed)
    return marks


def best_marks(table: Table) -> dict[tuple[int, str], str]:
    """Return the best cells of rows over the same seeds and images, by (row, column): nothing is tested."""
    marks: dict[tuple[int, str], str] = {}
    for column in table.columns:
        for group in rivals(table, column.key) if column.best else ():
            for over in {table.rows[number].get("over") for number in group}:
                same = [number for number in group if table.rows[number].get("over") == over]
                if len(same) > 1:
                    marks |= {(number, column.key): BEST for number in best_of(table, column.key, column.best, same)}
    return marks


def best_of(table: Table, key: str, direction: int, group: Sequence[int]) -> list[int]:
    """Return the rows of a group with the best value of a column; none where nothing was certified."""

    def rank(number: int) -> float:
        value = table.rows[number][key]
        assert isinstance(value, int | float)
        if key == "gain":
            return -(value.size if isinstance(value, Spread) else abs(value))
        return direction * value

    top = max(rank(number) for number in group)
    return [number for number in group if rank(number) == top] if np.isfinite(top) else []


def _group_marks(
    table: Table, key: str, direction: int, group: Sequence[int], resamples: int, seed: int
) -> dict[tuple[int, str], str]:
    best = best_of(table, key, direction, group)
    marks: dict[tuple[int, str], str] = {}
    for number in group if best else ():
        if number in best:
            mark = BEST
        elif key not in TESTS:
            mark = PROVEN
        else:
            found = compare(table.runs[best[0]], table.runs[number], key, table.radius, resamples, seed)
            mark = UNTESTED if found is None else DIFFERENT if found.significant else LEVEL
        marks[number, key] = mark
    return marks


def compare(
    first: ComparedRun, second: ComparedRun, key: str, radius: float | None, resamples: int = 1000, seed: int = 0
) -> Difference | None:
    """Return the difference of two runs in a column over their common images; None where too few are common."""
    read, statistic = TESTS[key]
    if first.records.empty or second.records.empty:
        return None
    columns = [read(run, radius) for run in (first, second)]
    common = sorted(set(columns[0].index) & set(columns[1].index))
    references = [first.references.get(image) or image for image in common]
    if len(set(references)) < FEWEST:
        return None
    one, two = (table.loc[common].to_numpy(float) for table in columns)
    if np.isnan(one).any() or np.isnan(two).any():
        return None
    found = paired_bootstrap(statistic, one, two, references=references, resamples=resamples, seed=seed)
    return None if np.isnan([found.low, found.high]).any() else found


def explanation(resamples: int, seed: int) -> str:
    """Return how to read the marks."""
    return (
        "Bold: best of its block, that is the runs of one data set, set of images and metric (for certified figures at "
        "one confidence, for gains under the same attack with the same settings; of gains the least in size, none "
        "where an attack moves some scores up and others down). "
        "†: not told apart from the best one, the 95 % interval of their difference holds zero "
        f"(paired bootstrap over the images both runs have, those of one reference drawn together, {resamples} "
        f"resamples, seed {seed}, not corrected for the number of comparisons, and the best was chosen on the same "
        "images). ‡: not tested, for want of common images, references or records. Certified SROCC is a proven floor "
        "for these images, no estimate, so the highest is bold without a test. Not ranked: metrics without a defense, "
        "runs that did not finish, random weights."
    )
