"""From the records of a study to one row per purifier, strength, attack and aim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from certiqa.evaluation import absolute_gain, mean_interval
from certiqa.evaluation.purification import purification_gains, purification_sroccs, quality_score
from certiqa.metrics import QualityMetric

KEYS = ["purifier", "strength", "attack", "aim"]
CRITERION = "robust_abs_gain"


def study_figures(records: pd.DataFrame, metric: QualityMetric, *, mos_lower_better: bool = False) -> pd.DataFrame:
    """Return the measures of every part of a study.

    Args:
        records: of ``certiqa.studies.PurificationStudy.run``.
        metric: the undefended metric; gives range and direction.
        mos_lower_better: opinion scores where lower is better, as a DMOS; 1 is perfect agreement then, too.

    Returns:
        the columns of ``purification_gains`` and ``purification_sroccs``,
        ``quality_score``, ``gain`` and ``gain_low`` to ``gain_high``: the mean signed gain of the attack against the
        defended metric (share of the range) with a 95 % t interval, and ``num_images``, those without a NaN.
    """
    rows = []
    for key, part in records.groupby(KEYS, sort=False):
        scores = ["score_clean", "score_attacked_undefended", "score", "score_attacked"]
        good = part[part[scores].notna().all(axis=1)]
        clear, attacked, defended, defended_attacked = (good[name].to_numpy(float) for name in scores)
        row: dict[str, Any] = {**dict(zip(KEYS, key, strict=True)), "num_images": len(good)}
        row |= purification_gains(clear, attacked, defended, defended_attacked, score_range=metric.score_range)
        row["quality_score"] = quality_score(good["ssim"].to_numpy(float), good["psnr"].to_numpy(float))
        if len(good) > 2:
            columns = (clear, attacked, defended, defended_attacked)
            mos = (-1 if mos_lower_better else 1) * good["mos"].to_numpy(float)
            row |= purification_sroccs(None if np.isnan(mos).any() else mos, *columns, lower_better=metric.lower_better)
        if metric.score_range is not None and len(good) > 1:
            gain = absolute_gain(
                defended, defended_attacked, score_range=metric.score_range, lower_better=metric.lower_better
            )
            row["gain"] = float(gain.mean())
            row["gain_low"], row["gain_high"] = mean_interval(gain)
        rows.append(row)
    return pd.DataFrame(rows)


def best_strengths(figures: pd.DataFrame, criterion: str = CRITERION) -> dict[str, str]:
    """Return the strength of each purifier whose attacked scores stay nearest to the clear undefended ones.

    The mean of ``criterion`` over the adaptive parts decides, over all attacked parts where none is adaptive. The
    choice is made on the images that are shown, so it flatters every purifier with several strengths.
    """
    attacked = figures[figures["attack"] != "none"]
    adaptive = attacked[attacked["aim"] == "adaptive"]
    chosen = adaptive if len(adaptive) else attacked
    means = chosen.groupby(["purifier", "strength"], sort=False)[criterion].mean()
    return {str(name): str(part.droplevel(0).idxmin()) for name, part in means.groupby(level=0, sort=False)}
