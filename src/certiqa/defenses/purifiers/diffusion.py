"""DiffPure: a little noise, and a diffusion model that takes it off again (Nie et al., ICML 2022), by diffusers."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from certiqa.defenses.purified import Purifier
from certiqa.defenses.purifiers.filters import Unsharp
from certiqa.defenses.purifiers.network import Upstream, given_weights, missing_weights, pad_to
from certiqa.errors import UserError
from certiqa.metrics.weights import SHIPPED

UNTRAINED = "untrained"
NATIVE = "native"
SMALL_UNET: dict[str, Any] = {
    "sample_size": 224,
    "block_out_channels": [16, 32, 64],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ["DownBlock2D"] * 3,
    "up_block_types": ["UpBlock2D"] * 3,
    "add_attention": False,
}
"""The U-Net that ``train.py experiment=mini_diffusion`` trains: no attention, so any size and cheap on a CPU."""


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
        weights: folder of a diffusers unconditional pixel model (a pipeline's folder, or its U-Net's alone), the name
            of one on the Hugging Face hub, the name of a shipped one (``mini_diffusion``), or "untrained" for training.
        steps: t, how far the noise goes and how many steps lead back; the grid of the paper's study is 5, 10, 20, 30,
            50 of 1000. 0 leaves the resizing alone.
        size: side in pixels that images are resized to; None for the model's own, "native" for no resizing, with
            padding to what its downsampling needs (ours, not the paper's).
        checkpoint: compute the network's maps again in the backward pass, one step at a time: the memory of one step.
        architecture: of an untrained U-Net, changes to ``SMALL_UNET``.

    Raises:
        UserError: diffusers is not installed, no weights, or weights that are no such model.
    """

    name = "diffpure"
    upstream = Upstream(
        "a folder or hub name of an unconditional diffusers pixel model such as google/ddpm-church-256",
        "https://huggingface.co/models?library=diffusers (the paper's 256x256_diffusion_uncond.pt of "
        "openai/guided-diffusion is no diffusers model, and diffusers does not load it)",
    )

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        steps: int = 5,
        size: int | str | None = None,
        checkpoint: bool = True,
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not given_weights(weights):
            raise UserError(
                f"{missing_weights(self.name, self.upstream)}; or train a small one with `python train.py "
                f"experiment=mini_diffusion`. Shipped: {', '.join(shipped_diffusions()) or 'none'}"
            )
        assert weights is not None
        unet, self.scheduler = load_diffusion(weights, architecture)
        own = unet.config.sample_size
        own = max(own) if isinstance(own, list | tuple) else own
        if not (size is None or size == NATIVE or (isinstance(size, int) and size >= 1)):
            raise UserError(f"size must be a side in pixels, native, or null for the model's own, got {size!r}")
        if size is None and own is None:
            raise UserError(f"the model in '{weights}' states no sample_size; give size=pixels or size=native")
        largest = int(self.scheduler.config.num_train_timesteps)
        if not 0 <= steps <= largest:
            raise UserError(f"steps must be 0 to {largest}, the diffusion steps of this model, got {steps}")
        self.network = NoisePredictor(unet).requires_grad_(False).eval()
        self.steps, self.size = int(steps), size if size is not None else int(own)
        self.checkpoint = bool(checkpoint)
        self.is_random = self.steps > 0
        self.multiple = 2 ** (len(unet.config.block_out_channels) - 1)

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
        weights, steps, size, checkpoint, architecture: see :class:`Diffpure`.
        kernel, amount, sigma: of the mask, see :class:`~certiqa.defenses.purifiers.filters.Unsharp`; the paper's own
            values are not known.
    """

    name = "diffpure_unsharp"

    # each option by its name, since load_purifier reads them off the signature
    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        steps: int = 5,
        size: int | str | None = None,
        checkpoint: bool = True,
        architecture: Mapping[str, Any] | None = None,
        kernel: int = 3,
        amount: float = 1.0,
        sigma: float = 1.0,
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


def load_diffusion(weights: str | Path, architecture: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """Return (U-Net, DDPM scheduler) of a folder, a hub name, a shipped name, or untrained.

    Raises:
        UserError: diffusers is not installed, nothing to load, or weights that do not fit the folder's own config.
    """
    diffusers = _diffusers()
    if str(weights) == UNTRAINED:
        return diffusers.UNet2DModel(**(SMALL_UNET | dict(architecture or {}))), diffusers.DDPMScheduler()
    if architecture:
        raise UserError("architecture is for an untrained model; weights bring their own")
    place = SHIPPED / str(weights) if str(weights) in shipped_diffusions() else Path(weights).expanduser()
    if place.is_file():
        raise UserError(
            f"'{weights}' is a file; DiffPure takes the folder of a diffusers model, with unet/ and scheduler/ in it"
        )
    source = str(place) if place.is_dir() else str(weights)
    local = place.is_dir()
    has_parts = (place / "unet").is_dir() if local else True
    try:
        unet, loaded = diffusers.UNet2DModel.from_pretrained(
            source,
            subfolder="unet" if has_parts else None,
            output_loading_info=True,
            low_cpu_mem_usage=False,
            local_files_only=local,
        )
    except Exception as error:  # diffusers raises OSError, ValueError, RuntimeError, and the hub's own
        hint = "" if local else "; if it is a folder, there is none of that name"
        first = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"cannot load an unconditional diffusers U-Net from '{weights}'{hint}: "
            f"{type(error).__name__}: {first[:300]}"
        ) from error
    wrong = {key: loaded.get(f"{key}_keys") for key in ("missing", "unexpected", "mismatched")}
    if any(wrong.values()):
        said = "; ".join(f"{len(keys)} {label}, first: {list(keys)[:3]}" for label, keys in wrong.items() if keys)
        raise UserError(f"the weights in '{weights}' do not fit the U-Net of its config.json: {said}")
    if unet.config.in_channels != 3 or unet.config.out_channels not in (3, 6):
        raise UserError(
            f"the U-Net in '{weights}' takes {unet.config.in_channels} and gives {unet.config.out_channels} channels; "
            "DiffPure needs one that works on RGB pixels (3 in, 3 out, or 6 with a learned variance)"
        )
    return unet, _scheduler(diffusers, source, place, local, learned=unet.config.out_channels == 6)


def _scheduler(diffusers: Any, source: str, place: Path, local: bool, *, learned: bool) -> Any:
    """Return the DDPM scheduler of a model; a U-Net alone gets the usual linear one."""
    options = {"variance_type": "learned_range"} if learned else {}
    if local and not (place / "scheduler").is_dir():
        return diffusers.DDPMScheduler(**options)
    config = diffusers.DDPMScheduler.load_config(source, subfolder="scheduler", local_files_only=local)
    if learned and str(config.get("variance_type", "")).startswith("learned"):
        options = {}
    return diffusers.DDPMScheduler.from_config(config, **options)


def shipped_diffusions() -> list[str]:
    """Return the names of the diffusion models shipped with the package."""
    return sorted(path.name for path in SHIPPED.glob("*_diffusion") if path.is_dir())


def _diffusers() -> Any:
    # its and bitsandbytes' advice about packages that are not needed here
    for name in ("diffusers", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            diffusers = importlib.import_module("diffusers")
            diffusers.UNet2DModel, diffusers.DDPMScheduler  # noqa: B018  imported at first use
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"diffusion models are loaded by diffusers, which cannot be imported ({error}); "
            "pip install certiqa[diffusion]"
        ) from error
    return diffusers
