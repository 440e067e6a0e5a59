"""Set attacks: the second stage, the joint descent, and that batches do not matter."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from certiqa.attacks import ATTACKS, SetAttack, Suite, load_attack
from certiqa.defenses import MedianSmoothing
from certiqa.errors import UserError
from certiqa.metrics import FrozenMetric

NAMES = [name for name, attack in ATTACKS.items() if issubclass(attack, SetAttack)]
EPS = {"linf": 4 / 255, "l2": 0.2}


@pytest.fixture
def photos():
    """Ten images of 10x10 pixels well inside [0, 1], on the 8-bit grid, that differ in contrast and colour."""
    generator = torch.Generator().manual_seed(2)
    levels = torch.linspace(0.46, 0.54, 10)[torch.randperm(10, generator=generator)].view(-1, 1, 1, 1)
    noise = torch.rand(10, 3, 10, 10, generator=generator) - 0.5
    return ((levels + 0.3 * noise) * 255).round() / 255


def make(name, **options):
    if name.startswith("sma"):
        options = {"plan_steps": 50, "plan_lr": 10.0, **options}
    return load_attack(name, **options)


def batched(images, size, order=None, **more):
    order = list(range(len(images))) if order is None else order
    return [
        {
            "image": images[order[at : at + size]],
            "image_id": [f"id{row}" for row in order[at : at + size]],
            **{key: value[order[at : at + size]] for key, value in more.items()},
        }
        for at in range(0, len(order), size)
    ]


def craft(attack, metric, batches, **more):
    """Return {image id: (attacked, unrounded, target)}."""
    found = {}
    for share in attack.craft_set(metric, batches, **more):
        for place, name in enumerate(share.image_ids):
            target = None if share.targets is None else float(share.targets[place])
            found[name] = share.result.images[place], share.result.unrounded[place], target
    return found


def srocc(first, second):
    return stats.spearmanr(first, second).statistic


def scored(metric, found):
    names = sorted(found, key=lambda name: int(name[2:]))
    with torch.no_grad():
        return metric(torch.stack([found[name][0] for name in names]))


def test_there_are_four():
    assert set(NAMES) == {"sma", "sma_l2", "rank_inversion", "rank_inversion_l2"}
    assert [load_attack(name).norm for name in NAMES] == ["linf", "l2", "linf", "l2"]


@pytest.mark.parametrize("name", NAMES)
def test_budget_grid_and_ranking(name, curved_metric, photos):
    attack = make(name, eps=EPS[ATTACKS[name].norm])
    before = photos.clone()
    found = craft(attack, curved_metric, batched(photos, 4))
    assert torch.equal(photos, before)
    attacked = torch.stack([found[f"id{row}"][0] for row in range(10)])
    assert 0 <= float(attacked.amin()) <= float(attacked.amax()) <= 1
    change = attacked - photos
    if attack.norm == "linf":
        assert float(change.abs().max()) <= attack.eps + 1e-6
        assert torch.allclose(attacked * 255, (attacked * 255).round(), atol=1e-4)
    else:
        assert float(change.flatten(1).norm(dim=1).max()) <= attack.eps + 1e-5
    with torch.no_grad():
        clean, after = curved_metric(photos), curved_metric(attacked)
    assert stats.kendalltau(clean, after).statistic < 0.9
    assert srocc(clean, after) < 1
    assert torch.equal(
        attacked, torch.stack([craft(attack, curved_metric, batched(photos, 4))[f"id{i}"][0] for i in range(10)])
    )


@pytest.mark.parametrize("name", NAMES)
def test_batches_and_order_do_not_matter(name, curved_metric, photos):
    """In double precision, where sums in another order turn no sign."""
    metric, images = curved_metric.double(), photos.double()
    attack = make(name, eps=EPS[ATTACKS[name].norm], steps=5)
    one = craft(attack, metric, batched(images, 10))
    other = craft(attack, metric, batched(images, 3, order=[7, 1, 4, 9, 0, 2, 8, 3, 6, 5]))
    assert one.keys() == other.keys()
    for key in one:
        assert torch.allclose(one[key][1], other[key][1], atol=1e-6)
    again = attack.craft(metric, images, image_ids=[f"id{row}" for row in range(10)])
    assert torch.allclose(again.unrounded, torch.stack([one[f"id{row}"][1] for row in range(10)]), atol=1e-6)


@pytest.mark.parametrize("name", ["sma", "sma_l2"])
def test_every_image_gets_nearer_its_target(name, curved_metric, photos):
    attack = make(name, eps=EPS[ATTACKS[name].norm], score_range=(0, 1))
    with torch.no_grad():
        clean = curved_metric(photos)
        targets = clean + 0.03 * torch.tensor([1, -1] * 5) * torch.linspace(0.01, 3, 10)
        result = attack.craft(curved_metric, photos, targets=targets)
        after = curved_metric(result.images)
    assert ((after - targets).abs() <= (clean - targets).abs() + 1e-6).all()
    assert ((after - targets).abs() < 0.7 * (clean - targets).abs()).any()
    same = attack.craft(curved_metric, photos, targets=clean)
    assert (same.images - photos).abs().max() < 1e-6


def test_halving_and_dither_hit_targets_that_signed_steps_miss(curved_metric, photos):
    with torch.no_grad():
        clean = curved_metric(photos)
    targets = clean + 0.004 * torch.tensor([1, -1] * 5)
    errors = {}
    for halve, dither in ((True, True), (False, False), (True, False)):
        attack = make("sma", eps=8 / 255, halve=halve, dither=dither)
        with torch.no_grad():
            errors[halve, dither] = float(
                (curved_metric(attack(curved_metric, photos, targets=targets)) - targets).abs().max()
            )
    assert errors[True, True] < 0.3 * min(errors[False, False], errors[True, False])


@pytest.mark.parametrize("name", ["sma_l2", "rank_inversion_l2"])
def test_l2_attacks_use_their_radius(name, linear_metric, photos):
    metric, radius = linear_metric(10), 0.05
    attack = make(name, eps=radius)
    found = craft(attack, metric, batched(photos, 5))
    changes = torch.stack([found[f"id{row}"][0] for row in range(10)]) - photos
    lengths = changes.flatten(1).norm(dim=1)
    with torch.no_grad():
        after = metric(photos + changes)
    reached = torch.zeros(10, dtype=torch.bool)
    if name == "sma_l2":
        targets = torch.tensor([found[f"id{row}"][2] for row in range(10)])
        reached = (after - targets).abs() < 1e-4
    assert ((lengths >= 0.9 * radius) | reached).all()
    assert (lengths >= 0.9 * radius).any()
    assert (lengths <= radius + 1e-5).all()


def test_l2_attack_moves_a_linear_score_by_the_radius_times_the_norm(linear_metric, photos):
    metric = linear_metric(10)
    gain = 0.05 * float(metric.network.weight.norm()) / metric.network.weight.numel()
    with torch.no_grad():
        clean = metric(photos)
        signs = torch.tensor([1.0, -1.0] * 5)
        after = metric(make("sma_l2", eps=0.05)(metric, photos, targets=(clean + 9 * gain * signs).clamp(-1, 1)))
    assert torch.allclose(after - clean, gain * signs, atol=1e-5)


def spread_metric(linear_metric):
    """A linear metric and images whose scores are so far apart that no attack of 1/255 changes their order."""
    metric = linear_metric(8)
    direction = metric.network.weight.sign()
    shares = torch.linspace(-0.2, 0.2, 6).view(-1, 1, 1, 1)
    images = ((0.5 + shares * direction) * 255).round() / 255
    return metric, images[[3, 0, 5, 1, 4, 2]]


@pytest.mark.parametrize("name", ["rank_inversion", "sma"])
def test_on_a_linear_metric_the_top_half_falls_and_the_bottom_half_rises(name, linear_metric):
    metric, images = spread_metric(linear_metric)
    with torch.no_grad():
        clean = metric(images)
    middle = clean.median()
    options = {"tau": 100.0} if name == "rank_inversion" else {"plan": "reverse"}
    found = craft(make(name, eps=1 / 255, **options), metric, batched(images, 2))
    expected = torch.where(clean > middle, -1.0, 1.0).view(-1, 1, 1, 1) * metric.network.weight.sign() / 255
    attacked = torch.stack([found[f"id{row}"][0] for row in range(6)])
    assert torch.allclose(attacked - images, expected, atol=1e-5)
    assert srocc(scored(metric, found), clean) == pytest.approx(1), "a tiny budget changes no place here"


def test_rank_inversion_lowers_what_it_counts(curved_metric, photos):
    with torch.no_grad():
        clean = curved_metric(photos)
    for weight in ("pairs", "gaps"):
        attack = make("rank_inversion", eps=8 / 255, weight=weight)
        after = scored(curved_metric, craft(attack, curved_metric, batched(photos, 3)))
        assert stats.kendalltau(clean, after).statistic < -0.3
        tau = attack.softness(clean.numpy())
        before, _ = attack.loss(clean.numpy(), clean.numpy(), tau)
        assert attack.loss(after.double().numpy(), clean.double().numpy(), tau)[0] < 0.5 * before


@pytest.mark.parametrize("weight", ["pairs", "gaps"])
def test_coefficients_are_the_derivative_of_the_loss(weight):
    generator = np.random.default_rng(4)
    scores, reference = generator.normal(size=700), generator.integers(0, 50, 700).astype(float)
    attack = make("rank_inversion", weight=weight, margin=0.1)
    value, weights = attack.loss(scores, reference, 0.5)
    moving = torch.from_numpy(scores).requires_grad_(True)
    ranks = torch.from_numpy(stats.rankdata(reference))
    gaps = (ranks[:, None] - ranks[None, :]).clamp(min=0)
    counts = (gaps > 0).double() if weight == "pairs" else gaps
    loss = (counts * torch.nn.functional.softplus((moving[:, None] - moving[None, :] + 0.1) / 0.5)).sum() / counts.sum()
    assert value == pytest.approx(loss.item())
    assert np.allclose(weights, torch.autograd.grad(loss, moving)[0].numpy(), atol=1e-12)


def test_perturbations_kept_on_disk_are_the_same_and_are_removed(curved_metric, photos, tmp_path):
    attack = make("rank_inversion", steps=3)
    inside = craft(attack, curved_metric, batched(photos, 4))
    outside = craft(attack, curved_metric, batched(photos, 4), workspace=tmp_path)
    assert all(torch.equal(inside[name][0], outside[name][0]) for name in inside)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sma", "rank_inversion"])
def test_wanted_images_are_those_of_the_whole_set(name, curved_metric, photos):
    attack = make(name, steps=3)
    whole = craft(attack, curved_metric, batched(photos, 4))
    some = craft(attack, curved_metric, batched(photos, 4), wanted={"id2", "id7"})
    assert some.keys() == {"id2", "id7"}
    assert all(torch.allclose(some[key][0], whole[key][0], atol=1e-6) for key in some)


def test_opinion_scores_as_reference_and_a_metric_where_lower_is_better(curved_metric, photos):
    mos = torch.arange(10, dtype=torch.float64)[torch.randperm(10, generator=torch.Generator().manual_seed(3))]
    for name in ("sma", "rank_inversion"):
        attack = make(name, eps=12 / 255, reference="mos")
        after = scored(curved_metric, craft(attack, curved_metric, batched(photos, 4, mos=mos)))
        turned = FrozenMetric(curved_metric.network, name="turned", score_range=(0, 1), lower_better=True)
        worse = scored(turned, craft(attack, turned, batched(photos, 4, mos=-mos)))
        with torch.no_grad():
            before = srocc(curved_metric(photos), mos)
        assert srocc(after, mos) < before - 0.3
        assert srocc(-worse, -mos) < before - 0.3


def test_reachable_targets_are_reached(curved_metric, photos):
    found = {
        plan: craft(make("sma_l2", eps=0.1, plan=plan), curved_metric, batched(photos, 4))
        for plan in ("paper", "reachable")
    }
    targets = torch.tensor([found["reachable"][f"id{row}"][2] for row in range(10)])
    assert (scored(curved_metric, found["reachable"]) - targets).abs().max() < 2e-3
    with torch.no_grad():
        clean = curved_metric(photos)
    reached = {plan: srocc(scored(curved_metric, images), clean) for plan, images in found.items()}
    assert reached["reachable"] <= reached["paper"]
    assert reached["reachable"] < 0.9


class Misled(nn.Module):
    """A linear score whose gradient has the wrong sign."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        scores = self.network(images)
        return 2 * scores.detach() - scores


