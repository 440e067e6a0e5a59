"""Every classical purifier against an independent reference, and what all of them must keep to."""

import io
from pathlib import Path

import cv2
import kornia
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from scipy import ndimage
from scipy.signal.windows import gaussian

from certiqa.defenses import PURIFIERS, PurifiedMetric, Upscale, load_purifier
from certiqa.defenses.purifiers import filters
from certiqa.errors import UserError
from certiqa.metrics import check_metric

CONF = Path(__file__).parents[2] / "conf" / "defense"
OPTIONS = {
    "random_crop": {"size": 16},
    "random_noise": {"sigma": 0.05},
    "gaussian_blur": {"kernel": 11},
    "median_blur": {"kernel": 5},
    "bilateral": {"sigma_color": 0.2},
    "unsharp": {"kernel": 5, "amount": 1.5},
    "jpeg": {"quality": 30},
    "diff_jpeg": {"quality": 30},
}
CLASSICAL = (
    *("flip", "random_rotate", "random_crop", "resize", "upscale", "random_noise", "gaussian_blur", "median_blur"),
    *("bilateral", "unsharp", "color_quantization", "jpeg", "diff_jpeg", "jpeg2000"),
)
FACTS = {  # random, differentiable, keeps the size, has a Lipschitz constant
    "flip": (False, True, True, True),
    "random_rotate": (True, True, True, False),
    "random_crop": (True, True, False, False),
    "resize": (False, True, False, True),
    "upscale": (False, True, True, True),
    "random_noise": (True, True, True, False),
    "gaussian_blur": (False, True, True, True),
    "median_blur": (False, True, True, True),
    "bilateral": (False, True, True, False),
    "unsharp": (False, True, True, True),
    "color_quantization": (False, False, True, False),
    "jpeg": (False, False, True, False),
    "diff_jpeg": (False, True, True, False),
    "jpeg2000": (False, False, True, False),
}


def make(name, **options):
    return load_purifier(name, **{**OPTIONS.get(name, {}), **options})


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


