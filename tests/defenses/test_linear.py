"""Linear steps before the noise: their norms are proven, respected and nearly attained, and pay for the radius."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm
from torch import nn

from certiqa.certification import CertificationRequest, certify, order_statistic_ranks
from certiqa.defenses import (
    LinearOperator,
    LinearStep,
    LipschitzSteps,
    MedianSmoothing,
    PurifiedMetric,
    Resize,
    build_chain,
)
from certiqa.defenses.linear import Flip, Upscale
from certiqa.errors import UserError
from certiqa.metrics import QualityMetric

SIGMA = 0.12


def matrix_of(step, size):
    """The whole matrix, column by column."""
    basis = torch.eye(3 * size[0] * size[1]).view(-1, 3, *size)
    return step(basis).flatten(1).T.double().numpy()


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "target"), [((12, 16), 6), ((9, 7), 14), ((11, 8), (5, 13)), ((8, 8), 8)])
def test_the_norm_of_a_resize_is_that_of_its_matrix(size, target, mode):
    step = Resize(target, mode)
    exact = np.linalg.norm(matrix_of(step, size), 2)
    assert exact <= step.lipschitz(size) <= exact * (1 + 1e-5)
    assert step(torch.rand(1, 3, *size)).shape[-2:] == step.output_size(size)


def test_shrinking_costs_no_more_than_enlarging():
    assert Resize(112).lipschitz((224, 224)) < 1
    assert Resize(448).lipschitz((224, 224)) == pytest.approx(2, rel=0.05)
    assert Resize(224).lipschitz((224, 224)) == pytest.approx(1, rel=1e-5)
    assert Resize(100).output_size((200, 301)) == (100, 150)


@pytest.mark.parametrize("kernel", [[1, 2, 1], [-1, 3, -1]])
def test_an_operator_is_bounded_from_above_and_power_iteration_from_below(kernel):
    taps = torch.tensor(kernel, dtype=torch.float32)
    filter_ = nn.Conv2d(3, 3, 3, padding=1, bias=False, groups=3)
    filter_.weight.data = (taps[:, None] * taps[None, :] / 8).expand(3, 1, 3, 3).contiguous()
    step = LinearOperator(filter_, batch_size=50)
    exact = np.linalg.norm(matrix_of(filter_.requires_grad_(False), (9, 7)), 2)
    assert step.lipschitz((9, 7)) >= exact
    assert step.lipschitz((9, 7)) <= exact * 1.2
    assert exact * 0.99 <= step.power_iteration((9, 7), steps=200) <= exact * (1 + 1e-5)


def test_probes_of_an_operator_are_where_its_numbers_are():
    class Recorder(nn.Module):
        """Notes where probes are; "meta" stands for a GPU."""

        def __init__(self):
            super().__init__()
            self.register_buffer("gain", torch.ones(1, device="meta"))
            self.seen = []

        def forward(self, images):
            self.seen.append(images.device.type)
            return torch.zeros(images.shape)

    for call in ("output_size", "lipschitz"):
        recorder = Recorder()
        getattr(LinearOperator(recorder), call)((4, 4))
        assert set(recorder.seen) == {"meta"}, call
    recorder = Recorder()
    with pytest.raises(RuntimeError):  # no gradient comes back from there
        LinearOperator(recorder).power_iteration((4, 4))
    assert recorder.seen == ["meta"]


def test_probes_of_an_operator_have_its_precision():
    double = nn.Conv2d(3, 3, 3, padding=1, bias=False).double()
    step, same = LinearOperator(double), LinearOperator(copy.deepcopy(double).float())
    assert step.output_size((6, 5)) == (6, 5)
    assert step.lipschitz((6, 5)) == pytest.approx(same.lipschitz((6, 5)), rel=1e-5)
    assert step.power_iteration((6, 5)) == pytest.approx(same.power_iteration((6, 5)), rel=1e-4)


def test_a_step_that_states_no_norm_is_not_built():
    class Halved(LinearStep):
        def forward(self, images, generators=None):
            return images / 2

    with pytest.raises(TypeError, match="Halved.*lipschitz"):
        Halved()


def test_what_is_not_linear_is_refused():
    with pytest.raises(UserError, match="Sigmoid is not linear"):
        LinearOperator(nn.Sigmoid()).lipschitz((4, 4))
    biased = nn.Conv2d(3, 3, 1)
    biased.bias.data.fill_(1.0)
    with pytest.raises(UserError, match="Conv2d is not linear"):
        LinearOperator(biased).lipschitz((4, 4))

    class Centred(nn.Module):
        """Linear in the whole batch, and zero on one image alone."""

        def forward(self, images):
            return images - images.mean(dim=0)

    with pytest.raises(UserError, match="Centred mixes the images of a batch"):
        LinearOperator(Centred()).lipschitz((4, 4))
    with pytest.raises(UserError, match="Sigmoid before the noise voids the certificate"):
        MedianSmoothing(Projection(torch.ones(3, 4, 4)), SIGMA, before=nn.Sigmoid())
    with pytest.raises(UserError, match=r"resize\.size must be"):
        Resize(0)
    with pytest.raises(UserError, match=r"resize\.mode must be"):
        Resize(4, "nearest")


class Projection(QualityMetric):
    """w . x: linear, so that its smoothed score and the worst perturbation are known."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, images, **_):
        return (images * self.weight).flatten(1).sum(1)


