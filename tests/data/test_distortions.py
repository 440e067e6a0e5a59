"""The 25 distortions: levels, quirks, order of damage, randomness, placement and errors."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import color as skcolor
from skimage.filters import threshold_multiotsu

import certiqa
from certiqa.data.distortions import DISTORTIONS, NAMES, blur, color, distort, noise, spatial, tone
from certiqa.data.distortions.pixels import gaussian, to_pixels
from certiqa.errors import UserError

# KADID-10k, one row per type in its own order.
LEVELS = {
    "gaussian_blur": (0.1, 0.5, 1, 2, 5),
    "lens_blur": (1, 2, 4, 6, 8),
    "motion_blur": (1, 2, 4, 6, 10),
    "color_diffusion": (1, 3, 6, 8, 12),
    "color_shift": (1, 3, 6, 8, 12),
    "color_quantization": (64, 48, 32, 16, 8),
    "saturation_hsv": (0.4, 0.2, 0.1, 0, -0.4),
    "saturation_lab": (1, 2, 3, 6, 9),
    "jpeg2000": (16, 32, 45, 120, 400),
    "jpeg": (43, 36, 24, 7, 4),
    "white_noise": (0.001, 0.002, 0.003, 0.005, 0.01),
    "white_noise_color": (1e-4, 5e-4, 0.001, 0.002, 0.003),
    "impulse_noise": (0.001, 0.005, 0.01, 0.02, 0.03),
    "multiplicative_noise": (0.001, 0.005, 0.01, 0.02, 0.05),
    "denoising": (0.01, 0.03, 0.05, 0.1, 0.15),
    "brighten": (0.1, 0.2, 0.4, 0.7, 1.1),
    "darken": (0.05, 0.1, 0.2, 0.4, 0.8),
    "mean_shift": (0.15, 0.08, 0, -0.08, -0.15),
    "jitter": (0.05, 0.1, 0.2, 0.5, 1),
    "non_eccentricity_patch": (20, 40, 60, 80, 100),
    "pixelate": (0.01, 0.05, 0.1, 0.2, 0.5),
    "quantization": (20, 16, 13, 10, 7),
    "color_block": (2, 4, 6, 8, 10),
    "high_sharpen": (1, 2, 3, 6, 12),
    "contrast_change": (0.3, 0.15, 0, -0.4, -0.6),
}
RANDOM = {3, 5, 11, 12, 13, 14, 15, 19, 20, 23}
CROP = (80, 144, 224, 224)  # the middle of 384 x 512


@pytest.fixture(scope="module")
def photos():
    folder = Path(certiqa.__file__).parent / "assets" / "photos"
    names = ("palapeli_european-honey-bee.png", "lomiri_aitzgorri.png")
    return [np.asarray(Image.open(folder / name).convert("RGB").resize((256, 192))) for name in names]


@pytest.fixture(scope="module")
def texture():
    """Random colors, for what has nothing to do with a photograph."""
    return np.random.default_rng(5).integers(20, 220, size=(64, 80, 3), dtype=np.uint8)


def stretched(image):
    low, high = int(image.min()), int(image.max())
    return np.rint((image.astype(float) - low) / (high - low) * 255)


def psnr(image, photo):
    error = np.mean((image.astype(float) - stretched(photo)) ** 2)
    return 10 * math.log10(255**2 / max(error, 1e-3))


def mean_psnr(name, level, photos):
    # What patches and blocks cover is a matter of luck, so that only the mean over several seeds is in order.
    seeds = range(8 if DISTORTIONS[name].is_placed else 1)
    return np.mean([psnr(distort(photo, name, level, seed), photo) for photo in photos for seed in seeds])


def test_types_and_levels_are_those_of_kadid():
    assert tuple(LEVELS) == NAMES == tuple(DISTORTIONS)
    for number, (name, levels) in enumerate(LEVELS.items(), start=1):
        distortion = DISTORTIONS[name]
        assert (distortion.type_id, distortion.name, distortion.levels) == (number, name, levels)
        assert distortion.is_random == (number in RANDOM)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("mean_shift", "contrast_change")])
def test_damage_grows_with_the_level(name, photos):
    values = [mean_psnr(name, level, photos) for level in range(1, 6)]
    assert all(np.diff(values) < 0), values
    assert values[0] - values[4] > 2, values


def test_mean_shift_and_contrast_change_are_mildest_in_the_middle(photos):
    shift = [mean_psnr("mean_shift", level, photos) for level in range(1, 6)]
    assert shift[0] < shift[1] < shift[2] > shift[3] > shift[4]
    # |k + .2| = .5 .35 .2 .2 .4: levels 3 and 4 raise and lower the contrast by the same amount.
    contrast = [mean_psnr("contrast_change", level, photos) for level in range(1, 6)]
    assert contrast[0] < contrast[1] < contrast[2] > contrast[4] > contrast[0]
    assert contrast[2] == pytest.approx(contrast[3], abs=0.1)
    spread = [np.std(distort(photos[0], "contrast_change", level)) for level in (3, 4)]
    assert spread[0] > np.std(stretched(photos[0])) > spread[1]
    means = [distort(photos[0], "mean_shift", level).mean() for level in range(1, 6)]
    assert all(np.diff(means) < 0)


@pytest.mark.parametrize(("name", "level"), [("saturation_lab", 1), ("mean_shift", 3), ("motion_blur", 1)])
def test_levels_that_only_stretch(name, level, photos):
    dull = photos[0] // 2 + 40
    assert np.abs(distort(dull, name, level) - stretched(dull)).max() <= 1


def test_result_spans_the_full_range(texture):
    for name in ("gaussian_blur", "mean_shift", "darken", "saturation_hsv", "white_noise"):
        result = distort(texture, name, 5)
        assert (result.min(), result.max()) == (0, 255), name


def test_blur_kernels_sum_to_one():
    for radius in LEVELS["lens_blur"]:
        assert blur.disk_kernel(radius).sum() == pytest.approx(1)
        assert blur.disk_kernel(radius).shape == (2 * radius + 1, 2 * radius + 1)
    for length in LEVELS["motion_blur"]:
        for angle in (0, 30, 90, 135):
            assert blur.motion_kernel(length, angle).sum() == pytest.approx(1)
    for sigma in LEVELS["gaussian_blur"]:
        impulse = np.zeros((41, 41), np.float32)
        impulse[20, 20] = 1
        assert gaussian(impulse, sigma).sum() == pytest.approx(1, abs=1e-5)


def test_blur_kernels_have_the_known_shapes():
    # The areas of a unit disk over 3 x 3 pixels, as MATLAB's fspecial('disk', 1) prints them.
    expected = [[0.0251, 0.1453, 0.0251], [0.1453, 0.3183, 0.1453], [0.0251, 0.1453, 0.0251]]
    np.testing.assert_allclose(blur.disk_kernel(1), expected, atol=1e-4)
    flat = blur.motion_kernel(5, angle=0)
    np.testing.assert_allclose(flat[2], np.full(5, 0.2))
    np.testing.assert_allclose(blur.motion_kernel(5, angle=90), flat.T, atol=1e-12)
    rising = blur.motion_kernel(5, angle=45)
    assert rising[0, -1] > 0
    assert rising[0, 0] == 0


def test_lens_blur_replicates_edges(photos):
    pixels = to_pixels(photos[0])
    expected = ndimage.convolve(pixels, blur.disk_kernel(4)[..., None], mode="nearest")
    np.testing.assert_allclose(blur.lens_blur(pixels, 4), expected, atol=1e-5)


@pytest.mark.parametrize("level", range(1, 6))
def test_color_quantization_keeps_n_colors(level, photos):
    allowed = LEVELS["color_quantization"][level - 1]
    for photo in photos:
        kept = len(np.unique(distort(photo, "color_quantization", level).reshape(-1, 3), axis=0))
        assert allowed * 0.9 <= kept <= allowed
        assert level < 5 or kept == 8


def test_palette_of_few_colors_is_exact():
    colors = np.array([[0, 0, 0], [255, 255, 255], [250, 20, 20], [20, 200, 90]], np.uint8)
    image = colors[np.random.default_rng(0).integers(0, 4, size=(40, 40))]
    palette = color.minimum_variance_palette(image, 8)
    assert {tuple(row) for row in palette} == {tuple(row) for row in colors}


def test_saturation_hsv_is_a_factor_on_s(photos):
    pixels = to_pixels(photos[0])
    hsv = skcolor.rgb2hsv(pixels)
    hsv[..., 1] *= 0.4
    np.testing.assert_allclose(color.saturation_hsv(pixels, 0.4), skcolor.hsv2rgb(hsv), atol=1e-5)
    gray = distort(photos[0], "saturation_hsv", 4)
    assert np.ptp(gray, axis=-1).max() == 0
    red = np.array([[[1, 0.2, 0.2]]], np.float32)
    complement = color.saturation_hsv(red, -0.4)[0, 0]
    assert complement[1] == complement[2] > complement[0]


def test_color_diffusion_and_sharpening_act_on_lab_as_specified():
    lab = np.zeros((64, 64, 3), np.float32)
    lab[..., 0] = np.where(np.arange(64) < 32, 48, 52)
    lab[20:40, 20:40, 1:] = (3, -2)
    pixels = skcolor.lab2rgb(lab)
    for k in (1, 3):
        sigma = 1.5 * k + 2
        diffused = skcolor.rgb2lab(color.color_diffusion(pixels, k))
        for channel in (1, 2):
            expected = k * ndimage.gaussian_filter(
                lab[..., channel], sigma, mode="nearest", radius=math.ceil(2 * sigma)
            )
            np.testing.assert_allclose(diffused[..., channel], expected, atol=0.02)
        np.testing.assert_allclose(diffused[..., 0], lab[..., 0], atol=0.02)
    sharpened = skcolor.rgb2lab(tone.high_sharpen(pixels, 2))
    blurred = ndimage.gaussian_filter(lab[..., 0], 3, mode="nearest", radius=6)
    np.testing.assert_allclose(sharpened[..., 0], 3 * lab[..., 0] - 2 * blurred, atol=0.02)


def test_color_shift_moves_green_alone(photos):
    pixels = to_pixels(photos[0])
    shifted = color.color_shift(pixels, 12, np.random.default_rng(0))
    np.testing.assert_array_equal(shifted[..., (0, 2)], pixels[..., (0, 2)])
    assert np.abs(shifted[..., 1] - pixels[..., 1]).max() > 0.2


@pytest.mark.parametrize("level", range(1, 6))
def test_impulse_noise_density(level, photos):
    gray = np.random.default_rng(1).integers(1, 255, size=(384, 512, 3)).astype(np.uint8)
    gray[0, 0] = (0, 128, 255)  # the full range, so that the stretches change nothing
    density = LEVELS["impulse_noise"][level - 1]
    result = distort(gray, "impulse_noise", level)
    changed = result != gray
    assert changed.mean() == pytest.approx(density, abs=4 * math.sqrt(density / gray.size))
    assert set(np.unique(result[changed])) == {0, 255}
    assert (result[changed] == 255).mean() == pytest.approx(0.5, abs=2.5 / math.sqrt(changed.sum()))
    # Per element: a pixel rarely has more than one channel hit.
    assert changed.sum() > 0.9 * changed.any(axis=-1).sum()
    assert changed.any(axis=-1).mean() > 2.5 * density


def test_noise_variances():
    rng = np.random.default_rng(0)
    gray = np.full((200, 200, 3), 0.5, np.float32)
    assert np.var(noise.white_noise(gray, 0.01, rng)) == pytest.approx(0.01, rel=0.03)
    speckle = noise.multiplicative_noise(gray, 0.05, rng) / gray - 1
    assert np.var(speckle) == pytest.approx(0.05, rel=0.03)
    assert np.abs(speckle).max() < math.sqrt(3 * 0.05) * 1.001  # uniform
    components = skcolor.rgb2ycbcr(noise.white_noise_color(gray, 0.003, rng)) / 255
    np.testing.assert_allclose(components.var(axis=(0, 1)), 0.003, rtol=0.06)


def test_denoising_takes_most_of_the_noise_away_and_less_of_the_strongest():
    gray = np.full((100, 100, 3), 0.5, np.float32)
    left = []
    for variance in LEVELS["denoising"]:
        noisy, denoised = (
            function(gray, variance, np.random.default_rng(0)) for function in (noise.white_noise, noise.denoising)
        )
        left.append(np.var(denoised) / np.var(noisy))
    assert max(left) < 0.15
    assert left[4] > 1.4 * left[0]


def test_midtone_and_contrast_curves():
    half = np.full((4, 4, 3), 0.5, np.float32)
    np.testing.assert_allclose(tone.darken(half, 0.8), 0.1, atol=1e-6)
    ends = np.array([[[0, 1, 0.5]]], np.float32)
    np.testing.assert_allclose(tone.mean_shift(ends, 0.15)[0, 0], [0.15, 1, 0.65], atol=1e-6)
    x = np.linspace(0, 1, 501)
    np.testing.assert_allclose(tone.contrast_curve(x, -0.2), x, atol=1e-12)
    for strength in LEVELS["contrast_change"]:
        y = tone.contrast_curve(x, strength)
        assert np.diff(y).min() >= -1e-12
        np.testing.assert_allclose(y[[0, 250, 500]], [0, 0.5, 1], atol=1e-12)
        assert tone.contrast_curve(np.array(0.3), strength) == pytest.approx(0.25 - strength / 4)


def test_otsu_agrees_with_exhaustive_search(photos):
    for photo in photos:
        ours = np.digitize(photo, spatial.otsu_thresholds(to_pixels(photo), 3) * 255)
        theirs = np.digitize(
            photo,
            threshold_multiotsu(photo.reshape(-1, 3 * photo.shape[1]), classes=4, nbins=256),
            right=True,
        )
        # One bin more or less at a threshold is a tie or a matter of bin centers.
        assert (ours != theirs).mean() < 0.01


@pytest.mark.parametrize("level", range(1, 6))
def test_quantization_has_one_value_more_than_thresholds(level, photos):
    count = LEVELS["quantization"][level - 1]
    assert len(np.unique(distort(photos[0], "quantization", level))) == count + 1
    pixels = to_pixels(photos[0])
    thresholds = spatial.otsu_thresholds(pixels, count)
    expected = np.concatenate([[0], thresholds[1:], [1]])
    np.testing.assert_allclose(np.unique(spatial.quantization(pixels, count)), expected)


def test_pixelate_repeats_rows_and_columns(photos):
    result = distort(photos[0], "pixelate", 5)
    scale = 0.95 - 0.5**0.6
    assert len(np.unique(result, axis=0)) == math.ceil(scale * 192)
    assert len(np.unique(result, axis=1)[0]) == math.ceil(scale * 256)


@pytest.mark.parametrize("name", NAMES)
def test_same_call_same_bytes_and_input_untouched(name, texture):
    before = texture.copy()
    first = distort(texture, name, 3, seed=7)
    assert first.dtype == np.uint8
    assert first.shape == texture.shape
    np.testing.assert_array_equal(first, distort(texture, DISTORTIONS[name].type_id, np.int64(3), seed=np.int64(7)))
    np.testing.assert_array_equal(texture, before)
    as_float = texture / 255
    kept = as_float.copy()
    np.testing.assert_array_equal(first, distort(as_float, name, 3, seed=7))
    np.testing.assert_array_equal(as_float, kept)
    other = distort(texture, name, 3, seed=8)
    assert np.array_equal(first, other) != DISTORTIONS[name].is_random


def test_a_fresh_process_draws_the_same():
    # An empty stand-in for the parent package spares the child the import of Lightning, which takes seconds.
    alone = """
