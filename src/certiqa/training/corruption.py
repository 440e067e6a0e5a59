"""What a network under training is given, and what its output is compared with: noise, attacks, diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from certiqa.attacks import Attack
from certiqa.attacks.target import Direction
from certiqa.defenses import MedianSmoothing, fill_noise, noise_key
from certiqa.defenses.purifiers.diffusion import Diffpure
from certiqa.errors import UserError
from certiqa.metrics import QualityMetric
from certiqa.metrics.weights import fingerprint
from certiqa.storage.files import write_aside

DIRECTIONS = ("both", "raise", "lower")
ATTACKED = "checkpoints/attacked"  # in a run's folder while it trains
Pair = tuple[tuple[Tensor, ...], Tensor]


class Corruption(Protocol):
    """Makes training pairs, each a function of (seed, image id, epoch) alone.

    Attributes:
        restores: whether the network's output is an image, to be compared with the clean one.
    """

    restores: bool

    def pair(self, images: Tensor, ids: Sequence[str], epochs: Sequence[int], *, whole: bool = False) -> Pair:
        """Return the network's arguments, and what its output should be.

        Args:
            images: ``(N, 3, H, W)`` in [0, 1].
            ids: of each image.
            epochs: the pass over the data that each image is of.
            whole: whether these are the whole images of these ids, not crops.
        """
        ...


class GaussianNoise:
    """Noise of median smoothing: a denoiser is given noisy images.

    Args:
        defense: says whether noisy images are clipped.
        levels: standard deviation in [0, 1] pixel units, as a range (low, high).
        seed: of the noise.
    """

    restores = True

    def __init__(self, defense: MedianSmoothing, levels: tuple[float, float], seed: int) -> None:
        self.clip, self.levels, self.seed = defense.clip, levels, seed

    def noisy(self, images: Tensor, ids: Sequence[str], epochs: Sequence[int]) -> Tensor:
        """Return noisy copies."""
        noise = torch.empty(images.shape, dtype=torch.float32, device=images.device)
        keys = [noise_key(self.seed, "train", name, epoch) for name, epoch in zip(ids, epochs, strict=True)]
        fill_noise(noise, keys)
        low, high = self.levels
        # the level of each image comes from its key too
        levels = torch.tensor([low + (high - low) * (key % 2**20) / 2**20 for key in keys], device=images.device)
        noisy = images + levels.view(-1, 1, 1, 1) * noise
        return (noisy.clamp(0, 1) if self.clip else noisy).contiguous(memory_format=torch.channels_last)

    def pair(self, images: Tensor, ids: Sequence[str], epochs: Sequence[int], *, whole: bool = False) -> Pair:
        """Return noisy and clean images."""
        return (self.noisy(images, ids, epochs),), images


class Attacked:
    """Attacks on the undefended metric: a purifier is given attacked images.

    An attack costs many passes through the metric, so each whole image is attacked once and kept, 8 bits a value. A run
    that goes on where it was stopped finds them in a folder: attacked again in another batch they would differ by
    rounding. Each batch is a file, and each process has its own.

    Args:
        attack: the attack.
        metric: what it attacks: the frozen metric without a defense.
        direction: "raise", "lower", or "both": one of the two for each image, by its key.
        seed: of the attack and of that choice.
        keep_in: the folder; None keeps them in memory alone.
    """

    restores = True

    def __init__(
        self,
        attack: Attack,
        metric: QualityMetric,
        direction: str = "both",
        seed: int = 0,
        keep_in: str | Path | None = None,
    ) -> None:
        if direction not in DIRECTIONS:
            raise UserError(f"training.direction must be one of {', '.join(DIRECTIONS)}, got '{direction}'")
        self.attack, self.metric, self.direction, self.seed = attack, metric, direction, seed
        self.folder = None if keep_in is None else Path(keep_in)
        self._kept: dict[str, Tensor] = {}
        self._is_read = False

    def pair(self, images: Tensor, ids: Sequence[str], epochs: Sequence[int], *, whole: bool = False) -> Pair:
        """Return attacked and clean images; of whole images always the same attack."""
        if not whole:
            names = [f"{epoch}|{name}" for epoch, name in zip(epochs, ids, strict=True)]
            return (self._attacked(images, names),), images
        self._read_kept()
        new = [row for row, name in enumerate(ids) if name not in self._kept]
        if new:
            attacked = self._attacked(images[new], [ids[row] for row in new])
            self._keep({ids[row]: image for row, image in zip(new, (attacked * 255).round().byte().cpu(), strict=True)})
        return (torch.stack([self._kept[name] for name in ids]).to(images.device).to(images.dtype) / 255,), images

    def _files(self) -> Path | None:
        """Return how the names of this process's files begin; None where nothing is written."""
        if self.folder is None:
            return None
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        return self.folder / f"{fingerprint(self.metric)[:12]}-rank-{rank}-"

    def _read_kept(self) -> None:
        """Take up what an earlier session has attacked, but for files that cannot be read."""
        files = None if self._is_read else self._files()
        self._is_read = True
        for path in sorted(files.parent.glob(f"{files.name}*.safetensors")) if files else ():
            with suppress(SafetensorError):
                self._kept |= load_file(path)

    def _keep(self, attacked: dict[str, Tensor]) -> None:
        self._kept |= attacked
        if files := self._files():
            files.parent.mkdir(parents=True, exist_ok=True)
            with write_aside(f"{files}{len(self._kept):07}.safetensors") as partial:
                save_file({name: image.contiguous() for name, image in attacked.items()}, partial)

    def _attacked(self, images: Tensor, names: Sequence[str]) -> Tensor:
        towards: Direction = self.direction
        if self.direction == "both":
            signs = [1.0 - 2.0 * (noise_key(self.seed, "train", name, 0) % 2) for name in names]
            towards = torch.tensor(signs, device=images.device)
        with torch.enable_grad():  # validation runs without
            return self.attack(self.metric, images, towards, image_ids=list(names), seed=self.seed)


