"""The first stage of set attacks: soft ranks, and targets for scores recorded or made by a seed."""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from certiqa.attacks import load_attack, soft_ranks
from certiqa.attacks.permutahedron import project_to_ranks
from certiqa.attacks.planning import Descent, descend, within_reach
from certiqa.errors import UserError


@pytest.fixture(scope="module")
def recorded():
    """Scores of the embedded metric on mini's validation photographs, on a scale of 100.

    Recorded by ``python benchmarks/set_attacks.py --record tests/attacks/mini_scores.json``.
    """
    scores = json.loads((Path(__file__).parent / "mini_scores.json").read_text())
    return (np.array(scores) - 1) * 25


def srocc(first, second):
    return stats.spearmanr(first, second).statistic


def skewed(count, seed=3):
    return np.random.default_rng(seed).beta(4, 2.2, count) * 100


def test_soft_ranks_are_ranks_where_scores_are_apart():
    scores = torch.tensor([3.0, -7.0, 11.0, 5.5], dtype=torch.float64, requires_grad=True)
    ranks = soft_ranks(scores, 2.0)
    assert ranks.tolist() == [2, 1, 4, 3]
    (gradient,) = torch.autograd.grad((ranks * torch.arange(4)).sum(), scores)
    assert not gradient.any()


def test_soft_ranks_become_ranks_and_flatten():
    scores = torch.from_numpy(skewed(50))
    gaps = [float((soft_ranks(scores, beta) - torch.from_numpy(stats.rankdata(scores))).abs().max()) for beta in (9, 1)]
    gaps.append(float((soft_ranks(scores, 1e-6) - torch.from_numpy(stats.rankdata(scores))).abs().max()))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-4
    assert np.corrcoef(soft_ranks(scores, 1e4), scores)[0, 1] == pytest.approx(1, abs=1e-9)


def test_soft_ranks_are_the_nearest_point_of_the_permutahedron():
    """Against a quadratic programme over the convex hull of all permutations."""
    scores = np.array([0.4, 1.1, 0.9, 2.0])
    corners = np.array(list(permutations([1.0, 2.0, 3.0, 4.0])))
    weights = np.full(len(corners), 1 / len(corners))
    point = weights @ corners
    for _ in range(4000):  # Frank and Wolfe, with an exact line search
        corner = corners[np.argmin(corners @ (point - scores))]
        step = corner - point
        share = np.clip((scores - point) @ step / max(step @ step, 1e-12), 0, 1)
        point = point + share * step
    assert np.allclose(soft_ranks(torch.from_numpy(scores)).numpy(), point, atol=0.02)


@pytest.mark.parametrize("beta", [0.3, 1.0, 20.0])
def test_gradcheck(beta):
    scores = torch.from_numpy(skewed(12, seed=1)).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda values: soft_ranks(values, beta), scores, eps=1e-7, atol=1e-5)


def test_soft_ranks_of_bad_input():
    for scores, beta in ((torch.ones(2, 2), 1), (torch.tensor([1.0, torch.nan]), 1), (torch.ones(3), 0)):
        with pytest.raises(UserError, match="soft ranks"):
            soft_ranks(scores, beta)


def test_the_papers_plan_turns_recorded_scores_round_and_moves_them_far(recorded):
    assert len(recorded) == 375
    attack = load_attack("sma")
    targets = attack.plan(recorded)
    assert srocc(targets, recorded) <= -0.8
    assert np.abs(targets.numpy() - recorded).mean() > 50
    assert float(targets.min()) >= 0
    assert float(targets.max()) <= 100
    assert torch.equal(targets, attack.plan(torch.from_numpy(recorded)))


@pytest.mark.parametrize("count", [3, 10, 60, 232, 1000])
def test_the_papers_plan_holds_for_sets_of_any_size(count):
    scores = skewed(count)
    targets = descend(scores, (0, 100))
    assert srocc(targets, scores) <= -0.8
    assert np.abs(targets - scores).mean() > 50


def test_fewer_longer_steps_end_where_more_shorter_ones_do():
    scores = skewed(150)
    long = descend(scores, (0, 100), descent=Descent(steps=8000, lr=0.0625, keep="last"))
    short = descend(scores, (0, 100), descent=Descent(keep="last"))
    best = descend(scores, (0, 100))

    def objective(targets):
        return srocc(targets, scores) - 1e-4 * targets.var(ddof=1) - 1e-4 * ((targets - scores) ** 2).mean()

    assert objective(short) == pytest.approx(objective(long), abs=0.02)
    assert objective(best) < objective(long)
    assert srocc(best, scores) < srocc(long, scores), "the authors' last step has all targets at two ties"
    assert len(np.unique(long.round(6))) < 10


