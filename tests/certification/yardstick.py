"""What the tests of set guarantees measure by: the exact worst case of small sets, and sets to try it on."""

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr

from certiqa.certification.guarantees import certified_krocc, certified_plcc, certified_srocc

ROUNDING = 1e-9
CORRELATIONS = {
    certified_srocc: lambda s, y: spearmanr(s, y)[0],
    certified_krocc: lambda s, y: kendalltau(s, y)[0],
    certified_plcc: lambda s, y: pearsonr(s, y)[0],
}
by_correlation = pytest.mark.parametrize("certified", CORRELATIONS, ids=lambda f: f.__name__)


@cache
def weak_orders(n: int) -> np.ndarray:
    """Return every way to order n scores with ties, as levels 0, 1, ...; shape (number, n)."""
    levels = itertools.product(range(n), repeat=n)
    return np.array([p for p in levels if len(set(p)) == max(p) + 1])


def possible_orders(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Return the orders that some scores in the box have, constants left out.

    Levels are placed from below, each as low as it can go: at the greatest lower end of its members, or just
    above the level before. A level fits if its members' least upper end allows that.
    """
    orders = weak_orders(len(lower))
    at, above = np.full(len(orders), -np.inf), np.zeros(len(orders), dtype=bool)  # place, and "just above" it
    fits = np.ones(len(orders), dtype=bool)
    for level in range(len(lower)):
        members = orders == level
        used = members.any(axis=1)
        need = np.where(members, lower, -np.inf).max(axis=1)
        room = np.where(members, upper, np.inf).min(axis=1)
        pushed = (need <= at) & (level > 0)
        place = np.maximum(need, at)
        fits &= np.where(pushed, room > place, room >= place) | ~used
        at, above = np.where(used, place, at), np.where(used, pushed, above)
    return orders[fits & (orders.max(axis=1) > 0)]


def exact_srocc(lower, upper, mos) -> float:
    r = rankdata(possible_orders(lower, upper), axis=1)
    r, g = r - r.mean(axis=1, keepdims=True), rankdata(mos) - (len(mos) + 1) / 2
    return float(np.min(r @ g / np.sqrt(np.sum(r**2, axis=1) * (g @ g)), initial=2.0))


def exact_krocc(lower, upper, mos) -> float:
    orders = possible_orders(lower, upper)
    i, j = np.triu_indices(len(mos), 1)
    a, b = np.sign(orders[:, i] - orders[:, j]), np.sign(mos[i] - mos[j])
    return float(np.min(a @ b / np.sqrt(np.sum(a**2, axis=1) * (b @ b)), initial=2.0))


def candidate_vectors(lower, upper, mos, seed=0) -> np.ndarray:
    """Return corners, random points, and vectors pulled to lines that fall with MOS; shape (number, N)."""
    rng = np.random.default_rng(seed)
    corners = np.array(list(itertools.product(*zip(lower, upper, strict=True))))
    inside = lower + (upper - lower) * rng.random((2000, len(mos)))
    level = np.linspace(lower.min(), upper.max(), 40)[:, None, None]
    slope = np.geomspace(1e-3, 100, 60)[:, None]
    pulled = np.clip(level - slope * (mos - mos.mean()), lower, upper).reshape(-1, len(mos))
    return np.concatenate([corners, inside, pulled])


def exact_plcc(lower, upper, mos) -> float:
    s = candidate_vectors(lower, upper, mos)
    s = s - s.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.sum(s**2, axis=1))
    y = mos - mos.mean()
    keep = norm > 1e-9
    return float(np.min(s[keep] @ y / (norm[keep] * np.linalg.norm(y)), initial=2.0))


EXACT = {certified_srocc: exact_srocc, certified_krocc: exact_krocc, certified_plcc: exact_plcc}


@st.composite
def boxes(draw, most=5):
    """Boxes and MOS on a coarse grid: touching and equal intervals, single points, ties everywhere."""
    n = draw(st.integers(2, most))
    whole = st.lists(st.integers(0, n + 1), min_size=n, max_size=n)
    lower = np.array(draw(whole), dtype=float)
    width = np.array(draw(st.lists(st.sampled_from([0, 0, 0.5, 1, 2, 4]), min_size=n, max_size=n)))
    mos = np.array(draw(whole), dtype=float)
    assume(np.ptp(mos) > 0)
    if draw(st.booleans()):  # scores near MOS, where guarantees are positive
        lower = mos + np.minimum(lower - 1, 1) / 2
    return lower, lower + width, mos


def random_box(rng, n):
    mos = rng.permutation(n) + rng.uniform(-0.4, 0.4, n)
    centre = mos + rng.normal(size=n) * rng.choice([0.1, 1.0])
    half = rng.uniform(0, 1.5, n) * rng.choice([0.1, 0.3, 1.0])
    return centre - half, centre + half, mos
