"""What all classical purifiers keep to: shape and range, gradients, Lipschitz constants, memory, and their options."""

from pathlib import Path

import kornia
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from certiqa.defenses import PURIFIERS, PurifiedMetric, Upscale, load_purifier
from certiqa.defenses.purifiers import filters
from certiqa.errors import UserError
from certiqa.metrics import check_metric

CONF = Path(__file__).parents[2] / "conf" / "defense"
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


def test_every_classical_purifier_is_registered_and_says_what_it_is(make):
    assert set(CLASSICAL) == set(FACTS) <= set(PURIFIERS)
    for name, facts in FACTS.items():
        purifier = make(name)
        known = purifier.lipschitz((24, 32)) is not None
        assert (purifier.is_random, purifier.differentiable, purifier.keeps_size, known) == facts, name
        assert purifier.name == name


@pytest.mark.parametrize("name", CLASSICAL)
def test_images_keep_shape_range_dtype_and_their_own_randomness(name, pictures, make, seeds):
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
def test_a_purified_metric_keeps_the_contract(name, curved_metric, make):
    metric = PurifiedMetric(curved_metric, make(name))
    report = check_metric(metric, size=32, defended=True)
    assert report.ok, report.failures
    assert (metric.name, metric.score_range, metric.hard_bounds) == (name, (0, 1), (0, 1))


@pytest.mark.parametrize("name", [name for name in CLASSICAL if FACTS[name][1]])
def test_a_gradient_is_the_finite_difference(name, pictures, make, seeds):
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
def test_bpda_has_the_gradient_of_the_stand_in(name, pictures, curved_metric, make):
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


def test_jpeg_may_have_the_gradient_of_its_differentiable_kin(pictures, make):
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
def test_the_constant_of_a_linear_purifier_is_its_norm(name, make):
    purifier = make(name, **({"kernel": 5} if name == "gaussian_blur" else {}))
    basis = torch.eye(3 * 10 * 8, dtype=torch.float64).view(-1, 3, 10, 8)
    exact = np.linalg.norm(purifier(basis).flatten(1).T.numpy(), 2)
    assert exact <= purifier.lipschitz((10, 8)) <= exact * (1 + 1e-5)


def test_the_constants_of_median_and_unsharp_are_never_exceeded(make):
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
def test_the_constant_of_the_median_is_attained(kernel, make):
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
def test_windows_of_a_few_images_are_in_memory_at_a_time(follows, pictures, monkeypatch, make):
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
        ("bilateral", {"sigma_color": 0}, "bilateral.sigma_color must be positive, .*got 0"),
        ("bilateral", {"sigma_space": "1.5"}, "bilateral.sigma_space must be positive, .*got '1.5'"),
        ("bilateral", {"distance": "l3"}, "l1 or l2, got 'l3'"),
        ("unsharp", {"kernel": 6}, "unsharp.kernel must be odd"),
        ("unsharp", {"amount": -1}, "unsharp.amount must be at least 0"),
        ("unsharp", {"sigma": "1"}, "both numbers, got 1.0 and '1'"),
        ("unsharp", {"kernel": "three"}, "unsharp.kernel must be odd .*got 'three'"),
        ("gaussian_blur", {"sigma": -1.0}, "gaussian_blur.sigma must be positive"),
        ("gaussian_blur", {"sigma": "1"}, "gaussian_blur.sigma must be positive, in pixels, got '1'"),
        ("diffpure", {"weights": "mini_diffusion", "steps": "5"}, "steps must be 0 to 1000, .*got '5'"),
        ("disco", {"weights": "none.pth", "chunk": "9"}, "chunk must be at least 1 pixel, got '9'"),
        ("mprnet", {"weights": "none.pth", "outscale": "2"}, "outscale must be at least 1, got '2'"),
        ("jpeg", {"quality": 0}, "quality of jpeg must be 1 to 95, .*got 0"),
        ("jpeg", {"quality": "50"}, "quality of jpeg must be 1 to 95, a whole number, e.g. 50, got '50'"),
        ("jpeg", {"quality": 50.5}, "a whole number, e.g. 50, got 50.5"),
        ("jpeg", {"stand_in": "soft"}, "identity or diff_jpeg, got 'soft'"),
        ("diff_jpeg", {"quality": 100}, "1 to 99, .*got 100"),
        ("jpeg2000", {"ratio": 0.5}, "1 to 1000, .*got 0.5"),
        ("jpeg2000", {"ratio": "20"}, "got '20'"),
        ("color_quantization", {"levels": 1}, "2 to 256, .*got 1"),
        ("color_quantization", {"levels": "16"}, "a whole number, got '16'"),
        ("random_noise", {"sigma": -0.1}, "0 to 1"),
        ("random_noise", {"sigma": "0.1"}, "0 to 1, in .* units, got '0.1'"),
        ("random_rotate", {"degrees": -1}, "0 to 180, .*got -1"),
        ("random_rotate", {"degrees": "15"}, "0 to 180, e.g. 15, got '15'"),
        ("random_rotate", {"mode": "cubic"}, "bilinear or nearest, got 'cubic'"),
        ("random_rotate", {"fill": "white"}, "reflection or zeros, got 'white'"),
        ("random_crop", {"size": 0}, "random_crop.size must be"),
        ("random_crop", {"size": 12.5}, "in whole pixels, got 12.5"),
        ("random_crop", {"size": "12"}, "in whole pixels, got '12'"),
        ("random_crop", {"size": [12, None]}, "in whole pixels, got"),
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


def test_images_that_become_too_small_are_refused(curved_metric, make):
    curved_metric.min_size = 20
    with pytest.raises(
        UserError, match="what reaches metric 'curved' is too small: .*20x20 .*let random_crop keep more"
    ):
        PurifiedMetric(curved_metric, make("random_crop", size=16))
    with pytest.raises(UserError, match="is too small: .*let resize keep more"):
        PurifiedMetric(curved_metric, make("resize", size=16))
    halved = PurifiedMetric(curved_metric, make("resize", scale=0.3))
    assert halved.min_size == 67
    assert make("resize", scale=0.3).output_size((67, 67)) == (20, 20)
    with pytest.raises(UserError, match="'resize' needs images of at least 67x67 pixels, got 66x80"):
        halved(torch.rand(1, 3, 66, 80))


def test_compression_is_the_same_in_parallel(pictures, make):
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