def test_a_plan_scales_with_the_range_and_follows_opinion_scores(recorded):
    one = load_attack("sma").plan(recorded)
    other = load_attack("sma").plan(recorded / 25 + 1, score_range=(1, 5))
    assert torch.allclose(other, one / 25 + 1, atol=1e-6)
    mos = np.random.default_rng(1).permutation(len(recorded)).astype(float)
    targets = load_attack("sma", reference="mos").plan(recorded, mos)
    assert srocc(targets, mos) < -0.8
    assert abs(srocc(targets, recorded)) < 0.5


def test_reverse_is_exact(recorded):
    scores = np.unique(recorded)
    targets = load_attack("sma", plan="reverse").plan(scores)
    assert stats.rankdata(targets).tolist() == stats.rankdata(-scores).tolist()
    assert srocc(targets, scores) == pytest.approx(-1, abs=1e-12)
    assert sorted(targets.tolist()) == sorted(scores.tolist())
    mos = np.random.default_rng(1).permutation(len(scores)).astype(float)
    assert srocc(load_attack("sma", plan="reverse", reference="mos").plan(scores, mos), mos) == pytest.approx(-1)


def test_within_reach_keeps_to_the_limits_and_beats_clipped_plans():
    scores, generator = skewed(200), np.random.default_rng(0)
    low, high = scores - generator.uniform(2, 25, 200), scores + generator.uniform(2, 25, 200)
    starts = [descend(scores, (0, 100)), np.sort(scores)[::-1][np.argsort(np.argsort(scores))]]
    targets = within_reach(scores, low, high, starts)
    assert (targets >= low).all()
    assert (targets <= high).all()
    assert all(srocc(targets, scores) < srocc(np.clip(start, low, high), scores) for start in starts)


def test_within_reach_is_near_the_least_of_all_orders():
    gaps = []
    for seed in range(25):
        generator = np.random.default_rng(seed)
        scores = generator.random(6)
        low, high = scores - 0.4 * generator.random(6), scores + 0.4 * generator.random(6)
        targets = within_reach(scores, low, high, [np.where(scores > np.median(scores), low, high)])
        ranks = stats.rankdata(scores)
        allowed = (
            order
            for order in permutations(range(6))
            if not any(high[order[later]] < low[order[first]] for first in range(6) for later in range(first, 6))
        )
        least = min(ranks[list(order)] @ np.arange(6) for order in allowed)
        gaps.append(ranks[np.argsort(targets)] @ np.arange(6) - least)
    assert min(gaps) >= -1e-9
    assert np.mean(np.array(gaps) < 1e-9) >= 0.8
    assert max(gaps) <= 2


@pytest.mark.parametrize(
    ("scores", "mos", "options", "message"),
    [
        ([1.0, 2.0], None, {}, "at least 3 images"),
        ([4.0, 4.0, 4.0], None, {}, "no ranking to attack"),
        ([1.0, np.nan, 2.0, 3.0], None, {}, "the first in row 1: nan"),
        ([[1.0, 2.0, 3.0]], None, {}, "of shape"),
        ([1.0, 2.0, 3.0], None, {"reference": "mos"}, "none were given"),
        ([1.0, 2.0, 3.0], [1.0, np.nan, 2.0], {"reference": "mos"}, r"some are missing \(NaN\)"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], {"reference": "mos"}, "3 scores but 4 opinion scores"),
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], {"reference": "mos"}, "all 3 opinion scores are 2"),
        ([1.0, 2.0, 300.0], None, {}, "outside 0 to 100; give their scale"),
        ([1.0, 2.0, 3.0], None, {"plan": "reachable"}, "scores alone do not do"),
    ],
)
def test_bad_sets(scores, mos, options, message):
    with pytest.raises(UserError, match=message):
        load_attack("sma", **options).plan(scores, mos)


def test_bad_options():
    for name, options, message in (
        ("sma", {"plan": "reversed"}, "Did you mean 'reverse'"),
        ("sma", {"keep": "first"}, "best or last"),
        ("sma", {"plan_steps": 0}, "plan_steps"),
        ("sma", {"mse_weight": -1}, "mse_weight"),
        ("sma", {"beta": 0}, "beta"),
        ("sma", {"probe_steps": 0}, "probe_steps"),
        ("sma", {"reference": "opinion"}, "scores, mos"),
        ("sma", {"score_range": [5, 1]}, "low < high"),
        ("rank_inversion", {"weight": "pair"}, "pairs, gaps"),
        ("rank_inversion", {"tau": 0}, "tau"),
        ("rank_inversion", {"steps": 0}, "steps"),
        ("sma_l2", {"eps": 0}, "above 0"),
    ):
        with pytest.raises(UserError, match=message):
            load_attack(name, **options)


def test_blocks_of_the_regression_pull_gradients_back_as_their_jacobian():
    scores, change = skewed(30, seed=2), np.random.default_rng(5).normal(size=30)
    found = project_to_ranks(scores, 5.0)
    columns = [(project_to_ranks(scores + 1e-6 * row, 5.0).ranks - found.ranks) / 1e-6 for row in np.eye(30)]
    assert np.allclose(found.pull_back(change), np.array(columns) @ change, atol=1e-4)
