"""What the adapters of published metrics share: building a network around given weights, and preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Len
from torch import Tensor, nn

from certiqa.errors import UserError
from certiqa.metrics.base import FrozenMetric, Range
from certiqa.metrics.folding import fold_batch_norms
from certiqa.metrics.sources import files_of
from certiqa.metrics.weights import load_strictly, read_weights
from certiqa.options import Choices, Says, Side

RANDOM = "random"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Device = str | torch.device
Rename = Callable[[dict[str, Tensor]], dict[str, Tensor]]
Size = Annotated[Sequence[Side], Len(2, 2), Says("[height, width] in pixels")] | Annotated[str, Choices("native")]
"""(height, width) in pixels that images are resized to, or "native" for images as they are."""
NATIVE = "native"


class PublishedMetric(FrozenMetric):
    """A published metric around upstream weights, arranged as is fastest: BatchNorm folded, channels_last.

    Gradients flow to the images; scores are in the authors' units; nothing asks that noisy images stay in [0, 1].
    """

    thread_safe = True
    keeps_contract = True

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        weights_source: str,
        score_range: Range,
        hard_bounds: Range | None = None,
        min_size: int = 32,
    ) -> None:
        fold_batch_norms(network.eval())
        network.to(memory_format=torch.channels_last)
        super().__init__(
            network,
            name=name,
            score_range=score_range,
            hard_bounds=hard_bounds,
            min_size=min_size,
            weights_source=weights_source,
        )


def build_network(
    make: Callable[[], nn.Module],
    metric: str,
    weights: str | Path | None,
    *,
    device: Device = "cpu",
    seed: int = 0,
    rename: Rename | None = None,
    constants: Iterable[str] = (),
) -> tuple[nn.Module, str]:
    """Return ``(network, where its weights came from)`` on ``device``, with one copy of the weights.

    Args:
        make: builds the network without reading any file.
        metric: whose weights to look for where none are given.
        weights: a path; "random"; None for the published file, downloaded if need be.
        device: where the weights are read to.
        seed: of random weights.
        rename: maps upstream's keys to the network's.
        constants: buffers that the network fills itself.

    Raises:
        UserError: no such file, not downloadable, or weights that do not fit.
    """
    if weights == RANDOM:
        return seeded(make, seed).to(device), random_label(seed)
    path = Path(weights).expanduser() if weights else files_of(metric)[0].locate()
    state, _ = read_weights(path, device=device)
    with torch.device("meta"):
        network = make()
    load_strictly(network, rename(state) if rename else state, path, constants=constants)
    return network.to(device), path.name


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a network whose random weights are a function of ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def random_label(seed: int) -> str:
    """Return what ``weights_source`` says of random weights."""
    return f"random (seed {seed})"


def without_prefix(state: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """Return the state dict with the first of ``prefixes`` that a key has removed from it."""
    renamed = {}
    for key, value in state.items():
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
        renamed[key.removeprefix(prefix)] = value
    return renamed


class Preprocess(nn.Module):
    """Resize and normalise images ``(N, 3, H, W)`` in [0, 1].

    Args:
        resize: (height, width) in pixels, or "native" for images as they are.
        antialias: low-pass before shrinking, as PIL does.
        normalise: (means, deviations) of the three channels, or None for pixels as they are.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        resize: Size,
        *,
        antialias: bool = False,
        normalise: tuple[Sequence[float], Sequence[float]] | None = IMAGENET,
    ) -> None:
        super().__init__()
        self.resize = None if resize == NATIVE else checked_size(resize)
        self.antialias = antialias
        # lists, not tensors of the current default device: the network may be built on the meta device
        with torch.device("cpu"):
            mean, deviation = (
                torch.tensor(values).view(1, 3, 1, 1) for values in normalise or ((0.0,) * 3, (1.0,) * 3)
            )
        self.register_buffer("scale", 1 / deviation if normalise else None, persistent=False)
        self.register_buffer("shift", -mean / deviation if normalise else None, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network sees."""
        if self.resize is not None and images.shape[-2:] != self.resize:
            images = F.interpolate(
                images, size=self.resize, mode="bilinear", align_corners=False, antialias=self.antialias
            )
        if self.scale is None or self.shift is None:
            return images
        return torch.addcmul(self.shift, images, self.scale)


def checked_size(size: Size) -> tuple[int, int]:
    """Return (height, width); raises UserError for anything else."""
    if isinstance(size, str) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise UserError(f"metric.resize must be [height, width] in pixels, or {NATIVE}, got {size}")
    return size[0], size[1]
