"""Is a metric the one its authors published? Digests, strict loading, known scores, pyiqa's own model beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from certiqa.errors import UserError
from certiqa.metrics.clipiqa import load_clip, read_prompts
from certiqa.metrics.dbcnn import without_pretrained_parts
from certiqa.metrics.metaiqa import upstream_names
from certiqa.metrics.registry import load_metric
from certiqa.metrics.sources import files_of
from certiqa.metrics.weights import read_weights
from certiqa.storage.files import sha256

GOLDEN: dict[str, dict[str, tuple[float, float]]] = {
    # the authors print 10.430 for the photograph of their demo; PIL rounds what it resizes to 8 bits, we do not
    "linearity": {"1000.JPG": (10.430044, 0.05)},
    # the shipped metric on embedded photographs
    "mini": {"scikit_coffee.png": (4.580487, 1e-3), "palapeli_citrus-fruits.png": (4.632432, 1e-3)},
}
"""metric -> image -> (score, how far off it may be)."""
CLOSE = 1e-5  # to pyiqa's own model, as a share of the range


@dataclass
class Verdict:
    """What ``verify_metric`` found.

    Attributes:
        metric: its name.
        state: "verified", "not here" or "wrong".
        notes: what was checked, or what is missing or wrong.
        scores: of the probe images, by name.
    """

    metric: str
    state: str = "verified"
    notes: list[str] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)


def verify_metric(name: str, images: Mapping[str, Tensor]) -> Verdict:
    """Check a metric's files and its scores of probe images ``(3, H, W)`` in [0, 1], by name.

    Digests where they are published, strict loading, known scores of images that have one, and for pyiqa's metrics
    equality with pyiqa's own model of the same files. Nothing is downloaded.

    Args:
        name: one of ``METRICS``.
        images: probe images; those named in ``GOLDEN`` are compared with the known scores.
    """
    verdict = Verdict(name)
    try:
        missing = [file.filename for file in files_of(name) if file.present() is None]
        if missing:
            return Verdict(name, "not here", [f"{', '.join(missing)}: certiqa-weights fetch {name}"])
        for file in files_of(name):
            path = file.present()
            assert path is not None
            verdict.notes.append(check_digest(path, file.sha256))
        metric = load_metric(name)
        with torch.no_grad():
            verdict.scores = {key: float(metric(image[None])) for key, image in images.items()}
        for key, (score, tolerance) in GOLDEN.get(name, {}).items():
            if key in verdict.scores:
                expect_close(verdict.scores[key], score, tolerance, f"the known score of {key}")
                verdict.notes.append(f"{key} scores {score:g} as known")
        if name in UPSTREAM:
            independent = UPSTREAM[name](*(file.present() or Path() for file in files_of(name)))
            width = metric.range_width or 1.0
            with torch.no_grad():
                for key, image in images.items():
                    expect_close(verdict.scores[key], float(independent(image[None])), CLOSE * width, f"pyiqa on {key}")
            verdict.notes.append("scores as pyiqa's own model does")
    except UserError as error:
        verdict.state = "wrong"
        verdict.notes.append(str(error))
    return verdict


def check_digest(path: Path, expected: str | None) -> str:
    """Return a note on a file's SHA-256; raises UserError where it is not the published one."""
    digest = sha256(path)
    if expected is None:
        return f"{path.name}: SHA-256 {digest[:16]}…, none is published to compare with"
    if not digest.startswith(expected):
        raise UserError(
            f"'{path}' has SHA-256 {digest[:16]}…, the published file {expected[:16]}…: remove it and run "
            "certiqa-weights fetch again"
        )
    return f"{path.name}: SHA-256 as published"


def expect_close(found: float, expected: float, tolerance: float, what: str) -> None:
    """Raise UserError where a score is too far from what it should be."""
    if not abs(found - expected) <= tolerance:
        raise UserError(f"the score is {found:.6g}, {what} is {expected:.6g}, more than {tolerance:g} away")


def _dbcnn(path: Path) -> Callable[[Tensor], Tensor]:
    from pyiqa.archs.dbcnn_arch import DBCNN

    with without_pretrained_parts():
        network = DBCNN(pretrained=False).eval()
    network.load_state_dict(read_weights(path)[0])
    return network


def _metaiqa(path: Path) -> Callable[[Tensor], Tensor]:
    from pyiqa.archs.metaiqa_arch import MetaIQA

    network = MetaIQA(pretrained=False).eval()
    state = network.state_dict()
    network.load_state_dict(upstream_names(read_weights(path)[0]) | {key: state[key] for key in ("mean", "std")})
    return network


def _clipiqa_plus(backbone: Path, prompts: Path) -> Callable[[Tensor], Tensor]:
    from pyiqa.archs import clipiqa_arch

    with mock.patch.object(clipiqa_arch, "load", return_value=load_clip(backbone)):
        network = clipiqa_arch.CLIPIQA("clipiqa+", pretrained=False).eval()
    network.prompt_learner.ctx.data = read_prompts(prompts)
    return network


UPSTREAM: dict[str, Callable[..., Callable[[Tensor], Tensor]]] = {
    "clipiqa_plus": _clipiqa_plus,
    "dbcnn": _dbcnn,
    "metaiqa": _metaiqa,
}
"""pyiqa's own models, built from the same files."""
