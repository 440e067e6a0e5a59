"""What a set attack did to a ranking, against SciPy; and how a summary tells it."""

import numpy as np
import pytest
from scipy import stats

from certiqa.evaluation import bootstrap_interval, score_to_mos, summarise
from certiqa.evaluation.ranking import MEASURES, interval_of, ranking_figures
from certiqa.evaluation.records import to_table
from certiqa.metrics import QualityMetric

RNG = np.random.default_rng(6)
MOS = RNG.uniform(10, 90, 30)
CLEAN = MOS / 25 + 1 + RNG.normal(0, 0.3, 30)
ATTACKED = 5 - MOS / 30 + RNG.normal(0, 0.3, 30)
SMOOTH = ATTACKED + RNG.normal(0, 0.05, 30)


class Metric(QualityMetric):
    score_range = (1.0, 5.0)

    def __init__(self, lower_better=False):
        super().__init__()
        self.lower_better = lower_better


def test_every_measure_against_scipy():
    to_mos = score_to_mos(Metric(), (0.0, 100.0))
    figures = ranking_figures(CLEAN, ATTACKED, SMOOTH, MOS, to_mos)
    functions = {"srocc": stats.spearmanr, "krocc": stats.kendalltau, "plcc": stats.pearsonr}
    for name, function in functions.items():
        assert figures[f"{name}_with_mos"] == pytest.approx(function(ATTACKED, MOS).statistic)
        assert figures[f"{name}_with_mos_before"] == pytest.approx(function(CLEAN, MOS).statistic)
        assert figures[f"{name}_with_clean"] == pytest.approx(function(ATTACKED, CLEAN).statistic)
        assert figures[f"{name}_with_clean_unrounded"] == pytest.approx(function(SMOOTH, CLEAN).statistic)
    assert figures["mae_with_clean"] == pytest.approx(np.abs(ATTACKED - CLEAN).mean())
    assert figures["rmse_with_mos"] == pytest.approx(np.sqrt(np.mean((25 * (ATTACKED - 1) - MOS) ** 2)))
    for name in ("srocc", "krocc", "plcc", "rmse", "mae"):
        for kind in ("mos", "clean"):
            key = f"{name}_with_{kind}"
            assert figures[f"{key}_low"] < figures[key] < figures[f"{key}_high"]


@pytest.mark.parametrize("name", MEASURES)
def test_intervals_are_those_of_the_plain_bootstrap(name):
    tied = CLEAN.round(1)
    plain = bootstrap_interval(MEASURES[name], tied, MOS.round(0))
    assert interval_of(name, tied, MOS.round(0)) == pytest.approx(plain)


def test_without_opinion_scores_or_their_scale():
    assert not [key for key in ranking_figures(CLEAN, ATTACKED, SMOOTH) if "mos" in key]
    figures = ranking_figures(CLEAN, ATTACKED, SMOOTH, MOS)
    assert "srocc_with_mos" in figures
    assert "mae_with_mos" not in figures


def records(sign, mos, noise=0.0):
    rows = []
    for i in range(30):
        facts = {"image_id": f"{i}.png", "mos": mos[i], "score_clean": sign * CLEAN[i], "score": sign * CLEAN[i]}
        rows.append({**facts, "attack": "none"})
        attacked = {"score_attacked": ATTACKED[i], "score_unrounded": SMOOTH[i], "target": ATTACKED[i] + 0.01}
        attacked |= {"score_noise": CLEAN[i] + noise, "score_attacked_undefended": ATTACKED[i]}
        more = dict.fromkeys(("linf", "l2", "psnr", "ssim", "forward_calls", "gradient_calls", "seconds"), 1.0)
        rows.append({**facts, **{k: sign * v for k, v in attacked.items()}, **more, "attack": "sma", "set_size": 30})
    return to_table(rows)


def test_a_summary_is_the_same_whatever_way_scores_and_opinions_point():
    first = summarise(records(1, MOS), Metric(), None, mos_range=(0.0, 100.0))
    dmos = summarise(records(1, 100 - MOS), Metric(), None, mos_range=(0.0, 100.0), mos_lower_better=True)
    for key in ("srocc_with_mos", "srocc_with_mos_low", "mae_with_mos", "krocc_with_clean", "srocc", "srocc_before"):
        assert dmos[f"attack_{key}_sma"] == pytest.approx(first[f"attack_{key}_sma"])
    assert first["attack_srocc_with_mos_sma"] == pytest.approx(stats.spearmanr(ATTACKED, MOS).statistic)
    turned = Metric(lower_better=True)
    turned.score_range = (-5.0, -1.0)
    other = summarise(records(-1, MOS), turned, None, mos_range=(0.0, 100.0))
    for key in ("srocc_with_mos", "mae_with_mos", "rmse_with_clean", "krocc_with_clean_high"):
        assert other[f"attack_{key}_sma"] == pytest.approx(first[f"attack_{key}_sma"])
    assert first["attack_distance_to_target_sma"] == pytest.approx(0.01)


def test_a_set_attack_is_held_against_noise_by_its_mean_absolute_change():
    assert not summarise(records(1, MOS), Metric(), None)["attack_warnings"]
    loud = summarise(records(1, MOS, noise=4.0), Metric(), None)["attack_warnings"]
    assert any("sma moves scores by no more than noise" in warning for warning in loud)
