"""Median smoothing: the draws, their median, its gradient, and independence of how they are computed."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from certiqa.defenses import MedianSmoothing, no_defense, noise_key, sample_median, undefended
from certiqa.errors import UserError
from certiqa.metrics import QualityMetric, check_metric

SIGMA = 0.12
IDS = ["a.png", "b.png", "c.png", "d.png"]


def standard_normal(shape, *key):
    """The noise of one draw, by its definition."""
    generator = torch.Generator().manual_seed(noise_key(*key))
    return torch.empty(shape.numel()).normal_(generator=generator).view(shape)


def noisy_copies(images, n, seed=0, stream="score", sigma=SIGMA):
    """(N, n, 3, H, W) copies x + sigma * z."""
    return torch.stack(
        [
            torch.stack([x + sigma * standard_normal(x.shape, seed, stream, name, draw) for draw in range(n)])
            for x, name in zip(images, IDS, strict=True)
        ]
    )


class Recorder(QualityMetric):
    """A random metric that remembers the ids its randomness was keyed by."""

    is_random = True

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images, *, image_ids=None, generator=None):
        self.seen += image_ids
        shifts = [noise_key(0, "score", name, 0) / 2**63 for name in image_ids]
        return images.flatten(1).mean(1) + torch.tensor(shifts, dtype=torch.float32)


def test_draws_on_a_linear_metric_have_their_closed_form(linear_metric, images):
    metric = linear_metric()
    smooth = MedianSmoothing(metric, SIGMA, num_samples=6, clip=False, seed=3)
    w = metric.network.weight.double() / metric.network.weight.numel()
    copies = noisy_copies(images, 6, seed=3, stream="certify").double()
    expected = (copies * w).sum(dim=(2, 3, 4)) + 0.5
    draws = smooth.sample_scores(images, image_ids=IDS, stream="certify")
    assert draws.shape == (4, 6)
    torch.testing.assert_close(draws.double(), expected, rtol=0, atol=1e-6)
    later = smooth.sample_scores(images, 2, image_ids=IDS, stream="certify", first_draw=4)
    torch.testing.assert_close(later, draws[:, 4:], rtol=0, atol=1e-6)
    assert not torch.isclose(smooth.sample_scores(images, image_ids=IDS, seed=4, stream="certify"), draws).any()
    assert not torch.isclose(smooth.sample_scores(images, image_ids=IDS), draws).any()  # another stream


def test_noisy_and_denoised_images_are_clipped_and_only_on_request(linear_metric, images):
    metric, copies = linear_metric(), noisy_copies(images, 5)
    denoiser = nn.Conv2d(3, 3, 1)  # its output leaves [0, 1] on both sides
    denoiser.weight.data = 2 * torch.eye(3).view(3, 3, 1, 1)
    denoiser.bias.data.fill_(-0.5)
    clipped, plain = copies.clamp(0, 1), copies
    for clip, network, seen in (
        (True, None, clipped),
        (False, None, plain),
        (True, denoiser, (2 * clipped - 0.5).clamp(0, 1)),
        (False, denoiser, 2 * plain - 0.5),
    ):
        draws = MedianSmoothing(metric, SIGMA, 5, network, clip).sample_scores(images, image_ids=IDS)
        expected = metric(seen.flatten(0, 1)).view(4, 5)
        torch.testing.assert_close(draws, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 10])
def test_forward_is_the_median_of_the_draws(curved_metric, images, n):
    smooth = MedianSmoothing(curved_metric, SIGMA, num_samples=n)
    expected = np.median(smooth.sample_scores(images, image_ids=IDS).numpy(), axis=1)
    np.testing.assert_allclose(smooth(images, image_ids=IDS).numpy(), expected, rtol=0, atol=1e-6)


def test_sample_median_and_nan():
    scores = torch.tensor([[3.0, 1.0, 2.0, 9.0], [1.0, torch.nan, 2.0, 3.0], [1.0, 1.0, 1.0, torch.inf]])
    torch.testing.assert_close(sample_median(scores), torch.tensor([2.5, torch.nan, 1.0]), equal_nan=True)
    assert sample_median(scores[:1, :3]) == 2


@pytest.mark.parametrize("n", [1, 2, 7, 10])
def test_gradient_is_that_of_the_mean_of_the_two_middle_draws(curved_metric, images, n):
    smooth = MedianSmoothing(curved_metric, SIGMA, num_samples=n, batch_size=3)
    probe = images.clone().requires_grad_(True)
    scores = smooth(probe, image_ids=IDS)
    (gradient,) = torch.autograd.grad((scores * torch.arange(1.0, 5.0)).sum(), probe)

    probe = images.clone().requires_grad_(True)
    copies = noisy_copies(probe, n).clamp(0, 1)
    ordered = curved_metric(copies.flatten(0, 1)).view(4, n).sort(dim=1).values
    median = (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2
    (expected,) = torch.autograd.grad((median * torch.arange(1.0, 5.0)).sum(), probe)

    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(scores, median, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 16])
def test_batch_size_order_and_subset_do_not_matter(curved_metric, images, batch_size):
    reference = MedianSmoothing(curved_metric, SIGMA, num_samples=9)
    smooth = MedianSmoothing(curved_metric, SIGMA, num_samples=9, batch_size=batch_size)
    draws = reference.sample_scores(images, image_ids=IDS)
    assert draws.unique().numel() == draws.numel()
    torch.testing.assert_close(smooth.sample_scores(images, image_ids=IDS), draws, rtol=0, atol=1e-6)
    order = [2, 0, 3]
    part = smooth.sample_scores(images[order], image_ids=[IDS[i] for i in order])
    torch.testing.assert_close(part, draws[order], rtol=0, atol=1e-6)
    torch.testing.assert_close(smooth(images, image_ids=IDS), reference(images, image_ids=IDS), rtol=0, atol=1e-6)


def test_without_ids_every_image_gets_the_same_draws(curved_metric, images):
    smooth = MedianSmoothing(curved_metric, SIGMA, num_samples=5)
    same = smooth.sample_scores(images[:1].expand(3, -1, -1, -1))
    torch.testing.assert_close(same, same[:1].expand(3, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(smooth(images), smooth(images, image_ids=[""] * 4), rtol=0, atol=1e-6)


def test_a_generator_takes_the_place_of_the_seed(curved_metric, images):
    smooth = MedianSmoothing(curved_metric, SIGMA, num_samples=5)

    def score(seed):
        return smooth(images, image_ids=IDS, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(score(1), score(1))
    assert not torch.isclose(score(1), score(2)).any()
    assert not torch.isclose(score(1), smooth(images, image_ids=IDS)).any()


def test_expected_scores_are_the_mean_of_draws_of_the_attack_and_of_its_seed(linear_metric, images):
    """An attack that follows them must not see what ``forward`` will draw, whatever the defense's own seed."""
    smooth = MedianSmoothing(linear_metric(), SIGMA, num_samples=6, clip=False, seed=3)
    draws = smooth.sample_scores(images, image_ids=IDS, seed=8, stream="attack")
    for first, count in ((0, 6), (2, 3)):
        expected = draws[:, first : first + count].mean(dim=1)
        found = smooth.expected_scores(images, count, image_ids=IDS, seed=8, first=first)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    own = smooth.expected_scores(images, 6, image_ids=IDS, seed=smooth.seed)
    score = smooth.sample_scores(images, image_ids=IDS).mean(dim=1)
    assert not torch.isclose(own, score, rtol=0, atol=1e-6).any()


