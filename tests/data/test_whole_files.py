"""Files that end early are refused, whole ones read, whatever notes they carry and however black or grey they end."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from certiqa.data import reading
from certiqa.data.reading import UnreadableError, image_header, image_size, read_image

NOISE = np.random.default_rng(0).integers(1, 256, (64, 48, 3), np.uint8)
PHOTO = Image.fromarray(NOISE)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(rows, *, height, interlace=0, depth=8, colour=2):
    """A PNG of 48 columns with these filtered rows."""
    head = struct.pack(">IIBBBBB", 48, height, depth, colour, 0, 0, interlace)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b"")


def jpeg(image=PHOTO, **options):
    content = io.BytesIO()
    image.save(content, "JPEG", **{"quality": 90, **options})
    return content.getvalue()


def put(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


def interlaced(pixels):
    """The rows of an RGB array in the seven passes of Adam7."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    parts = [pixels[top::down, left::across] for left, top, across, down in passes]
    return b"".join(b"\0" + row.tobytes() for part in parts for row in part)


@pytest.mark.parametrize("place", ["data.png", "head.png", "middle.png", "interlaced.png"])
def test_a_png_whose_pixels_end_early_is_no_picture_with_black_rows(tmp_path, place):
    rows = [b"\0" + row.tobytes() for row in NOISE]
    whole = interlaced(NOISE)
    content = {
        "data.png": png(b"".join(rows[:40]), height=64),
        "head.png": png(b"", height=64),
        "middle.png": png(b"".join(rows)[: -3 * 48 + 10], height=64),
        "interlaced.png": png(whole[: len(whole) * 3 // 4], height=64, interlace=1),
    }[place]
    with pytest.raises(UnreadableError, match=rf"'.*{place}': (its pixels end before|.*truncated)"):
        read_image(put(tmp_path, place, content))


def test_a_png_that_ends_black_is_whole(tmp_path):
    black = NOISE.copy()
    black[30:] = 0
    for name, content in (
        ("plain.png", png(b"".join(b"\0" + row.tobytes() for row in black), height=64)),
        ("interlaced.png", png(interlaced(black), height=64, interlace=1)),
    ):
        assert np.array_equal(read_image(put(tmp_path, name, content)), black)
    for mode, size in (("1", (5, 3)), ("P", (3, 5)), ("LA", (4, 4)), ("I;16", (9, 2)), ("RGBA", (1, 1))):
        Image.new(mode, size).save(tmp_path / "small.png")
        assert not read_image(tmp_path / "small.png").any()
    for size in ((1, 1), (1, 7), (3, 2)):
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        content = png(interlaced(pixels), height=size[1], interlace=1)
        content = content[:16] + struct.pack(">I", size[0]) + content[20:29]
        content += struct.pack(">I", zlib.crc32(content[12:29])) + png(interlaced(pixels), height=size[1])[33:]
        assert read_image(put(tmp_path, "dot.png", content)).shape == (size[1], size[0], 3)


def test_damaged_pixels_of_a_png_do_not_pass_for_others(tmp_path):
    PHOTO.save(tmp_path / "image.png", compress_level=0)  # stored as they are, so that a changed one still unpacks
    content = bytearray((tmp_path / "image.png").read_bytes())
    content[len(content) // 2] ^= 0x40
    with pytest.raises(UnreadableError, match=r"its pixels do not fit their checksum; replace the file"):
        read_image(put(tmp_path, "image.png", bytes(content)))


def test_notes_of_any_size_leave_a_png_whole(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 2_000_000, zip=True)
    info.add_itxt("parameters", "y" * 2_000_000, zip=True)
    PHOTO.save(tmp_path / "text.png", pnginfo=info)
    PHOTO.save(tmp_path / "profile.png", icc_profile=bytes(2_000_000))
    for name in ("text.png", "profile.png"):
        assert np.array_equal(read_image(tmp_path / name), NOISE)
        assert image_size(tmp_path / name) == (64, 48)
    lying = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    note = b"\nexif\n%8d\n" % len(lying) + lying.hex().encode()
    turned = (tmp_path / "profile.png").read_bytes()
    text = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(note))
    path = put(tmp_path, "turned.png", turned[:33] + text + turned[33:])
    assert image_size(path) == read_image(path).shape[:2] == (48, 64), "the orientation is the one note that counts"


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_a_jpeg_that_was_ended_early_is_no_picture_with_a_grey_rest(tmp_path, options):
    content = jpeg(**options)
    scan = content.index(b"\xff\xda")
    short = content[: scan + 40] + b"\xff\xd9"
    with pytest.raises(UnreadableError, match=r"'.*cut.jpg': its pixels end before the last row; replace the file"):
        read_image(put(tmp_path, "cut.jpg", short))


@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"progressive": True}, {"restart_marker_blocks": 2}, {"optimize": True}, {"comment": "x"}],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_ends_in_one_colour_is_whole(tmp_path, mode, options):
    pixels = NOISE.copy()
    pixels[32:] = 128
    image = Image.fromarray(pixels).convert(mode)
    content = jpeg(image, **options)
    path = put(tmp_path, "flat.jpg", content)
    expected = np.asarray(Image.open(path).convert("RGB"))
    assert np.array_equal(read_image(path), expected)
    assert np.array_equal(read_image(put(tmp_path, "more.jpg", content + bytes(99))), expected)
    phone = tmp_path / "phone.jpg"
    image.convert("RGB").save(phone, "MPO", save_all=True, append_images=[PHOTO], quality=90)
    assert read_image(phone).shape == (64, 48, 3)