def misled(linear_metric):
    return FrozenMetric(Misled(linear_metric(10).network), name="misled", score_range=(-1, 1))


@pytest.mark.parametrize("name", ["sma_l2", "rank_inversion_l2"])
def test_l2_attacks_use_their_radius_even_where_no_step_helps(name, linear_metric, photos):
    attack = make(name, eps=0.05)
    lengths = (attack(misled(linear_metric), photos) - photos).flatten(1).norm(dim=1)
    assert (lengths >= 0.9 * 0.05).all()
    assert (lengths <= 0.05 + 1e-6).all()


def test_an_image_that_stands_at_its_target_may_stay(linear_metric, photos):
    metric = misled(linear_metric)
    with torch.no_grad():
        targets = metric(photos) + torch.tensor([1e-6, 0.02] * 5)  # up to rounding
    attacked = make("sma_l2", eps=0.05)(metric, photos, targets=targets)
    lengths = (attacked - photos).flatten(1).norm(dim=1)
    assert (lengths[::2] == 0).all()
    assert (lengths[1::2] >= 0.9 * 0.05).all()


@pytest.mark.parametrize("name", ["sma", "rank_inversion"])
def test_where_no_step_helps_in_linf_the_images_are_the_answer(name, linear_metric, photos):
    attacked = make(name)(misled(linear_metric), photos)
    assert torch.allclose(attacked, photos, atol=1e-6)


