"""Attack every tested image, and record what came of it."""

from __future__ import annotations

import csv
import json
import logging
import math
import re
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from certiqa.attacks import Attack, AttackResult, UniversalAttack
from certiqa.attacks.suite import members, noise_like
from certiqa.callbacks.gallery import save_picture
from certiqa.callbacks.records import Records
from certiqa.defenses import purified_images
from certiqa.errors import UserError
from certiqa.evaluation.distances import image_distances
from certiqa.evaluation.records import plain
from certiqa.storage.files import write_aside
from certiqa.training import DefenseModule

log = logging.getLogger(__name__)
AIMS = ("defense", "undefended")


class Attacks(pl.Callback):
    """Attacks the images of a test as they pass, after they have been recorded as they are.

    Images already attacked by an earlier, interrupted run are passed over. The attack sees the defended metric and is
    adaptive by that; aimed at the undefended one it is a transfer attack, replayed on the defense.

    Args:
        folder: the run's folder.
        attack: the attack, or a suite; None for none.
        direction: "raise", "lower" or "away".
        aim: "defense" (adaptive) or "undefended" (transfer).
        save_images: write attacked images as PNG to ``attacked/``, with a manifest.
        seed: of all randomness of the attack.
    """

    def __init__(
        self,
        folder: str | Path,
        attack: Attack | None = None,
        *,
        direction: str = "raise",
        aim: str = "defense",
        save_images: bool = False,
        seed: int = 0,
    ) -> None:
        if aim not in AIMS:
            raise UserError(f"attack.aim must be one of {', '.join(AIMS)}, got '{aim}'")
        self.folder = Path(folder)
        self.attacks = {} if attack is None else members(attack)
        self.direction = direction
        self.aim = aim
        self.save_images = save_images
        self.seed = seed
        self._told: set[str] = set()

    def label(self, name: str) -> str:
        """Return what records call an attack: a transfer attack is another one."""
        return name if self.aim == "defense" else f"{name} (transfer)"

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fit universal attacks that have no pattern yet on the training images, and keep the pattern in the folder."""
        assert isinstance(pl_module, DefenseModule)
        for name, attack in self.attacks.items():
            if not isinstance(attack, UniversalAttack) or attack.pattern is not None:
                continue
            path = self.folder / f"attack-{name}.safetensors"
            if path.is_file():
                attack.load(path)
                continue
            if trainer.world_size > 1:
                raise UserError(
                    f"attack '{name}' is fitted before it is applied, by one process: run once with trainer.devices=1, "
                    f"then give attack.pattern_file={path}"
                )
            aim = pl_module.defense if self.aim == "defense" else pl_module.base_metric
            with torch.inference_mode(False), torch.enable_grad():
                loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
                attack.fit(aim, loader, self.direction, seed=self.seed)
            attack.save(path)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Attack the images of the batch that were not attacked yet."""
        assert isinstance(pl_module, DefenseModule)
        store = next(callback for callback in trainer.callbacks if isinstance(callback, Records)).store  # type: ignore[attr-defined]
        for name, attack in self.attacks.items():
            label = self.label(name)
            rows = [row for row, image_id in enumerate(batch["image_id"]) if not store.has(image_id, label)]
            if not rows:
                continue
            facts = [
                {
                    "image_id": batch["image_id"][row],
                    "path": batch["path"][row],
                    "reference_id": batch["reference_id"][row],
                    "mos": plain(float(batch["mos"][row])),
                    "mos_normalised": plain(float(batch["mos_normalised"][row])),
                    "score_clean": plain(float(outputs["score_clean"][row])),
                    "attack": label,
                }
                for row in rows
            ]
            for row, more in zip(facts, self.run(pl_module, attack, batch["image"][rows], facts), strict=True):
                store.append([{**row, **more}])

    def run(
        self, module: DefenseModule, attack: Attack, images: Tensor, facts: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Attack images and return what is recorded of each."""
        ids = [row["image_id"] for row in facts]
        aim = module.defense if self.aim == "defense" else module.base_metric
        started = time.perf_counter()
        with torch.inference_mode(False), torch.enable_grad():
            result = attack.craft(aim, images.clone(), self.direction, image_ids=ids, seed=self.seed)
        seconds = (time.perf_counter() - started) / len(ids)
        for note in result.notes:
            if note not in self._told:
                self._told.add(note)
                log.warning("%s", note)
        return self.judge(module, images, result, facts, seconds)

    @torch.no_grad()
    def judge(
        self, module: DefenseModule, images: Tensor, result: AttackResult, facts: list[dict[str, Any]], seconds: float
    ) -> list[dict[str, Any]]:
        """Return scores and distances of attacked images; all defended scores share one stream of noise."""
        ids = [row["image_id"] for row in facts]
        pictures = {
            "score": images,
            "score_attacked": result.images,
            "score_unrounded": result.unrounded,
            "score_noise": noise_like(images, result.images, ids, self.seed),
        }
        scores = {key: module.defense(batch, image_ids=ids) for key, batch in pictures.items()}
        scores["score_attacked_undefended"] = module.base_metric(result.images)
        self.show(module, images, result, facts)
        purified = [purified_images(module.defense, batch, ids) for batch in (result.images, images)]
        rows = []
        for place, image_id in enumerate(ids):
            row: dict[str, Any] = {key: plain(float(values[place])) for key, values in scores.items()}
            row |= image_distances(images[place], result.images[place])
            for ending, pictured in zip(("purified", "purified_clean"), purified, strict=True):
                if pictured is not None and pictured.shape == images.shape:
                    distances = image_distances(images[place], pictured[place])
                    row |= {f"{name}_{ending}": distances[name] for name in ("psnr", "ssim")}
            row |= {
                "forward_calls": result.forward_calls / len(ids),
                "gradient_calls": result.gradient_calls / len(ids),
                "seconds": seconds,
            }
            attacked = float(scores["score_attacked"][place])
            if bool(result.failed[place]) or not math.isfinite(attacked):
                row["failure"] = f"attack '{facts[place]['attack']}' met a gradient or score that is not finite"
            if self.save_images:
                row["attacked_path"] = self.save(result.images[place], facts[place]["attack"], image_id)
            rows.append(row)
        return rows

    def show(self, module: DefenseModule, images: Tensor, result: AttackResult, facts: list[dict[str, Any]]) -> None:
        """Add attacked pictures and ten times their difference to the report's gallery, where it shows the image."""
        path = self.folder / "gallery.json"
        entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        places = {row["image_id"]: place for place, row in enumerate(facts)}
        for number, entry in enumerate(entries):
            place = places.get(entry["image_id"])
            if place is None:
                continue
            label, attacked = facts[place]["attack"], result.images[place]
            if any(panel["label"] == label for panel in entry["panels"]):
                continue
            difference = (0.5 + 10 * (attacked - images[place])).clamp(0, 1)
            score = float(module.base_metric(attacked[None])[0])
            for name, picture, value in ((label, attacked, score), (f"{label}, x10", difference, None)):
                file = f"gallery/{number}-{file_name(name)}.png"
                save_picture(self.folder / file, picture)
                entry["panels"].append({"label": name, "file": file, "score": value})
        if entries:
            with write_aside(path) as partial:
                partial.write_text(json.dumps(entries, indent=1), encoding="utf-8")

    def save(self, image: Tensor, label: str, image_id: str) -> str:
        """Write one attacked image as PNG and its line of the manifest; returns its path in the run's folder."""
        name = re.sub(r"[^\w.-]+", "_", image_id).removesuffix(".png")
        path = self.folder / "attacked" / file_name(label) / f"{name}.png"
        try:
            save_picture(path, image)
            manifest = self.folder / "attacked" / "manifest.csv"
            new = not manifest.exists()
            with open(manifest, "a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(["file", "attack", "image_id"])
                writer.writerow([str(path.relative_to(self.folder)), label, image_id])
        except OSError as error:
            raise UserError(f"cannot write '{path}': {error}; free space, or attack.save_images=false") from error
        return str(path.relative_to(self.folder))


def file_name(label: str) -> str:
    """Return a label as part of a file's name: ``ifgsm (transfer)`` -> ``ifgsm_transfer``."""
    return re.sub(r"\W+", "_", label).strip("_")
