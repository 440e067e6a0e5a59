"""The relaxations behind the bounds on orders, each against an enumeration of what it relaxes."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from scipy.stats import rankdata

from certiqa.certification import order_bounds
from certiqa.certification.guarantees import certified_srocc
from certiqa.certification.worst_case import worst_srocc

_spec = importlib.util.spec_from_file_location("yardstick", Path(__file__).with_name("yardstick.py"))
yardstick = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(yardstick)


def possible_permutations(lower, upper):
    """Return the ranks of every order that puts i before j where upper_i < lower_j, shape (number, N)."""
    ranks = np.array(list(itertools.permutations(range(1, len(lower) + 1))))
    below = np.argwhere(upper[:, None] < lower[None, :])
    return ranks[np.all([ranks[:, i] < ranks[:, j] for i, j in below], axis=0)] if len(below) else ranks


@given(box=yardstick.boxes(most=6))
@settings(max_examples=80, deadline=None)
def test_each_relaxation_is_below_every_possible_order(box):
    lower, upper, mos = box
    g = rankdata(mos) - (len(mos) + 1) / 2
    least = np.min(possible_permutations(lower, upper) @ g)
    parts = [f(g, lower, upper) for f in (order_bounds._by_initial_sets, order_bounds._by_pairs)]
    parts.append(order_bounds._by_windows(g, lower, upper))
    assert max(parts) <= least + yardstick.ROUNDING
    assert order_bounds.least_rank_covariance(g, lower, upper) == pytest.approx(max(parts))


def test_initial_sets_are_all_there_are():
    """The greatest sum at each size is that of an enumeration of all initial sets."""
    rng = np.random.default_rng(13)
    for _ in range(30):
        lower = rng.integers(0, 5, 7).astype(float)
        upper = lower + rng.integers(0, 4, 7)
        g = rng.permutation(7) - 3.0
        best = np.full(8, -np.inf)
        for chosen in itertools.product([False, True], repeat=7):
            x = np.array(chosen)
            if not np.any(upper[~x][:, None] < lower[x][None, :]):  # nothing left out lies below something taken
                best[x.sum()] = max(best[x.sum()], g[x].sum())
        assert order_bounds._by_initial_sets(g, lower, upper) == pytest.approx(-best[1:-1].sum())


def test_initial_sets_lose_half_of_what_pairs_lose():
    """The theory's numbers for N images of equal width in line with MOS, W of them to a width: W^2/4 and W^2/2 each."""
    n, w = 600, 40
    place = np.arange(n, dtype=float)
    g, lower, upper = place - place.mean(), place - w / 2, place + w / 2
    clean = float(g @ place)
    inside = n * w**2
    assert (clean - order_bounds._by_pairs(g, lower, upper)) / inside == pytest.approx(1 / 2, rel=0.08)
    assert (clean - order_bounds._by_initial_sets(g, lower, upper)) / inside == pytest.approx(1 / 4, rel=0.08)
    found = worst_srocc(lower, upper, place).value * float(g @ g)
    assert 0.15 < (clean - found) / inside < 1 / 4


@given(yardstick.boxes(most=6))
@settings(max_examples=80, deadline=None)
def test_triples_share_no_pair(box):
    """No order has fewer agreeing open pairs than there are triples, half-weights included."""
    lower, upper, mos = box
    i, j = np.triu_indices(len(mos), 1)
    points = (lower[i] == upper[j]) & (upper[i] == lower[j])
    opened = (upper[i] >= lower[j]) & (upper[j] >= lower[i]) & (mos[i] != mos[j]) & ~points
    ranks = possible_permutations(lower, upper)
    agreeing = np.sum((np.sign(ranks[:, i] - ranks[:, j]) == np.sign(mos[i] - mos[j])) & opened, axis=1)
    assert order_bounds.triples_apart(mos, lower, upper) <= agreeing.min() + yardstick.ROUNDING


def test_most_matches_is_the_greatest_matching():
    rng = np.random.default_rng(14)
    for _ in range(50):
        ends, starts = rng.integers(0, 6, rng.integers(0, 5)), rng.integers(0, 6, rng.integers(0, 5))
        size = min(len(ends), len(starts))
        best = max(
            sum(a < b for a, b in zip(chosen, others, strict=True))
            for chosen in itertools.permutations(ends, size)
            for others in itertools.permutations(starts, size)
        )
        assert order_bounds._most_matches(ends, starts) == best


def test_srocc_without_the_assignment_is_sound_too(monkeypatch):
    rng = np.random.default_rng(12)
    cases = [yardstick.random_box(rng, 5) for _ in range(40)]
    full = [certified_srocc(*box) for box in cases]
    monkeypatch.setattr(order_bounds, "ASSIGNMENT_LIMIT", 0)
    pairs_only = [certified_srocc(*box) for box in cases]
    assert all(a <= b for a, b in zip(pairs_only, full, strict=True))
    assert any(a < b for a, b in zip(pairs_only, full, strict=True))
    monkeypatch.undo()
    # and on a larger set the pairs are the tighter bound: the assignment adds nothing there
    mos = rng.normal(size=200)
    centre = mos + 0.5 * rng.normal(size=200)
    both = certified_srocc(centre - 0.3, centre + 0.3, mos)
    monkeypatch.setattr(order_bounds, "ASSIGNMENT_LIMIT", 0)
    assert certified_srocc(centre - 0.3, centre + 0.3, mos) == both
