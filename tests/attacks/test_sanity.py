"""What an attack says of itself when its gradients are not to be trusted."""

import pandas as pd
import pytest
import torch
from torch import nn

from certiqa.attacks import Suite, load_attack
from certiqa.attacks.suite import noise_like
from certiqa.evaluation.attacked import sibling_warnings, summarise_attacks
from certiqa.metrics import FrozenMetric


class Mean(nn.Module):
    """The mean, times a slope, at most ``ceiling``."""

    def __init__(self, slope=1.0, ceiling=None):
        super().__init__()
        self.slope, self.ceiling = slope, ceiling

    def forward(self, images):
        scores = self.slope * images.flatten(1).mean(1)
        return scores if self.ceiling is None else scores.clamp(max=self.ceiling)


class Wiggly(nn.Module):
    """Rises with the mean for a step of 1/255, and falls after it."""

    def forward(self, images):
        rise = images.flatten(1).mean(1) - 0.5
        return torch.where(rise < 1.5 / 255, 20 * rise, 60 / 255 - 20 * rise)


class Onwards:
    """Follows no gradient."""

    def reset(self):
        pass

    def __call__(self, gradient):
        return torch.ones_like(gradient)


GREY = torch.full((2, 3, 8, 8), 0.5)


def notes(network, name="ifgsm", hard_bounds=None, **options):
    metric = FrozenMetric(network, name="tested", score_range=(0, 1), hard_bounds=hard_bounds)
    attack = load_attack(name, eps=4 / 255, **options)
    return attack.craft(metric, GREY).notes


def test_a_plain_metric_gets_no_note():
    assert notes(Mean()) == []


def test_a_gradient_of_zero_is_told_unless_the_score_is_at_its_end():
    assert "gradient was zero for 2 of 2 images" in notes(Mean(ceiling=0.3))[0]
    assert notes(Mean(ceiling=0.505), hard_bounds=(0, 0.505)) == []
    assert "gradient was zero" in notes(Mean(ceiling=0.505), hard_bounds=(0, 1))[0]


def test_an_exploding_gradient_is_told():
    # one 8-bit step moves the score by slope / 255 ranges
    assert notes(Mean(slope=90 * 255)) == []
    assert "the gradient explodes for 2 of 2 images" in notes(Mean(slope=110 * 255))[0]


def test_how_far_the_objective_rose_is_kept():
    metric = FrozenMetric(Mean(), name="tested", score_range=(0, 1))
    result = load_attack("ifgsm", eps=4 / 255, steps=4).craft(metric, GREY)
    torch.testing.assert_close(result.rises, torch.tensor([[1 / 255, 3 / 255]] * 2), rtol=1e-4, atol=0)
    assert load_attack("fgsm", eps=4 / 255).craft(metric, GREY).rises is None
    assert load_attack("square", eps=4 / 255, queries=5).craft(metric, GREY).rises is None


def records(network, **attacks):
    metric = FrozenMetric(network, name="tested", score_range=(0, 1))
    rows = []
    for name, attack in attacks.items():
        result = attack.craft(metric, GREY)
        for place in range(len(GREY)):
            row = {
                "image_id": str(place),
                "attack": name,
                "mos": float("nan"),
                "failure": None,
                "score": float(metric(GREY)[place]),
                "score_clean": float(metric(GREY)[place]),
                "score_attacked": float(metric(result.images)[place]),
                "score_unrounded": float(metric(result.unrounded)[place]),
                "score_attacked_undefended": float(metric(result.images)[place]),
                "score_noise": float(metric(GREY)[place]),
                "linf": float((result.images - GREY).abs().max()),
                **dict.fromkeys(("l2", "psnr", "ssim", "seconds"), 1.0),
                "forward_calls": result.forward_calls / 2,
                "gradient_calls": result.gradient_calls / 2,
            }
            if result.rises is not None:
                row["rise_first"], row["rise_last"] = map(float, result.rises[place])
            rows.append(row)
    return summarise_attacks(pd.DataFrame(rows), metric)


def test_steps_that_do_not_help_are_warned_of():
    good = load_attack("ifgsm", eps=4 / 255, steps=4)
    assert records(Mean(), ifgsm=good)["attack_warnings"] == []
    blind = load_attack("ifgsm", eps=8 / 255, steps=8, best=False)
    # follows the first gradient on; what turns back is the score
    blind.modifier = Onwards()
    (warning,) = records(Wiggly(), ifgsm=blind)["attack_warnings"][-1:]
    assert "ifgsm: more steps do not help" in warning


