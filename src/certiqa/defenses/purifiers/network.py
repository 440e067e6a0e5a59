"""What purifiers that are a neural network share: padding, memory, and the message where their weights are missing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from certiqa.defenses.purified import Purifier
from certiqa.errors import UserError
from certiqa.metrics.weights import SHIPPED


@dataclass(frozen=True)
class Upstream:
    """Where the weights of a network come from.

    Attributes:
        file: what the file is called.
        source: where a person finds it.
    """

    file: str
    source: str


class NetworkPurifier(Purifier):
    """An image -> image network as a purifier.

    Images are padded to what the network takes (mirrored, and repeated where an image is too small to be mirrored), the
    padding is cut off again and the output clipped to [0, 1]. The network is frozen and in eval mode.

    Args:
        network: ``(N, 3, H, W)`` -> ``(N, 3, scale * H, scale * W)``.
        multiple: what height and width must be multiples of.
        minimum: smallest height and width that the network takes.
        square: whether height and width must be equal.
        scale: by how much the network enlarges.
        checkpoint: where gradients are asked for, send one image at a time and compute the network's blocks again in
            the backward pass instead of keeping their maps: the memory of one image's largest block, for about twice
            the time. Values and gradients stay the same.

    Attributes:
        upstream: which weights it needs, None for any.
        shipped: what weights of certiqa's own are called after the metric, ``mini_fcn``; None where none are made.
    """

    upstream: Upstream | None = None
    shipped: str | None = None

    def __init__(
        self,
        network: nn.Module,
        *,
        multiple: int = 1,
        minimum: int = 1,
        square: bool = False,
        scale: int = 1,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.multiple, self.minimum, self.square, self.scale = multiple, minimum, square, scale
        self.checkpoint = bool(checkpoint)
        if self.checkpoint:
            recompute_blocks(self.network)

    def forward(self, images: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Return purified images; see ``Purifier``."""
        return self.through_network(images).clamp(0, 1)

    def through_network(self, images: Tensor) -> Tensor:
        """Return the network's output, padding cut off, in the type of the images."""
        height, width = images.shape[-2:]
        padded = pad_to(images, self.padded_size(height, width))
        weights = next(self.network.parameters(), None)
        inputs = padded if weights is None else padded.to(weights.dtype)
        if self.checkpoint and torch.is_grad_enabled() and images.requires_grad:
            output = torch.cat([recompute(self.restore, image, use_reentrant=False) for image in inputs.split(1)])
        else:
            output = self.restore(inputs)
        return output[..., : height * self.scale, : width * self.scale].to(images.dtype)

    def restore(self, images: Tensor) -> Tensor:
        """Return the bare network's output for images of a size that it takes."""
        restored: Tensor = self.network(images)
        return restored

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the smallest size the network takes that holds an image of this size."""
        sides = [-(-max(side, self.minimum) // self.multiple) * self.multiple for side in (height, width)]
        return (max(sides), max(sides)) if self.square else (sides[0], sides[1])

    @classmethod
    def missing_weights(cls) -> UserError:
        """Return the error of a purifier without weights."""
        return missing_weights(cls.name, cls.upstream)


def missing_weights(name: str, upstream: Upstream | None) -> UserError:
    """Return the error that says which file a purifier needs, where it comes from and how it is given."""
    which = f": {upstream.file}, from {upstream.source}" if upstream else ""
    return UserError(
        f"purifier '{name}' needs weights, and none come with certiqa{which}. Get the file and give it with "
        f"defense.weights=path (in Python load_purifier('{name}', weights=path))"
    )


def shipped_weights(kind: str | None, metric: str = "mini") -> str | None:
    """Return the name of the weights that are shipped for a metric, ``<metric>_<kind>``; None where there are none."""
    name = f"{metric}_{kind}"
    return name if kind and any((SHIPPED / path).exists() for path in (name, f"{name}.safetensors")) else None


def given_weights(weights: str | Path | None) -> bool:
    """Say whether a path was given; a config's ``???`` is none."""
    return weights is not None and str(weights) != "???"


def pad_to(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images padded at the bottom and right to (height, width): mirrored as far as that goes, then repeated."""
    bottom, right = size[0] - images.shape[-2], size[1] - images.shape[-1]
    if not bottom and not right:
        return images
    mirrored = (min(right, images.shape[-1] - 1), min(bottom, images.shape[-2] - 1))
    padded = F.pad(images, (0, mirrored[0], 0, mirrored[1]), mode="reflect")
    return F.pad(padded, (0, right - mirrored[0], 0, bottom - mirrored[1]), mode="replicate")


def recompute_blocks(network: nn.Module) -> None:
    """Make the blocks of a network compute their maps again in the backward pass, in place.

    Blocks are the children, themselves made of modules, of sequences and lists of modules; the outermost only.
    """

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(module, nn.Sequential | nn.ModuleList) and any(True for _ in child.children()):
                # a partial of a bound method is copied and pickled with its module, a closure stays with the original
                child.forward = functools.partial(_recomputed, child.forward)
            else:
                visit(child)

    visit(network)


def _recomputed(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    if torch.is_grad_enabled():
        return recompute(forward, *inputs, use_reentrant=False, **options)
    return forward(*inputs, **options)
