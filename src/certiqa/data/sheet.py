"""A contact sheet: distortion types by levels, to compare each with its description by eye."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from certiqa.data.distortions import DISTORTIONS, distort
from certiqa.data.mini import ASSETS, LEVELS, cell_means
from certiqa.data.reading import read_image
from certiqa.errors import UserError, suggest

THUMB = (192, 144)
LABEL = 190
CAPTION = 18


def contact_sheet(image: Path | None = None, types: Sequence[str] | None = None, seed: int = 0) -> Image.Image:
    """Draw one row per distortion type and one column per level, each with its mean KADID-10k rating.

    Args:
        image: a photograph; None for an embedded one.
        types: names or KADID numbers; None for all 25.
        seed: of the random distortions.
    """
    pixels = read_image(image or ASSETS / "photos" / "scikit_coffee.png")
    known = {**DISTORTIONS, **{str(kind.type_id): kind for kind in DISTORTIONS.values()}}
    for name in types or ():
        if name not in known:
            raise UserError(f"no distortion '{name}'; there are: {', '.join(DISTORTIONS)}.{suggest(name, DISTORTIONS)}")
    kinds = [known[name] for name in types or DISTORTIONS]
    ratings = cell_means()
    width, height = THUMB
    sheet = Image.new("RGB", (LABEL + len(LEVELS) * width, len(kinds) * (height + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for row, kind in enumerate(kinds):
        top = row * (height + CAPTION)
        draw.text((8, top + height // 2), f"{kind.type_id:2d} {kind.name}", "black", font)
        for column, level in enumerate(LEVELS):
            distorted = distort(pixels, kind.name, level, seed)
            left = LABEL + column * width
            sheet.paste(Image.fromarray(np.asarray(distorted)).resize(THUMB, Image.Resampling.LANCZOS), (left, top))
            caption = f"{kind.levels[level - 1]:g}   rated {ratings[kind.type_id, level]:.2f}"
            draw.text((left + 4, top + height + 1), caption, "black", font)
    return sheet
