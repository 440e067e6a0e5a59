"""DiffPure: a little noise, and a diffusion model that takes it off again (Nie et al., ICML 2022), by diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from certiqa.defenses.purified import Purifier
from certiqa.defenses.purifiers.diffusion_files import load_diffusion, shipped_diffusions
from certiqa.defenses.purifiers.filters import Unsharp
from certiqa.defenses.purifiers.geometric import is_number
from certiqa.defenses.purifiers.network import Upstream, given_weights, missing_weights, pad_to, shipped_weights
from certiqa.errors import UserError
from certiqa.options import Count, NonNegative, OddInt, Positive, PositiveInt

NATIVE = "native"


class NoisePredictor(nn.Module):
    """A diffusers U-Net that returns a tensor: ``(sample (N, 3, H, W), step)`` -> ``(N, 3 or 6, H, W)``."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, step: Tensor | int) -> Tensor:
        """Return the predicted noise of samples in [-1, 1], followed by the variance where the model learned it."""
        predicted: Tensor = self.unet(sample, step).sample
        return predicted


class Diffpure(Purifier):
    """Noise of diffusion step ``steps`` added, then as many ancestral DDPM steps back.

    As in the paper's code an image is resized to the model's square and back, bilinearly: pixels and shape are lost
    even with no steps at all. ``size="native"`` keeps the image's own size instead.

    Args:
        weights: folder of a diffusers unconditional pixel model (a pipeline's with ``unet/`` and ``scheduler/``, one
            with both at its root as google/ddpm-church-256, or a U-Net's alone), the name of one on the Hugging Face
            hub, the name of a shipped one, None for that of metric mini (``mini_diffusion``), "untrained" for training.
        steps: t, how far the noise goes and how many steps lead back; the grid of the paper's study is 5, 10, 20, 30,
            50 of 1000. 0 leaves the resizing alone.
        size: side in pixels that images are resized to, a multiple of what the U-Net's downsampling needs; None for
            the model's own, "native" for no resizing, with padding to that multiple (ours, not the paper's).
        checkpoint: compute the network's maps again in the backward pass, one step at a time: the memory of one step.
        architecture: of an untrained U-Net, changes to ``diffusion_files.SMALL_UNET``.

    Raises:
        UserError: diffusers is not installed, no weights, or weights that are no such model.
    """

    name = "diffpure"
    shipped: str | None = "diffusion"
    upstream = Upstream(
        "a folder or hub name of an unconditional diffusers pixel model such as google/ddpm-church-256",
        "https://huggingface.co/models?library=diffusers (the paper's 256x256_diffusion_uncond.pt of "
        "openai/guided-diffusion is no diffusers model, and diffusers does not load it)",
    )

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        steps: Count = 5,
        size: PositiveInt | Literal["native"] | None = None,
        checkpoint: bool = True,
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        weights = weights if given_weights(weights) else shipped_weights(self.shipped)
        if weights is None:
            raise self.missing_weights()
        unet, self.scheduler = load_diffusion(weights, architecture)
        largest = int(self.scheduler.config.num_train_timesteps)
        if not (is_number(steps) and steps == int(steps) and 0 <= steps <= largest):
            raise UserError(f"steps must be 0 to {largest}, the diffusion steps of this model, got {steps!r}")
        self.network = NoisePredictor(unet).requires_grad_(False).eval()
        self.multiple = 2 ** (len(unet.config.block_out_channels) - 1)
        self.steps, self.size = int(steps), _checked_size(size, unet.config.sample_size, self.multiple, weights)
        self.checkpoint = bool(checkpoint)
        self.is_random = self.steps > 0

    def forward(self, images: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Return purified images of the size they came in."""
        height, width = images.shape[-2:]
        if self.size == NATIVE:
            sides = (-(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple)
            resized = pad_to(images, sides)
        else:
            resized = _resized(images, (int(self.size), int(self.size)))
        weights = next(self.network.parameters(), images)
        purified = (self.diffuse(2 * resized.to(weights.dtype) - 1, generators) + 1) / 2
        purified = purified[..., :height, :width] if self.size == NATIVE else _resized(purified, (height, width))
        return purified.to(images.dtype).clamp(0, 1)

    def diffuse(self, sample: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Return samples ``(N, 3, H, W)`` in [-1, 1] after noise and as many steps back."""
        if not self.steps:
            return sample
        draws = list(generators) if generators else [torch.Generator().manual_seed(0) for _ in sample]
        noise = torch.stack([torch.randn(sample.shape[1:], generator=draw) for draw in draws]).to(sample)
        sample = self.noisy(sample, noise, self.steps - 1)
        for step in range(self.steps - 1, -1, -1):
            if self.checkpoint and torch.is_grad_enabled():
                predicted = recompute(self.network, sample, step, use_reentrant=False)
            else:
                predicted = self.network(sample, step)
            sample = self.scheduler.step(predicted, step, sample, generator=draws).prev_sample
        return sample

    @classmethod
    def missing_weights(cls) -> UserError:
        """Return the error of a purifier without weights."""
        return UserError(
            f"{missing_weights(cls.name, cls.upstream)}; or train a small one with `python train.py "
            f"experiment=mini_diffusion`. Shipped: {', '.join(shipped_diffusions()) or 'none'}"
        )

    def noisy(self, sample: Tensor, noise: Tensor, step: int | Tensor) -> Tensor:
        """Return ``sqrt(abar_i) x + sqrt(1 - abar_i) z`` at step i, 0 the first: one number, or one per image."""
        share = self.scheduler.alphas_cumprod.to(sample)[step]
        share = share.view(-1, 1, 1, 1)
        return share.sqrt() * sample + (1 - share).sqrt() * noise

    def save(self, folder: str | Path) -> None:
        """Write U-Net and scheduler as a diffusers folder, which ``weights`` takes."""
        self.network.unet.save_pretrained(Path(folder) / "unet")  # type: ignore[operator]
        self.scheduler.save_pretrained(Path(folder) / "scheduler")


class DiffpureUnsharp(Diffpure):
    """DiffPure, then an unsharp mask against the blur of its resizing (Gushchin et al., arXiv 2404.06957).

    Args:
        weights: see ``Diffpure``.
        steps: see ``Diffpure``.
        size: see ``Diffpure``.
        checkpoint: see ``Diffpure``.
        architecture: see ``Diffpure``.
        kernel: of the mask, see ``Unsharp``; the paper's own values are not known.
        amount: of the mask.
        sigma: of the mask.
    """

    name = "diffpure_unsharp"

    # each option by its name, since load_purifier reads them off the signature
    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        steps: Count = 5,
        size: PositiveInt | Literal["native"] | None = None,
        checkpoint: bool = True,
        architecture: Mapping[str, Any] | None = None,
        kernel: OddInt = 3,
        amount: NonNegative = 1.0,
        sigma: Positive = 1.0,
    ) -> None:
        super().__init__(weights, steps=steps, size=size, checkpoint=checkpoint, architecture=architecture)
        self.unsharp = Unsharp(kernel, amount, sigma)
        self.min_size = self.unsharp.min_size

    def forward(self, images: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Return purified and sharpened images."""
        return self.unsharp(super().forward(images, generators))


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _checked_size(size: int | str | None, own: Any, multiple: int, weights: str | Path) -> int | str:
    """Return the side that images are resized to, or "native"; raises UserError where the U-Net does not take it."""
    if size == NATIVE:
        return NATIVE
    if size is not None and not (isinstance(size, int) and size >= 1):
        raise UserError(f"size must be a side in pixels, native, or null for the model's own, got {size!r}")
    if size is None and own is None:
        raise UserError(f"the model in '{weights}' states no sample_size; give size=pixels or size=native")
    side = int(size if size is not None else max(own) if isinstance(own, list | tuple) else own)
    below = side // multiple * multiple
    if below != side:
        nearest = f"{below} or {below + multiple}" if below else f"{multiple}"
        whose = "" if size is not None else ", the model's own sample_size"
        raise UserError(
            f"size must be a multiple of {multiple}, since the U-Net in '{weights}' halves its maps until they are "
            f"{multiple} times smaller, got {side}{whose}; give size={nearest}, or size=native, which pads"
        )
    return side
