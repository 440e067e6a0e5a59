"""Looks that hold together: against brute force over paths, by simulation, and for what they save."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from certiqa.certification import (
    CertificationRequest,
    Stopping,
    certify,
    certify_each,
    look_sizes,
    order_statistic_ranks,
    randomised_ranks,
    sequential_ranks,
)
from certiqa.certification.sequential import inner_ranks
from certiqa.defenses import MedianSmoothing
from certiqa.errors import UserError
from certiqa.metrics import QualityMetric

SIGMA = 0.12


def chance_of_crossing(ranks, looks, p):
    """P(fewer than rank draws fall below the p-percentile at some look), over all paths of the last look's draws."""
    total = 0.0
    for path in itertools.product((0, 1), repeat=looks[-1]):
        below = np.cumsum(path)
        if any(rank > below[n - 1] for rank, n in zip(ranks, looks, strict=True) if rank > 0):
            total += p ** below[-1] * (1 - p) ** (looks[-1] - below[-1])
    return total


@pytest.mark.parametrize("confidence", [0.6, 0.9, 0.99])
@pytest.mark.parametrize("radius", [0.0, 0.03, 0.1])
@pytest.mark.parametrize("looks", [(4, 9, 13), (2, 3, 5, 8, 12), (11, 14)])
def test_all_looks_together_fail_less_often_than_stated_by_brute_force(looks, radius, confidence):
    p = float(norm.cdf(-radius / SIGMA))
    pairs = sequential_ranks(radius, SIGMA, looks, confidence)
    lower = [low for low, _ in pairs]
    assert [high for _, high in pairs] == [n + 1 - low for low, n in zip(lower, looks, strict=True)]
    assert chance_of_crossing(lower, looks, p) < 1 - confidence
    # as sharp as the spending allows: one more rank at the last look fails more often than stated, or leaves n p
    greedy = [*lower[:-1], lower[-1] + 1]
    assert chance_of_crossing(greedy, looks, p) >= 1 - confidence


@given(
    n=st.integers(1, 3000), radius=st.floats(0, 0.3), sigma=st.floats(0.02, 0.5), confidence=st.floats(0.51, 0.999999)
)
def test_one_look_is_the_fixed_number_of_draws(n, radius, sigma, confidence):
    upper = order_statistic_ranks(radius, sigma, n, confidence)[1]
    assert sequential_ranks(radius, sigma, (n,), confidence) == ((n + 1 - upper, upper),)


@given(st.integers(2, 400), st.integers(1, 3000), st.floats(1.05, 4))
def test_looks_increase_to_the_last(first, more, ratio):
    sizes = look_sizes(first, first + more, ratio)
    assert sizes[-1] == first + more
    assert all(a < b for a, b in itertools.pairwise(sizes))
    assert look_sizes(first + more, first, ratio) == (first,)


def test_looks_cost_a_little_and_inner_draws_lie_inside():
    looks = look_sizes(100, 1000, 1.5)
    outer, inner = sequential_ranks(0.06, SIGMA, looks, 0.999), inner_ranks(0.06, SIGMA, looks, 0.999)
    for n, (low, high), (within_low, within_high) in zip(looks, outer, inner, strict=True):
        fixed = order_statistic_ranks(0.06, SIGMA, n, 0.999)
        assert low <= fixed[0] <= n * norm.cdf(-0.5) < within_low
        assert within_high < n * norm.cdf(0.5) < fixed[1] <= high
    assert fixed[0] - low <= 6, "seven looks at 1,000 draws cost a few ranks"


class Linear(QualityMetric):
    """The first pixel: its draws are exactly normal around x."""

    score_range = (0.0, 1.0)
    name = "linear"

    def forward(self, images, **_):
        return images[:, 0, 0, 0]


def certified(repetitions, stopping, seed, *, confidence=0.9, randomised=False, n=200, radius=0.06):
    smooth = MedianSmoothing(Linear(), SIGMA, n, clip=False, batch_size=4096, seed=seed)
    images = torch.full((repetitions, 3, 1, 1), 0.5)
    return certify(
        smooth,
        images,
        [radius],
        confidence=confidence,
        stopping=stopping,
        randomised=randomised,
        image_ids=[str(row) for row in range(repetitions)],
    )


@pytest.mark.parametrize("side", ["lower", "upper"])
def test_coverage_at_a_data_dependent_stop(side):
    """5,000 images stop when narrow; at radius .06 a linear metric, the worst case, truly moves by .06."""
    stopping = Stopping(tolerance=0.095, radius=0.06, saturation=None, first_look=20, look_ratio=1.3)
    bounds = certified(5000, stopping, seed=11)
    assert len(set(bounds.draws.tolist())) >= 5, "the stop must depend on the data"
    inside = bounds.lower[:, 0] <= 0.44 + 1e-7 if side == "lower" else bounds.upper[:, 0] >= 0.56 - 1e-7
    assert binom.cdf(int(inside.sum()), 5000, 0.9) > 1e-6
    # what it would be to use fixed-n ranks at that stop
    fixed = [order_statistic_ranks(0.06, SIGMA, n, 0.9) for n in look_sizes(20, 200, 1.3)]
    lenient = sequential_ranks(0.06, SIGMA, look_sizes(20, 200, 1.3), 0.9)
    assert all(a[0] >= b[0] for a, b in zip(fixed, lenient, strict=True))
    assert any(a[0] > b[0] for a, b in zip(fixed, lenient, strict=True))


