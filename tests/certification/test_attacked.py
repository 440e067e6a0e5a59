"""Ten certificates of the embedded metric under attack: none may be violated; benchmarks/ attacks many more."""

import numpy as np
import pytest
import torch

from certiqa.certification import certify, median_interval
from certiqa.data import load_dataset
from certiqa.defenses import MedianSmoothing
from certiqa.denoisers import load_denoiser
from certiqa.metrics import load_metric

CONFIDENCE = 0.99999  # 40 sides: a violation by chance with probability 4e-4


def steepest(smooth, image, name, radius, sign, steps=3, draws=2):
    """PGD with expectation over the noise, on the sphere of the radius."""
    moved = torch.zeros_like(image)
    for step in range(steps):
        moved.requires_grad_(True)
        copies = (image + moved).expand(draws, -1, -1, -1)
        noisy = smooth.noisy(copies, [name] * draws, range(step * draws, (step + 1) * draws), 0, "attack")
        (gradient,) = torch.autograd.grad(sign * smooth.base_function(noisy).sum(), moved)
        moved = moved.detach() + radius * gradient / gradient.norm()
        moved = moved * (radius / moved.norm())
    return image + moved


@pytest.mark.parametrize("weights", [None, "mini_dms_iqa"])
def test_no_attack_within_the_radius_leaves_the_certified_interval(weights, mini_cache):
    denoiser = None if weights is None else load_denoiser("unet", weights=weights)
    smooth = MedianSmoothing(load_metric("mini"), 0.12, 80, denoiser)
    dataset = load_dataset("mini", "quick", cache=mini_cache)
    shares = []
    for number, row in enumerate((3, 30, 61, 88, 120)):
        item = dataset[row]
        image, name = item["image"][None, :, 64:160, 64:160], item["image_id"]
        bounds = certify(smooth, image, [0.06], confidence=CONFIDENCE, image_ids=[name])
        sign = 1 if number % 2 else -1
        attacked = steepest(smooth, image, name, 0.06, sign)
        assert 0.9 * 0.06 <= float((attacked - image).norm()) <= 0.06 * 1.0001
        scores = smooth.sample_scores(attacked, image_ids=[name], stream="score").double().numpy()
        low, high = median_interval(scores, CONFIDENCE)
        assert low[0] <= bounds.upper[0, 0]
        assert high[0] >= bounds.lower[0, 0]
        shares.append(sign * (np.median(scores) - bounds.score[0]) / bounds.half_width[0, 0])
    assert np.mean(shares) > 0, "an attack that does not move the score tests nothing"