def aligned(step, size):
    """The direction of the input that the step enlarges most, and its unit image."""
    matrix = matrix_of(step, size)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    shape = step(torch.zeros(1, 3, *size)).shape[1:]
    return torch.tensor(right[0]).view(3, *size).float(), torch.tensor(left[:, 0]).view(shape).float(), values[0]


@pytest.mark.parametrize("target", [5, 16])
def test_the_radius_is_paid_for_and_the_worst_direction_nearly_attains_it(target):
    """M(x) = w . A x with w along A's first singular vector: the worst case of both, with a closed form."""
    size, radius = (8, 10), 0.05
    step = LipschitzSteps([Resize(target)])
    direction, response, gain = aligned(step, size)
    smooth = MedianSmoothing(Projection(response), SIGMA, 4000, clip=False, before=step, batch_size=4000)
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(3))
    bounds = certify(smooth, images, [radius], confidence=0.999, image_ids=["a", "b"])
    lipschitz = bounds.lipschitz[0]
    assert lipschitz == pytest.approx(gain, rel=1e-5)
    clean = (step(images) * response).flatten(1).sum(1).double().numpy()
    moved = (step(images + radius * direction) * response).flatten(1).sum(1).double().numpy()
    assert np.abs(moved - clean).min() >= 0.999 * radius * lipschitz, "the constant is attained"
    for score in (moved, 2 * clean - moved):
        assert (bounds.lower[:, 0] <= score).all()
        assert (score <= bounds.upper[:, 0]).all()
    # ranks are those of the radius at the noise, and no wider than they must be
    draws = smooth.sample_scores(images, 4000, image_ids=["a", "b"], stream="certify").double().sort(1).values.numpy()
    low, high = order_statistic_ranks(radius * lipschitz, SIGMA, 4000, 0.999)
    np.testing.assert_array_equal(bounds.upper[:, 0], draws[:, high - 1])
    np.testing.assert_array_equal(bounds.lower[:, 0], draws[:, low - 1])
    assert (bounds.upper[:, 0] - clean <= radius * lipschitz + 0.15 * SIGMA).all()
    # without the constant the same direction would leave the interval of an enlarging step
    if target == 16:
        share = norm.cdf(radius / SIGMA)
        assert (moved > np.quantile(draws, share, axis=1)).all()


