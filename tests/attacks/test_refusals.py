"""What attacks refuse, in a sentence instead of a traceback."""

import math

import numpy as np
import pytest
import torch

from certiqa.attacks import ATTACKS, Suite, load_attack
from certiqa.attacks.registry import options_of
from certiqa.errors import UserError

BOUNDED = [name for name, attack in ATTACKS.items() if attack.norm in ("linf", "l2", "rmse")]
WHOLE = ("steps", "queries", "epochs", "size", "batch_size", "width", "pieces", "grid", "windows", "pairs", "tile_size")
WHOLE += ("blocks", "group", "pixels", "members", "side", "probe_steps", "plan_steps", "plan_seed", "score_samples")
WHOLE += ("eot_samples",)


@pytest.mark.parametrize("eps", ["8/255", None, 0, -0.1, math.nan, math.inf, True])
@pytest.mark.parametrize("name", BOUNDED)
def test_an_eps_that_is_no_number_above_zero(name, eps):
    with pytest.raises(UserError, match=rf"attack.eps of {name} must be a number above 0.*got "):
        load_attack(name, eps=eps)


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in ATTACKS for option in options_of(ATTACKS[name]) if option in WHOLE]
)
def test_a_count_that_is_no_whole_number(name, option):
    for value in (2.5, -1, "3", math.nan):
        with pytest.raises(UserError, match=f"attack.{option} of {name} must be a whole number"):
            load_attack(name, **{option: value})
    if option != "size":
        assert load_attack(name, **{option: 4.0}) is not None


def test_every_option_that_counts_is_checked():
    taken = {option for attack in ATTACKS.values() for option in options_of(attack)}
    assert set(WHOLE) <= taken


@pytest.mark.parametrize(
    ("name", "option"),
    [("amifgsm", "best"), ("amifgsm", "random_start"), ("amifgsm", "step_size"), ("pgd_l2", "random_start")],
)
def test_an_option_that_an_attack_would_ignore(name, option):
    with pytest.raises(UserError, match=f"attack '{name}' has no option '{option}'"):
        load_attack(name, **{option: 1})
    with pytest.raises(TypeError):
        ATTACKS[name](**{option: 1})


CALLS = {
    "a list as direction": ({"direction": [1, -1, 1, 1]}, r"no direction '\[1, -1, 1, 1\]'.*or a tensor \(N,\)"),
    "an array as direction": ({"direction": np.ones(4)}, r"no direction .*or a tensor \(N,\)"),
    "another number": ({"direction": 2}, "no direction '2'"),
    "too few directions": ({"direction": torch.ones(3)}, r"\+1 or -1 for each of the 4 images"),
    "too few targets": ({"targets": torch.ones(3)}, "one finite score per image, 4 of them, got shape"),
    "a list of targets": ({"targets": [0.1, 0.2, 0.3, 0.4]}, "one finite score per image, 4 of them, got a list"),
    "targets that are NaN": ({"targets": torch.full((4,), torch.nan)}, "one finite score per image"),
    "too few ids": ({"image_ids": ["a"]}, "4 images but 1 image ids"),
    "no images": ({"images": torch.empty(0, 3, 8, 8)}, r"at least one image.*got .*shape \(0, 3, 8, 8\)"),
    "one image without batch": ({"images": torch.zeros(3, 8, 8)}, r"\(N, 3, H, W\), got shape \(3, 8, 8\)"),
}


@pytest.mark.parametrize("case", CALLS)
@pytest.mark.parametrize("name", ["ifgsm", "square", "stadv", "suite"])
def test_a_call_that_means_nothing(name, case, curved_metric, images):
    if name == "suite" and case == "one image without batch":
        pytest.skip("named by the metric")
    attack = Suite({"ifgsm": load_attack("ifgsm")}) if name == "suite" else load_attack(name)
    given, message = CALLS[case]
    with pytest.raises(UserError, match=message):
        attack(curved_metric, **{"images": images, **given})


def test_a_set_attack_has_no_direction_of_any_kind(curved_metric, images):
    for direction in ([1, -1, 1, 1], np.ones(4), torch.ones(4), "away", -1):
        with pytest.raises(UserError, match="has no direction"):
            load_attack("sma")(curved_metric, images, direction)
