"""The one-pixel attack: its evolution is differential evolution as SciPy names it, and its optimum is known."""

import itertools

import pytest
import torch

from certiqa.attacks import OnePixel


def test_it_climbs_a_hill_to_the_best_pixel_there_is(linear_metric):
    metric = linear_metric(40).double()
    away = (torch.arange(40) - 27.0).square()
    weight = torch.exp(-(away[:, None] + away[None, :]) / 200).expand(3, 40, 40)
    metric.network.weight.copy_(weight)
    grey = torch.full((2, 3, 40, 40), 100 / 255, dtype=torch.float64)
    best = 3 * (1 - 100 / 255) / weight.numel()  # the top of the hill becomes white
    gain = metric(OnePixel(pixels=1, queries=1650, members=30).craft(metric, grey).images) - metric(grey)
    assert gain.tolist() == pytest.approx([best, best], rel=0.01)  # as many random draws end below 0.9 of it


def test_members_paint_their_pixels_and_of_two_at_one_place_the_last_counts():
    image = torch.full((3, 4, 5), 0.5)
    members = torch.tensor(
        [
            [0.5, 0.99, 0.0, 0.5, 0.999, 0.0, 0.0, 1.0, 0.25, 0.125],
            [0.3, 0.3, 0.0, 0.0, 0.0, 0.3, 0.3, 0.999, 0.999, 0.999],
        ]
    )
    painted = OnePixel(pixels=2).painted(image, members, 0, 2)
    assert painted[0, :, 2, 4].mul(255).round().tolist() == [0, 128, 255]
    assert painted[0, :, 0, 0].mul(255).round().tolist() == [255, 64, 32]
    assert painted[1, :, 1, 1].tolist() == [1, 1, 1]
    changed = (painted != image).any(dim=1).flatten(1).sum(dim=1)
    assert changed.tolist() == [2, 1]
    assert torch.equal(OnePixel(pixels=2).painted(image, members, 1, 2), painted[1:])


def test_the_first_population_is_a_latin_hypercube():
    count = 12
    attack = OnePixel(pixels=1, members=count)
    image = torch.full((3, count, count), 0.5001)
    query = next(attack.search(image, 0.0, torch.Generator().manual_seed(0)))
    assert query.count == count
    painted = query.build(0, count)
    places = (painted != image).any(dim=1).nonzero()
    assert places[:, 0].tolist() == list(range(count))
    for axis in (1, 2):  # as many rows as members: one in each, and one in each column
        assert sorted(places[:, axis].tolist()) == list(range(count))


def test_a_trial_is_the_best_and_a_part_of_the_difference_of_two_others():
    attack, draws = OnePixel(pixels=2, members=6), torch.Generator().manual_seed(1)
    members = 0.5 + 0.1 * torch.rand(6, 10, generator=draws)  # so close together that no trial leaves the cube
    best = members[4]
    moved = attack.trials(members, best, draws) - best
    factors = []
    for parent, move in enumerate(moved):
        others = [row for row in range(6) if row != parent]
        matches = []
        for first, second in itertools.permutations(others, 2):
            difference = members[first] - members[second]
            factor = float(move @ difference / (difference @ difference))
            if factor > 0 and torch.allclose(move, factor * difference, atol=1e-6):
                matches.append(factor)
        assert len(matches) == 1, "one pair of others, the parent not among them"
        factors += matches
    assert factors == pytest.approx([factors[0]] * 6, rel=1e-3)  # one factor a generation
    assert 0.5 <= factors[0] < 1


def test_what_leaves_the_cube_is_drawn_anew_inside():
    attack, draws = OnePixel(pixels=2, members=6), torch.Generator().manual_seed(2)
    members = torch.rand(6, 10, generator=draws)
    trials = torch.cat([attack.trials(members, torch.full((10,), 0.999), draws) for _ in range(20)])
    assert bool(((trials >= 0) & (trials < 1)).all())
    assert float((trials < 0.001).float().mean()) < 0.05  # not clipped to an end
    assert float((trials > 0.998).float().mean()) < 0.05