def test_ranks_of_a_fixed_number_fail_at_a_data_dependent_stop(monkeypatch):
    """The same simulation must reject the usual mistake: ranks for one n, read off when the interval looks narrow."""
    from certiqa.certification import request

    monkeypatch.setattr(
        request,
        "sequential_ranks",
        lambda radius, sigma, looks, c: tuple(order_statistic_ranks(radius, sigma, n, c) for n in looks),
    )
    stopping = Stopping(tolerance=0.07, radius=0.06, saturation=None, first_look=20, look_ratio=1.1)
    bounds = certified(5000, stopping, seed=12)
    inside = bounds.lower[:, 0] <= 0.44 + 1e-7
    assert binom.cdf(int(inside.sum()), 5000, 0.9) < 1e-6


def test_randomised_ranks_cover_exactly_as_stated():
    n, radius, confidence = 60, 0.06, 0.9
    plain = order_statistic_ranks(radius, SIGMA, n, confidence)
    p = float(norm.cdf(-radius / SIGMA))
    grid = (np.arange(20_000) + 0.5) / 20_000
    low = np.array([randomised_ranks(radius, SIGMA, n, confidence, (toss, 0.5))[0] for toss in grid])
    high = np.array([randomised_ranks(radius, SIGMA, n, confidence, (0.5, toss))[1] for toss in grid])
    assert set(low) == {plain[0], plain[0] + 1}
    np.testing.assert_array_equal(high, n + 1 - low)
    assert binom.cdf(low - 1, n, p).mean() == pytest.approx(1 - confidence, abs=1e-4)
    assert binom.cdf(plain[0] - 1, n, p) < 1 - confidence - 1e-3

    tossed, fixed = (certified(2500, None, 3, n=n, randomised=flag) for flag in (True, False))
    inside = int((tossed.lower[:, 0] <= 0.44).sum())
    assert 1e-6 < binom.cdf(inside, 2500, confidence) < 1 - 1e-6
    assert (tossed.lower >= fixed.lower).all()
    assert (tossed.upper <= fixed.upper).all()
    assert 0 < (tossed.lower > fixed.lower).mean() < 1


def test_reasons_to_stop():
    wide = certified(40, Stopping(tolerance=0.02, radius=0.06), 0, n=2000, confidence=0.99)
    assert set(wide.stops) == {"out of reach"}, "at any n the half-width is .06"
    near = certified(40, Stopping(tolerance=0.0599, radius=0.06, saturation=0.3), 0, n=4000, confidence=0.99)
    assert set(near.stops) == {"saturated"}
    assert near.draws.max() < 4000
    reached = certified(40, Stopping(tolerance=0.08, radius=0.06, saturation=None), 0, n=4000, confidence=0.99)
    assert set(reached.stops) == {"tolerance"}
    assert (reached.half_width <= 0.08).all()
    spent = certified(40, Stopping(tolerance=0.0599, radius=0.06, saturation=None), 0, n=150, confidence=0.99)
    assert set(spent.stops) == {"n"}
    assert set(spent.draws) == {150}
    assert set(certified(4, None, 0).stops) == {"n"}


@pytest.mark.parametrize("joint", [None, 0.95])
def test_no_image_stops_before_every_bound_that_was_asked_for_exists(joint):
    """The shipped request: the tolerance at radius .06 is met by draws that do not bound radius .12 yet."""
    tolerance, radii = 0.04, (0.03, 0.06, 0.09, 0.12)
    stopping = Stopping(tolerance, radius=0.06)
    request = CertificationRequest(radii, SIGMA, 1000, 0.999, joint, set_size=125, stopping=stopping)

    class Squeezed(Linear):
        """An eighth of the first pixel: narrow enough for the tolerance at the first look."""

        def forward(self, images, **_):
            return images[:, 0, 0, 0] / 8

    smooth = MedianSmoothing(Squeezed(), SIGMA, 1000, clip=False, batch_size=512)
    images = torch.full((6, 3, 1, 1), 0.5)
    found = certify_each(smooth, images, request, image_ids=[str(row) for row in range(6)])
    tables = [request.rank_table(0.999)] + ([request.rank_table(request.joint_side)] if joint else [])
    complete = next(n for look, n in enumerate(request.looks) if all((table[look, :, 0] > 0).all() for table in tables))
    assert complete > request.looks[0]
    for _, certificate in found:
        assert certificate.stop == "tolerance"
        assert certificate.draws == complete, "as soon as all bounds are there, and not later"
        bounds = [certificate.lower, certificate.upper, certificate.joint_lower, certificate.joint_upper]
        assert np.isfinite(bounds[: 4 if joint else 2]).all()