import sys, types, certiqa
sys.modules["certiqa.data"] = types.ModuleType("certiqa.data")
sys.modules["certiqa.data"].__path__ = [certiqa.__path__[0] + "/data"]
"""
    draw = """
import hashlib, numpy as np
from certiqa.data.distortions import DISTORTIONS, distort
image = (np.arange(48 * 64 * 3) * 37 % 251).astype(np.uint8).reshape(48, 64, 3)
results = [distort(image, name, 4, seed=3).tobytes() for name, kind in DISTORTIONS.items() if kind.is_random]
digest = hashlib.sha256(b"".join(results)).hexdigest()
"""
    here: dict = {}
    exec(draw, here)
    command = [sys.executable, "-c", alone + draw + "print(digest)"]
    environment = {**os.environ, "PYTHONHASHSEED": "11"}
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here["digest"]


@pytest.mark.parametrize(("size", "margin"), [(16, 16), (32, 0)])
def test_focus_holds_its_share_of_squares(size, margin):
    top, left, height, width = CROP
    for count in (2, 6, 10, 20, 100):
        for seed in range(5):
            rng = np.random.default_rng(seed)
            corners = spatial.place_squares(rng, count, size, margin, (384, 512), CROP)
            assert corners.shape == (count, 2)
            assert corners.min() >= margin
            assert np.all(corners + size + margin <= (384, 512))
            row, column = (corners + size / 2 - (top, left)).T
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            assert inside.sum() == round(count * 224 * 224 / (384 * 512))


def test_focus_without_choice():
    rng = np.random.default_rng(0)
    everywhere = spatial.place_squares(rng, 10, 32, 0, (64, 64), (0, 0, 64, 64))
    nowhere = spatial.place_squares(rng, 10, 32, 0, (64, 64), (0, 0, 8, 8))
    assert everywhere.shape == nowhere.shape == (10, 2)


@pytest.mark.parametrize("name", ["non_eccentricity_patch", "color_block"])
def test_distort_hands_the_focus_on(name):
    image = np.random.default_rng(2).integers(0, 256, size=(384, 512, 3), dtype=np.uint8)
    top, left, height, width = CROP
    shares = []
    for seed in range(12):
        damaged = (distort(image, name, 5, seed, focus=CROP) != image).any(axis=-1)
        shares.append(damaged[top : top + height, left : left + width].sum() / damaged.sum())
    # Uniform placement would have a standard deviation of about .04 (patches) or .14 (blocks).
    assert np.mean(shares) == pytest.approx(0.28, abs=0.05)
    assert np.std(shares) < (0.025 if name == "non_eccentricity_patch" else 0.08)
    assert not np.array_equal(distort(image, name, 5), distort(image, name, 5, focus=CROP))


@pytest.mark.parametrize("side", [(32, 32), (33, 47)])
def test_the_least_image_and_a_constant_one(side):
    image = np.random.default_rng(3).integers(0, 256, size=(*side, 3), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in NAMES:
            assert distort(image, name, 5).shape == image.shape
            assert distort(np.full_like(image, 90), name, 5).shape == image.shape


@pytest.mark.parametrize(
    ("name", "level", "parts"),
    [
        ("gausian_blur", 1, ["'gausian_blur'", "color_block", "Did you mean 'gaussian_blur'?"]),
        (0, 1, ["0", "1 to 25"]),
        (26, 1, ["26", "1 to 25"]),
        ("jpeg", 0, ["0", "1 (mildest) to 5"]),
        ("jpeg", 6, ["6", "1 (mildest) to 5"]),
        ("jpeg", "3", ["'3'", "1 (mildest) to 5"]),
    ],
)
def test_unknown_names_and_levels(name, level, parts, texture):
    with pytest.raises(UserError) as error:
        distort(texture, name, level)
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize(
    ("image", "part"),
    [
        (np.zeros((40, 40), np.uint8), "(40, 40)"),
        (np.zeros((40, 40, 4), np.uint8), "(40, 40, 4)"),
        (np.zeros((40, 31, 3), np.uint8), "32x32"),
        (np.zeros((40, 40, 3), np.int64), "int64"),
        (np.full((40, 40, 3), 255.0), "255"),
        (np.full((40, 40, 3), np.nan), "[0, 1]"),
    ],
)
def test_images_of_a_wrong_kind(image, part):
    with pytest.raises(UserError) as error:
        distort(image, "jpeg", 1)
    assert part in str(error.value)


@pytest.mark.parametrize("focus", [(-1, 0, 10, 10), (0, 0, 65, 10), (60, 0, 10, 10), (0, 0, 0, 5)])
def test_focus_outside_the_image(focus, texture):
    with pytest.raises(UserError, match="not inside the image"):
        distort(texture, "color_block", 1, focus=focus)
