"""What a purifier undoes, against arithmetic by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import rankdata

from certiqa.errors import UserError
from certiqa.evaluation import purification_gains, purification_sroccs, quality_score
from certiqa.evaluation.attacked import purification_figures
from certiqa.metrics import FrozenMetric

C, A, DC, DA = [10.0, 50.0, -20.0], [30.0, 90.0, 20.0], [12.0, 45.0, -25.0], [15.0, 55.0, -10.0]
MOS = [3.0, 4.0, 1.0]


def spearman(first, second):
    """Pearson's correlation of average ranks, written out."""
    x, y = rankdata(first), rankdata(second)
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / math.sqrt((x**2).sum() * (y**2).sum()))


def test_gains_by_hand():
    found = purification_gains(C, A, DC, DA, score_range=(-50, 150))
    assert found == pytest.approx(
        {
            "nonpurified_abs_gain": (20 + 40 + 40) / 3 / 200,
            "nonpurified_rel_gain": (20 / 10 + 40 / 50 + 40 / 20) / 3,
            "robust_abs_gain": (5 + 5 + 10) / 3 / 200,
            "robust_rel_gain": (5 / 10 + 5 / 50 + 10 / 20) / 3,
            "both_defended_abs_gain": (3 + 10 + 15) / 3 / 200,
            "both_defended_rel_gain": (3 / 12 + 10 / 45 + 15 / 25) / 3,
        },
        rel=1e-5,
    )
    assert purification_gains(C, A, DC, DA)["robust_abs_gain"] == pytest.approx(20 / 3), "native units"
    same = purification_gains(C, C, C, C, score_range=(0, 1))
    assert set(same.values()) == {0.0}
    assert all(math.isnan(value) for value in purification_gains([], [], [], []).values())
    mirrored = [[-value for value in column] for column in (C, A, DC, DA)]
    assert purification_gains(*mirrored, score_range=(-150, 50)) == pytest.approx(found), "sign-free"


def test_quality_of_what_is_left():
    assert quality_score([0.8, 0.6], [20.0, 40.0]) == pytest.approx((0.8 + 0.5 + 0.6 + 1.0) / 2)
    assert quality_score([1.0], [math.inf]) == pytest.approx(1 + 100 / 40), "capped"
    assert quality_score([1.0, math.nan], [40.0, 40.0]) == 2.0, "a NaN is left out"
    assert math.isnan(quality_score([], []))


def test_the_srocc_family():
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(5, 12))
    columns[0, :2] = columns[0, 2]  # ties
    found = purification_sroccs(*columns)
    names = ("clear_srocc_mos", "attacked_srocc_mos", "robust_clear_srocc_mos", "robust_attacked_srocc_mos")
    for name, column in zip(names, columns[1:], strict=True):
        assert found[name] == pytest.approx(spearman(column, columns[0]))
    assert found["robust_clear_srocc_clear"] == pytest.approx(spearman(columns[1], columns[3]))
    turned = purification_sroccs(columns[0], *-columns[1:], lower_better=True)
    assert turned == pytest.approx(found)
    constant = purification_sroccs(MOS, C, A, [1.0, 1.0, 1.0], DA)
    assert math.isnan(constant["robust_clear_srocc_mos"])
    assert not math.isnan(constant["robust_attacked_srocc_mos"])


def records(**more):
    columns = {"score_clean": C, "score_attacked_undefended": A, "score": DC, "score_attacked": DA, "mos": MOS}
    empty = {f"{name}_purified{ending}": [np.nan] * 3 for name in ("ssim", "psnr") for ending in ("", "_clean")}
    return pd.DataFrame({**columns, **empty, **more})


def test_from_records_to_figures():
    metric = FrozenMetric(torch.nn.Identity(), name="m", score_range=(-50, 150))
    figures = purification_figures(records(), metric)
    assert figures.items() >= purification_gains(C, A, DC, DA, score_range=(-50, 150)).items()
    assert figures.items() >= purification_sroccs(MOS, C, A, DC, DA).items()
    assert "purified_quality" not in figures, "images of another size are not compared"
    kept = purification_figures(records(ssim_purified=[0.5] * 3, psnr_purified=[20.0] * 3), metric)
    assert kept["purified_quality"] == pytest.approx(1.0)
    assert purification_figures(records(score=C, score_attacked=A), metric) == {}, "nothing defends"
    unscored = purification_figures(records(mos=[np.nan] * 3), metric)
    assert "robust_abs_gain" in unscored
    assert "clear_srocc_mos" not in unscored


def test_bad_input_is_named():
    with pytest.raises(UserError, match=r"one length, got \(3,\), \(3,\), \(3,\), \(2,\)"):
        purification_gains(C, A, DC, [1, 2])
    with pytest.raises(UserError, match="low < high"):
        purification_gains(C, A, DC, DA, score_range=(1, 1))