def test_noise_is_added_after_the_step(images):
    step = Resize(4)
    smooth = MedianSmoothing(Projection(torch.ones(3, 4, 4)), SIGMA, before=step, clip=False)
    noisy = smooth.noisy(images, list("abcd"), [0] * 4, 0, "score")
    assert noisy.shape == (4, 3, 4, 4)
    resized = F.interpolate(images, size=(4, 4), mode="bilinear", antialias=True)
    assert float((noisy - resized).std()) == pytest.approx(SIGMA, rel=0.2)
    probe = images.clone().requires_grad_(True)
    smooth(probe, image_ids=list("abcd")).sum().backward()
    assert probe.grad.abs().max() > 0


def test_images_of_two_sizes_pay_for_their_own_constants():
    step = Resize(16)
    smooth = MedianSmoothing(Projection(torch.rand(3, 16, 16) - 0.5), SIGMA, 400, clip=False, before=step)
    sizes, ids, radius = [(8, 8), (32, 32), (8, 8)], ["a", "b", "c"], 0.06
    images = [torch.rand(3, *size) for size in sizes]
    bounds = certify(smooth, images, radius, image_ids=ids)
    constants = [LipschitzSteps([step]).lipschitz(size) for size in sizes]
    assert constants[0] > 1.5 > 1 > constants[1]
    assert bounds.lipschitz.tolist() == constants
    for row, (image, constant) in enumerate(zip(images, constants, strict=True)):
        draws = smooth.sample_scores(image[None], image_ids=[ids[row]], stream="certify")[0].double().sort().values
        low, high = order_statistic_ranks(radius * constant, SIGMA, 400, 0.999)
        found = [bounds.lower[row, 0], bounds.upper[row, 0]]
        np.testing.assert_allclose(found, [draws[low - 1], draws[high - 1]], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "keeps_size", "overshoots", "thread_safe"),
    [
        ([Flip()], True, False, True),
        ([Flip(), Resize(6)], False, False, True),
        ([Resize(6, "bicubic"), Flip()], False, True, True),
        ([Upscale(mode="bicubic"), Flip()], True, True, True),
        ([LinearOperator(nn.Identity()), Flip()], False, False, False),
    ],
)
def test_steps_in_a_row_are_what_their_parts_are(steps, keeps_size, overshoots, thread_safe):
    found = LipschitzSteps(steps)
    assert (found.keeps_size, found.overshoots, found.thread_safe) == (keeps_size, overshoots, thread_safe)


def test_values_that_a_step_in_a_row_overshoots_reach_no_metric(images):
    class Extremes(QualityMetric):
        def forward(self, images, **_):
            return (images - 0.5).abs().flatten(1).amax(1)

    steps = [Resize(16, "bicubic"), Flip()]
    assert Extremes()(LipschitzSteps(steps)(images)).max() > 0.5
    assert PurifiedMetric(Extremes(), LipschitzSteps(steps))(images).max() <= 0.5


def test_ranks_are_validated_at_the_noise():
    CertificationRequest((0.12,), SIGMA, 60, 0.999)
    with pytest.raises(UserError, match="radius 0.24 cannot be certified"):
        CertificationRequest((0.12,), SIGMA, 60, 0.999, largest_lipschitz=2.0)
    smooth = MedianSmoothing(Projection(torch.ones(3, 16, 16)), SIGMA, 60, before=Resize(16))
    with pytest.raises(UserError, match="cannot be certified with num_samples=60"):
        certify(smooth, torch.zeros(1, 3, 8, 8), 0.12)


def test_a_chain_is_built_in_the_order_given(curved_metric):
    def ms(metric, **more):
        return MedianSmoothing(metric, SIGMA, **more)

    options = {"resize": Resize(6), "again": Resize(12), "ms": ms}
    chain = build_chain(curved_metric, ["resize", "again", "ms"], **options)
    assert chain.name == "chain"
    assert chain.lipschitz((8, 8)) == pytest.approx(Resize(6).lipschitz((8, 8)) * Resize(12).lipschitz((6, 6)))
    assert build_chain(curved_metric, ["ms"], ms=ms).lipschitz((8, 8)) == 1
    assert isinstance(chain, MedianSmoothing)