def test_metric_and_denoiser_are_frozen_in_eval_mode():
    denoiser = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5))
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))
    smooth = MedianSmoothing(network, SIGMA, num_samples=3, denoiser=denoiser)
    statistics = denoiser[1].running_mean.clone()
    assert not any(parameter.requires_grad for parameter in smooth.parameters())
    smooth.train()
    assert not any(module.training for module in smooth.modules())
    smooth(torch.rand(2, 3, 8, 8).requires_grad_(True)).sum().backward()
    assert torch.equal(denoiser[1].running_mean, statistics)


def test_a_defended_metric_is_a_metric(linear_metric, curved_metric):
    facts = {"hard_bounds": (-9, 9), "lower_better": True, "weights_source": "mine.safetensors"}
    inner = linear_metric(score_range=(0, 5), min_size=4, **facts)
    smooth = MedianSmoothing(inner, SIGMA)
    assert (smooth.score_range, smooth.hard_bounds, smooth.lower_better) == ((0, 5), (-9, 9), True)
    assert (smooth.min_size, smooth.num_samples, smooth.name) == (4, 100, "ms")
    assert smooth.weights_source == "mine.safetensors"
    assert MedianSmoothing(inner, SIGMA, denoiser=nn.Identity()).name == "dms"
    assert undefended(smooth) is inner
    assert no_defense(inner) is inner
    with pytest.raises(UserError, match="at least 4x4"):
        smooth(torch.zeros(1, 3, 3, 3))
    for clip in (True, False):
        report = check_metric(MedianSmoothing(curved_metric, SIGMA, num_samples=4, clip=clip), size=8, defended=True)
        assert report.ok, report.failures


