"""The purification study: purifiers at several strengths against attacks that know them and attacks that do not.

After Gushchin et al., "Adversarial purification for no-reference image-quality metrics" (arXiv 2404.06957), with
adaptive attacks beside the paper's.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from certiqa.attacks import Attack
from certiqa.defenses import PurifiedMetric, load_purifier
from certiqa.errors import UserError, suggest
from certiqa.evaluation.distances import image_distances
from certiqa.metrics import QualityMetric
from certiqa.metrics.weights import fingerprint
from certiqa.storage.files import write_aside
from certiqa.studies.grid import Cell, grid

log = logging.getLogger(__name__)
AIMS = ("transfer", "adaptive")
NONE = "none"
Batches = Iterable[Mapping[str, Any]]
Report = Callable[[str], object]


class PurificationStudy:
    """Runs the grid of purifiers x strengths x attacks, and keeps each finished cell.

    A transfer attack is made once, on the undefended metric, and replayed on every purifier; an adaptive one is made on
    each. A random purifier draws the same for a clear image and the attacked one, and other numbers during the attack.

    Args:
        purifiers: see :func:`certiqa.studies.grid`.
        attacks: name -> attack.
        aims: "transfer", "adaptive" or both.
        direction: of the attacks, "raise", "lower" or "away".
        seed: of the attacks and of random purifiers.

    Raises:
        UserError: no attack, an unknown aim, or a purifier that cannot be built.
    """

    def __init__(
        self,
        purifiers: Mapping[str, Mapping[str, Any] | None],
        attacks: Mapping[str, Attack],
        aims: Sequence[str] = AIMS,
        direction: str = "raise",
        seed: int = 0,
    ) -> None:
        if not attacks:
            raise UserError("a purification study needs attacks, e.g. study.attacks.ifgsm")
        if not aims or unknown(aims):
            raise UserError(
                f"study.aims must be some of {', '.join(AIMS)}, got {list(aims)}.{suggest(unknown(aims), AIMS)}"
            )
        self.cells = [cell for cell in grid(purifiers) if cell.available]
        self.unavailable = [cell.purifier for cell in grid(purifiers) if not cell.available]
        self.attacks = dict(attacks)
        self.aims = list(aims)
        self.direction = direction
        self.seed = seed
        for cell in self.cells:  # what cannot be built is said before any work
            load_purifier(cell.purifier, **cell.options)

    @property
    def num_parts(self) -> int:
        """How many parts there are to do, for a progress bar."""
        return len(self.attacks) + len(self.cells) * (1 + len(self.attacks) * len(self.aims))

    def run(
        self,
        metric: QualityMetric,
        batches: Batches,
        folder: str | Path,
        done: Report = lambda part: None,
        data_fingerprint: str = "",
    ) -> pd.DataFrame:
        """Run what is missing in ``folder`` and return the records of all cells.

        Args:
            metric: the undefended metric.
            batches: gone through once per part: dicts with "image" ``(N, 3, H, W)``, "image_id" and "mos".
            folder: of the study; finished parts in it are not done again, unless they are of other weights or data.
            done: told the name of each part that is done.
            data_fingerprint: of the images and opinion scores behind ``batches``.

        Returns:
            one row per image, cell, attack and aim: ``score_clean`` and ``score_attacked_undefended`` of the clear and
            attacked image without purifier, ``score`` and ``score_attacked`` with it, and the ``psnr`` and ``ssim``
            between the clear image and the purified attacked one.
        """
        folder = Path(folder)
        kept = folder / "transfer" / mark(metric, data_fingerprint)
        for name in self.attacks:
            self.transfer(metric, batches, kept / name, name)
            done(f"{name} on the undefended metric")
        tables = []
        for cell in self.cells:
            defended = PurifiedMetric(metric, load_purifier(cell.purifier, **cell.options), seed=self.seed)
            parts = [(NONE, "")] + [(attack, aim) for attack in self.attacks for aim in self.aims]
            for attack, aim in parts:
                name = "-".join(filter(None, [attack, aim]))
                path = folder / "cells" / f"{cell.slug}-{mark(defended, data_fingerprint)}" / f"{name}.parquet"
                if not path.is_file():
                    rows = list(self.part(metric, defended, batches, kept, attack, aim))
                    facts = {"purifier": cell.purifier, "strength": cell.strength, "attack": attack, "aim": aim}
                    save(pd.DataFrame(rows).assign(**facts), path)
                tables.append(pd.read_parquet(path))
                done(f"{cell.purifier} {cell.strength}: {name}")
        return pd.concat(tables, ignore_index=True)

    def transfer(self, metric: QualityMetric, batches: Batches, target: Path, name: str) -> None:
        """Make the images of a transfer attack, one file per batch; those that are there are kept."""
        if "transfer" not in self.aims or target.is_dir():
            return
        attack = self.attacks[name]
        making = target.with_name(f".{name}.part")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        for number, batch in enumerate(batches):
            images = attack(metric, batch["image"], self.direction, image_ids=batch["image_id"], seed=self.seed)
            values = (images * 255).round().byte() if attack.rounds else images
            np.save(making / f"{number}.npy", values.cpu().numpy())
        making.rename(target)

    def part(
        self, metric: QualityMetric, defended: PurifiedMetric, batches: Batches, kept: Path, attack: str, aim: str
    ) -> Iterable[dict[str, Any]]:
        """Yield the rows of one part of a cell; the images of transfer attacks are in ``kept``."""
        for number, batch in enumerate(batches):
            images, ids = batch["image"], list(batch["image_id"])
            if attack == NONE:
                attacked = images
            elif aim == "transfer":
                attacked = replayed(kept / attack / f"{number}.npy", images)
            else:
                attacked = self.attacks[attack](defended, images, self.direction, image_ids=ids, seed=self.seed)
            with torch.no_grad():
                scores = {
                    "score_clean": metric(images),
                    "score_attacked_undefended": metric(attacked),
                    "score": defended(images, image_ids=ids),
                    "score_attacked": defended(attacked, image_ids=ids),
                }
                purified = same_size(defended.purify(attacked, ids), images)
            for place, image_id in enumerate(ids):
                distances = image_distances(images[place], purified[place])
                yield {
                    "image_id": image_id,
                    "mos": float(batch["mos"][place]),
                    **{key: float(values[place]) for key, values in scores.items()},
                    "psnr": distances["psnr"],
                    "ssim": distances["ssim"],
                    "linf_attack": float((attacked[place] - images[place]).abs().max()),
                }

    def gallery(
        self,
        metric: QualityMetric,
        batch: Mapping[str, Any],
        cells: Sequence[Cell],
        folder: Path,
        attack: str,
        data_fingerprint: str = "",
    ) -> list[dict[str, Any]]:
        """Save what each purifier makes of the first image of a batch and of its transfer attack.

        Returns:
            one entry per picture: ``label``, ``file`` in ``folder``, and the ``score`` of the undefended metric on it.
        """
        image, ids = batch["image"][:1], list(batch["image_id"])[:1]
        kept = folder / "transfer" / mark(metric, data_fingerprint)
        attacked = replayed(kept / attack / "0.npy", batch["image"])[:1]
        pictures = {"clear": image, f"attacked ({attack})": attacked}
        for cell in cells:
            defended = PurifiedMetric(metric, load_purifier(cell.purifier, **cell.options), seed=self.seed)
            with torch.no_grad():
                pictures[f"{cell.purifier} {cell.strength}".strip()] = defended.purify(attacked, ids).clamp(0, 1)
        entries = []
        (folder / "gallery").mkdir(exist_ok=True)
        for number, (label, picture) in enumerate(pictures.items()):
            file = f"gallery/{number}.png"
            pixels = (picture[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            Image.fromarray(pixels).save(folder / file)
            with torch.no_grad():
                entries.append({"label": label, "file": file, "score": float(metric(picture)[0])})
        return entries


def unknown(aims: Sequence[str]) -> str:
    """Return the first aim that there is not, or nothing."""
    return next((str(aim) for aim in aims if aim not in AIMS), "")


def mark(metric: QualityMetric, data_fingerprint: str) -> str:
    """Return eight hexadecimal digits of the weights of a metric, purifier included, and of the data."""
    return hashlib.blake2b(f"{fingerprint(metric)} {data_fingerprint}".encode(), digest_size=4).hexdigest()


def replayed(path: Path, images: Tensor) -> Tensor:
    """Return attacked images that were kept, on the device of ``images``."""
    values = torch.from_numpy(np.load(path))
    return values.to(images) / 255 if values.dtype == torch.uint8 else values.to(images)


def same_size(purified: Tensor, images: Tensor) -> Tensor:
    """Return purified images at the size of the clear ones, bilinearly, as the paper compares them."""
    if purified.shape == images.shape:
        return purified
    return F.interpolate(purified, size=images.shape[-2:], mode="bilinear", align_corners=False)


def save(table: pd.DataFrame, path: Path) -> None:
    """Write a part's records at once or not at all; raises UserError where the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_aside(path) as partial:
            table.to_parquet(partial, index=False)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error}; finished parts are safe, free space and run again") from error