class Masked(nn.Module):
    """The mean times 20, whose gradient is a chessboard that moves it nowhere."""

    def forward(self, images):
        board = (torch.arange(images.shape[-1])[None] + torch.arange(images.shape[-2])[:, None]) % 2 * 2 - 1.0
        false = (images * board).flatten(1).mean(1)
        return 20 * images.detach().flatten(1).mean(1) - 9.7 + false - false.detach()


def test_a_black_box_attack_that_does_better_is_warned_of():
    white = load_attack("ifgsm", eps=4 / 255, steps=4, best=False)
    black = load_attack("square", eps=4 / 255, queries=60, p_init=1.0)
    warnings = records(Masked(), ifgsm=white, square=black)["attack_warnings"]
    assert any("square, which sees scores alone, moves them more than ifgsm" in warning for warning in warnings)
    warnings = records(Mean(), ifgsm=white, square=black)["attack_warnings"]
    assert not any("sees scores alone" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("sibling", "expected"),
    [
        ({"mae": 0.5, "gradient_calls": 0, "forward_calls": 500}, "gradients are masked"),
        ({"mae": 0.5, "gradient_calls": 1, "forward_calls": 0}, "more steps do not help"),
        ({"mae": 0.5, "gradient_calls": 20, "forward_calls": 0}, None),
        ({"mae": 0.5, "gradient_calls": 0, "forward_calls": 0}, None),  # a pattern of others
        ({"mae": 0.5, "gradient_calls": 0, "forward_calls": 500, "linf_mean": 8 / 255}, None),
        ({"mae": 0.31, "gradient_calls": 0, "forward_calls": 500}, None),
    ],
)
def test_siblings_are_compared_at_one_budget(sibling, expected):
    white = {"mae": 0.3, "gradient_calls": 10, "forward_calls": 1, "linf_mean": 4 / 255}
    found = sibling_warnings({"ifgsm": white, "other": {"linf_mean": 4 / 255, **sibling}})
    assert [expected in warning for warning in found] == ([] if expected is None else [True])


def test_a_suite_takes_the_most_successful_member_of_each_image_whatever_its_place():
    metric = FrozenMetric(Mean(), name="tested", score_range=(0, 1))
    strong, weak = (load_attack("ifgsm", eps=eps, steps=2) for eps in (4 / 255, 1 / 255))
    best = strong.craft(metric, GREY)
    for members in ({"strong": strong, "weak": weak}, {"weak": weak, "strong": strong}):
        chosen = Suite(members).craft(metric, GREY)
        assert torch.equal(chosen.images, best.images)
        assert torch.equal(chosen.unrounded, best.unrounded)
        assert chosen.gradient_calls == 2 * 2 * 2
        assert chosen.forward_calls == 2 * best.forward_calls + 2 * 3, "a look at the images and at each member's"
    misled = FrozenMetric(Masked(), name="masked", score_range=(0, 1))
    lowering = load_attack("fgsm", eps=4 / 255)
    assert torch.equal(Suite({"weak": lowering}).craft(misled, GREY).images, GREY), "the image itself is a candidate"


def test_noise_of_equal_norm_has_that_norm_image_by_image():
    attacked = GREY.clone()
    attacked[0, :, :2] += 0.1
    attacked[1] -= 3 / 255
    noisy = noise_like(GREY, attacked, ["a", "b"])
    for image, clean, other in zip(noisy, GREY, attacked, strict=True):
        torch.testing.assert_close((image - clean).norm(), (other - clean).norm())
        sizes = (image - clean).abs()
        torch.testing.assert_close(sizes, sizes.mean().expand_as(sizes))
        assert 0.3 < float((image > clean).float().mean()) < 0.7
    assert not torch.equal((noisy[0] > GREY[0]), (noisy[1] > GREY[1]))
    assert torch.equal(noisy, noise_like(GREY, attacked, ["a", "b"]))
    assert not torch.equal(noisy, noise_like(GREY, attacked, ["a", "b"], seed=1))


def test_an_attack_held_against_a_certificate_uses_its_radius_even_where_no_step_helps():
    metric = FrozenMetric(Masked(), name="tested", score_range=(0, 1))
    attacked = load_attack("pgd_l2", eps=0.06, steps=3)(metric, GREY)
    lengths = (attacked - GREY).flatten(1).norm(dim=1)
    assert bool((lengths >= 0.9 * 0.06).all())
