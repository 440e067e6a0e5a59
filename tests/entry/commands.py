"""Runs ``train.py`` and ``evaluate.py`` in this process, from the command line to the exit code."""

import logging
import sys
from contextlib import contextmanager

import numpy as np
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from certiqa.entry import evaluate, train

TINY = (
    *("defense=ms", "num_samples=40", "certification.radii=[0.03]", "certification.radius=0.03"),
    *("certification.joint_confidence=null", "data=folder", "data.num_workers=0", "callbacks.progress=null"),
)


@contextmanager
def same_logging():
    """Leave this process's logging as it was: Hydra configures all of it for the job."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:], root.level = handlers, level
        logging.disable(logging.NOTSET)


def call(monkeypatch, task, *arguments):
    """Run a command; returns its exit code. What it prints is captured as usual."""
    monkeypatch.setattr(sys, "argv", [f"{task}.py", *map(str, arguments)])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    GlobalHydra.instance().clear()
    with same_logging():
        try:
            {"train": train, "evaluate": evaluate}[task].main()
        except SystemExit as error:
            return error.code or 0
    return 0


def pictures(folder, count=3, size=48):
    """Write random images and their opinion scores."""
    folder.mkdir()
    generator = np.random.default_rng(3)
    for number in range(count):
        Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    rows = "".join(f"{number}.png,{number + 1}\n" for number in range(count))
    (folder / "scores.csv").write_text(f"image,mos\n{rows}")
    return folder


def contents(folder):
    """Return the bytes of every file below a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
