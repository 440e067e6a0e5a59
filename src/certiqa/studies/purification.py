"""The purification study: purifiers at several strengths against attacks that know them and attacks that do not.

After Gushchin et al., "Adversarial purification for no-reference image-quality metrics" (arXiv 2404.06957), with
adaptive attacks beside the paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from certiqa.attacks import Attack, SetAttack, UniversalAttack
from certiqa.attacks.suite import Suite
from certiqa.defenses import PurifiedMetric, load_purifier
from certiqa.errors import UserError, suggest
from certiqa.evaluation.distances import image_distances
from certiqa.evaluation.records import plain
from certiqa.metrics import QualityMetric
from certiqa.studies.cells import WEIGHTS, Cell, grid
from certiqa.studies.kept import all_kept, file_of, is_kept, keep, mark, mark_complete, replayed, save, saved

AIMS = ("transfer", "adaptive")
NONE = "none"
COLUMNS = (
    *("image_id", "mos", "score_clean", "score_attacked_undefended", "score", "score_attacked", "psnr", "ssim"),
    *("linf_attack", "purifier", "strength", "attack", "aim"),
)
"""Columns of the records of a part."""
Batches = Iterable[Mapping[str, Any]]
Report = Callable[[str], object]


class PurificationStudy:
    """Runs the grid of purifiers x strengths x attacks, and keeps each finished cell.

    A transfer attack is made once, on the undefended metric, and replayed on every purifier; an adaptive one is made on
    each. A random purifier draws the same for a clear image and the attacked one, and other numbers during the attack.

    Args:
        purifiers: see ``certiqa.studies.grid``.
        attacks: name -> attack.
        aims: "transfer", "adaptive" or both.
        direction: of the attacks, "raise", "lower" or "away".
        seed: of the attacks and of random purifiers.

    Raises:
        UserError: no attack or one that needs more than a batch of images, an unknown aim, or a purifier that cannot
            be built.

    Attributes:
        cells: the cells that are run.
        unavailable: names of purifiers without weights.
        inapplicable: the cells that metric or images cannot meet, with the reason, see ``leave_out``.
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
        for name, attack in attacks.items():
            if isinstance(attack, SetAttack | UniversalAttack | Suite):
                raise UserError(
                    f"study.attacks.{name} is {attack.name}, which needs a whole set; a study takes attacks on single "
                    "images, e.g. certiqa.attacks.IFGSM"
                )
        self.cells = [cell for cell in grid(purifiers) if cell.available]
        self.unavailable = [cell.purifier for cell in grid(purifiers) if not cell.available]
        self.inapplicable: list[tuple[Cell, str]] = []
        self.attacks = dict(attacks)
        self.aims = list(aims)
        self.direction = direction
        self.seed = seed
        for cell in self.cells:  # what cannot be built is said before any work
            load_purifier(cell.purifier, **cell.options)

    def defend(self, metric: QualityMetric, cell: Cell) -> PurifiedMetric:
        """Return the metric behind a cell's purifier, on the metric's device."""
        return PurifiedMetric(metric, load_purifier(cell.purifier, **cell.options), seed=self.seed).to(
            device_of(metric)
        )

    def leave_out(self, metric: QualityMetric, sizes: Iterable[Sequence[int]]) -> None:
        """Take out the cells whose images the metric cannot score, before any work; ``inapplicable`` has the reasons.

        Args:
            metric: the undefended metric.
            sizes: (height, width) of the images.

        Raises:
            UserError: if nothing is left.
        """
        shapes = sorted({(int(height), int(width)) for height, width in sizes})
        for cell in self.cells:
            try:
                defended = self.defend(metric, cell)
                for shape in shapes:
                    black = torch.zeros(1, 3, *shape, device=device_of(metric))
                    defended.check_images(black)
                    if WEIGHTS not in cell.options:  # networks take any size
                        metric.check_images(defended.purify(black))
            except UserError as error:
                self.inapplicable.append((cell, str(error)))
        left_out = [cell for cell, _ in self.inapplicable]
        self.cells = [cell for cell in self.cells if cell not in left_out]
        if not self.cells:
            reason = self.inapplicable[0][1] if left_out else "no weights are given"
            raise UserError(f"no purifier of this study can be run: {reason}")

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
        for name in self.attacks:
            self.transfer(metric, batches, self.kept(metric, folder, name, data_fingerprint), name)
            done(f"{name} on the undefended metric")
        tables = []
        for cell in self.cells:
            defended = self.defend(metric, cell)
            for attack, aim in [(NONE, "")] + [(attack, aim) for attack in self.attacks for aim in self.aims]:
                name = "-".join(filter(None, [attack, aim]))
                made = mark(defended, data_fingerprint, cell.options, self.settings(attack))
                path = folder / "cells" / cell.slug / f"{name}-{made}.parquet"
                table = saved(path, COLUMNS)
                if table is None:
                    kept = self.kept(metric, folder, attack, data_fingerprint)
                    rows = list(self.part(metric, defended, batches, kept, attack, aim))
                    facts = {"purifier": cell.purifier, "strength": cell.strength, "attack": attack, "aim": aim}
                    save(pd.DataFrame(rows).assign(**facts), path)
                    table = pd.read_parquet(path)
                tables.append(table)
                done(f"{cell.label}: {name}")
        return pd.concat(tables, ignore_index=True)

    def settings(self, attack: str) -> list[Any]:
        """Return what decides an attack's images beside the metric: its class and options, direction and seed."""
        if attack == NONE:
            return [self.seed]
        made = self.attacks[attack]
        # what is private is state, and a watch only looks on
        options = {key: value for key, value in vars(made).items() if not key.startswith("_") and key != "watch"}
        return [type(made).__qualname__, options, self.direction, self.seed]

    def kept(self, metric: QualityMetric, folder: Path, attack: str, data_fingerprint: str) -> Path:
        """Return where the images of a transfer attack are kept."""
        return folder / "transfer" / f"{attack}-{mark(metric, data_fingerprint, self.settings(attack))}"

    def transfer(self, metric: QualityMetric, batches: Batches, target: Path, name: str) -> None:
        """Make the images of a transfer attack, one file per image; those that are there are kept."""
        if "transfer" not in self.aims or all_kept(target):
            return
        attack = self.attacks[name]
        target.mkdir(parents=True, exist_ok=True)
        for images, ids, _ in readable(batches, metric):
            missing = [place for place, image_id in enumerate(ids) if not is_kept(file_of(target, image_id))]
            if not missing:
                continue
            names = [ids[place] for place in missing]
            attacked = attack(metric, images[missing], self.direction, image_ids=names, seed=self.seed)
            keep(target, names, (attacked * 255).round().byte() if attack.rounds else attacked)
        mark_complete(target)

    def part(
        self, metric: QualityMetric, defended: PurifiedMetric, batches: Batches, kept: Path, attack: str, aim: str
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of one part of a cell; the images of transfer attacks are in ``kept``."""
        for images, ids, mos in readable(batches, metric):
            if attack == NONE:
                attacked = images
            elif aim == "transfer":
                attacked = replayed(kept, ids, images)
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
                    "mos": float(mos[place]),
                    **{key: float(values[place]) for key, values in scores.items()},
                    "psnr": distances["psnr"],
                    "ssim": distances["ssim"],
                    "linf_attack": float((attacked[place] - images[place]).abs().max()),
                }

    def gallery(
        self,
        metric: QualityMetric,
        batches: Batches,
        cells: Sequence[Cell],
        folder: Path,
        attack: str,
        data_fingerprint: str = "",
    ) -> list[dict[str, Any]]:
        """Save what each purifier makes of the first image and of its transfer attack.

        Returns:
            one entry per picture: ``label``, ``file`` in ``folder``, and the ``score`` of the undefended metric on it,
            None where that is NaN.
        """
        images, ids, _ = next(readable(batches, metric))
        image, ids = images[:1], ids[:1]
        attacked = replayed(self.kept(metric, folder, attack, data_fingerprint), ids, image)
        pictures = {"clear": image, f"attacked ({attack})": attacked}
        for cell in cells:
            with torch.no_grad():
                purified = self.defend(metric, cell).purify(attacked, ids).clamp(0, 1)
            pictures[cell.label] = purified
        entries = []
        (folder / "gallery").mkdir(exist_ok=True)
        for number, (label, picture) in enumerate(pictures.items()):
            file = f"gallery/{number}.png"
            pixels = (picture[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            Image.fromarray(pixels).save(folder / file)
            with torch.no_grad():
                entries.append({"label": label, "file": file, "score": plain(float(metric(picture)[0]))})
        return entries


def unknown(aims: Sequence[str]) -> str:
    """Return the first aim that there is not, or nothing."""
    return next((str(aim) for aim in aims if aim not in AIMS), "")


def device_of(metric: QualityMetric) -> torch.device:
    """Return where a metric computes."""
    return next((tensor.device for tensor in (*metric.parameters(), *metric.buffers())), torch.device("cpu"))


def readable(batches: Batches, metric: QualityMetric) -> Iterator[tuple[Tensor, list[str], Tensor]]:
    """Yield images on the metric's device, their ids and opinion scores; batches without a readable image are empty."""
    for batch in batches:
        if ids := list(batch["image_id"]):
            yield batch["image"].to(device_of(metric)), ids, batch["mos"]


def same_size(purified: Tensor, images: Tensor) -> Tensor:
    """Return purified images at the size of the clear ones, bilinearly, as the paper compares them."""
    if purified.shape == images.shape:
        return purified
    return F.interpolate(purified, size=images.shape[-2:], mode="bilinear", align_corners=False)