@pytest.fixture
def pictures():
    """Three smooth pictures with some noise, float64, 24x32, on the 8-bit grid."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(3, 3, 6, 6, generator=generator, dtype=torch.float64)
    fine = F.interpolate(coarse, size=(24, 32), mode="bilinear")
    fine = fine + 0.03 * torch.randn(fine.shape, generator=generator, dtype=torch.float64)
    return (fine.clamp(0, 1) * 255).round() / 255


# -- references, each of one channel or image in NumPy ---------------------------------------------------------


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
def test_a_purifier_is_what_its_reference_does(name, pictures):
    reference, tolerance = REFERENCES[name]
    found = make(name)(pictures).numpy()
    for image, result in zip(pictures.numpy(), found, strict=True):
        np.testing.assert_allclose(result, reference(image), rtol=0, atol=tolerance)


@pytest.mark.parametrize("kernel", [3, 5, 7, 11])
def test_median_and_blur_at_every_kernel(kernel, pictures):
    median = ndimage.median_filter(pictures[0, 1].numpy(), kernel, mode="mirror")
    np.testing.assert_array_equal(make("median_blur", kernel=kernel)(pictures)[0, 1], median)
    np.testing.assert_array_equal(
        make("median_blur", kernel=kernel)(pictures.clone().requires_grad_(True)).detach()[0, 1], median
    )
    blur = blurred(pictures[0, 1].numpy(), kernel, 1.3)
    np.testing.assert_allclose(make("gaussian_blur", kernel=kernel, sigma=1.3)(pictures)[0, 1], blur, atol=1e-9)
    assert make("gaussian_blur", kernel=kernel).sigma == pytest.approx(0.3 * ((kernel - 1) / 2 - 1) + 0.8)


@pytest.mark.parametrize(("fill", "mode"), [("reflection", "reflect"), ("zeros", "constant")])
def test_a_rotation_is_scipys(fill, mode, pictures):
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


def test_a_crop_is_a_window_and_every_window_comes_up(pictures):
    purifier = make("random_crop", size=[22, 31])
    windows = {(top, left): pictures[0, :, top : top + 22, left : left + 31] for top in range(3) for left in range(2)}
    places = set()
    for seed in range(60):
        found = purifier(pictures[:1], seeds(seed))[0]
        places |= {place for place, window in windows.items() if torch.equal(window, found)}
    assert places == set(windows)
    with pytest.raises(UserError, match="40x40 is larger than an image of 24x32"):
        make("random_crop", size=40)(pictures, seeds(1, 2, 3))


def test_noise_has_the_size_it_says():
    grey = torch.full((2, 3, 100, 100), 0.5)
    added = make("random_noise", sigma=0.05)(grey, seeds(1, 2)) - grey
    assert float(added.std()) == pytest.approx(0.05, rel=0.02)
    assert abs(float(added.mean())) < 0.05 / np.sqrt(added.numel()) * 4
    assert abs(float((added[0] * added[1]).mean())) < 0.05**2 * 0.03, "images have noise of their own"
    assert torch.equal(make("random_noise", sigma=0)(grey, seeds(1, 2)), grey)
    assert float(make("random_noise", sigma=1)(grey, seeds(1, 2)).amax()) == 1


def test_compression_by_its_strength(pictures):
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


def test_filters_by_closed_forms(pictures):
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


# -- what all keep to ------------------------------------------------------------------------------------------


def test_every_classical_purifier_is_registered_and_says_what_it_is():
    assert set(CLASSICAL) == set(FACTS) <= set(PURIFIERS)
    for name, facts in FACTS.items():
        purifier = make(name)
        known = purifier.lipschitz((24, 32)) is not None
        assert (purifier.is_random, purifier.differentiable, purifier.keeps_size, known) == facts, name
        assert purifier.name == name


@pytest.mark.parametrize("name", CLASSICAL)
def test_images_keep_shape_range_dtype_and_their_own_randomness(name, pictures):
    purifier = make(name)
    for dtype in (torch.float32, torch.float64):
        images = pictures.to(dtype)
        before = images.clone()
        together = purifier(images, seeds(1, 2, 3))
        assert torch.equal(images, before), "the caller's images are left alone"
        assert together.dtype == dtype
        assert together.shape == (3, 3, *purifier.output_size((24, 32)))
        assert together.shape == pictures.shape or not purifier.keeps_size
        assert (together.min() >= 0, together.max() <= 1) == (True, True)
        assert not torch.equal(together, images)
        for row in range(3):
            alone = purifier(images[row : row + 1], seeds(row + 1))
            assert torch.allclose(alone[0], together[row], atol=1e-6), "an image depends on itself alone"
        channels_last = purifier(images.contiguous(memory_format=torch.channels_last), seeds(1, 2, 3))
        assert torch.allclose(channels_last, together, atol=1e-6)
    same = pictures[:1].expand(2, -1, -1, -1)
    first, second = purifier(same, seeds(1, 2))
    assert torch.allclose(first, second) != purifier.is_random


@pytest.mark.parametrize("name", CLASSICAL)
def test_a_purified_metric_keeps_the_contract(name, curved_metric):
    metric = PurifiedMetric(curved_metric, make(name))
    report = check_metric(metric, size=32, defended=True)
    assert report.ok, report.failures
    assert (metric.name, metric.score_range, metric.hard_bounds) == (name, (0, 1), (0, 1))


@pytest.mark.parametrize("name", [name for name in CLASSICAL if FACTS[name][1]])
def test_a_gradient_is_the_finite_difference(name, pictures):
    purifier = make(name)
    generator = torch.Generator().manual_seed(8)
    # away from the ends, and no two values alike
    images = 0.1 + 0.8 * pictures[:2] + 1e-3 * torch.rand(2, 3, 24, 32, generator=generator, dtype=torch.float64)
    images.requires_grad_(True)
    shape = (2, 3, *purifier.output_size((24, 32)))
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)

    def value(step):
        return float((purifier(images.detach() + step * direction, seeds(1, 2)) * weights).sum())

    (gradient,) = torch.autograd.grad((purifier(images, seeds(1, 2)) * weights).sum(), images)
    step = 1e-7
    slope = (value(step) - value(-step)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-4)
    assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize("name", CLASSICAL)
def test_bpda_has_the_gradient_of_the_stand_in(name, pictures, curved_metric):
    metric = PurifiedMetric(curved_metric, make(name), backward="identity", seed=4)
    images = pictures.float().requires_grad_(True)
    purified = metric.purify(images, list("abc"))
    native = PurifiedMetric(curved_metric, make(name), backward="none", seed=4).purify(images, list("abc"))
    assert torch.allclose(purified, native, atol=1e-6), "the value is the purifier's"
    assert not native.requires_grad
    weights = torch.rand(purified.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((purified * weights).sum(), images)
    if name == "random_crop":
        assert float(gradient.count_nonzero(dim=(2, 3)).float().mean()) == 16 * 16, "padded to the image"
        assert float(gradient.sum()) == pytest.approx(float(weights.sum()), rel=1e-5)
    elif name == "resize":
        plain = F.interpolate(images, size=(12, 16), mode="bilinear", antialias=True)
        assert torch.allclose(gradient, torch.autograd.grad((plain * weights).sum(), images)[0], atol=1e-6)
    else:
        assert torch.allclose(gradient, weights)


def test_jpeg_may_have_the_gradient_of_its_differentiable_kin(pictures):
    images = pictures.float().requires_grad_(True)
    purifier = make("jpeg", stand_in="diff_jpeg")
    weights = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    gradients = [
        torch.autograd.grad((stand_in * weights).sum(), images)[0]
        for stand_in in (purifier.surrogate(images), make("diff_jpeg")(images), make("jpeg").surrogate(images))
    ]
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.allclose(gradients[0], gradients[2], atol=1e-2)


@pytest.mark.parametrize("name", ["flip", "resize", "upscale", "gaussian_blur"])
def test_the_constant_of_a_linear_purifier_is_its_norm(name):
    purifier = make(name, **({"kernel": 5} if name == "gaussian_blur" else {}))
    basis = torch.eye(3 * 10 * 8, dtype=torch.float64).view(-1, 3, 10, 8)
    exact = np.linalg.norm(purifier(basis).flatten(1).T.numpy(), 2)
    assert exact <= purifier.lipschitz((10, 8)) <= exact * (1 + 1e-5)


def test_the_constants_of_median_and_unsharp_are_never_exceeded():
    purifier = make("unsharp", kernel=5, amount=0.4)
    basis = torch.eye(9 * 8, dtype=torch.float64).view(-1, 1, 9, 8).expand(-1, 3, -1, -1)
    # around mid-grey with steps this small nothing is clipped, so that this is the linear part
    responses = (purifier(0.5 + 1e-3 * basis) - 0.5)[:, 0].flatten(1) / 1e-3
    exact = np.linalg.norm(responses.T.numpy(), 2)
    assert exact <= purifier.lipschitz((9, 8)) <= 1.3 * exact
    generator = torch.Generator().manual_seed(2)
    for median in (make("median_blur", kernel=3), make("median_blur", kernel=5)):
        image = torch.rand(64, 3, 9, 8, generator=generator)
        moved = image + 0.3 * torch.randn(image.shape, generator=generator)
        growth = (median(moved) - median(image)).flatten(1).norm(dim=1) / (moved - image).flatten(1).norm(dim=1)
        assert float(growth.max()) <= median.lipschitz((9, 8))


@pytest.mark.parametrize("kernel", [3, 5])
def test_the_constant_of_the_median_is_attained(kernel):
    # a tile of as many zeros as ones around one half, repeated: every window holds each pixel of the tile once, so
    # that the half in the middle of the image is the median of all the kernel^2 windows that it is in
    tile = torch.tensor([0.5] + [0.0, 1.0] * (kernel**2 // 2), dtype=torch.float64).view(kernel, kernel)
    image = tile.repeat(5, 5).expand(1, 3, -1, -1).clone()
    moved = image.clone()
    moved[..., 2 * kernel, 2 * kernel] += 0.1
    purifier = make("median_blur", kernel=kernel)
    growth = float((purifier(moved) - purifier(image)).norm() / (moved - image).norm())
    constant = purifier.lipschitz(image.shape[-2:])
    assert 0.999 * constant <= growth <= constant * (1 + 1e-9)


@pytest.mark.parametrize("follows", [False, True])
def test_windows_of_a_few_images_are_in_memory_at_a_time(follows, pictures, monkeypatch):
    """Whatever the path kornia takes: by the shapes that it is given, and values that stay the same."""
    sizes = []

    def counted(function):
        def call(part, kernel, *arguments, **options):
            sizes.append(part.numel() * kernel**2)
            return part if part.device.type == "meta" else function(part, kernel, *arguments, **options)

        return call

    expected = {name: make(name, kernel=11)(pictures) for name in ("median_blur", "bilateral")}
    for name in ("median_blur", "bilateral_blur"):
        monkeypatch.setattr(kornia.filters, name, counted(getattr(kornia.filters, name)))
    monkeypatch.setattr(filters, "WINDOW_VALUES", 3 * 24 * 32 * 11**2)
    images = pictures.clone().requires_grad_(follows)
    for name, parts in (("median_blur", 3), ("bilateral", 3 if follows else 1)):
        sizes.clear()
        found = make(name, kernel=11)(images)
        assert found.requires_grad == follows
        torch.testing.assert_close(found.detach(), expected[name], rtol=0, atol=0 if name == "median_blur" else 1e-12)
        assert len(sizes) == parts
        # off the CPU windows are gathered without gradients too
        sizes.clear()
        assert make(name, kernel=11)(torch.empty(7, 3, 24, 32, device="meta")).shape == (7, 3, 24, 32)
        assert (len(sizes), max(sizes)) == (7, filters.WINDOW_VALUES)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gaussian_blur", {"kernel": 4}, "gaussian_blur.kernel must be odd and at least 1 .*got 4"),
        ("median_blur", {"kernel": 0}, "median_blur.kernel must be odd"),
        ("bilateral", {"kernel": 2.5}, "bilateral.kernel must be odd"),
        ("bilateral", {"sigma_color": 0}, "bilateral.sigma_color must be positive, got 0"),
        ("bilateral", {"distance": "l3"}, "l1 or l2, got 'l3'"),
        ("unsharp", {"kernel": 6}, "unsharp.kernel must be odd"),
        ("unsharp", {"amount": -1}, "unsharp.amount must be at least 0"),
        ("gaussian_blur", {"sigma": -1.0}, "gaussian_blur.sigma must be positive"),
        ("jpeg", {"quality": 0}, "quality of jpeg must be 1 to 95, got 0"),
        ("jpeg", {"stand_in": "soft"}, "identity or diff_jpeg, got 'soft'"),
        ("diff_jpeg", {"quality": 100}, "1 to 99, got 100"),
        ("jpeg2000", {"ratio": 0.5}, "1 to 1000, got 0.5"),
        ("color_quantization", {"levels": 1}, "2 to 256, got 1"),
        ("random_noise", {"sigma": -0.1}, "0 to 1"),
        ("random_rotate", {"degrees": -1}, "0 to 180, got -1"),
        ("random_rotate", {"mode": "cubic"}, "bilinear or nearest, got 'cubic'"),
        ("random_rotate", {"fill": "white"}, "reflection or zeros, got 'white'"),
        ("random_crop", {"size": 0}, "random_crop.size must be"),
        ("resize", {"scale": 0}, r"resize.scale must lie in \(0, 8\]"),
        ("resize", {"scale": "half"}, r"resize.scale must lie in \(0, 8\], e.g. 0.5, got half"),
        ("resize", {"scale": 0.5, "size": 100}, "size or scale, not both"),
        ("resize", {"size": [160]}, r"resize.size must be a shorter side, .*\(height, width\), .*got \[160\]"),
        ("resize", {"size": [1, 2, 3]}, r"got \[1, 2, 3\]"),
        ("resize", {"size": [160, 0]}, r"got \[160, 0\]"),
        ("resize", {"size": 0.5}, "whole pixels, got 0.5"),
        ("upscale", {"scale": 1.5}, r"upscale.scale must lie in \(0, 1\]"),
        ("jpeg", {"qualty": 5}, "has no option 'qualty'; it has: quality, stand_in. Did you mean 'quality'?"),
        ("flip", {"axis": 5}, "'flip' has no option 'axis'; it has none"),
        ("jpg", {}, "no purifier 'jpg'; .*Did you mean 'jpeg'?"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        load_purifier(name, **options)


def test_the_scale_of_upscale_may_not_be_null():
    with pytest.raises(UserError, match=r"upscale.scale must lie in \(0, 1\], e.g. 0.5, got None"):
        Upscale(scale=None)


def test_images_that_become_too_small_are_refused(curved_metric):
    curved_metric.min_size = 20
    with pytest.raises(UserError, match="what leaves random_crop is too small for metric 'curved', .*20x20"):
        PurifiedMetric(curved_metric, make("random_crop", size=16))
    with pytest.raises(UserError, match="what leaves resize is too small"):
        PurifiedMetric(curved_metric, make("resize", size=16))
    halved = PurifiedMetric(curved_metric, make("resize", scale=0.3))
    assert halved.min_size == 67
    assert make("resize", scale=0.3).output_size((67, 67)) == (20, 20)
    with pytest.raises(UserError, match="'resize' needs images of at least 67x67 pixels, got 66x80"):
        halved(torch.rand(1, 3, 66, 80))


def test_compression_is_the_same_in_parallel(pictures):
    images = pictures.float().repeat(3, 1, 1, 1)
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append((make("jpeg")(images), make("jpeg2000")(images)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", CLASSICAL)
def test_the_options_of_a_chain_and_an_ensemble_are_those_of_the_purifier(name):
    own = yaml.safe_load((CONF / f"{name}.yaml").read_text())["defense"]
    options = {key: value for key, value in own["purifier"].items() if key != "_target_"}
    assert own["name"] == name
    assert type(load_purifier(name)).__name__ == own["purifier"]["_target_"].split(".")[-1]
    for group in ("chain", "ensemble"):
        there = yaml.safe_load((CONF / f"{group}.yaml").read_text())["defense"].get(name, {})
        assert set(there) == set(options)
        if (group, name) != ("chain", "resize"):
            assert there == options
    default = {key: value for key, value in vars(load_purifier(name)).items() if key in options}
    assert {key: options[key] for key in default if key not in ("size", "stand_in", "sigma")} == {
        key: value for key, value in default.items() if key not in ("size", "stand_in", "sigma")
    }
