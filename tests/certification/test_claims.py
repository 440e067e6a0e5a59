"""The claim of a set's guarantee under attack, and that the check of it can fail."""

import numpy as np
import pytest
import torch

from certiqa.attacks import load_attack
from certiqa.certification import certified_srocc, certify, joint_confidence_per_side, median_interval, worst_srocc
from certiqa.certification.claims import refuted
from certiqa.data import load_dataset
from certiqa.defenses import MedianSmoothing
from certiqa.denoisers import load_denoiser
from certiqa.errors import UserError
from certiqa.evaluation import srocc
from certiqa.metrics import load_metric


def linear_set(radius=0.03, sigma=0.03, draws=20_000, reach=1.0):
    """A linear metric with |w| = 1: pairs of images 1.9 radii apart, aligned perturbations that swap every pair.

    The draws of its smoothed score are normal around the score, and a perturbation moves it by at most the radius.
    """
    score = np.repeat(0.15 * np.arange(6), 2) + np.tile([0, 1.9 * radius], 6)
    attacked = score + reach * np.tile([radius, -radius], 6)
    noise = sigma * np.random.default_rng(0).normal(size=(12, draws))
    low, high = median_interval(attacked[:, None] + noise, joint_confidence_per_side(0.99, 12))
    return score, radius, low, high, np.arange(12.0)


def test_true_intervals_hold_where_the_worst_case_is_met_and_narrowed_ones_are_caught():
    score, radius, low, high, mos = linear_set()
    assert refuted(score - radius, score + radius, low, high, mos) == []
    floor = certified_srocc(score - radius, score + radius, mos)
    assert floor == pytest.approx(srocc((low + high) / 2, mos))  # the attack is at the floor itself
    found = refuted(score - 0.9 * radius, score + 0.9 * radius, low, high, mos)
    everything = {"certified srocc", "certified krocc", "certified plcc", *(f"image {row}" for row in range(12))}
    assert set(found) == everything


def test_a_weak_attack_proves_nothing():
    score, radius, low, high, mos = linear_set(reach=0.5)
    assert refuted(score - 0.9 * radius, score + 0.9 * radius, low, high, mos) == []


def test_one_attacked_image_outside_is_named():
    mos, score = np.arange(5.0), np.arange(5.0)
    low, high = score - 0.1, score + 0.1
    low[3], high[3] = 3.35, 3.45
    assert refuted(score - 0.3, score + 0.3, low, high, mos) == ["image 3"]
    with pytest.raises(UserError, match="NaN"):
        refuted(score, score, low, np.full(5, np.nan), mos)


@pytest.mark.full
@pytest.mark.parametrize("weights", [None, "mini_dms_iqa"])
def test_attacks_on_a_set_never_pass_its_floor(weights, mini_cache):
    denoiser = None if weights is None else load_denoiser("unet", weights=weights)
    smooth = MedianSmoothing(load_metric("mini"), 0.12, 80, denoiser)
    dataset = load_dataset("mini", "quick", cache=mini_cache)
    items = [dataset[row] for row in range(0, 120, 10)]
    images = torch.stack([item["image"][:, 64:160, 64:160] for item in items])
    ids, mos = [item["image_id"] for item in items], np.array([item["mos"] for item in items])
    side = joint_confidence_per_side(0.99, len(ids))
    bounds = certify(smooth, images, [0.06], confidence=side, image_ids=ids)
    lower, upper = bounds.lower[:, 0], bounds.upper[:, 0]
    signs = np.where(worst_srocc(lower, upper, mos).scores > bounds.score, 1.0, -1.0)
    attack = load_attack("pgd_l2", eps=0.06, steps=3, eot_samples=2)
    attacked = attack(smooth, images, torch.from_numpy(signs), image_ids=ids)
    scores = smooth.sample_scores(attacked, image_ids=ids, stream="score").double().numpy()
    assert refuted(lower, upper, *median_interval(scores, side), mos) == []
    assert np.mean(signs * (np.median(scores, axis=1) - bounds.score)) > 0, "an attack that moves nothing tests nothing"
