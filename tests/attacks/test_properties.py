"""What every attack keeps, on small real networks: budget, grid, seed, direction, batch equals one by one."""

import warnings

import pytest
import torch
from torch import nn

from certiqa.attacks import ATTACKS, SetAttack, load_attack
from certiqa.attacks.registry import options_of
from certiqa.data import load_dataset
from certiqa.metrics import FrozenMetric, load_metric

# small versions, where the defaults take long or saturate the score; attacks that are not named take their defaults
SMALL = {
    "fgsm": {"eps": 2 / 255},
    "ifgsm": {"eps": 2 / 255, "steps": 4},
    "mifgsm": {"eps": 2 / 255, "steps": 4},
    "amifgsm": {"eps": 2 / 255, "steps": 4},
    "pgd_linf": {"eps": 2 / 255, "steps": 5},
    "pgd_l2": {"eps": 0.2, "steps": 5},
    "apgd": {"eps": 2 / 255, "steps": 6},
    "madc": {"eps": 2 / 255, "steps": 4},
    "korhonen": {"steps": 4},
    "zhang": {"steps": 4},
    "ssah": {"learning_rate": 0.002},
    "advcf": {"steps": 5},
    "ab_offset": {"steps": 4},
    "stadv": {"steps": 4},
}
# set attacks have no direction and depend on all images together: tests/attacks/test_sets.py
SINGLE = [name for name, attack in ATTACKS.items() if not issubclass(attack, SetAttack)]
QUERIES = ("queries", "max_queries", "query_budget", "budget")


def make(name):
    if hasattr(ATTACKS[name], "fit"):
        pytest.skip("universal: must be fitted first, and has tests of its own")
    options = dict(SMALL.get(name, {}))
    if not ATTACKS[name].uses_gradient:
        options |= {key: 60 for key in QUERIES if key in options_of(ATTACKS[name])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_attack(name, **options)


@pytest.fixture(scope="module")
def photographs(mini_cache):
    """Two distorted photographs of 48x64 pixels on the 8-bit grid, of middling score."""
    dataset = load_dataset("mini", "quick_validation", cache=mini_cache)
    return torch.stack([dataset[row]["image"][:, 80:128, 60:124] for row in (52, 57)])


@pytest.fixture(scope="module")
def mini():
    return load_metric("mini")


@pytest.fixture(params=["mini", "curved"])
def metric(request, mini, curved_metric):
    return mini if request.param == "mini" else curved_metric


class Mirrored(nn.Module):
    def __init__(self, metric):
        super().__init__()
        self.metric, self.total = metric, sum(metric.score_range)

    def forward(self, images):
        return self.total - self.metric(images)


def scores(metric, images):
    with torch.no_grad():
        return metric(images)


def largest(change, norm):
    flat = change.flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    return flat.norm(dim=1) if norm == "l2" else flat.square().mean(1).sqrt()


@pytest.mark.parametrize("name", SINGLE)
def test_budget_grid_and_seed(name, metric, photographs):
    attack = make(name)
    before = photographs.clone()
    result = attack.craft(metric, photographs, seed=3)
    assert torch.equal(photographs, before)
    assert result.images.shape == photographs.shape
    for attacked in (result.images, result.unrounded):
        assert 0 <= float(attacked.amin()) <= float(attacked.amax()) <= 1
    if attack.norm in ("linf", "l2", "rmse"):
        rounding = 0.5 / 255 if attack.norm == "rmse" else 0
        assert float(largest(result.unrounded - photographs, attack.norm).max()) <= attack.eps + 1e-6
        assert float(largest(result.images - photographs, attack.norm).max()) <= attack.eps + rounding + 1e-6
    if attack.rounds:
        assert torch.allclose(result.images * 255, (result.images * 255).round(), atol=1e-4)
    assert torch.equal(result.images, attack.craft(metric, photographs, seed=3).images)
    assert torch.equal(result.images, make(name)(metric, photographs, seed=3)), "an attack keeps nothing between runs"
    assert not result.failed.any()
    if attack.uses_gradient:
        assert result.gradient_calls > 0
    else:
        assert result.gradient_calls == 0
        assert result.forward_calls > 0 or name == "noise"


@pytest.mark.parametrize("direction", ["raise", "lower"])
@pytest.mark.parametrize("name", [name for name in SINGLE if name != "noise"])
def test_moves_the_score_more_than_noise_of_equal_norm(name, direction, metric, photographs):
    attack = make(name)
    sign = 1 if direction == "raise" else -1
    attacked = attack(metric, photographs, direction)
    clean = scores(metric, photographs)
    gain = sign * (scores(metric, attacked) - clean)
    if not attack.uses_gradient:
        assert (gain >= -1e-6).all()
        return
    assert (gain > 0).all()
    noise = torch.randn(photographs.shape, generator=torch.Generator().manual_seed(1))
    length = (attacked - photographs).flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    noisy = (photographs + noise * length / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
    if direction == "raise" or attack.norm != "none":  # to lower a score by a change of colour is harder than by noise
        assert (gain >= sign * (scores(metric, noisy) - clean)).all()


@pytest.mark.parametrize("name", SINGLE)
def test_a_mirrored_metric_gives_the_same_images(name, curved_metric, photographs):
    mirrored = FrozenMetric(Mirrored(curved_metric), name="mirrored", score_range=(0, 1), lower_better=True)
    one, other = make(name)(curved_metric, photographs), make(name)(mirrored, photographs)
    same = (one - other).abs() < 0.5 / 255
    assert same.float().mean() > 0.999, "a score of 1 - s has the gradient of s up to rounding"


@pytest.mark.parametrize("name", SINGLE)
def test_a_batch_equals_one_by_one(name, curved_metric, photographs):
    """In double precision, where sums in another order turn no sign."""
    metric, images = curved_metric.double(), photographs.double()
    attack, ids = make(name), ["a", "b"]
    together = attack.craft(metric, images, torch.tensor([1, -1]), image_ids=ids)
    for row, direction in ((1, -1), (0, 1)):
        alone = attack.craft(metric, images[row : row + 1], direction, image_ids=ids[row : row + 1])
        assert torch.allclose(alone.unrounded, together.unrounded[row : row + 1], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in SINGLE if ATTACKS[name].uses_gradient])
def test_on_the_embedded_metric_a_batch_scores_as_one_by_one(name, mini, photographs):
    attack, ids = make(name), ["a", "b"]
    together = attack(mini, photographs, image_ids=ids)
    alone = torch.cat([attack(mini, photographs[row : row + 1], image_ids=ids[row : row + 1]) for row in (0, 1)])
    assert torch.allclose(scores(mini, alone), scores(mini, together), atol=0.03)
