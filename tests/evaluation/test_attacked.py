"""From records of attacked images to the summary: which images count, which attack is the worst, what is warned of."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from certiqa.evaluation.attacked import summarise_attacks, worst_case
from certiqa.evaluation.records import to_table
from certiqa.metrics import QualityMetric


class Metric(QualityMetric):
    score_range = (0.0, 10.0)

    def __init__(self, lower_better=False):
        super().__init__()
        self.lower_better = lower_better


def row(image_id, attack, gain, *, lower_better=False, **more):
    """The record of an image at mid-range, whose quality an attack moved by ``gain`` shares of the range."""
    score, sign = 5.0, -1 if lower_better else 1
    facts = {"image_id": image_id, "attack": attack, "score": score, "score_clean": score, "failure": None}
    facts["score_attacked"] = score + sign * 10 * gain
    return facts | {"score_unrounded": score, "score_noise": score, "linf": 0.01, "wanted": 1} | more


def summary(rows, lower_better=False):
    return summarise_attacks(to_table(rows), Metric(lower_better))


@pytest.mark.parametrize("lower_better", [False, True])
@pytest.mark.parametrize("wanted", [1, -1])
def test_an_attack_that_went_the_wrong_way_is_never_the_worst_of_an_image(wanted, lower_better):
    facts = {"wanted": wanted, "lower_better": lower_better}
    rows = [row("a", "good", 0.2 * wanted, **facts), row("a", "bad", -0.3 * wanted, **facts)]
    assert summary(rows, lower_better)["attack_gain_worst"] == pytest.approx(0.2 * wanted)
    stronger = [*rows, row("a", "stronger", 0.25 * wanted, **facts)]
    assert summary(stronger, lower_better)["attack_gain_worst"] == pytest.approx(0.25 * wanted)


def test_the_wanted_way_is_each_images_own():
    rows = [
        *(row("a", "one", 0.2, wanted=1), row("a", "two", -0.3, wanted=1)),
        *(row("b", "one", 0.3, wanted=-1), row("b", "two", -0.2, wanted=-1)),
    ]
    worst = worst_case(to_table(rows), 1).set_index("image_id")
    assert worst["attack"].to_dict() == {"a": "one", "b": "two"}


@pytest.mark.parametrize("kept", [True, False], ids=["a set attack", "records of an earlier run"])
def test_what_has_no_wanted_way_counts_by_size(kept):
    rows = [row("a", "one", 0.2, wanted=None), row("a", "two", -0.3, wanted=None)]
    table = to_table(rows)
    worst = worst_case(table if kept else table.drop(columns="wanted"), 1)
    assert worst["attack"].tolist() == ["two"]


@pytest.mark.parametrize("lower_better", [False, True])
def test_gains_have_the_sign_of_quality_and_a_t_interval(lower_better):
    gains = np.array([0.1, 0.25, 0.3, 0.2])
    rows = [row(str(i), "ifgsm", gain, lower_better=lower_better) for i, gain in enumerate(gains)]
    found = summary(rows, lower_better)
    assert found["attack_gain_ifgsm"] == pytest.approx(gains.mean())
    assert found["attack_relative_gain_ifgsm"] == pytest.approx(gains.mean() / 1.5)
    assert found["attack_wasserstein_ifgsm"] == pytest.approx(gains.mean())
    low, high = stats.t.interval(0.95, 3, gains.mean(), stats.sem(gains))
    assert (found["attack_gain_low_ifgsm"], found["attack_gain_high_ifgsm"]) == pytest.approx((low, high))
    ends = [found[f"attack_relative_gain_{end}_ifgsm"] for end in ("low", "high")]
    assert ends == pytest.approx([low / 1.5, high / 1.5])
    robustness = np.log10(0.5 / (gains + 1e-6))
    ends = [found[f"attack_robustness_score_{end}_ifgsm"] for end in ("low", "high")]
    assert ends == pytest.approx(stats.t.interval(0.95, 3, robustness.mean(), stats.sem(robustness)))
    assert math.isnan(summary(rows[:1], lower_better)["attack_gain_low_ifgsm"]), "undefined for one image"


def test_an_image_with_a_gradient_that_was_not_finite_counts_and_is_told():
    rows = [row("a", "ifgsm", 0.1), row("b", "ifgsm", 0.3, gradient_not_finite=True)]
    found = summary([*rows, row("a", "fgsm", 0.05), row("b", "fgsm", 0.05)])
    assert (found["attack_num_images_ifgsm"], found["attack_num_failed_ifgsm"]) == (2, 0)
    assert found["attack_gain_ifgsm"] == pytest.approx(0.2)
    assert found["attack_gain_worst"] == pytest.approx(0.2)
    (warning,) = found["attack_warnings"]
    assert "ifgsm: a gradient or score on the way was not finite for 1 of 2 images" in warning


def test_an_image_that_an_earlier_run_kept_as_failed_counts_where_it_has_a_score():
    rows = [row("a", "ifgsm", 0.1), row("b", "ifgsm", 0.3, failure="met a gradient that is not finite")]
    found = summarise_attacks(to_table(rows).drop(columns="wanted"), Metric())
    assert found["attack_gain_ifgsm"] == pytest.approx(0.2)
    assert "not finite for 1 of 2 images" in found["attack_warnings"][0]


def test_zero_and_exploding_gradients_are_told_in_the_summary():
    rows = [row(name, "ifgsm", 0.1, gradient_zero=name != "c", gradient_exploding=name == "c") for name in "abc"]
    zero, exploding = summary(rows)["attack_warnings"]
    assert "ifgsm: the gradient was zero for 2 of 3 images" in zero
    assert "ifgsm: the gradient explodes for 1 of 3 images" in exploding
    calm = [row(name, "ifgsm", 0.1, gradient_zero=False, gradient_exploding=False) for name in "abc"]
    assert summary(calm)["attack_warnings"] == []


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_an_attack_without_a_finite_score_is_listed_with_a_warning(score):
    rows = [row(name, "ifgsm", 0.1, score_attacked=score, failure="scored NaN") for name in "ab"]
    found = summary(rows)
    assert found["attacks"] == ["ifgsm"]
    assert (found["attack_num_images_ifgsm"], found["attack_num_failed_ifgsm"]) == (0, 2)
    assert found["attack_warnings"] == ["ifgsm: 2 images have no finite score, they are left out of its figures"]
    beside = summary([*rows, row("a", "fgsm", 0.2), row("b", "fgsm", 0.1)])
    assert beside["attack_gain_worst"] == pytest.approx(0.15), "a failed row is never the worst"
    assert summary([row("a", "none", 0.0)]) == {}


def test_noise_that_does_as_much_is_warned_of():
    rows = [row(name, "ifgsm", 0.1, score_noise=6.5) for name in "ab"]
    assert ["noise of the same norm" in warning for warning in summary(rows)["attack_warnings"]] == [True]


def test_old_records_have_no_columns_of_gradients():
    table = pd.DataFrame([{**row("a", "ifgsm", 0.1), "mos": math.nan}, {**row("b", "ifgsm", 0.1), "mos": math.nan}])
    for name in ("l2", "psnr", "ssim"):
        table[name] = 1.0
    assert summarise_attacks(table.drop(columns="wanted"), Metric())["attack_warnings"] == []