def test_finished_images_leave_and_the_rest_do_not_notice():
    """Bounds of an image are the same alone, in company, and in other batches."""
    smooth = MedianSmoothing(Linear(), SIGMA, 1000, clip=False, batch_size=64)
    images = torch.linspace(0.1, 0.9, 12).view(-1, 1, 1, 1).expand(-1, 3, 1, 1).contiguous()
    ids = [str(row) for row in range(12)]
    stopping = Stopping(tolerance=0.085, radius=0.06, first_look=50)
    together = certify(smooth, images, [0.03, 0.06], stopping=stopping, image_ids=ids, joint_confidence=0.9)
    small = MedianSmoothing(Linear(), SIGMA, 1000, clip=False, batch_size=7)
    for row in (0, 5, 11):
        alone = certify(
            small, images[[row]], [0.03, 0.06], stopping=stopping, image_ids=[ids[row]], joint_confidence=0.9,
            set_size=12,
        )  # fmt: skip
        assert alone.draws[0] == together.draws[row]
        for field in ("score", "lower", "upper", "joint_lower", "joint_upper", "median_lower", "median_upper"):
            np.testing.assert_allclose(getattr(alone, field)[0], getattr(together, field)[row], rtol=0, atol=1e-6)


def test_images_of_any_size_and_a_failed_one():
    class Dark(QualityMetric):
        score_range = (0.0, 1.0)
        name = "dark"

        def forward(self, images, **_):
            score = images.flatten(1).mean(1)
            return torch.where(score < 0.2, torch.nan, score)

    smooth = MedianSmoothing(Dark(), SIGMA, 100)
    images = [torch.full((3, size, 8), shade) for size, shade in ((8, 0.5), (12, 0.6), (8, 0.0), (12, 0.7))]
    request = CertificationRequest((0.03,), SIGMA, 100, 0.99, set_size=4)
    found = dict(certify_each(smooth, images, request, image_ids=list("abcd")))
    assert sorted(found) == [0, 1, 2, 3]
    assert [found[row].failure is None for row in range(4)] == [True, True, False, True]
    assert "'dark' scored NaN on 100 of 100 noisy copies of image c" in found[2].failure
    assert np.isnan(found[2].score)
    assert np.isinf(found[2].upper).all()
    alone = certify(smooth, images[1][None], 0.03, confidence=0.99, image_ids=["b"])
    np.testing.assert_allclose(found[1].lower, alone.lower[0], atol=1e-6)


def test_a_failure_after_the_first_look_leaves_no_bound():
    class FailsLate(Linear):
        """No score after 60 noisy copies: between the second look and the third."""

        def forward(self, images, **_):
            self.seen = getattr(self, "seen", 0) + len(images)
            return super().forward(images) if self.seen <= 60 else torch.full((len(images),), torch.nan)

    smooth = MedianSmoothing(FailsLate(), SIGMA, 200, clip=False, batch_size=10)
    stopping = Stopping(tolerance=0.01, radius=0.03, saturation=None, first_look=50)
    request = CertificationRequest((0.03,), SIGMA, 200, 0.9, 0.9, stopping=stopping)
    (_, found), *_ = certify_each(smooth, torch.full((1, 3, 1, 1), 0.5), request, image_ids=["a"])
    assert (found.stop, found.draws) == ("failed", request.looks[2])
    assert f"of {request.looks[2]} noisy copies of image a" in found.failure
    bounds = [found.lower, found.upper, found.joint_lower, found.joint_upper, found.median_lower, found.median_upper]
    assert np.isinf(np.hstack(bounds)).all()
    assert np.isnan(found.score)


def test_what_cannot_be_is_refused():
    def request(stopping=None, n=1000, **more):
        return CertificationRequest((0.03, 0.12), SIGMA, n, 0.999, stopping=stopping, **more)

    with pytest.raises(UserError, match=r"counts at radius 0.05, which must be one of \[0.03, 0.12\]"):
        request(Stopping(0.02, 0.05))
    with pytest.raises(UserError, match=r"tolerance=2.0 is a share"):
        Stopping(2.0, 0.03)
    with pytest.raises(UserError, match=r"saturation=0 must lie in"):
        Stopping(0.02, 0.03, saturation=0)
    with pytest.raises(UserError, match="look_ratio=1.0 must be greater than 1"):
        request(Stopping(0.02, 0.03, look_ratio=1.0))
    with pytest.raises(UserError, match="randomised ranks need a fixed number"):
        request(Stopping(0.02, 0.03), randomised=True)
    with pytest.raises(UserError, match="radius 0.12 cannot be certified with num_samples=30"):
        request(Stopping(0.02, 0.03, first_look=20), n=30)
    with pytest.raises(UserError, match="looks must increase"):
        sequential_ranks(0.03, SIGMA, (100, 100), 0.9)

    class NoRange(Linear):
        score_range = None

    with pytest.raises(UserError, match="'linear' states none"):
        certify(MedianSmoothing(NoRange(), SIGMA), torch.zeros(1, 3, 1, 1), 0.03, stopping=Stopping(0.02, 0.03))
