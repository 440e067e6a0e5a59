"""madc, korhonen, zhang, ssah and stadv: what each promises beyond the table of properties."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchmetrics.functional.image import structural_similarity_index_measure

from certiqa.attacks import Target, distances, load_attack
from certiqa.attacks.distances import load_distance, ssim, ssim_distance
from certiqa.attacks.perceptual import activity_map, low_band, orthogonal
from certiqa.attacks.spatial import displaced, roughness
from certiqa.errors import UserError


@pytest.fixture
def smooth_images():
    """Three images of 24x32 pixels with slopes and a flat part, inside [0, 1]."""
    coarse = torch.rand(3, 3, 6, 8, generator=torch.Generator().manual_seed(2))
    images = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")
    images[:, :, :12, :16] = 0.5
    return images


# -- madc ------------------------------------------------------------------------------------------------------


def test_orthogonal_is_per_image():
    gradient, change = torch.randn(2, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    change[1] = 0
    part = orthogonal(gradient, change)
    assert (part * change).flatten(1).sum(1).abs().max() < 1e-12
    assert torch.equal(part[1], gradient[1])
    assert torch.allclose(part[2:], orthogonal(gradient[2:], change[2:]))


@pytest.mark.parametrize("box", [False, True])
def test_madc_stays_on_its_sphere(box, curved_metric, images):
    clean, eps = images if box else 0.3 + 0.4 * images, 6 / 255
    result = load_attack("madc", eps=eps).craft(curved_metric, clean)
    rmse = (result.unrounded - clean).square().flatten(1).mean(1).sqrt()
    assert (rmse <= eps + 1e-6).all()
    assert (rmse >= (0.9 if box else 0.9999) * eps).all()
    assert ((result.images - clean).square().flatten(1).mean(1).sqrt() <= eps + 0.5 / 255).all()


# -- korhonen --------------------------------------------------------------------------------------------------


def test_activity_map_is_that_of_scipy(smooth_images):
    disc = np.ones((5, 5), bool)
    disc[[0, 0, -1, -1], [0, -1, 0, -1]] = False
    for both in (False, True):
        for image, activity in zip(
            smooth_images.double(), activity_map(smooth_images.double(), both=both), strict=True
        ):
            luma = np.tensordot([0.299, 0.587, 0.114], image.numpy(), 1)
            busy = ndimage.sobel(luma, axis=1).clip(min=0)
            if both:
                busy = np.hypot(ndimage.sobel(luma, axis=0), ndimage.sobel(luma, axis=1))
            busy[[0, -1]], busy[:, [0, -1]] = 0, 0
            expected = ndimage.grey_dilation(busy / busy.max(), footprint=disc, mode="constant")
            assert np.allclose(activity[0].numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_korhonen_leaves_quiet_pixels(weighted, curved_metric, smooth_images):
    activity = activity_map(smooth_images, both=weighted)
    attack = load_attack("korhonen", weighted=weighted)
    change = attack.craft(curved_metric, smooth_images).unrounded - smooth_images
    quiet = (activity == 0).expand_as(change)
    assert quiet.any()
    assert change[quiet].abs().max() == 0
    assert change[~quiet].abs().max() > 0.01
    reach = attack.learning_rate * attack.steps
    assert (change.abs() <= 1.5 * reach * (activity if weighted else 1) + 1e-6).all()


def test_korhonen_moves_all_of_a_flat_image(curved_metric):
    flat = torch.full((1, 3, 12, 12), 0.4)
    assert (load_attack("korhonen").craft(curved_metric, flat).unrounded != flat)[..., 2:-2, 2:-2].all()


# -- zhang -----------------------------------------------------------------------------------------------------


def test_ssim_is_that_of_torchmetrics_and_per_image(smooth_images):
    noise = torch.randn(smooth_images.shape, generator=torch.Generator().manual_seed(1))
    clean, attacked = smooth_images.double(), (smooth_images + 0.05 * noise).double().requires_grad_(True)
    together = ssim(attacked, clean)
    expected = structural_similarity_index_measure(attacked, clean, data_range=1.0, reduction="none")
    assert torch.allclose(together, expected, atol=1e-6)  # its window is in float32
    slopes = [torch.autograd.grad(values.sum(), attacked)[0] for values in (together, expected)]
    assert torch.allclose(*slopes, atol=1e-7)
    assert torch.allclose(
        together, torch.cat([ssim(attacked[row : row + 1], clean[row : row + 1]) for row in range(3)])
    )
    assert torch.allclose(ssim_distance(clean, clean), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    with pytest.raises(UserError, match="at least 6x6"):
        ssim(clean[..., :5], clean[..., :5])


def test_more_weight_means_less_distance(curved_metric, smooth_images):
    found = []
    for weight in (0.0, 0.3, 3.0, 300.0):
        attack = load_attack("zhang", weight=weight, steps=15, best=False)
        attacked = attack.craft(curved_metric, smooth_images).unrounded
        found.append(float(ssim_distance(attacked, smooth_images).mean()))
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.1 * found[0]


def test_zhang_without_weight_is_plain_adam(curved_metric, smooth_images):
    options = {"weight": 0.0, "start_noise": 1e-9}
    plain = load_attack("ssah", weight=0.0, learning_rate=0.005).craft(curved_metric, smooth_images).unrounded
    attacked = load_attack("zhang", **options).craft(curved_metric, smooth_images).unrounded
    assert torch.allclose(attacked, plain, atol=1e-5)


def test_a_distance_of_your_own(curved_metric, smooth_images):
    def squares(attacked, clean):
        return (attacked - clean).square().flatten(1).sum(1)

    near = load_attack("zhang", distance=squares, weight=10.0).craft(curved_metric, smooth_images).unrounded
    far = load_attack("zhang", distance=squares, weight=0.0).craft(curved_metric, smooth_images).unrounded
    assert squares(near, smooth_images).sum() < squares(far, smooth_images).sum()


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_a_network_that_cannot_be_had_is_named(name, monkeypatch, curved_metric, images):
    def nothing(*_, **__):
        raise UserError("no connection")

    monkeypatch.setattr("certiqa.metrics.pyiqa.published", nothing)
    with pytest.raises(UserError, match=rf"distance={name} needs pyiqa's {name.upper()}.*no connection.*distance=ssim"):
        load_attack("zhang", distance=name)(curved_metric, images)


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_distances_of_pyiqa_with_random_weights(name, monkeypatch):
    from certiqa.metrics.pyiqa import skeleton

    monkeypatch.setattr("certiqa.metrics.pyiqa.published", lambda which, options, **_: skeleton(which, options, 0))
    distance = load_distance(name)
    clean = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    attacked = (clean + 0.05).requires_grad_(True)
    values = distance(attacked, clean)
    assert values.shape == (2,)
    assert torch.allclose(values[:1], distance(attacked[:1], clean[:1]), rtol=1e-3, atol=1e-6)
    assert torch.isfinite(torch.autograd.grad(values.sum(), attacked)[0]).all()
    assert set(distances.NEEDS) == {"ssim", "lpips", "dists"}


# -- ssah ------------------------------------------------------------------------------------------------------


def test_low_band_is_the_block_mean():
    images = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    low = low_band(images)
    assert low.shape == images.shape
    assert torch.allclose(low[..., 2:4, 4:6], images[..., 2:4, 4:6].mean((2, 3), keepdim=True).expand(-1, -1, 2, 2))
    assert torch.allclose(low[..., 4, 6], images[..., 4, 6])
    fine = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 3).expand(2, 3, 4, 6)
    even = images[..., :4, :6]
    assert torch.allclose(low_band(even + 0.1 * fine), low_band(even), atol=1e-6)


def test_ssah_keeps_low_frequencies(curved_metric, smooth_images):
    changes = {}
    for weight in (0.0, 0.1, 1.0):
        attack = load_attack("ssah", weight=weight, learning_rate=0.002)
        change = attack.craft(curved_metric, smooth_images).unrounded - smooth_images
        changes[weight] = float(low_band(change).square().sum() / change.square().sum())
    assert changes[0.0] > changes[0.1] > changes[1.0]


# -- stadv -----------------------------------------------------------------------------------------------------


def test_flows(smooth_images):
    flow = torch.zeros(3, 2, 24, 32)
    assert torch.allclose(displaced(smooth_images, flow), smooth_images, atol=1e-6)
    flow[:, 0], flow[:, 1] = 2, -3
    shifted = displaced(smooth_images, flow)
    assert torch.allclose(shifted[..., :-2, 3:], smooth_images[..., 2:, :-3], atol=1e-5)
    assert torch.allclose(shifted[..., -1, 3:], smooth_images[..., -1, :-3], atol=1e-5), "borders are continued"
    assert torch.equal(roughness(flow), torch.zeros(3))
    flow[0, 1, 5, 5] += 1
    assert roughness(flow).tolist() == [8.0, 0.0, 0.0]


def test_flow_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, 4, 5, generator=generator, dtype=torch.float64)
    flow = 0.2 + 0.5 * torch.rand(1, 2, 4, 5, generator=generator, dtype=torch.float64)
    flow[:, 0, -1], flow[:, 1, :, -1] = -0.4, -0.4  # inside the image, where the border has no kink
    flow[:, 0, -2:] = -0.4
    assert torch.autograd.gradcheck(lambda f: displaced(images, f).square(), flow.requires_grad_(True))


def test_stadv_invents_no_values(curved_metric, smooth_images):
    result = load_attack("stadv", learning_rate=0.2).craft(curved_metric, smooth_images)
    low, high = smooth_images.amin((2, 3)), smooth_images.amax((2, 3))
    assert (result.unrounded.amin((2, 3)) >= low - 1e-6).all()
    assert (result.unrounded.amax((2, 3)) <= high + 1e-6).all()
    target = Target(curved_metric, smooth_images)
    assert (target.values(result.unrounded) > target.values(smooth_images)).all()
