"""From the records of attacks to the flat numbers of ``summary.json``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from certiqa.evaluation import measures
from certiqa.evaluation.measures import mean_interval
from certiqa.evaluation.purification import purification_gains, purification_sroccs, quality_score
from certiqa.evaluation.ranking import ranking_figures
from certiqa.evaluation.record_lines import NO_ATTACK
from certiqa.evaluation.robustness import (
    absolute_gain,
    mean_absolute_change,
    neutralised,
    relative_gain,
    relative_gain_of_range,
    robustness_score,
    score_distance,
)
from certiqa.evaluation.scale import Range, score_to_mos
from certiqa.metrics import QualityMetric

GRADIENTS = {
    "gradient_zero": "the gradient was zero for {} (masked, or at a flat spot); a black-box attack may do better",
    "gradient_exploding": "the gradient explodes for {}, so that its direction says little",
    "gradient_not_finite": "a gradient or score on the way was not finite for {}; it counted as zero, and they are in "
    "the figures",
}
"""Columns that say what was wrong with an image's gradients, and the warning of it: they take no image out."""
MEASURED = (
    *("score_unrounded", "score_noise", "score_attacked_undefended"),
    *("forward_calls", "gradient_calls", "seconds"),
    *("rise_first", "rise_last"),
    *("ssim_purified", "psnr_purified", "ssim_purified_clean", "psnr_purified_clean"),
    *("target", "set_size", "wanted"),
    *GRADIENTS,
)
"""Columns that only attacked images have.

``wanted`` is +1 where quality was to rise and -1 where it was to fall, empty for attacks on a whole set.
"""
NOTABLE = 0.02
"""Share of the range by which one attack must beat another before a reader is warned."""
WORST = "worst"
"""The suffix of each image's worst case over all attacks of a run."""


def summarise_attacks(table: pd.DataFrame, metric: QualityMetric, mos_range: Range | None = None) -> dict[str, Any]:
    """Return the figures of every attack, with its name as suffix, and of the worst case where there are several.

    Args:
        table: records as ``certiqa.evaluation.records.to_table`` returns them.
        metric: the defended metric; gives the range and the direction.
        mos_range: scale (low, high) of the opinion scores, which count as they are: higher = better.

    Returns:
        flat keys ``attack_<figure>_<attack>``, ``attacks`` (their names) and ``attack_warnings``. ``num_failed`` counts
        the images without a finite score, which are left out of the other figures. Attacks on a whole set have the
        figures of ``certiqa.evaluation.ranking.ranking_figures`` too.
    """
    attacked = table[table["attack"] != NO_ATTACK]
    attacked = attacked.reindex(columns=[*table.columns, *(name for name in MEASURED if name not in table.columns)])
    if attacked.empty:
        return {}
    names = sorted(attacked["attack"].unique())
    summary: dict[str, Any] = {"attacks": names, "attack_warnings": []}
    for name in names:
        rows = attacked[attacked["attack"] == name]
        good = scored(rows)
        figures = attack_figures(good, metric) | {"num_failed": len(rows) - len(good)}
        if rows["set_size"].notna().any():
            figures |= set_figures(good, metric, mos_range)
        summary |= {f"attack_{key}_{name}": value for key, value in figures.items()}
        summary["attack_warnings"] += warnings_of(name, figures) + gradient_warnings(name, rows)
    summary["attack_warnings"] += sibling_warnings({name: figures_of(summary, name) for name in names})
    if len(names) > 1:
        worst = worst_case(scored(attacked), metric.quality_sign)
        summary |= {f"attack_{key}_{WORST}": value for key, value in attack_figures(worst, metric).items()}
    return summary


