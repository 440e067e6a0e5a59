"""What a denoiser is trained for: the ranking hinge, the target term, and their units."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from certiqa.errors import UserError
from certiqa.metrics import QualityMetric
from certiqa.training import DenoisingObjective, normalise, ranking_hinge
from certiqa.training.objective import correlation

units = st.integers(0, 20).map(lambda step: step / 20)


def metric(score_range=(0.0, 10.0), lower_better=False):
    made = QualityMetric()
    made.name, made.score_range, made.lower_better = "probe", score_range, lower_better
    return made


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(units, units), min_size=1, max_size=8), units, units)
def test_ranking_hinge_equals_a_double_loop(pairs, margin, gap):
    quality, opinions = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    losses = [
        max(0.0, margin - (qi - qj))
        for qi, oi in zip(quality.tolist(), opinions.tolist(), strict=True)
        for qj, oj in zip(quality.tolist(), opinions.tolist(), strict=True)
        if oi - oj > gap
    ]
    expected = sum(losses) / len(losses) if losses else 0.0
    assert ranking_hinge(quality, opinions, margin, gap).item() == pytest.approx(expected, abs=1e-12)


def test_margin_and_gap():
    opinions = torch.tensor([0.75, 0.25])
    assert ranking_hinge(torch.tensor([0.75, 0.5]), opinions, margin=0.25, gap=0.1) == 0  # right by the margin
    assert ranking_hinge(torch.tensor([0.5, 0.5]), opinions, margin=0.25, gap=0.1) == 0.25
    assert ranking_hinge(torch.tensor([0.5, 0.75]), opinions, margin=0.25, gap=0.1) == 0.5
    assert ranking_hinge(torch.tensor([0.0, 1.0]), opinions, margin=0.25, gap=0.5) == 0  # a gap must be exceeded


def test_no_pairs_is_zero_with_a_zero_gradient():
    quality = torch.rand(3, requires_grad=True)
    loss = ranking_hinge(quality, torch.full((3,), 0.5), 0.1, 0.04)
    loss.backward()
    assert loss == 0
    assert torch.equal(quality.grad, torch.zeros(3))


def test_a_step_down_the_gradient_puts_the_scores_in_order():
    quality = torch.tensor([0.6, 0.5, 0.4], requires_grad=True)
    opinions = torch.tensor([0.1, 0.5, 0.9])
    ranking_hinge(quality, opinions, 0.1, 0.04).backward()
    assert quality.grad[0] > 0 > quality.grad[2]
    assert torch.equal((quality - 0.5 * quality.grad).argsort(), opinions.argsort())


@pytest.mark.parametrize(("key", "known"), [("ranking", "hinge, plcc"), ("target", "l1, mse, plcc")])
def test_an_unknown_term_is_named(key, known):
    with pytest.raises(UserError, match=f"objective.{key} must be one of {known}, got 'srocc'"):
        DenoisingObjective(**{key: "srocc"})


def test_normalise_maps_the_range_to_quality():
    scores = torch.tensor([0.0, 2.5, 10.0, 12.0])
    torch.testing.assert_close(normalise(scores, metric()), torch.tensor([0.0, 0.25, 1.0, 1.2]))
    torch.testing.assert_close(normalise(scores, metric(lower_better=True)), torch.tensor([1.0, 0.75, 0.0, -0.2]))
    torch.testing.assert_close(normalise(scores, metric((-10.0, 10.0)))[:2], torch.tensor([0.5, 0.625]))
    with pytest.raises(UserError, match="'probe' states no score_range"):
        normalise(scores, metric(None))


def test_correlation_is_pearsons_and_0_where_nothing_varies():
    first, second = torch.rand(2, 9, dtype=torch.float64)
    assert correlation(first, second).item() == pytest.approx(np.corrcoef(first, second)[0, 1], abs=1e-6)
    level = torch.full((9,), 0.5, dtype=torch.float64, requires_grad=True)
    correlation(level, second).backward()
    assert correlation(level, second) == 0
    assert level.grad.isfinite().all()


@pytest.mark.parametrize("lower_better", [False, True])
def test_correlation_terms_compare_with_opinions_and_with_clean_scores(lower_better):
    quality, clean, opinions = (torch.tensor(x) for x in ([0.2, 0.4, 0.9], [0.1, 0.3, 0.2], [0.9, 0.1, 0.2]))
    native = [10 * (1 - scores if lower_better else scores) for scores in (quality, clean)]
    objective = DenoisingObjective(ranking_weight=1, ranking="plcc", target_weight=1, target="plcc")
    terms = objective.score_terms(*native, opinions, metric(lower_better=lower_better))
    assert terms["ranking"].item() == pytest.approx(1 - np.corrcoef(quality, opinions)[0, 1], abs=1e-5)
    assert terms["target"].item() == pytest.approx(1 - np.corrcoef(quality, clean)[0, 1], abs=1e-5)
    squared = DenoisingObjective(target_weight=1, target="mse").score_terms(
        *native, opinions, metric(lower_better=lower_better)
    )
    assert squared["target"].item() == pytest.approx(((quality - clean) ** 2).mean().item(), abs=1e-6)


def test_the_first_steps_are_with_mse_alone():
    through = DenoisingObjective(target_weight=1, mse_share=0.75)
    assert [through.mse_steps(steps) for steps in (8, 10, 1)] == [6, 8, 1]
    assert DenoisingObjective(mse_share=0.75).mse_steps(8) == 8  # nothing goes through the metric
    assert DenoisingObjective(target_weight=1).mse_steps(8) == 0


@pytest.mark.parametrize("lower_better", [False, True])
def test_terms_and_their_weighted_sum(lower_better):
    probe = metric(lower_better=lower_better)
    quality, clean, opinions = torch.tensor([4.0, 6.0]), torch.tensor([7.0, 5.0]), torch.tensor([0.9, 0.1])
    if lower_better:
        quality, clean = 10 - quality, 10 - clean
    objective = DenoisingObjective(mse_weight=2, ranking_weight=0.5, target_weight=0.25, ranking_margin=0.1)
    terms = objective.score_terms(quality, clean, opinions, probe)
    assert set(terms) == {"ranking", "target"}
    assert terms["ranking"].item() == pytest.approx(0.1 + 0.2)
    assert terms["target"].item() == pytest.approx((0.3 + 0.1) / 2)
    total = objective.total({"mse": torch.tensor(0.01), **terms})
    assert total.item() == pytest.approx(2 * 0.01 + 0.5 * 0.3 + 0.25 * 0.2)
    assert objective.total({"mse": torch.tensor(0.01)}).item() == pytest.approx(0.02)  # the phase of MSE alone


def test_terms_of_weight_zero_are_left_out():
    scores, opinions = torch.tensor([4.0, 6.0]), torch.tensor([0.9, 0.1])
    unrated = torch.tensor([0.9, torch.nan])
    assert set(DenoisingObjective(target_weight=1).score_terms(scores, scores, unrated, metric())) == {"target"}
    assert set(DenoisingObjective(ranking_weight=1).score_terms(scores, scores, opinions, metric())) == {"ranking"}
    assert [objective.needs_metric for objective in (DenoisingObjective(), DenoisingObjective(target_weight=1))] == [
        False,
        True,
    ]
    assert DenoisingObjective(ranking_weight=1).needs_metric


def test_gradients_of_the_terms_reach_the_scores_in_the_metrics_direction():
    for lower_better in (False, True):
        scores = torch.tensor([4.0, 6.0], requires_grad=True)
        terms = DenoisingObjective(ranking_weight=1).score_terms(
            scores, scores.detach(), torch.tensor([0.9, 0.1]), metric(lower_better=lower_better)
        )
        gradient = torch.autograd.grad(terms["ranking"] + 0 * scores.sum(), scores)[0]
        # the first image is the better one: its score must rise, unless lower is better and it leads already
        assert gradient.tolist() == ([0, 0] if lower_better else pytest.approx([-0.1, 0.1]))


@pytest.mark.parametrize(
    "key", ["mse_weight", "ranking_weight", "target_weight", "ranking_margin", "ranking_gap", "mse_share"]
)
def test_negative_settings_are_refused(key):
    with pytest.raises(UserError, match=f"objective.{key} must be .*-0.1"):
        DenoisingObjective(**{key: -0.1})


@pytest.mark.parametrize("side", [0, -3, 2.5])
def test_a_crop_that_is_no_side_is_refused(side):
    with pytest.raises(UserError, match=rf"objective\.mse_crop must be a whole number of at least 1, .* got {side}"):
        DenoisingObjective(mse_crop=side)


def test_other_settings_that_cannot_be():
    with pytest.raises(UserError, match=r"mse_share must be in \[0, 1\], got 1.5"):
        DenoisingObjective(mse_share=1.5)
    with pytest.raises(UserError, match="every weight of the objective is 0"):
        DenoisingObjective(mse_weight=0)
    DenoisingObjective(mse_weight=0, target_weight=1)


def test_a_metric_without_a_range_serves_mse_only():
    DenoisingObjective().check_metric(metric(None))
    with pytest.raises(UserError, match=r"objective=dms_iqa .*'probe' states none"):
        DenoisingObjective("dms_iqa", ranking_weight=1).check_metric(metric(None))
    DenoisingObjective("dms_iqa", ranking_weight=1).check_metric(metric())


def test_ranking_needs_opinions_of_all_images():
    scores = torch.tensor([4.0, 6.0])
    with pytest.raises(UserError, match="some training images have none"):
        DenoisingObjective(ranking_weight=1).score_terms(scores, scores, torch.tensor([0.9, torch.nan]), metric())
