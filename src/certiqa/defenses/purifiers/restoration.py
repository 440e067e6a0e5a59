"""Restoration networks as purifiers, loaded by spandrel from the files that their authors publish."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from certiqa.defenses.purifiers.geometric import is_number
from certiqa.defenses.purifiers.network import NetworkPurifier, Upstream, given_weights
from certiqa.errors import UserError
from certiqa.metrics.weights import looks_like, read_content
from certiqa.options import Choices, Noise, PositiveInt, Share

DOWNSCALES = ("area", "bicubic")
TAKES_NOISE_MAP = ("DRUNet", "DnCNN")
DEFAULT_NOISE_LEVEL = 15 / 255  # what spandrel feeds them
KAIR = "https://github.com/cszn/KAIR/releases/tag/v1.0"


class Restoration(NetworkPurifier):
    """Any image restoration or upscaling network that spandrel knows by the keys of its weights.

    An upscaling network's output is clipped and brought back to the image's size, so that the metric sees as many
    pixels as without a defense.

    Args:
        weights: path of the authors' file (.pth, .pt, .ckpt or .safetensors; no class is unpickled).
        architecture: spandrel's name of the network that the file must hold; None for any.
        outscale: size of the purified image in units of the image's.
        downscale: how an upscaling network's output is made smaller: "area" or "bicubic" (antialiased).
        noise_level: standard deviation, in [0, 1] pixel units, that the noise map of a DRUNet or FDnCNN is filled with;
            None for 15/255.
        denoise_weights: path of a second file of the same network, mixed with the first (deep network interpolation,
            Wang et al., CVPR 2019), as Real-ESRGAN does with its ``wdn`` weights.
        denoise_strength: share of ``weights`` in that mixture, the rest is ``denoise_weights``'.
        checkpoint: less memory in the backward pass, see
            ``NetworkPurifier``.

    Raises:
        UserError: spandrel is not installed, there are no weights, they are of no network that it knows or of another
            than ``architecture``, or they do not fit; or an option that the network does not have.
    """

    name = "restoration"
    architecture: str | None = None
    upstream: Upstream | None = Upstream("any that spandrel loads", "https://openmodeldb.info")

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        architecture: str | None = None,
        outscale: PositiveInt = 1,
        downscale: Annotated[str, Choices("area", "bicubic")] = "area",
        noise_level: Noise | None = None,
        denoise_weights: str | Path | None = None,
        denoise_strength: Share = 0.2,
        checkpoint: bool = False,
    ) -> None:
        if not given_weights(weights):
            raise self.missing_weights()
        if downscale not in DOWNSCALES:
            raise UserError(f"downscale must be one of {', '.join(DOWNSCALES)}, got '{downscale}'")
        if not (is_number(outscale) and outscale >= 1):
            raise UserError(f"outscale must be at least 1, got {outscale!r}")
        if not (is_number(denoise_strength) and 0 <= denoise_strength <= 1):
            raise UserError(f"denoise_strength must be in [0, 1], got {denoise_strength!r}")
        assert weights is not None
        state = read_state(weights)
        if denoise_weights is not None:
            state = mix(state, read_state(denoise_weights), denoise_strength, (weights, denoise_weights))
        model = load_model(state, weights, architecture or self.architecture, self.name)
        requirements = model.size_requirements
        super().__init__(
            model.model,
            multiple=requirements.multiple_of,
            minimum=max(1, requirements.minimum),
            square=requirements.square,
            scale=model.scale,
            checkpoint=checkpoint,
        )
        self.loaded_architecture = str(model.architecture.id)
        self._call = model._call_fn  # the public call runs in inference mode, which lets no gradient through
        self._noise_level = self._checked_noise_level(noise_level)
        self.outscale, self.downscale = int(outscale), downscale
        self.keeps_size = self.outscale == 1

    def _checked_noise_level(self, level: float | None) -> float | None:
        """Return what the noise map is filled with, None for a network that takes none."""
        first = next(self.network.parameters())
        takes = self.loaded_architecture in TAKES_NOISE_MAP and first.ndim == 4 and first.shape[1] == 4
        if level is not None and not takes:
            raise UserError(
                f"noise_level is for networks that take a noise map (DRUNet, FDnCNN); this {self.loaded_architecture} "
                "takes none"
            )
        if level is not None and not 0 <= level <= 1:
            raise UserError(f"noise_level must be in [0, 1] pixel units, e.g. 15/255, got {level}")
        return (DEFAULT_NOISE_LEVEL if level is None else float(level)) if takes else None

    def restore(self, images: Tensor) -> Tensor:
        """Return the bare network's output."""
        if self._noise_level is None:
            restored: Tensor = self._call(self.network, images)
            return restored
        level = torch.full_like(images[:, :1], self._noise_level)
        denoised: Tensor = self.network(torch.cat([images, level], dim=1))
        return denoised

    def forward(self, images: Tensor, generators: Any = None) -> Tensor:
        """Return restored images, ``outscale`` times as large as they came."""
        restored = self.through_network(images).clamp(0, 1)
        size = self.output_size(images.shape[-2:])
        if tuple(restored.shape[-2:]) == size:
            return restored
        if self.downscale == "area" and size[0] <= restored.shape[-2]:
            return F.interpolate(restored, size=size, mode="area")
        resized = F.interpolate(restored, size=size, mode="bicubic", antialias=True, align_corners=False)
        return resized.clamp(0, 1)

    def output_size(self, size: Any) -> tuple[int, int]:
        """Return the (height, width) in which images leave it."""
        return int(size[0]) * self.outscale, int(size[1]) * self.outscale

    def least_size(self, needed: Sequence[int]) -> tuple[int, int]:
        """Return what becomes ``needed`` when it is enlarged."""
        height, width = super().least_size([-(-side // self.outscale) for side in needed])
        return height, width


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a published file, as spandrel finds it: unwrapped, common prefixes removed."""
    content, _ = read_content(path)
    canonical = _spandrel().canonicalize_state_dict(content) if isinstance(content, Mapping) else content
    if not isinstance(canonical, Mapping) or not all(isinstance(value, Tensor) for value in canonical.values()):
        raise UserError(f"'{path}' holds no state dict of tensors; give the weights file that the authors publish")
    return dict(canonical)


def mix(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], share: float, paths: tuple[str | Path, str | Path]
) -> dict[str, Tensor]:
    """Return ``share * first + (1 - share) * second``; raises UserError where they are not of one network."""
    different = [key for key in first if key not in second or first[key].shape != second[key].shape]
    different += [key for key in second if key not in first]
    if different:
        raise UserError(
            f"'{paths[0]}' and '{paths[1]}' are not of one network, so their weights cannot be mixed: "
            f"{len(different)} keys differ, first: {', '.join(different[:3])}"
        )
    return {
        key: torch.lerp(second[key].float(), value.float(), share) if value.is_floating_point() else value
        for key, value in first.items()
    }


def load_model(state: dict[str, Tensor], path: str | Path, architecture: str | None, name: str) -> Any:
    """Return spandrel's model of a state dict, strictly loaded.

    Raises:
        UserError: unknown architecture, another than asked for, keys that do not fit, or a network that does not turn
            RGB images into RGB images.
    """
    spandrel = _spandrel()
    registry, extra = _registry(spandrel)
    if architecture is not None and architecture not in registry:
        raise _unknown_architecture(architecture, registry, extra)
    try:
        model = registry.load(state)
    except spandrel.UnsupportedModelError as error:
        seen = looks_like(state)
        raise UserError(
            f"'{path}' holds no network that spandrel {spandrel.__version__} knows: its keys begin with "
            f"{', '.join(list(state)[:3]) or 'nothing'}.{f' They look like {seen}.' if seen else ''} "
            f"It knows: {', '.join(_ids(registry))}"
            f"{'' if extra else '; more (MPRNet, Restormer, MIRNet2) with: pip install certiqa[mprnet]'}"
        ) from error
    except (
        Exception
    ) as error:  # its loaders read shapes by key before they load: KeyError, AssertionError, RuntimeError
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"the weights in '{path}' do not fit the network that their keys name: {type(error).__name__}: "
            f"{' '.join(lines)[:400]}. Give the whole file that the authors publish"
        ) from error
    found = str(model.architecture.id)
    if architecture is not None and found != architecture:
        raise UserError(
            f"the weights in '{path}' are of {found}, but defense={name} is {architecture}; "
            f"use defense=restoration, which takes any, or give weights of {architecture}"
        )
    if not isinstance(model, spandrel.ImageModelDescriptor) or model.purpose == "FaceSR":
        raise UserError(f"{found} in '{path}' fills holes or restores faces, which no purifier of whole images does")
    if (model.input_channels, model.output_channels) != (3, 3):
        raise UserError(
            f"{found} in '{path}' takes {model.input_channels} and gives {model.output_channels} channels; "
            "give the weights of its colour version, RGB to RGB"
        )
    return model


def _spandrel() -> Any:
    try:
        return importlib.import_module("spandrel")
    except ImportError as error:
        raise UserError(
            f"restoration networks are loaded by spandrel, which cannot be imported ({error}); "
            "pip install certiqa[restoration]"
        ) from error


def _registry(spandrel: Any) -> tuple[Any, bool]:
    """Return spandrel's registry, with the extra architectures where they are installed, and whether they are."""
    registry = spandrel.MAIN_REGISTRY.copy()
    try:
        extra = importlib.import_module("spandrel_extra_arches")
    except ImportError:
        return registry, False
    registry.add(*extra.EXTRA_REGISTRY, ignore_duplicates=True)
    return registry, True


def _ids(registry: Any) -> list[str]:
    return sorted(str(support.architecture.id) for support in registry)


def _unknown_architecture(architecture: str, registry: Any, extra: bool) -> UserError:
    more = "" if extra else "; more (MPRNet, Restormer, MIRNet2) with: pip install certiqa[mprnet]"
    return UserError(f"spandrel knows no architecture '{architecture}'; it knows: {', '.join(_ids(registry))}{more}")


class Dncnn(Restoration):
    """DnCNN (Zhang et al., TIP 2017), a denoiser of Gaussian noise."""

    name = "dncnn"
    architecture = "DnCNN"
    upstream = Upstream("dncnn_color_blind.pth", KAIR)


class Drunet(Restoration):
    """DRUNet (Zhang et al., TPAMI 2021), a denoiser told the level of the noise."""

    name = "drunet"
    architecture = "DRUNet"
    upstream = Upstream("drunet_color.pth", KAIR)


class Scunet(Restoration):
    """SCUNet (Zhang et al., 2022), a blind denoiser of real images."""

    name = "scunet"
    architecture = "SCUNet"
    upstream = Upstream("scunet_color_real_psnr.pth", KAIR)


class Nafnet(Restoration):
    """NAFNet (Chen et al., ECCV 2022)."""

    name = "nafnet"
    architecture = "NAFNet"
    upstream = Upstream("NAFNet-SIDD-width64.pth", "https://github.com/megvii-research/NAFNet")


class Swinir(Restoration):
    """SwinIR (Liang et al., ICCVW 2021)."""

    name = "swinir"
    architecture = "SwinIR"
    upstream = Upstream(
        "005_colorDN_DFWB_s128w8_SwinIR-M_noise15.pth", "https://github.com/JingyunLiang/SwinIR/releases/tag/v0.0"
    )


class RealEsrgan(Restoration):
    """Real-ESRGAN's compact network (Wang et al., ICCVW 2021), brought back to the image's size.

    The purification paper mixes ``realesr-general-x4v3.pth`` with ``realesr-general-wdn-x4v3.pth`` at strength 0.2, and
    hands its metrics the image four times enlarged and not clipped; ``outscale=4`` comes nearest to that.
    """

    name = "real_esrgan"
    architecture = "Compact"
    upstream = Upstream(
        "realesr-general-x4v3.pth (and realesr-general-wdn-x4v3.pth for denoise_weights)",
        "https://github.com/xinntao/Real-ESRGAN/releases/tag/v0.2.5.0",
    )


class Mprnet(Restoration):
    """MPRNet (Zamir et al., CVPR 2021), its denoising network: three stages, the last at full resolution.

    Loaded by spandrel-extra-arches; the network's licence is academic.
    """

    name = "mprnet"
    architecture = "MPRNet"
    upstream = Upstream("model_denoising.pth", "https://github.com/swz30/MPRNet (Denoising/pretrained_models)")


RESTORERS: tuple[type[Restoration], ...] = (
    Restoration,
    Dncnn,
    Drunet,
    Scunet,
    Nafnet,
    Swinir,
    RealEsrgan,
    Mprnet,
)
