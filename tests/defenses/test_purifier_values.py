"""Every classical purifier against an independent reference, and by closed forms."""

import io

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from scipy.signal.windows import gaussian

from certiqa.errors import UserError

# references, each of one channel or image in NumPy


def by_channel(function):
    return lambda image: np.stack([function(channel) for channel in image])


def taps(kernel, sigma):
    window = gaussian(kernel, sigma)
    return window / window.sum()


def blurred(channel, kernel, sigma):
    along = ndimage.correlate1d(channel, taps(kernel, sigma), axis=0, mode="mirror")
    return ndimage.correlate1d(along, taps(kernel, sigma), axis=1, mode="mirror")


def pillow_resize(channel, height, width):
    return np.asarray(Image.fromarray(channel.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))


def bilateral(image, kernel=5, sigma_color=0.2, sigma_space=1.5):
    reach = kernel // 2
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    weighted, total = np.zeros_like(image), np.zeros(image.shape[1:])
    for dy in range(kernel):
        for dx in range(kernel):
            other = padded[:, dy : dy + image.shape[1], dx : dx + image.shape[2]]
            away = (dy - reach) ** 2 + (dx - reach) ** 2
            colour = np.abs(other - image).sum(axis=0)
            weight = np.exp(-away / (2 * sigma_space**2) - colour**2 / (2 * sigma_color**2))
            weighted, total = weighted + weight * other, total + weight
    return weighted / total


def nearest_level(image, levels=16):
    grid = np.arange(levels) / (levels - 1)
    return grid[np.abs(image[..., None] - grid).argmin(axis=-1)]


def opencv_jpeg(image, quality=30):
    pixels = np.ascontiguousarray((image.transpose(1, 2, 0) * 255).round().astype(np.uint8)[..., ::-1])
    _, file = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(file, cv2.IMREAD_COLOR)[..., ::-1].transpose(2, 0, 1) / 255


