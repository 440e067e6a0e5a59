"""Six ways in which a file of a run's folder goes bad, for files of every format that runs write."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file


def cut_in_half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(max(64, path.stat().st_size)))


def another_shape(path: Path) -> None:
    """Put a valid file of the same format in its place, which holds something else."""
    if path.suffix == ".json":
        is_list = path.read_text(encoding="utf-8").lstrip().startswith("[")
        path.write_text(json.dumps({"a": [1]} if is_list else [1, "a"]), encoding="utf-8")
    elif path.suffix == ".jsonl":
        _, *rest = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(['{"image_id": ["a"]}\n', *rest]), encoding="utf-8")
    elif path.suffix == ".csv":
        path.write_text("a,b\n1,2\n", encoding="utf-8")
    elif path.suffix == ".parquet":
        pd.DataFrame({"a": [1]}).to_parquet(path)
    elif path.suffix == ".npy":
        np.save(path, np.zeros((2, 2)))
    elif path.suffix == ".safetensors":
        save_file({"a": torch.zeros(1)}, path)
    elif path.suffix == ".ckpt":
        torch.save({"a": 1}, path)
    elif path.suffix == ".png":
        Image.new("L", (3, 3)).save(path, "PNG")
    else:
        path.write_text("a", encoding="utf-8")


def deleted(path: Path) -> None:
    path.unlink()


def digit_flipped(path: Path) -> None:
    """Change the digit nearest to the middle of a text, or a byte in the middle of anything else."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if path.suffix in (".json", ".jsonl", ".csv"):
        place = min((found.start() for found in re.finditer(rb"\d", content)), key=lambda at: abs(at - middle))
        content[place] = ord("0") + (content[place] - ord("0") + 1) % 10
    else:
        content[middle] ^= 0x10
    path.write_bytes(content)


WAYS: dict[str, Callable[[Path], None]] = {
    "cut in half": cut_in_half,
    "emptied": emptied,
    "garbage": garbage,
    "another shape": another_shape,
    "deleted": deleted,
    "one digit flipped": digit_flipped,
}
