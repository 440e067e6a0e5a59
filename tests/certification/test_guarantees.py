"""Set guarantees against the exact worst case of small sets, SciPy at zero width, and their edge cases."""

import itertools
import math
import warnings
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr

from certiqa.certification import order_bounds
from certiqa.certification.guarantees import certified_krocc, certified_mse, certified_plcc, certified_srocc
from certiqa.certification.worst_case import worst_krocc, worst_plcc, worst_srocc
from certiqa.errors import UserError

ROUNDING = 1e-9
CORRELATIONS = {
    certified_srocc: lambda s, y: spearmanr(s, y)[0],
    certified_krocc: lambda s, y: kendalltau(s, y)[0],
    certified_plcc: lambda s, y: pearsonr(s, y)[0],
}
by_correlation = pytest.mark.parametrize("certified", CORRELATIONS, ids=lambda f: f.__name__)


# --- the exact worst case -----------------------------------------------------------------------------------


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


def test_the_yardstick_itself():
    """Orders found possible are exactly those of a fine grid of scores (whole-number ends, N = 3)."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        lower = rng.integers(0, 3, 3).astype(float)
        upper = lower + rng.integers(0, 3, 3)
        axes = [np.arange(a, b + 0.1, 0.25) for a, b in zip(lower, upper, strict=True)]
        seen = {tuple(rankdata(s, method="dense") - 1) for s in itertools.product(*axes)}
        possible = {tuple(p) for p in possible_orders(lower, upper)}
        assert possible == {p for p in seen if max(p) > 0}


# --- never above the worst case -----------------------------------------------------------------------------


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


@by_correlation
@given(box=boxes())
@settings(max_examples=150, deadline=None)
def test_never_above_the_worst_case(certified, box):
    value = certified(*box)
    assert -1 <= value <= 1
    assert value <= EXACT[certified](*box) + ROUNDING


def random_box(rng, n):
    mos = rng.permutation(n) + rng.uniform(-0.4, 0.4, n)
    centre = mos + rng.normal(size=n) * rng.choice([0.1, 1.0])
    half = rng.uniform(0, 1.5, n) * rng.choice([0.1, 0.3, 1.0])
    return centre - half, centre + half, mos


# (mean shortfall below the exact worst case, share of boxes met exactly) over random untied boxes
@pytest.mark.parametrize(
    ("certified", "mean_gap", "exact"),
    [(certified_srocc, 0.02, 0.90), (certified_krocc, 0.12, 0.60), (certified_plcc, 0.01, 0.50)],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_close_to_the_worst_case_of_small_sets(certified, mean_gap, exact):
    rng = np.random.default_rng(7)
    gaps = []
    for n in (3, 4, 5, 6):
        for _ in range(40):
            box = random_box(rng, n)
            gap = EXACT[certified](*box) - certified(*box)
            assert gap > -ROUNDING
            gaps.append(gap)
    assert np.mean(gaps) < mean_gap
    assert np.mean(np.array(gaps) < 1e-3) > exact


@by_correlation
def test_never_above_attacks_on_a_set_of_forty(certified):
    rng = np.random.default_rng(8)
    for half in (0.05, 0.2, 0.5, 1.0):
        mos = np.round(rng.normal(size=40), 1)
        centre = np.round(mos + 0.4 * rng.normal(size=40), 1)
        lower, upper = centre - half, centre + half
        value = certified(lower, upper, mos)
        towards_middle = np.clip(0.0, lower, upper)
        candidates = [np.where(mos > t, lower, upper) for t in np.quantile(mos, np.linspace(0, 1, 21))]
        candidates += [np.clip(-k * mos, lower, upper) for k in np.geomspace(1e-4, 10, 30)]
        candidates += [towards_middle, *rng.uniform(lower, upper, (20, 40))]
        statistic = CORRELATIONS[certified]
        assert value <= min(statistic(s, mos) for s in candidates if np.ptp(s) > 0) + ROUNDING
        assert value > -1 or half == 1.0


def test_plcc_is_nearly_exact_on_twelve_images():
    """Where the worst correlation is positive it is at a corner of the box, and all corners can be tried."""
    rng = np.random.default_rng(9)
    for _ in range(5):
        mos = rng.normal(size=12)
        centre, half = mos + 0.3 * rng.normal(size=12), rng.uniform(0, 0.5, 12)
        s = np.array(list(itertools.product(*zip(centre - half, centre + half, strict=True))))
        s -= s.mean(axis=1, keepdims=True)
        y = mos - mos.mean()
        worst = np.min(s @ y / np.sqrt(np.sum(s**2, axis=1) * (y @ y)))
        assert worst > 0
        assert worst - 0.005 < certified_plcc(centre - half, centre + half, mos) <= worst + ROUNDING


# --- not vacuous --------------------------------------------------------------------------------------------


@by_correlation
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40),
    st.sampled_from([1.0, 1e-3, 1e6]),
)
@settings(max_examples=60, deadline=None)
def test_zero_width_gives_the_plain_correlation_ties_included(certified, pairs, unit):
    scores, mos = unit * np.array(pairs, dtype=float).T
    assume(np.ptp(scores) > 0)
    assume(np.ptp(mos) > 0)
    assert certified(scores, scores, mos) == pytest.approx(CORRELATIONS[certified](scores, mos), abs=ROUNDING)


@by_correlation
@pytest.mark.parametrize("unit", [1, 0.1, 0.3, 1e-3, 7e5])
def test_zero_correlation_is_zero_in_any_unit(certified, unit):
    x = np.arange(-4, 5)  # rounding must not turn a covariance of 0 into a negative one with no proof
    assert certified(unit * (x + 0.7), unit * (x + 0.7), unit * x**2) == pytest.approx(0, abs=ROUNDING)
    assert certified(unit * x**2, unit * x**2, unit * (x + 0.7)) == pytest.approx(0, abs=ROUNDING)


@by_correlation
def test_disjoint_intervals_in_the_order_of_mos(certified):
    mos = np.arange(20.0)
    assert certified(mos, mos, mos) == pytest.approx(1, abs=ROUNDING)
    value = certified(mos - 0.4, mos + 0.4, mos)
    assert value == pytest.approx(1, abs=0.01 if certified is certified_plcc else ROUNDING)
    assert certified(-mos, -mos, mos) == pytest.approx(-1, abs=ROUNDING)


@by_correlation
def test_wider_intervals_never_help(certified):
    rng = np.random.default_rng(10)
    mos = rng.normal(size=60)
    centre = mos + 0.3 * rng.normal(size=60)
    values = [certified(centre - h, centre + h, mos) for h in (0, 0.02, 0.05, 0.1, 0.3, 1, 3)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.7
    assert values[-1] == pytest.approx(-1)


@by_correlation
def test_order_shift_and_scale_do_not_matter(certified):
    rng = np.random.default_rng(11)
    lower, upper, mos = random_box(rng, 30)
    value = certified(lower, upper, mos)
    p = rng.permutation(30)
    assert certified(lower[p], upper[p], mos[p]) == pytest.approx(value, abs=1e-7)
    assert certified(1000 + 7 * lower, 1000 + 7 * upper, 3 * mos - 50) == pytest.approx(value, abs=1e-7)
    assert certified(-upper, -lower, -mos) == pytest.approx(value, abs=1e-7)


def test_srocc_without_the_assignment_is_sound_too(monkeypatch):
    rng = np.random.default_rng(12)
    cases = [random_box(rng, 5) for _ in range(40)]
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


@by_correlation
def test_constant_scores_claim_nothing(certified):
    mos = np.arange(5.0)
    assert certified(np.ones(5), np.ones(5), mos) == -1
    assert certified(np.zeros(5), np.ones(5), mos) == pytest.approx(-1, abs=1e-9)


# --- mean squared error -------------------------------------------------------------------------------------


@given(boxes(most=6))
@settings(max_examples=60, deadline=None)
def test_mse_is_the_greatest_over_the_box(box):
    lower, upper, mos = box
    corners = np.array(list(itertools.product(*zip(lower, upper, strict=True))))
    assert certified_mse(*box) == pytest.approx(np.max(np.mean((corners - mos) ** 2, axis=1)))
    for fit in (lambda s: 5 / (1 + np.exp(-s)), lambda s: 3 - 2 * s):  # rising and falling
        worst = np.max(np.mean((fit(corners) - mos) ** 2, axis=1))
        assert certified_mse(*box, score_to_mos=fit) == pytest.approx(worst)


def test_mse_of_infinite_ends():
    lower, upper, mos = [-np.inf, 2.0], [1.0, 2.0], [1.0, 2.0]
    assert certified_mse(lower, upper, mos) == math.inf
    assert certified_mse(lower, upper, mos, hard_bounds=(0.0, 5.0)) == pytest.approx(0.5)
    assert certified_mse(lower, upper, mos, score_to_mos=lambda s: 1 / (1 + np.exp(-s))) < math.inf


# --- infinite ends and errors -------------------------------------------------------------------------------


@by_correlation
def test_an_abstention_counts_at_its_worst_and_hard_bounds_limit_it(certified):
    mos = np.arange(30.0)
    lower, upper = mos.copy(), mos.copy()
    lower[25], upper[25], upper[3] = -np.inf, np.inf, np.inf
    open_ended = certified(lower, upper, mos)
    bounded = certified(lower, upper, mos, hard_bounds=(0.0, 29.0))
    lower[25], upper[25], upper[3] = 0.0, 29.0, 29.0
    assert bounded == certified(lower, upper, mos)
    assert open_ended <= bounded + ROUNDING
    assert 0.3 < bounded < 0.9
    if certified is certified_plcc:
        assert open_ended == -1
    else:
        assert open_ended > 0.3  # one image can only do so much to ranks
        lower[25], upper[25], upper[3] = -1e9, 1e9, 1e9
        assert open_ended == certified(lower, upper, mos)


@by_correlation
def test_nothing_is_known_when_all_abstain(certified):
    free = np.full(6, np.inf)
    assert certified(-free, free, np.arange(6.0)) == -1


@pytest.mark.parametrize("certified", [*CORRELATIONS, certified_mse], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("lower", "upper", "mos", "named"),
    [
        ([0, np.nan, 0], [1, 1, 1], [1, 2, 3], "lower holds NaN at position 1"),
        ([0, 0, 0], [1, 1, np.nan], [1, 2, 3], "upper holds NaN at position 2"),
        ([0, 0, 0], [1, 1, 1], [np.nan, 2, 3], "mos holds NaN at position 0"),
        ([0, 0, 0], [1, 1, 1], [1, np.inf, 3], "mos is infinite at position 1"),
        ([0, 2, 0], [1, 1, 1], [1, 2, 3], "position 1 is empty: lower 2, upper 1"),
        ([np.inf, 0, 0], [np.inf, 1, 1], [1, 2, 3], "position 0 is empty"),
        ([0, 0], [1, 1, 1], [1, 2, 3], r"shapes \(2,\), \(3,\) and \(3,\)"),
        ([[0, 0]], [[1, 1]], [[1, 2]], "one-dimensional"),
        ([], [], [], r"0 image\(s\) given"),
    ],
)
def test_bad_input_is_named(certified, lower, upper, mos, named):
    with pytest.raises(UserError, match=named):
        certified(lower, upper, mos)


@by_correlation
def test_correlations_need_two_images_and_varying_mos(certified):
    with pytest.raises(UserError, match="at least 2"):
        certified([0.0], [1.0], [1.0])
    with pytest.raises(UserError, match="every MOS is 3"):
        certified([0.0, 1.0], [1.0, 2.0], [3.0, 3.0])


def test_bad_hard_bounds_and_maps_are_named():
    with pytest.raises(UserError, match=r"hard_bounds=\(1, 0\)"):
        certified_srocc([0, 1], [1, 2], [1, 2], hard_bounds=(1, 0))
    with pytest.raises(UserError, match="after hard_bounds"):
        certified_srocc([-np.inf, 1], [-3, 2], [1, 2], hard_bounds=(0, 5))
    with pytest.raises(UserError, match="score_to_mos"):
        certified_mse([0, 1], [1, 2], [1, 2], score_to_mos=lambda s: s[:1])


def test_no_warnings_reach_the_user():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for certified in CORRELATIONS:
            certified([0, 1, -np.inf, 2], [0, 1, 4, np.inf], [1, 2, 3, 3])
            certified([0, 0, 0], [0, 1, 1], [1, 2, 3])
            certified([1, 1, 1], [1, 1, 1], [1, 2, 3])


# --- the parts of the bound on orders -----------------------------------------------------------------------


def possible_permutations(lower, upper):
    """Return the ranks of every order that puts i before j where upper_i < lower_j, shape (number, N)."""
    ranks = np.array(list(itertools.permutations(range(1, len(lower) + 1))))
    below = np.argwhere(upper[:, None] < lower[None, :])
    return ranks[np.all([ranks[:, i] < ranks[:, j] for i, j in below], axis=0)] if len(below) else ranks


@given(box=boxes(most=6))
@settings(max_examples=80, deadline=None)
def test_each_relaxation_is_below_every_possible_order(box):
    lower, upper, mos = box
    g = rankdata(mos) - (len(mos) + 1) / 2
    least = np.min(possible_permutations(lower, upper) @ g)
    parts = [f(g, lower, upper) for f in (order_bounds._by_initial_sets, order_bounds._by_pairs)]
    parts.append(order_bounds._by_windows(g, lower, upper))
    assert max(parts) <= least + ROUNDING
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


@given(boxes(most=6))
@settings(max_examples=80, deadline=None)
def test_triples_share_no_pair(box):
    """No order has fewer agreeing open pairs than there are triples, half-weights included."""
    lower, upper, mos = box
    i, j = np.triu_indices(len(mos), 1)
    points = (lower[i] == upper[j]) & (upper[i] == lower[j])
    opened = (upper[i] >= lower[j]) & (upper[j] >= lower[i]) & (mos[i] != mos[j]) & ~points
    ranks = possible_permutations(lower, upper)
    agreeing = np.sum((np.sign(ranks[:, i] - ranks[:, j]) == np.sign(mos[i] - mos[j])) & opened, axis=1)
    assert order_bounds.triples_apart(mos, lower, upper) <= agreeing.min() + ROUNDING


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


# --- the search for the worst -------------------------------------------------------------------------------

SEARCHES = {certified_srocc: worst_srocc, certified_krocc: worst_krocc, certified_plcc: worst_plcc}


@by_correlation
@given(box=boxes())
@settings(max_examples=60, deadline=None)
def test_what_is_found_lies_in_the_box_between_floor_and_truth(certified, box):
    lower, upper, mos = box
    found = SEARCHES[certified](*box)
    assert np.all((lower <= found.scores) & (found.scores <= upper))
    if np.ptp(found.scores) == 0:
        assert math.isnan(found.value)
        return
    assert found.value == pytest.approx(CORRELATIONS[certified](found.scores, mos))
    assert certified(*box) <= found.value + ROUNDING


@by_correlation
def test_the_search_meets_the_worst_of_small_sets(certified):
    rng = np.random.default_rng(15)
    missed = []
    for n in (4, 5, 6):
        for _ in range(15):
            box = random_box(rng, n)
            missed.append(SEARCHES[certified](*box).value - EXACT[certified](*box))
    assert np.mean(missed) < 0.01
    assert np.mean(np.array(missed) < 1e-3) > 0.85


@pytest.mark.parametrize(
    ("certified", "gap"),
    [(certified_srocc, 0.02), (certified_krocc, 0.06), (certified_plcc, 0.005)],
    ids=["srocc", "krocc", "plcc"],
)
def test_floor_and_lowest_found_are_close_on_a_set_of_two_hundred(certified, gap):
    rng = np.random.default_rng(16)
    mos = rng.uniform(size=200)
    centre, half = mos + 0.2 * rng.normal(size=200), rng.uniform(0.04, 0.1, 200)
    box = centre - half, centre + half, mos
    floor, found = certified(*box), SEARCHES[certified](*box).value
    assert floor <= found < floor + gap
    assert found < CORRELATIONS[certified](centre, mos) - 0.05


@by_correlation
def test_the_search_takes_infinite_ends_ties_and_single_points(certified):
    free = np.full(4, np.inf)
    assert SEARCHES[certified](-free, free, [1, 2, 3, 4]).value == pytest.approx(-1)
    assert math.isnan(SEARCHES[certified]([1, 1, 1], [1, 1, 1], [1, 2, 3]).value)
    lower, upper = np.arange(6.0), np.arange(6.0)
    upper[1], lower[4] = np.inf, -np.inf
    found = SEARCHES[certified](lower, upper, np.arange(6.0))
    assert np.isfinite(found.scores).all()
    assert certified(lower, upper, np.arange(6.0)) - ROUNDING <= found.value < 0.5
    bounded = SEARCHES[certified](lower, upper, np.arange(6.0), hard_bounds=(0, 5))
    assert bounded.scores.min() >= 0
    assert bounded.scores.max() <= 5
    assert bounded.value >= found.value - ROUNDING
    with pytest.raises(UserError, match="lower holds NaN"):
        SEARCHES[certified]([0, np.nan], [1, 1], [1, 2])
    with pytest.raises(UserError, match="equally long"):
        SEARCHES[certified]([0, 1], [1, 1, 1], [1, 2, 3])
