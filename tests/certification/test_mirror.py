"""A metric and its negative: the same draws, the same ranks, intervals mirrored to the last bit."""

import numpy as np
import pytest

from certiqa.certification import CertificationRequest, Stopping, certify, certify_each
from certiqa.defenses import MedianSmoothing
from certiqa.metrics import FrozenMetric


class Negative(FrozenMetric):
    def __init__(self, metric):
        low, high = metric.score_range
        super().__init__(
            metric, name="negative", score_range=(-high, -low), hard_bounds=(-high, -low), lower_better=True
        )

    def forward(self, images, *, image_ids=None, generator=None):
        return -self.network(images)


@pytest.fixture
def pair(curved_metric):
    return [MedianSmoothing(metric, 0.12, 60) for metric in (curved_metric, Negative(curved_metric))]


def test_intervals_of_a_metric_and_its_negative_are_mirrored(pair, images):
    plain, other = (
        certify(smooth, images, [0.03, 0.147], joint_confidence=0.9, image_ids=list("abcd")) for smooth in pair
    )
    assert np.array_equal(plain.score, -other.score)
    for low, high in (("lower", "upper"), ("joint_lower", "joint_upper")):
        assert np.array_equal(getattr(plain, low), -getattr(other, high)), low
        assert np.array_equal(getattr(plain, high), -getattr(other, low)), high
    assert np.array_equal(plain.certified_delta, other.certified_delta)
    assert np.isfinite(plain.joint_lower).all()


def test_both_stop_at_the_same_look_for_the_same_reason(pair, images):
    found = []
    for smooth in pair:
        request = CertificationRequest(
            (0.03,), 0.12, 200, 0.99, stopping=Stopping(0.0085, 0.03, 0.25, 20, 1.1), set_size=len(images)
        )
        each = certify_each(smooth, images, request, image_ids=list("abcd"), seed=0)
        found.append(dict(each))
    plain, other = found
    assert len({certificate.draws for certificate in plain.values()} | {200}) > 2  # they stop early, not all at once
    for place, certificate in plain.items():
        assert (certificate.draws, certificate.stop) == (other[place].draws, other[place].stop)
        assert np.array_equal(certificate.lower, -other[place].upper)
        assert (certificate.median_lower, certificate.median_upper) == (
            -other[place].median_upper,
            -other[place].median_lower,
        )