class DiffusionSteps:
    """Noise of random diffusion steps: a diffusion model is given noisy images and the step, and names the noise.

    Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, L_simple.

    Args:
        purifier: whose schedule it is.
        last_step: steps are drawn from 0 to this, without it; DiffPure uses the first few alone.
        seed: of steps and noise.
    """

    restores = False

    def __init__(self, purifier: Diffpure, last_step: int, seed: int) -> None:
        largest = int(purifier.scheduler.config.num_train_timesteps)
        if not 1 <= last_step <= largest:
            raise UserError(f"training.last_step must be 1 to {largest}, got {last_step}")
        self.purifier, self.last_step, self.seed = purifier, last_step, seed

    def pair(self, images: Tensor, ids: Sequence[str], epochs: Sequence[int], *, whole: bool = False) -> Pair:
        """Return (noisy samples in [-1, 1], steps ``(N,)``) and the noise."""
        images = self._cut(images)
        keys = [noise_key(self.seed, "train", name, epoch) for name, epoch in zip(ids, epochs, strict=True)]
        noise = fill_noise(torch.empty(images.shape, dtype=torch.float32, device=images.device), keys)
        # the step comes from bits of the key that the seed of the noise shares, which mixes them well
        steps = torch.tensor([(key >> 16) % self.last_step for key in keys], device=images.device)
        return (self.purifier.noisy(2 * images - 1, noise, steps), steps), noise

    def _cut(self, images: Tensor) -> Tensor:
        """Return images without the last rows and columns that the U-Net's halving does not take.

        Cut rather than padded, so that the mean error is over the images' own pixels: those of a padding would count
        in it, and those that are mirrored are not what the model is asked for.
        """
        multiple = self.purifier.multiple
        height, width = (side // multiple * multiple for side in images.shape[-2:])
        if not height or not width:
            raise UserError(
                f"an image of {images.shape[-2]}x{images.shape[-1]} pixels is smaller than the {multiple}x{multiple} "
                "that the diffusion model halves; leave it out, or enlarge images with data.resize"
            )
        return images[..., :height, :width]
