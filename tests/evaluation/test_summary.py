"""The summary's figures, recomputed from a small table."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from certiqa.certification import certified_mse, certified_srocc, worst_krocc, worst_plcc, worst_srocc
from certiqa.evaluation import measures, read_summary, summarise, write_summary
from certiqa.evaluation.records import to_table
from certiqa.metrics import QualityMetric

MOS = np.array([1.2, 2.1, 2.0, 3.7, 4.4, 3.1])
CLEAN = np.array([1.5, 2.0, 2.4, 3.6, 4.6, 2.9])
SCORE = np.array([2.2, 2.0, 2.5, 3.0, 3.4, 3.1])
RADII = (0.03, 0.06)
BELOW, ABOVE = np.array([0.02, 0.01, 0.04, 0.03, 0.02, 0.06]), np.array([0.03, 0.02, 0.01, 0.03, 0.05, 0.02])


class Metric(QualityMetric):
    score_range = (1.0, 5.0)

    def __init__(self, lower_better=False, hard_bounds=None):
        super().__init__()
        self.lower_better = lower_better
        self.hard_bounds = hard_bounds


def make_table(abstain=(), certified=True, joint=True):
    """Records of six images at two radii; the second radius doubles the widths."""
    rows = []
    for i in range(6):
        facts = {"image_id": f"{i}.png", "attack": "none", "mos": MOS[i]}
        facts |= {"score_clean": CLEAN[i], "score": SCORE[i]}
        if not certified:
            rows.append(facts)
            continue
        for scale, radius in enumerate(RADII, start=1):
            below, above = scale * BELOW[i], scale * ABOVE[i]
            ends = {
                "lower": -math.inf if (i, radius) in abstain else SCORE[i] - below,
                "upper": SCORE[i] + above,
                "joint_lower": -math.inf if (i, radius) in abstain else SCORE[i] - 2 * below,
                "joint_upper": SCORE[i] + 2 * above,
            }
            if not joint:
                ends |= {"joint_lower": None, "joint_upper": None}
            rows.append({**facts, **ends, "radius": radius, "joint_confidence": 0.95 if joint else None})
    attacked = {"image_id": "0.png", "attack": "ifgsm", "mos": 1.2, "score": 99.0, "radius": 0.03}
    return to_table([*rows, attacked])


def test_figures_equal_those_by_hand():
    summary = summarise(make_table(), Metric(), 0.03, mos_range=(1.0, 5.0))
    assert summary["num_images"] == 6
    assert summary["srocc"] == pytest.approx(stats.spearmanr(SCORE, MOS).statistic)
    assert summary["plcc"] == pytest.approx(stats.pearsonr(SCORE, MOS).statistic)
    assert summary["krocc"] == pytest.approx(stats.kendalltau(SCORE, MOS).statistic)
    assert summary["rmse"] == pytest.approx(np.sqrt(np.mean((SCORE - MOS) ** 2)))
    assert summary["plcc_logistic"] >= summary["plcc"] - 1e-9
    assert summary["srocc_undefended"] == pytest.approx(stats.spearmanr(CLEAN, MOS).statistic)
    assert summary["plcc_undefended"] == pytest.approx(stats.pearsonr(CLEAN, MOS).statistic)
    assert summary["tau_srocc"] == pytest.approx(summary["srocc_undefended"] - summary["srocc"])
    assert summary["tau_plcc"] == pytest.approx(summary["plcc_undefended"] - summary["plcc"])
    assert summary["score_sd"] == pytest.approx(SCORE.std(ddof=1))
    assert summary["score_sd_undefended"] == pytest.approx(CLEAN.std(ddof=1))
    # deltas are .03 .02 .04 .03 .05 .06, half-widths .025 .015 .025 .03 .035 .04
    assert summary["certified_radius"] == 0.03
    assert summary["certified_delta_mean"] == pytest.approx(0.23 / 6)
    assert summary["certified_delta_mean_certified"] == pytest.approx(0.23 / 6)
    assert summary["certified_delta_median"] == pytest.approx(0.035)
    assert summary["certified_delta_range_share"] == pytest.approx(0.035 / 4)
    assert summary["certified_delta_sd_share"] == pytest.approx(0.035 / SCORE.std(ddof=1))
    assert summary["certified_half_width_median"] == pytest.approx(0.0275)
    assert summary["abstention_rate"] == 0
    assert summary["joint_confidence"] == 0.95


def test_set_guarantees_come_from_the_joint_intervals():
    summary = summarise(make_table(), Metric(), 0.03, mos_range=(1.0, 5.0))
    low, high = SCORE - 2 * BELOW, SCORE + 2 * ABOVE
    assert summary["certified_srocc"] == pytest.approx(certified_srocc(low, high, MOS))
    assert summary["certified_mse"] == pytest.approx(certified_mse(low, high, MOS))
    for name in ("srocc", "krocc", "plcc"):
        assert summary[f"certified_{name}_r0.06"] <= summary[f"certified_{name}"] <= summary[name] + 1e-12
        assert summary[f"certified_{name}"] > 0.3  # and they say something
        assert summary[f"certified_{name}"] <= summary[f"worst_found_{name}"] + 1e-9
    for name, search in (("srocc", worst_srocc), ("krocc", worst_krocc), ("plcc", worst_plcc)):
        assert summary[f"worst_found_{name}"] == pytest.approx(search(low, high, MOS).value)
        assert summary[f"worst_found_{name}_r0.06"] <= summary[name]
    assert summary["worst_found_plcc_r0.06"] < summary["worst_found_plcc"] < summary["plcc"]
    assert summary["certified_mse_r0.06"] > summary["certified_mse"] >= summary["rmse"] ** 2
    without = summarise(make_table(joint=False), Metric(), 0.03)
    assert "certified_srocc" not in without
    assert without["certified_delta_median"] == summary["certified_delta_median"]


def test_every_radius_has_its_figures_and_the_primary_ones_carry_no_suffix():
    first, second = summarise(make_table(), Metric(), 0.03), summarise(make_table(), Metric(), 0.06)
    suffixed = {key.removesuffix("_r0.03") for key in first if key.endswith("_r0.03")}
    assert suffixed == {key.removesuffix("_r0.06") for key in first if key.endswith("_r0.06")}
    assert {"certified_delta_median", "abstention_rate", "certified_srocc", "certified_mse"} <= suffixed
    for key in suffixed:
        assert first[key] == first[f"{key}_r0.03"] == second[f"{key}_r0.03"]
        assert second[key] == second[f"{key}_r0.06"]
    assert second["certified_delta_median"] == pytest.approx(2 * first["certified_delta_median"])
    assert second["certified_radius"] == 0.06


def rescaled(table, line):
    """The records of the metric whose scores are ``line`` of these; where it falls, ends change places."""
    other = table.copy()
    for name in ("score", "score_clean"):
        other[name] = line(table[name])
    for low, high in (("lower", "upper"), ("joint_lower", "joint_upper")):
        ends = line(table[low]), line(table[high])
        other[low], other[high] = np.minimum(*ends), np.maximum(*ends)
    return other


@pytest.mark.parametrize("bounds", [None, (1.0, 5.0), (0.0, 8.0)])
@pytest.mark.parametrize("abstain", [(), ((1, 0.03), (4, 0.06))])
@pytest.mark.parametrize("total", [0.0, 6.0, 100.0])
def test_a_metric_and_its_mirror_have_the_same_figures(bounds, abstain, total):
    table, mos_range = make_table(abstain=abstain), (1.0, 5.0)
    other, plain = Metric(lower_better=True), Metric(hard_bounds=bounds)
    other.score_range = (total - 5, total - 1)
    other.hard_bounds = None if bounds is None else (total - bounds[1], total - bounds[0])
    higher = summarise(table, plain, 0.03, mos_range=mos_range)
    lower = summarise(rescaled(table, lambda score: total - score), other, 0.03, mos_range=mos_range)
    assert list(higher) == list(lower)
    assert {"rmse", "rmse_undefended", "certified_mse", "certified_mse_r0.06", "certified_plcc"} <= set(higher)
    for key, value in higher.items():
        expected = pytest.approx(value, abs=1e-6) if isinstance(value, float) else value
        assert lower[key] == expected, key
    if bounds is not None or not abstain:
        assert isinstance(lower["certified_mse"], float)


@pytest.mark.parametrize("lower_better", [False, True])
def test_errors_are_in_units_of_the_opinion_scores(lower_better):
    def native(mos):
        share = (mos - 1) / 4
        return 100 * (1 - share if lower_better else share)

    scaled = rescaled(make_table(), native)
    hundred = Metric(lower_better)
    hundred.score_range = (0.0, 100.0)
    same = summarise(make_table(), Metric(), 0.03, mos_range=(1.0, 5.0))
    summary = summarise(scaled, hundred, 0.03, mos_range=(1.0, 5.0))
    for key in ("rmse", "rmse_undefended", "certified_mse", "certified_mse_r0.06", "certified_delta_range_share"):
        assert summary[key] == pytest.approx(same[key]), key
    assert same["rmse"] == measures.rmse(SCORE, MOS)  # equal ranges: to the last bit
    assert same["rmse_undefended"] == measures.rmse(CLEAN, MOS)


def test_without_a_range_or_a_scale_errors_are_null():
    unranged = Metric()
    unranged.score_range = None
    for summary in (
        summarise(make_table(), unranged, 0.03, mos_range=(1.0, 5.0)),
        summarise(make_table(), Metric(), 0.03),
    ):
        nulls = {"rmse", "rmse_undefended", "certified_mse", "certified_mse_r0.03", "certified_mse_r0.06"}
        assert all(key in summary and summary[key] is None for key in nulls)
        assert summary["certified_srocc"] == summarise(make_table(), Metric(), 0.03)["certified_srocc"]


def test_hard_bounds_limit_what_an_abstention_costs():
    table = make_table(abstain=((1, 0.03),))
    free, bounded = (
        summarise(table, Metric(hard_bounds=bounds), 0.03, mos_range=(1.0, 5.0)) for bounds in (None, (1.0, 5.0))
    )
    assert free["certified_mse"] == "inf"
    assert math.isfinite(bounded["certified_mse"])
    assert free["certified_plcc"] == -1 < bounded["certified_plcc"]


def test_abstention_is_counted_and_never_averaged_away():
    summary = summarise(make_table(abstain=((1, 0.03), (4, 0.06))), Metric(), 0.03)
    assert summary["abstention_rate"] == pytest.approx(1 / 6)
    assert summary["certified_delta_mean"] == "inf"
    assert summary["certified_delta_mean_certified"] == pytest.approx(0.21 / 5)
    assert summary["certified_delta_median"] == pytest.approx(0.045)  # .03 .03 .04 .05 .06 inf
    assert summary["abstention_rate_r0.06"] == pytest.approx(1 / 6)
    every = summarise(make_table(abstain=tuple((i, 0.03) for i in range(6))), Metric(), 0.03)
    assert every["abstention_rate"] == 1
    assert every["certified_delta_median"] == every["certified_delta_range_share"] == "inf"
    assert every["certified_delta_mean_certified"] is None
    assert float(every["certified_delta_median"]) == math.inf


def test_tables_without_certificates_opinions_or_images():
    undefended = summarise(make_table(certified=False), Metric(), None)
    assert undefended["num_images"] == 6
    assert undefended["srocc"] == pytest.approx(stats.spearmanr(SCORE, MOS).statistic)
    assert not any("certified" in key or "abstention" in key for key in undefended)

    table = make_table()
    table["mos"] = math.nan
    unrated = summarise(table, Metric(), 0.03)
    assert unrated["srocc"] is None
    assert "certified_srocc" not in unrated
    assert unrated["certified_delta_median"] == pytest.approx(0.035)

    table = make_table()
    assert summarise(table[table["attack"] == "ifgsm"], Metric(), 0.03) == {"num_images": 0, "num_failed": 0}

    unranged = Metric()
    unranged.score_range = None
    assert summarise(make_table(), unranged, 0.03)["certified_delta_range_share"] is None


def test_one_image_has_no_correlation_and_no_deviation():
    table = make_table()
    summary = summarise(table[table["image_id"] == "0.png"], Metric(), 0.03)
    assert summary["num_images"] == 1
    assert summary["srocc"] is summary["score_sd"] is summary["certified_delta_sd_share"] is None
    assert "certified_srocc" not in summary


def test_the_file_is_valid_json_and_reads_back(tmp_path):
    assert read_summary(tmp_path) is None
    table = make_table(abstain=((1, 0.03),))
    table.loc[table["image_id"] == "0.png", "mos"] = 2.0
    summary = {"status": "finished", **summarise(table, Metric(), 0.03)}
    write_summary(tmp_path, summary)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    parsed = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert parsed == summary | {"checksum": parsed["checksum"]}
    assert read_summary(tmp_path) == summary
    assert parsed["certified_delta_mean"] == "inf"
    lists = {key for key, value in parsed.items() if isinstance(value, dict | list)}
    assert lists == {"attacks", "attack_warnings"}
    assert all(key == key.lower() for key in parsed)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    with pytest.raises(ValueError, match="JSON"):
        write_summary(tmp_path, {"srocc": math.nan})
    assert read_summary(tmp_path) == summary  # a failed write leaves the old one
