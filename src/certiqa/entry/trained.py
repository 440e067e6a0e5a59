"""The weights that a training leaves: as files that defenses load."""

from __future__ import annotations

from pathlib import Path

from certiqa.defenses.purifiers.diffusion import Diffpure
from certiqa.defenses.purifiers.fcn import save_filter
from certiqa.denoisers import save_denoiser
from certiqa.denoisers.colour_filter import ColourFilter
from certiqa.training import DefenseModule


def keep_weights(module: DefenseModule, folder: Path, notes: dict[str, str]) -> None:
    """Write what was trained: a denoiser's or colour filter's safetensors, or a diffusers folder."""
    purifier = module.defense.purified_by
    if isinstance(purifier, Diffpure):
        purifier.save(folder / "diffusion")
    elif isinstance(module.denoiser, ColourFilter):
        attack = getattr(getattr(module.corruption, "attack", None), "name", "none")
        save_filter(module.denoiser, folder / "purifier.safetensors", notes | {"attack": attack})
    else:
        low, high = module.sigma_range
        path = folder / "denoiser.safetensors"
        save_denoiser(module.denoiser, path, sigma=low if low == high else (low, high), notes=notes)
