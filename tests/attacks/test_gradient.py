"""The FGSM family and projected gradient ascent: closed forms on a linear metric, budgets, and what goes wrong."""

import pytest
import torch
from torch import nn

from certiqa.attacks import ATTACKS, SetAttack, Target, load_attack
from certiqa.attacks.apgd import checkpoints_of
from certiqa.attacks.parts import Momentum, onto_sphere
from certiqa.defenses import MedianSmoothing
from certiqa.errors import UserError
from certiqa.metrics import FrozenMetric

LINF = ("fgsm", "ifgsm", "mifgsm", "amifgsm", "pgd_linf", "apgd")
EPS = 10 / 255


@pytest.fixture
def middling(images):
    """Images so far inside [0, 1] that no ball of EPS meets the box, on the 8-bit grid."""
    return ((0.3 + 0.4 * images) * 255).round() / 255


@pytest.mark.parametrize("name", LINF)
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("box", [False, True], ids=["box free", "box binds"])
def test_linf_attacks_reach_the_optimum_of_a_linear_metric(name, direction, box, linear_metric, images, middling):
    metric = linear_metric()
    clean = (images * 255).round() / 255 if box else middling
    best = (clean + EPS * direction * metric.network.weight.sign()).clamp(0, 1)
    assert torch.allclose(load_attack(name)(metric, clean, direction), best, atol=1e-5)


def test_pgd_l2_reaches_the_optimum_of_a_linear_metric(linear_metric, images, middling):
    metric, eps = linear_metric(), 0.5
    weight = metric.network.weight
    attacked = load_attack("pgd_l2", eps=eps)(metric, middling)
    assert torch.allclose(attacked, middling + eps * weight / weight.norm(), atol=1e-5)
    gain = metric(attacked) - metric(middling)
    assert torch.allclose(gain, torch.full_like(gain, eps * float(weight.norm()) / weight.numel()), atol=1e-6)
    # with the box: the optimum is clip(x + t * w), t such that the length is eps
    low, high = torch.zeros(4, 1, 1, 1), torch.full((4, 1, 1, 1), 50.0)
    for _ in range(60):
        middle = (low + high) / 2
        short = ((images + middle * weight).clamp(0, 1) - images).flatten(1).norm(dim=1).view(-1, 1, 1, 1) < eps
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    best = metric((images + low * weight).clamp(0, 1)) - metric(images)
    reached = metric(load_attack("pgd_l2", eps=eps)(metric, images)) - metric(images)
    assert (reached > 0.99 * best).all()
    assert (reached <= best + 1e-6).all()


def test_pgd_l2_uses_its_radius_and_is_not_rounded(curved_metric, middling):
    attacked = load_attack("pgd_l2", eps=0.1)(curved_metric, middling)
    lengths = (attacked - middling).flatten(1).norm(dim=1)
    assert (lengths <= 0.1 + 1e-6).all()
    assert (lengths >= 0.09).all()
    assert ((attacked * 255) - (attacked * 255).round()).abs().max() > 0.1


def test_without_decay_momentum_is_ifgsm(curved_metric, images):
    plain = load_attack("ifgsm")(curved_metric, images)
    assert torch.equal(load_attack("mifgsm", decay=0.0)(curved_metric, images), plain)


def test_normalised_momentum_does_not_see_the_scale():
    gradients = [torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(row)) for row in range(3)]
    scales = (1.0, 1000.0, 0.01)
    for normalise in (True, False):
        plain, scaled = Momentum(1.0, normalise), Momentum(1.0, normalise)
        same = [torch.equal(plain(g), scaled(s * g)) for g, s in zip(gradients, scales, strict=True)]
        assert all(same) is normalise


def test_amifgsm_needs_no_projection(curved_metric, images):
    radii = torch.tensor([1.0, 2.0, 3.0, 4.0]) / 255
    attack = load_attack("amifgsm", eps=4 / 255, steps=7, eps_of=lambda _: radii)
    change = attack.craft(curved_metric, images).unrounded - images
    assert (change.abs().flatten(1).amax(1) <= radii + 1e-6).all()


def test_apgd_checkpoints_are_the_papers():
    assert checkpoints_of(100) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_apgd_is_not_worse_than_pgd(curved_metric, images):
    values = {
        name: Target(curved_metric, images).values(load_attack(name, steps=20).craft(curved_metric, images).unrounded)
        for name in ("pgd_linf", "apgd")
    }
    assert (values["apgd"] >= values["pgd_linf"] - 1e-4).all()


class Peak(nn.Module):
    """Greatest at one image of each batch's size, and falling in every direction."""

    def __init__(self, top):
        super().__init__()
        self.top = top

    def forward(self, images):
        return 1 - 50 * (images - self.top[: len(images)]).square().flatten(1).mean(1)


@pytest.mark.parametrize("name", ["ifgsm", "mifgsm", "pgd_linf", "apgd", "madc", "korhonen", "ssah"])
def test_the_best_iterate_is_never_worse_than_the_image(name, middling):
    metric = FrozenMetric(Peak(middling), name="peak", score_range=(0, 1))
    attack = load_attack(name, steps=2)
    counting = Counting(metric)
    result = attack.craft(counting, middling)
    assert torch.equal(metric(result.images), metric(middling))
    assert counting.images == result.forward_calls + result.gradient_calls


@pytest.mark.parametrize("name", ["pgd_linf", "apgd"])
def test_a_look_at_the_image_is_paid_for_after_a_random_start_alone(name, curved_metric, images):
    for random_start, looks in ((True, 2), (False, 1)):
        result = load_attack(name, steps=3, random_start=random_start).craft(curved_metric, images)
        assert (result.forward_calls, result.gradient_calls) == (4 * looks, 4 * 3)