class Counting(nn.Module):
    score_range = (0, 1)

    def __init__(self, network):
        super().__init__()
        self.network, self.forwards, self.gradients = network, 0, 0

    def forward(self, images):
        if images.requires_grad:
            self.gradients += len(images)
        else:
            self.forwards += len(images)
        return self.network(images)


@pytest.mark.parametrize("plan", ["paper", "reachable", "joint"])
def test_the_cost_is_all_that_the_metric_was_asked(plan, curved_metric, photos):
    attack = make("rank_inversion", steps=4) if plan == "joint" else make("sma", plan=plan, probe_steps=5, steps=4)
    counting = Counting(curved_metric.network)
    shares = list(attack.craft_set(counting, batched(photos, 4)))
    assert sum(share.result.forward_calls for share in shares) == counting.forwards
    assert sum(share.result.gradient_calls for share in shares) == counting.gradients
    assert counting.gradients >= (10 * 10 if plan == "reachable" else 10)


def test_targets_of_a_plan_are_taken_by_the_attack_where_scores_leave_the_range(linear_metric, photos):
    metric = FrozenMetric(linear_metric(10).network, name="beyond", score_range=(0, 0.475))
    with torch.no_grad():
        clean = metric(photos)
    assert (clean > 0.475).any()
    for plan in ("paper", "reverse"):
        attack = make("sma", plan=plan)
        targets = attack.plan(clean, score_range=metric.score_range)
        assert (targets > 0.475).any()
        counting = Counting(metric.network)
        counting.score_range = metric.score_range
        result = attack.craft(counting, photos, targets=targets)
        assert result.forward_calls == counting.forwards, "the look at the clean scores is paid for"
    with pytest.raises(UserError, match=r"outside the range 0 to 0\.48.* plan with score_range=\(0, 0\.475\)"):
        attack(metric, photos, targets=targets + 1)
    wider = make("sma", score_range=(-3, 3))  # planned on a scale of one's own
    assert wider(metric, photos, targets=wider.plan(clean)).shape == photos.shape