def scored(attacked: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of attacked images whose defended scores, clean and attacked, are finite: those that count."""
    finite = np.isfinite(attacked[["score", "score_attacked"]].to_numpy(float)).all(axis=1)
    return attacked.loc[finite]


def worst_case(attacked: pd.DataFrame, quality_sign: int) -> pd.DataFrame:
    """Return for every image the row of the attack that moved its defended score furthest the way it was to go.

    An attack that moved a score the wrong way did no harm, however far. What has no way to go, an attack on a whole set
    or a record from before ``wanted`` was kept, counts by the size of the change.

    Args:
        attacked: rows of ``scored``, with "image_id", of all attacks.
        quality_sign: of the metric: -1 where lower scores are better.
    """
    gain = quality_sign * (attacked["score_attacked"] - attacked["score"]).astype(float)
    reached = gain.abs()
    if "wanted" in attacked:
        reached = (attacked["wanted"].astype(float) * gain).fillna(reached)
    order = np.argsort(-reached.to_numpy(), kind="stable")
    return attacked.iloc[order].drop_duplicates("image_id").sort_values("image_id")


def attack_figures(rows: pd.DataFrame, metric: QualityMetric) -> dict[str, Any]:
    """Return the figures of one attack on images that it did not fail on."""
    figures: dict[str, Any] = {"num_images": len(rows)}
    if rows.empty:
        return figures
    clean, attacked = rows["score"].to_numpy(float), rows["score_attacked"].to_numpy(float)
    sign = metric.quality_sign
    figures |= correlations(rows, sign * clean, sign * attacked)
    for name in ("linf", "l2", "psnr", "ssim"):
        figures[f"{name}_mean"] = float(rows[name].astype(float).mean())
    figures["l2_max"] = float(rows["l2"].astype(float).max())
    for name in ("forward_calls", "gradient_calls", "seconds"):
        figures[name] = float(rows[name].astype(float).mean())
    if rows["rise_first"].notna().any():
        figures |= {name: float(rows[name].astype(float).mean()) for name in ("rise_first", "rise_last")}
    figures |= purification_figures(rows, metric)
    width = metric.range_width
    figures["gain_native"] = float((sign * (attacked - clean)).mean())
    if metric.score_range is None or not width:
        return figures
    scale, lower = metric.score_range, metric.lower_better
    gain = absolute_gain(clean, attacked, score_range=scale, lower_better=lower)
    figures["gain"] = float(gain.mean())
    figures["gain_low"], figures["gain_high"] = mean_interval(gain)
    relative = relative_gain(clean, attacked, score_range=scale, lower_better=lower)
    figures["relative_gain"] = float(relative.mean())
    figures["relative_gain_low"], figures["relative_gain_high"] = mean_interval(relative)
    robustness = robustness_score(clean, attacked, score_range=scale)
    figures["robustness_score"] = float(robustness.mean())
    figures["robustness_score_low"], figures["robustness_score_high"] = mean_interval(robustness)
    figures["gain_of_range"] = float(relative_gain_of_range(clean, attacked, score_range=scale).mean())
    figures["mae"] = mean_absolute_change(clean, attacked, score_range=scale)
    for kind in ("wasserstein", "energy"):
        figures[kind] = score_distance(clean, attacked, score_range=scale, lower_better=lower, kind=kind)
    noise = absolute_gain(clean, rows["score_noise"].to_numpy(float), score_range=scale, lower_better=lower)
    figures["gain_of_noise"] = float(noise.mean())
    figures["gain_unrounded"] = float(
        absolute_gain(clean, rows["score_unrounded"].to_numpy(float), score_range=scale, lower_better=lower).mean()
    )
    undefended = rows["score_attacked_undefended"].to_numpy(float)
    figures["neutralised"] = neutralised(clean, attacked, rows["score_clean"].to_numpy(float), undefended)
    return figures


def purification_figures(rows: pd.DataFrame, metric: QualityMetric) -> dict[str, float]:
    """Return what a defense undoes of an attack, where scores with and without it are known; none without a defense.

    The images themselves are compared (``purified_quality`` of attacked, ``purified_quality_clean`` of clear ones)
    where all of the defense is purifiers, and they keep the size.
    """
    columns = ("score_clean", "score_attacked_undefended", "score", "score_attacked")
    rows = rows[rows[list(columns)].notna().all(axis=1)]
    scores = [rows[name].to_numpy(float) for name in columns]
    if rows.empty or np.array_equal(scores[0], scores[2]):
        return {}
    figures = purification_gains(*scores, score_range=metric.score_range)
    mos = rows["mos"].to_numpy(float)
    if not np.isnan(mos).any():
        figures |= purification_sroccs(mos, *scores, lower_better=metric.lower_better)
    for ending in ("", "_clean"):
        ssim, psnr = (rows[f"{name}_purified{ending}"].astype(float) for name in ("ssim", "psnr"))
        if ssim.notna().any():
            figures[f"purified_quality{ending}"] = quality_score(ssim.to_numpy(), psnr.to_numpy())
    return figures


def set_figures(rows: pd.DataFrame, metric: QualityMetric, mos_range: Range | None) -> dict[str, Any]:
    """Return what an attack on a whole set did to its ranking, and how far noise of equal norm moves scores."""
    figures: dict[str, Any] = {"set_size": len(rows)}
    if len(rows) < 3:
        return figures
    sign = metric.quality_sign
    clean, attacked, unrounded = (
        sign * rows[name].to_numpy(float) for name in ("score", "score_attacked", "score_unrounded")
    )
    mos = rows["mos"].to_numpy(float)
    mapped = score_to_mos(metric, mos_range)
    to_mos = None if mapped is None else (lambda values: mapped(sign * values))
    figures |= ranking_figures(clean, attacked, unrounded, None if np.isnan(mos).any() else mos, to_mos)
    if rows["target"].notna().all():
        figures["distance_to_target"] = float((rows["score_attacked"] - rows["target"]).abs().mean())
    if metric.score_range is not None and metric.range_width:
        noise = rows["score_noise"].to_numpy(float)
        figures["mae_of_noise"] = mean_absolute_change(sign * clean, noise, score_range=metric.score_range)
    return figures


def correlations(rows: pd.DataFrame, clean: np.ndarray, attacked: np.ndarray) -> dict[str, float]:
    """Return SROCC, PLCC and KROCC with the opinion scores before and after, where there are opinion scores."""
    mos = rows["mos"].to_numpy(float)
    if np.isnan(mos).any():
        return {}
    found = {}
    for name in ("srocc", "plcc", "krocc"):
        function = getattr(measures, name)
        found[f"{name}_before"] = function(clean, mos)
        found[name] = function(attacked, mos)
    return found


def warnings_of(name: str, figures: dict[str, Any]) -> list[str]:
    """Return what speaks against taking an attack's figures for the worst that can happen."""
    found = []
    gain, noise = figures.get("gain"), figures.get("gain_of_noise")
    if "set_size" in figures:  # some scores rise and others fall, so that their mean change says nothing
        gain, noise = figures.get("mae"), figures.get("mae_of_noise")
    if gain is not None and noise is not None and abs(gain) <= abs(noise):
        found.append(f"{name} moves scores by no more than noise of the same norm: it is masked, or too weak")
    if figures["num_failed"]:
        found.append(f"{name}: {figures['num_failed']} images have no finite score, they are left out of its figures")
    first, last = figures.get("rise_first"), figures.get("rise_last")
    ranged = figures.get("gain") is not None  # without a range an objective is in the metric's own units
    if first is not None and last is not None and last < first - NOTABLE * (1 if ranged else abs(first)):
        unit = "of the range" if ranged else "score units"
        found.append(
            f"{name}: more steps do not help, its objective had risen by {first:.3f} {unit} after the first step "
            f"and by {last:.3f} before the last: gradients are noisy or masked; try more attack.eot_samples, smaller "
            "steps, or another defense.backward"
        )
    return found


def gradient_warnings(name: str, rows: pd.DataFrame) -> list[str]:
    """Return on how many images an attack's gradients were not what it needs, which its figures do not show."""
    flags = rows[[*GRADIENTS]].eq(True)
    # earlier runs kept such an image as failed, with the score that it got
    flags["gradient_not_finite"] |= rows["failure"].notna() & rows.index.isin(scored(rows).index)
    return [
        f"{name}: {text.format(f'{flags[flag].sum()} of {len(rows)} images')}"
        for flag, text in GRADIENTS.items()
        if flags[flag].any()
    ]


def figures_of(summary: dict[str, Any], name: str) -> dict[str, float]:
    """Return the figures of an attack that siblings are compared by, those that it has."""
    wanted = ("mae", "linf_mean", "gradient_calls", "forward_calls")
    return {key: summary[f"attack_{key}_{name}"] for key in wanted if f"attack_{key}_{name}" in summary}


def sibling_warnings(attacks: dict[str, dict[str, float]]) -> list[str]:
    """Return which attacks do worse than a weaker sibling at no larger l_inf, which speaks for masked gradients.

    Args:
        attacks: name -> figures of ``figures_of``; ``mae`` is the mean absolute change, as a share of the range.
    """
    complete = {name: figures for name, figures in attacks.items() if len(figures) == 4}
    found = []
    for name, white in complete.items():
        if white["gradient_calls"] == 0:
            continue
        for other, sibling in complete.items():
            black_box = sibling["gradient_calls"] == 0 and sibling["forward_calls"] > 1
            fewer_steps = 0 < sibling["gradient_calls"] < white["gradient_calls"]
            same_budget = abs(sibling["linf_mean"] / white["linf_mean"] - 1) <= 0.05 if white["linf_mean"] else False
            if not (same_budget and sibling["mae"] > white["mae"] + NOTABLE):
                continue
            if black_box:
                found.append(
                    f"{other}, which sees scores alone, moves them more than {name} at the same l_inf "
                    f"({sibling['mae']:.3f} against {white['mae']:.3f} of the range): gradients are masked"
                )
            elif fewer_steps:
                found.append(
                    f"{other} moves scores more than {name} with more gradients at the same l_inf "
                    f"({sibling['mae']:.3f} against {white['mae']:.3f} of the range): more steps do not help"
                )
    return found