def pillow_jpeg2000(image, ratio=20):
    file = io.BytesIO()
    pixels = (image.transpose(1, 2, 0) * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(
        file, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True, mct=1
    )
    return np.asarray(Image.open(file)).transpose(2, 0, 1) / 255


def unsharp(channel):
    return np.clip(channel + 1.5 * (channel - blurred(channel, 5, 1.0)), 0, 1)


REFERENCES = {
    "flip": (lambda image: np.rot90(image, 2, axes=(1, 2)), 0),
    "resize": (by_channel(lambda channel: pillow_resize(channel, 12, 16)), 1e-6),
    "upscale": (by_channel(lambda channel: pillow_resize(pillow_resize(channel, 12, 16), 24, 32)), 1e-6),
    "gaussian_blur": (
        by_channel(lambda channel: cv2.GaussianBlur(channel, (11, 11), 0, borderType=cv2.BORDER_REFLECT_101)),
        1e-9,
    ),
    "median_blur": (by_channel(lambda channel: ndimage.median_filter(channel, 5, mode="mirror")), 0),
    "bilateral": (bilateral, 1e-9),
    "unsharp": (by_channel(unsharp), 1e-9),
    "color_quantization": (nearest_level, 1e-12),
    "jpeg": (opencv_jpeg, 2.01 / 255),
    "jpeg2000": (pillow_jpeg2000, 1e-9),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_purifier_is_what_its_reference_does(name, pictures, make):
    reference, tolerance = REFERENCES[name]
    found = make(name)(pictures).numpy()
    for image, result in zip(pictures.numpy(), found, strict=True):
        np.testing.assert_allclose(result, reference(image), rtol=0, atol=tolerance)


@pytest.mark.parametrize("kernel", [3, 5, 7, 11])
def test_median_and_blur_at_every_kernel(kernel, pictures, make):
    median = ndimage.median_filter(pictures[0, 1].numpy(), kernel, mode="mirror")
    np.testing.assert_array_equal(make("median_blur", kernel=kernel)(pictures)[0, 1], median)
    np.testing.assert_array_equal(
        make("median_blur", kernel=kernel)(pictures.clone().requires_grad_(True)).detach()[0, 1], median
    )
    blur = blurred(pictures[0, 1].numpy(), kernel, 1.3)
    np.testing.assert_allclose(make("gaussian_blur", kernel=kernel, sigma=1.3)(pictures)[0, 1], blur, atol=1e-9)
    assert make("gaussian_blur", kernel=kernel).sigma == pytest.approx(0.3 * ((kernel - 1) / 2 - 1) + 0.8)


@pytest.mark.parametrize(("fill", "mode"), [("reflection", "reflect"), ("zeros", "constant")])
def test_a_rotation_is_scipys(fill, mode, pictures, make, seeds):
    purifier = make("random_rotate", degrees=40, fill=fill)
    found = purifier(pictures, seeds(1, 2, 3))
    for image, result, seed in zip(pictures, found, (1, 2, 3), strict=True):
        angle = -40 * (2 * float(torch.rand((), generator=seeds(seed)[0])) - 1)
        expected = ndimage.rotate(image.numpy(), angle, axes=(1, 2), order=1, reshape=False, mode=mode)
        inside = np.s_[:, 1:-1, 1:-1] if fill == "reflection" else np.s_[:, 8:16, 10:22]
        np.testing.assert_allclose(result.numpy()[inside], expected[inside], atol=1e-5)
    black = make("random_rotate", degrees=40, fill=fill)(torch.ones_like(pictures), seeds(1, 2, 3))
    assert (black.amin() == 0) == (fill == "zeros")
    nearest = make("random_rotate", mode="nearest")(pictures, seeds(1, 2, 3))
    assert set(nearest.unique().tolist()) <= set(pictures.unique().tolist()), "values are kept"
    assert torch.allclose(make("random_rotate", degrees=0)(pictures, seeds(1, 2, 3)), pictures, atol=1e-12)


def test_a_crop_is_a_window_and_every_window_comes_up(pictures, make, seeds):
    purifier = make("random_crop", size=[22, 31])
    windows = {(top, left): pictures[0, :, top : top + 22, left : left + 31] for top in range(3) for left in range(2)}
    places = set()
    for seed in range(60):
        found = purifier(pictures[:1], seeds(seed))[0]
        places |= {place for place, window in windows.items() if torch.equal(window, found)}
    assert places == set(windows)
    with pytest.raises(UserError, match="40x40 is larger than an image of 24x32"):
        make("random_crop", size=40)(pictures, seeds(1, 2, 3))


def test_noise_has_the_size_it_says(make, seeds):
    grey = torch.full((2, 3, 100, 100), 0.5)
    added = make("random_noise", sigma=0.05)(grey, seeds(1, 2)) - grey
    assert float(added.std()) == pytest.approx(0.05, rel=0.02)
    assert abs(float(added.mean())) < 0.05 / np.sqrt(added.numel()) * 4
    assert abs(float((added[0] * added[1]).mean())) < 0.05**2 * 0.03, "images have noise of their own"
    assert torch.equal(make("random_noise", sigma=0)(grey, seeds(1, 2)), grey)
    assert float(make("random_noise", sigma=1)(grey, seeds(1, 2)).amax()) == 1


def test_compression_by_its_strength(pictures, make):
    larger = F.interpolate(pictures, scale_factor=4, mode="bicubic").clamp(0, 1)
    for name, option, weak, strong in (
        *(("jpeg", "quality", 90, 10), ("diff_jpeg", "quality", 90, 10), ("jpeg2000", "ratio", 4, 100)),
        *(("color_quantization", "levels", 64, 3),),
    ):
        errors = [float((make(name, **{option: value})(larger) - larger).abs().mean()) for value in (weak, strong)]
        assert errors[1] > 1.5 * errors[0] > 0, name
    exact, soft = make("jpeg", quality=50)(larger), make("diff_jpeg", quality=50)(larger)
    assert float((exact - soft).abs().mean()) < 0.35 * float((exact - larger).abs().mean()), "near JPEG"
    quantized = make("color_quantization", levels=5)(larger)
    assert len(quantized.unique()) <= 5
    assert torch.equal(make("color_quantization", levels=5)(quantized), quantized)
    assert torch.equal(make("jpeg2000", ratio=1)(larger) * 255, (make("jpeg2000", ratio=1)(larger) * 255).round())


def test_filters_by_closed_forms(pictures, make):
    constant = torch.full((1, 3, 16, 16), 0.4, dtype=torch.float64)
    for name in ("gaussian_blur", "median_blur", "bilateral", "unsharp", "resize", "upscale"):
        assert torch.allclose(make(name)(constant), torch.tensor(0.4, dtype=torch.float64), atol=1e-12), name
    dot = constant.clone()
    dot[..., 8, 8] = 1
    assert torch.equal(make("median_blur", kernel=3)(dot), constant)
    wide = make("bilateral", kernel=5, sigma_color=1e6, sigma_space=1.5)(pictures)
    assert torch.allclose(wide, make("gaussian_blur", kernel=5, sigma=1.5)(pictures), atol=1e-9)
    assert torch.equal(make("unsharp", amount=0)(pictures), pictures)
    assert not torch.allclose(
        make("bilateral", distance="l2")(pictures), make("bilateral", distance="l1")(pictures), atol=1e-3
    )
    assert torch.equal(make("flip")(make("flip")(pictures)), pictures)
    assert torch.allclose(make("resize", scale=1)(pictures), pictures, atol=1e-12)