def test_a_random_step_behind_the_noise_is_fresh_at_every_draw(images):
    metric = Recorder()
    smooth = MedianSmoothing(metric, SIGMA, num_samples=5)
    draws = smooth.sample_scores(images, image_ids=IDS)
    assert len(metric.seen) == len(set(metric.seen)) == 20
    torch.testing.assert_close(smooth.sample_scores(images, image_ids=IDS), draws, rtol=0, atol=1e-6)
    assert set(metric.seen[20:]) == set(metric.seen[:20])
    smooth.sample_scores(images, image_ids=IDS, stream="certify")
    smooth.sample_scores(images, image_ids=IDS, seed=1)
    assert len(set(metric.seen)) == 60
    report = check_metric(smooth, size=8, defended=True)
    assert report.ok, report.failures


@pytest.mark.parametrize("gradients", [False, True])
def test_nan_stays_nan_even_where_one_draw_has_it(images, gradients):
    class Fragile(QualityMetric):
        def forward(self, images, **_):
            score = images.flatten(1).mean(1)
            return torch.where(score >= score.max(), torch.nan, score)

    smooth = MedianSmoothing(Fragile(), SIGMA, num_samples=9, batch_size=9)
    scores = smooth(images.clone().requires_grad_(gradients), image_ids=IDS)
    assert torch.isnan(scores).all()


def test_what_cannot_be_is_refused(linear_metric, images):
    metric = linear_metric()
    for sigma in (0.0, -0.1, float("nan")):
        with pytest.raises(UserError, match="sigma must be positive"):
            MedianSmoothing(metric, sigma)
    with pytest.raises(UserError, match="at least 1, got 0 and"):
        MedianSmoothing(metric, SIGMA, num_samples=0)
    with pytest.raises(UserError, match="at least 1, got 100 and 0"):
        MedianSmoothing(metric, SIGMA, batch_size=0)
    with pytest.raises(UserError, match="4 images but 3 image ids"):
        MedianSmoothing(metric, SIGMA)(images, image_ids=IDS[:3])
    with pytest.raises(UserError, match="no noise stream"):
        MedianSmoothing(metric, SIGMA)(images, image_ids=IDS, stream="other")


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda smooth: pickle.loads(pickle.dumps(smooth))], ids=["copy", "pickle"]
)
def test_a_copy_in_low_precision_has_a_head_of_its_own_in_fp32(images, again):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1), nn.Flatten(0))
    smooth = MedianSmoothing(network, SIGMA, 20, precision="bf16", workers=1)
    scores = smooth.sample_scores(images, image_ids=IDS)
    copied = again(smooth)
    assert torch.equal(copied.sample_scores(images, image_ids=IDS), scores)
    head = next(module for module in copied.modules() if isinstance(module, nn.Linear))
    head.weight.data.zero_()
    head.bias.data.fill_(0.123456789)
    moved = copied.sample_scores(images, image_ids=IDS)
    assert torch.equal(moved, torch.full_like(moved, 0.123456789)), "its own head, not rounded to bf16"
    assert torch.equal(smooth.sample_scores(images, image_ids=IDS), scores), "the original keeps its own"