class Counting(nn.Module):
    """A metric that counts the images it has scored."""

    score_range = (0, 1)

    def __init__(self, metric):
        super().__init__()
        self.metric, self.images = metric, 0

    def forward(self, images):
        self.images += len(images)
        return self.metric(images)


def test_what_the_box_cuts_off_the_other_pixels_are_given():
    images = torch.full((1, 3, 8, 8), 0.5)
    images[..., :6] = 0.99  # most pixels can rise by .01 alone
    moved = onto_sphere(images + 0.05, images, 1.0)
    assert float((moved - images).norm()) == pytest.approx(1.0, abs=0.02)
    assert float(moved.max()) <= 1


class Odd(nn.Module):
    """A mean score that is flat, or not a number, where the first pixel says so."""

    def forward(self, images):
        mark = images[:, 0, 0, 0].detach()
        root = (torch.where(mark == 1, -1.0, 1.0) + 0 * images[:, 1, 0, 0]).sqrt()
        return images.mean(dim=(1, 2, 3)) * (mark != 0) * root


@pytest.mark.parametrize("name", [name for name in ATTACKS if ATTACKS[name].uses_gradient])
def test_zero_and_nan_gradients(name, middling):
    if hasattr(ATTACKS[name], "fit") or issubclass(ATTACKS[name], SetAttack):
        pytest.skip("universal, or of a whole set")
    metric = FrozenMetric(Odd(), name="odd", score_range=(0, 1))
    images = middling.clone()
    images[0, 0, 0, 0], images[1, 0, 0, 0] = 0.0, 1.0
    options = {"random_start": False} if name in ("pgd_linf", "apgd") else {}
    result = load_attack(name, **options).craft(metric, images)
    assert result.failed.tolist()[1:] == [True, False, False]
    assert any("not finite for 1 image" in note for note in result.notes)
    assert torch.isfinite(result.images).all()
    assert (metric(result.images[2:]) > metric(images[2:])).all()
    if name in (*LINF, "pgd_l2", "madc", "korhonen", "ssah", "stadv", "advcf"):
        assert torch.allclose(result.images[0], images[0], atol=1e-6)
        assert any("gradient was zero" in note for note in result.notes)


class Detached(nn.Module):
    def forward(self, images):
        return (images * 255).round().detach().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("name", [name for name in ATTACKS if ATTACKS[name].uses_gradient])
def test_a_metric_without_gradient_is_named(name, images):
    if hasattr(ATTACKS[name], "fit"):
        pytest.skip("universal")
    with pytest.raises(UserError, match=r"no gradient comes through metric 'detached'.*black-box"):
        load_attack(name)(FrozenMetric(Detached(), name="detached"), images)


def test_directions_and_targets(curved_metric, images):
    attack, clean = load_attack("ifgsm", eps=20 / 255), curved_metric(images)
    up = torch.tensor([1, -1, 1, -1])
    assert ((curved_metric(attack(curved_metric, images, up)) - clean) * up > 0).all()
    away = curved_metric(attack(curved_metric, images, "away")) - clean
    assert torch.equal(away.sign(), torch.where(clean > 0.5, -1.0, 1.0))
    targets = clean + 0.01 * up
    reached = curved_metric(attack.craft(curved_metric, images, targets=targets).unrounded)
    assert ((reached - targets).abs() < (clean - targets).abs()).all()


def test_rounding_stays_in_the_ball(curved_metric, images):
    for eps in (3 / 255, 0.0137):  # on the grid and off it, from images that are off it
        result = load_attack("pgd_linf", eps=eps).craft(curved_metric, images)
        assert torch.allclose(result.images * 255, (result.images * 255).round(), atol=1e-4)
        assert (result.images - images).abs().max() <= eps + 1e-6


@pytest.mark.parametrize("through", ["mean", "median"])
def test_expectation_over_a_smoothed_metric(through, linear_metric, middling):
    smoothed = MedianSmoothing(linear_metric(), 0.1, 9, clip=False)
    attack = load_attack("ifgsm", steps=3, eot_samples=4, through=through)
    result = attack.craft(smoothed, middling)
    assert torch.allclose(result.images, middling + EPS * smoothed.metric.network.weight.sign(), atol=1e-5)
    assert torch.equal(result.images, attack(smoothed, middling))


def test_bad_options():
    for name, options, message in (
        ("fgsm", {"eps": 0}, "must be a number above 0"),
        ("ifgsm", {"eps": 1.5}, "at most 1"),
        ("ifgsm", {"steps": 0}, "steps"),
        ("apgd", {"steps": 0}, "steps"),
        ("apgd", {"momentum": 0}, "momentum"),
        ("apgd", {"step": 3}, "did you mean|Did you mean"),
        ("madc", {"eps": -1}, "eps"),
        ("korhonen", {"learning_rate": 0}, "learning_rate"),
        ("zhang", {"start_noise": 0}, "start_noise"),
        ("zhang", {"distance": "sim"}, "Did you mean 'ssim'"),
        ("zhang", {"weight": -1}, "weight"),
        ("advcf", {"pieces": 1}, "pieces"),
        ("ab_offset", {"limit": 0}, "limit"),
    ):
        with pytest.raises(UserError, match=message):
            load_attack(name, **options)
    with pytest.warns(UserWarning, match="never reach"):
        load_attack("ifgsm", steps=2, step_size=1 / 255)
