"""The plan: what is needed and what can be reached, against the ranks themselves, and a speed that is real."""

import math

import pytest
import torch

from certiqa.certification import joint_confidence_per_side, order_statistic_ranks
from certiqa.certification.planning import measure_speed, plan_certification
from certiqa.defenses import MedianSmoothing, Resize

SIGMA = 0.12
SIZES = [(8, 8)] * 5 + [(12, 8)] * 2


@pytest.fixture
def smooth(curved_metric):
    return MedianSmoothing(curved_metric, SIGMA, 200)


def certifies(radius, n, confidence):
    lower, upper = order_statistic_ranks(radius, SIGMA, n, confidence)
    return lower >= 1 and upper <= n


def test_needs_and_reach_are_those_of_the_ranks(smooth):
    plan = plan_certification(
        smooth, SIZES, [0.06, 0.3, 3.0], confidence=0.99, joint_confidence=0.95, probe_seconds=None
    )
    assert (plan.num_images, plan.num_samples, plan.num_forward) == (7, 200, 1400)
    side = joint_confidence_per_side(0.95, 7, 3)
    for row, radius in zip(plan.radii[:2], (0.06, 0.3), strict=True):
        for needed, confidence in ((row.needed, 0.99), (row.needed_joint, side)):
            assert certifies(radius, needed, confidence)
            assert not certifies(radius, needed - 1, confidence)
    assert plan.radii[2].needed is plan.radii[2].needed_joint is None, "25 sigma: no number of draws"
    assert certifies(plan.reach, 200, 0.99)
    assert not certifies(plan.reach * 1.001, 200, 0.99)
    assert plan.joint_reach < plan.reach
    assert plan.seconds is None
    assert plan_certification(smooth, SIZES, [0.06], num_samples=3, probe_seconds=None).reach is None


def test_a_step_before_the_noise_is_paid_for(curved_metric):
    step = Resize(16)
    enlarging = MedianSmoothing(curved_metric, SIGMA, 200, before=step)
    plain = plan_certification(MedianSmoothing(curved_metric, SIGMA, 200), SIZES, [0.06], probe_seconds=None)
    plan = plan_certification(enlarging, SIZES, [0.06], probe_seconds=None)
    assert plan.lipschitz == max(step.lipschitz(size) for size in set(SIZES))
    assert plan.lipschitz > 1.5
    assert plan.reach == pytest.approx(plain.reach / plan.lipschitz)
    assert plan.radii[0].at_noise == pytest.approx(0.06 * plan.lipschitz)
    assert plan.radii[0].needed > plain.radii[0].needed


def test_the_probe_counts_draws_of_the_most_common_size(smooth):
    seen = []
    smooth.metric.network.register_forward_hook(lambda module, inputs, scores: seen.append(inputs[0].shape))
    speed = measure_speed(smooth, SIZES, 0.05)
    assert math.isfinite(speed)
    assert speed > 0
    assert {tuple(shape[-2:]) for shape in seen} == {(8, 8)}
    plan = plan_certification(smooth, SIZES, [0.06], probe_seconds=0.05)
    assert plan.seconds == pytest.approx(plan.num_forward / plan.draws_per_second)
    assert torch.is_grad_enabled()