def runs(rows):
    """A BMP of 48x64 with 8 bits in runs, of which so many rows are there."""
    content = b"".join(bytes([48, row + 1, 0, 0]) for row in range(rows)) + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, 48, 64, 1, 8, 1, len(content), 0, 0, 256, 0)
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    return b"BM" + struct.pack("<IHHI", 1078 + len(content), 0, 0, 1078) + head + palette + content


def tiff(strip, compression):
    """A grey TIFF of 48x64 in one strip."""
    tags = [(256, 3, 48), (257, 3, 64), (258, 3, 8), (259, 3, compression), (262, 3, 1), (273, 4, 122)]
    tags += [(277, 3, 1), (278, 3, 64), (279, 4, len(strip))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + strip


def animation(rows):
    """A GIF of 48x64 whose one frame has so many rows of pixels."""
    content = io.BytesIO()
    PHOTO.crop((0, 0, 48, rows)).quantize(64).save(content, "GIF")
    image = bytearray(content.getvalue())
    frame = image.index(struct.pack("<BHHHH", 0x2C, 0, 0, 48, rows))
    image[8:10] = image[frame + 7 : frame + 9] = struct.pack("<H", 64)
    return bytes(image)


GREY = NOISE[..., 0]
FORMATS = {
    "runs.bmp": runs,
    "deflate.tif": lambda rows: tiff(zlib.compress(GREY[:rows].tobytes()), 8),
    "raw.tif": lambda rows: tiff(GREY[:rows].tobytes(), 1),
    "frame.gif": animation,
    "raw.ppm": lambda rows: b"P6 48 64 255\n" + NOISE[:rows].tobytes(),
    "plain.pgm": lambda rows: b"P2 48 64 255\n" + b" ".join(b"%d" % level for level in GREY[:rows].ravel()),
}


@pytest.mark.parametrize("name", FORMATS)
def test_other_files_whose_pixels_end_early_are_refused(tmp_path, name):
    assert read_image(put(tmp_path, name, FORMATS[name](64))).shape == (64, 48, 3)
    with pytest.raises(UnreadableError, match=f"cannot read the image '.*{name}'"):
        read_image(put(tmp_path, name, FORMATS[name](40)))


def test_every_ending_in_the_list_is_read(tmp_path):
    assert {".jfif", ".gif", ".jpe", ".apng", ".pnm"} <= set(reading.IMAGE_SUFFIXES)
    for suffix in reading.IMAGE_SUFFIXES:
        path = tmp_path / f"image{suffix}"
        if suffix == ".pfm":
            Image.fromarray(GREY.astype(np.float32) / 255).save(path)
        elif suffix == ".avifs":
            PHOTO.save(path, "AVIF")
        else:
            PHOTO.save(path)
        assert read_image(path).shape == (64, 48, 3)
        assert image_size(path) == (64, 48)


def test_other_formats_of_pil_are_none_of_photographs(tmp_path):
    PHOTO.save(tmp_path / "page.png", "EPS")  # PIL would start Ghostscript on it
    with pytest.raises(UnreadableError, match="it is no image of a known kind"):
        read_image(tmp_path / "page.png")


def test_what_moves_is_known_from_the_header(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "png", "webp"):
        frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
        frames[0].save(tmp_path / f"still.{suffix}", lossless=True)
        assert image_header(tmp_path / f"moving.{suffix}").is_animated
        assert not image_header(tmp_path / f"still.{suffix}").is_animated
        assert np.array_equal(read_image(tmp_path / f"moving.{suffix}"), np.asarray(frames[0]))


@pytest.mark.parametrize("reader", [read_image, image_size])
def test_an_image_too_large_for_the_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch, reader):
    path = put(tmp_path, "wide.jpg", jpeg())
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(reading, "memory_bytes", lambda: 64 * 48 * 10)
    with pytest.raises(UnreadableError, match=r"wide.jpg' is 64x48 pixels .*61 kB .*31 kB; .*data.resize=1024"):
        reader(path)
    monkeypatch.setattr(reading, "memory_bytes", lambda: None)
    assert image_size(path) == (64, 48)
