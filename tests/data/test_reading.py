"""Each kind of image file, made as a real file, comes out as the picture it shows, or is refused by name."""

import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from certiqa.data.reading import UnreadableError, check_resize, image_size, read_image
from certiqa.errors import UserError

RAMP = np.stack([np.tile(np.arange(48, dtype=np.uint8) * 5, (32, 1)), *np.zeros((2, 32, 48), np.uint8)], axis=-1)
RAMP[..., 1] = np.arange(32, dtype=np.uint8)[:, None] * 7
RAMP[:8, :8, 2] = 255  # no turn or flip leaves it as it is


def png16(values):
    """A PNG of 16 bits, grey or RGB, which PIL cannot write."""
    height, width = values.shape[:2]
    kind = 0 if values.ndim == 2 else {3: 2, 4: 6}[values.shape[2]]

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(folder, image, name="image.png", **options):
    path = folder / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["image.jpg", "image.png", "image.tif", "image.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_the_size_agrees(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if name.endswith("jpg") else {"lossless": True}
    if name.endswith("tif"):
        options = {"tiffinfo": {0x0112: orientation}}
    path = saved(tmp_path, Image.fromarray(RAMP), name, **({} if name.endswith("tif") else {"exif": exif}), **options)
    turned = {
        1: RAMP, 2: RAMP[:, ::-1], 3: RAMP[::-1, ::-1], 4: RAMP[::-1],
        5: RAMP.transpose(1, 0, 2), 6: np.rot90(RAMP, -1), 7: np.rot90(RAMP, 2).transpose(1, 0, 2), 8: np.rot90(RAMP),
    }[orientation]  # fmt: skip
    found = read_image(path)
    assert image_size(path) == found.shape[:2] == turned.shape[:2]
    assert np.abs(found.astype(int) - turned).mean() < (6 if name.endswith("jpg") else 0.5)


def test_an_unknown_orientation_or_broken_exif_counts_for_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 99
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(RAMP), exif=exif)), RAMP)
    broken = saved(tmp_path, Image.fromarray(RAMP), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert np.array_equal(read_image(broken), RAMP)
    assert image_size(broken) == (32, 48)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA"])
def test_grey_and_palettes(tmp_path, mode):
    image = Image.fromarray(RAMP).convert(mode)
    assert np.array_equal(read_image(saved(tmp_path, image)), np.asarray(image.convert("RGB")))


def test_alpha_is_dropped_as_by_the_loaders_of_the_field(tmp_path):
    alpha = np.full((32, 48, 1), 10, np.uint8)
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(np.concatenate([RAMP, alpha], 2)))), RAMP)
    palette = Image.fromarray(RAMP).quantize(16)
    plain = np.asarray(palette.convert("RGB"))
    assert np.array_equal(read_image(saved(tmp_path, palette, transparency=3)), plain)


def test_cmyk_comes_out_in_its_colours(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "cmyk.jpg", quality=100)  # red
    assert b"Adobe" in path.read_bytes()  # written inverted, as by Photoshop
    red, green, blue = read_image(path).reshape(-1, 3).mean(0)
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("channels", [None, 3, 4])
@pytest.mark.parametrize("factor", [256, 257])
def test_16_bits_are_scaled_and_never_clipped(tmp_path, channels, factor):
    grey = np.arange(256).reshape(16, 16)
    values = grey if channels is None else np.stack([grey] * channels, -1)
    (tmp_path / "deep.png").write_bytes(png16(values * factor))
    found = read_image(tmp_path / "deep.png")
    assert np.array_equal(found, np.stack([grey] * 3, -1))
    assert found.max() == 255


def test_tiff_of_16_bits_and_floats(tmp_path):
    grey = np.arange(256).reshape(16, 16)
    deep = saved(tmp_path, Image.fromarray((grey * 257).astype(np.uint16)), "deep.tif")
    assert np.array_equal(read_image(deep)[..., 0], grey)
    floats = saved(tmp_path, Image.fromarray((grey / 255).astype(np.float32)), "floats.tif")
    assert np.array_equal(read_image(floats)[..., 1], grey)
    wild = saved(tmp_path, Image.fromarray(grey.astype(np.float32)), "wild.tif")
    with pytest.raises(UnreadableError, match=r"wild.tif': its pixels are floats that are not all in \[0, 1\]"):
        read_image(wild)
    integers = saved(tmp_path, Image.fromarray((grey * 70000).astype(np.int32)), "integers.tif")
    with pytest.raises(UnreadableError, match=r"integers.tif': its pixels are 32-bit integers.*convert it to 8 bits"):
        read_image(integers)


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.webp", "cut.tif", "cut.bmp"])
@pytest.mark.parametrize("share", [0.98, 0.5, 0.01])
def test_a_cut_file_is_named_even_where_somebody_allowed_them(tmp_path, monkeypatch, name, share):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # importing pyiqa does that
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path = saved(tmp_path, noise, name)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UnreadableError, match=rf"cannot read the image '.*{name}': .*; replace the file"):
        read_image(path)


@pytest.mark.parametrize("reader", [read_image, image_size])
def test_what_is_no_image_is_named(tmp_path, reader):
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.jpg").write_text("<html>")
    (tmp_path / "folder.png").mkdir()
    for name, reason in (("empty.png", "it is empty"), ("page.jpg", "no image of a known kind"), ("folder.png", "")):
        with pytest.raises(UserError, match=f"cannot read the image '.*{name}': .*{reason}"):
            reader(tmp_path / name)
    with pytest.raises(UserError, match="no image at '.*gone.png'; is the data set complete"):
        reader(tmp_path / "gone.png")


@pytest.mark.parametrize("reader", [read_image, image_size])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, reader):
    content = png16(np.zeros((2, 2), int))
    head = struct.pack(">II", 60_000, 60_000) + content[24:29]
    content = content[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + content[33:]
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(
        UnreadableError, match="bomb.png': Image size .3600000000 pixels. exceeds .* make a smaller copy"
    ):
        reader(tmp_path / "bomb.png")


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, frames[0], "moving.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(read_image(path), np.asarray(frames[0]))


def test_resizing_takes_the_shorter_side_or_both_and_agrees_with_the_size(tmp_path):
    path = saved(tmp_path, Image.fromarray(RAMP))
    for resize, size in ((16, (16, 24)), ((10, 50), (10, 50)), (64, (64, 96)), (21, (21, 31))):
        assert image_size(path, resize) == read_image(path, resize).shape[:2] == size
    assert np.array_equal(read_image(path, 32), RAMP)


@pytest.mark.parametrize("name", ["bicubic", "bilinear", "lanczos"])
def test_a_reduction_is_antialiased(tmp_path, name):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = read_image(saved(tmp_path, Image.fromarray(stripes)), 8, name)
    assert np.abs(small[1:-1, 1:-1].astype(int) - 127).max() <= 4


def test_wrong_options_are_named():
    assert check_resize([3, 4], "lanczos") == (3, 4)
    assert check_resize(None, "bicubic") is None
    for wrong in (0, [1, 2, 3], [0, 4], []):
        with pytest.raises(UserError, match=r"data.resize must be null, the length of the shorter side, or \[height"):
            check_resize(wrong, "bicubic")
    with pytest.raises(UserError, match=r"must be one of bicubic, bilinear, lanczos, got 'bicubc'. Did you mean 'bic"):
        check_resize(4, "bicubc")


def test_sizes_of_png_are_read_without_the_pixels(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(RAMP))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: sys.exit("decoded"))
    assert image_size(path) == (32, 48)