def test_a_smoothed_metric(linear_metric, photos):
    smoothed = MedianSmoothing(linear_metric(10), 0.1, 9, clip=False)
    for name in NAMES:
        attack = make(name, eps=EPS[ATTACKS[name].norm], steps=3)
        first, second = (craft(attack, smoothed, batched(photos, size)) for size in (10, 3))
        assert all(torch.allclose(first[key][1], second[key][1], atol=1e-5) for key in first)


def test_bad_sets(curved_metric, photos):
    attack = make("sma")
    for images, message in ((photos[:1], "at least 3 images"), (photos[:1].repeat(4, 1, 1, 1), "no ranking to attack")):
        for name in NAMES:
            with pytest.raises(UserError, match=message):
                make(name)(curved_metric, images)
    with pytest.raises(UserError, match="has no direction"):
        attack(curved_metric, photos, "lower")
    with pytest.raises(UserError, match="one finite score per image, 10 of them"):
        attack(curved_metric, photos, targets=torch.ones(4))
    with pytest.raises(UserError, match="one finite score per image"):
        attack(curved_metric, photos, targets=torch.full((10,), torch.nan))
    with pytest.raises(UserError, match=r"10 of 10 targets are outside the range 0 to 1.*e.g. 7"):
        attack(curved_metric, photos, targets=torch.full((10,), 7.0))
    with pytest.raises(UserError, match="stands for more than one image"):
        list(attack.craft_set(curved_metric, [*batched(photos, 5), *batched(photos[:2], 2)]))
    with pytest.raises(UserError, match="can be gone through again"):
        list(attack.craft_set(curved_metric, iter(batched(photos, 5))))
    with pytest.raises(UserError, match="must be dicts with 'image'"):
        list(attack.craft_set(curved_metric, [photos[0]]))
    with pytest.raises(UserError, match="needs an opinion score of every image"):
        list(make("rank_inversion", reference="mos").craft_set(curved_metric, batched(photos, 5)))
    with pytest.raises(UserError, match="sma of the suite"):
        Suite({"sma": attack})(curved_metric, photos)
    broken = photos.clone()
    broken[4] = torch.nan
    with pytest.raises(UserError, match="the first in row 4: nan"):
        list(attack.craft_set(curved_metric, batched(broken, 5)))
