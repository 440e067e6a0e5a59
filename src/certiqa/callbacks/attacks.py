"""Attack every tested image, and record what came of it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from certiqa.attacks import Attack, AttackResult, SetAttack, UniversalAttack
from certiqa.attacks.planning import FEWEST
from certiqa.attacks.suite import members, noise_like
from certiqa.attacks.target import Target
from certiqa.callbacks.attacked_pictures import save, show
from certiqa.callbacks.progress import side_bar
from certiqa.callbacks.records import Records, facts_of, refuse_unless_skipped
from certiqa.defenses import purified_images, reported_scores
from certiqa.errors import UserError, first_line
from certiqa.evaluation.attacked import GRADIENTS
from certiqa.evaluation.distances import image_distances
from certiqa.evaluation.failing import one_by_one, why
from certiqa.evaluation.record_lines import NO_ATTACK, read_lines
from certiqa.evaluation.records import RecordStore, plain
from certiqa.metrics import QualityMetric
from certiqa.options import Choices, Seed
from certiqa.training import DefenseModule

log = logging.getLogger(__name__)
AIMS = ("defense", "undefended")


class Attacks(pl.Callback):
    """Attacks the images of a test as they pass, after they have been recorded as they are; a set attack at the end.

    Images already attacked by an earlier, interrupted run are passed over. The attack sees the defended metric and is
    adaptive by that; aimed at the undefended one it is a transfer attack, replayed on the defense.

    Args:
        folder: the run's folder.
        attack: the attack, or a suite; None for none.
        direction: "raise", "lower" or "away"; None for attacks on a ranking, which have none.
        aim: "defense" (adaptive) or "undefended" (transfer).
        save_images: write attacked images as PNG to ``attacked/``, with a manifest.
        seed: of all randomness of the attack.
    """

    def __init__(
        self,
        folder: str | Path,
        attack: Attack | None = None,
        *,
        direction: Annotated[str, Choices("raise", "lower", "away")] | None = "raise",
        aim: Annotated[str, Choices("defense", "undefended")] = "defense",
        save_images: bool = False,
        seed: Seed = 0,
    ) -> None:
        if aim not in AIMS:
            raise UserError(f"attack.aim must be one of {', '.join(AIMS)}, got '{aim}'")
        self.folder = Path(folder)
        self.attacks = {} if attack is None else members(attack)
        self.direction = direction or "raise"
        self.aim = aim
        self.save_images = save_images
        self.seed = seed
        self._told: set[str] = set()
        self._clean: dict[str, Tensor] = {}  # defended scores of the batch's clean images, the same for every attack

    def label(self, name: str) -> str:
        """Return what records call an attack: a transfer attack is another one."""
        return name if self.aim == "defense" else f"{name} (transfer)"

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fit universal attacks without a pattern on the training images and keep it; check set attacks."""
        assert isinstance(pl_module, DefenseModule)
        for name, attack in self.attacks.items():
            if isinstance(attack, SetAttack):
                self.check_set(trainer, name, attack)
            if not isinstance(attack, UniversalAttack) or attack.pattern is not None:
                continue
            path = self.folder / f"attack-{name}.safetensors"
            if path.is_file():
                try:
                    attack.load(path)
                    continue
                except UserError as error:  # this run wrote it, so it was damaged since
                    log.warning("%s; the attack is fitted again", first_line(error))
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
        store = open_store(trainer)
        self._clean = {}
        for name, attack in self.attacks.items():
            if isinstance(attack, SetAttack):
                continue  # after all images were seen
            label = self.label(name)
            facts = {
                row: {**facts_of(batch, row), "score_clean": plain(float(outputs["score_clean"][row])), "attack": label}
                for row, image_id in enumerate(batch["image_id"])
                if row not in outputs["raised"] and not store.has(image_id, label)
            }
            if not facts:
                continue
            with attack_bar(trainer, attack, label, len(facts)):
                found = list(one_by_one(partial(self.run_on, pl_module, attack, batch["image"], facts), list(facts)))
            for row, more in found:
                if isinstance(more, Exception):
                    what, image_id = f"metric '{pl_module.defense.name}' under attack '{label}'", facts[row]["image_id"]
                    refuse_unless_skipped(trainer, what, image_id, more)
                    more = {"score": None, "failure": why(what, image_id, more)}
                store.append([{**facts[row], **more}])

    def run_on(
        self, module: DefenseModule, attack: Attack, images: Tensor, facts: dict[int, dict[str, Any]], rows: list[int]
    ) -> Iterable[tuple[int, dict[str, Any]]]:
        """Attack these rows of a batch; see ``run``."""
        return zip(rows, self.run(module, attack, images[rows], [facts[row] for row in rows]), strict=True)

    def check_set(self, trainer: pl.Trainer, name: str, attack: SetAttack) -> None:
        """Raise UserError before any work where a set attack cannot run."""
        if trainer.world_size > 1:
            raise UserError(
                f"attack '{name}' plans over the whole set, in one process: run with trainer.devices=1, which "
                "continues a run that more devices began"
            )
        if len(self.attacks) == 1 and self.direction != "raise":
            raise UserError(
                f"attack '{name}' has no direction: its plan decides which scores rise and which fall; leave "
                f"attack.direction={self.direction} out"
            )
        images = trainer.datamodule.test_set  # type: ignore[attr-defined]
        if len(images) < FEWEST:
            raise UserError(
                f"attack '{name}' moves the ranking of at least {FEWEST} images, but {len(images)} are tested; raise "
                "data.limit_test, or attack images by themselves with attack=ifgsm"
            )
        if attack.reference == "mos" and not images.has_opinions:
            raise UserError(
                f"attack.reference=mos needs an opinion score of every image, and '{images.name}' has none; use "
                "attack.reference=scores"
            )

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attack the set, now that every image has been recorded as it is.

        An interrupted attack goes over the whole set again, and records the images that it had not recorded.
        """
        assert isinstance(pl_module, DefenseModule)
        store = open_store(trainer)
        for name, attack in self.attacks.items():
            if isinstance(attack, SetAttack):
                loader = trainer.datamodule.test_dataloader()  # type: ignore[attr-defined]
                self.run_set(pl_module, attack, loader, store, self.label(name))

    def run_set(
        self, module: DefenseModule, attack: SetAttack, loader: Iterable[Any], store: RecordStore, label: str
    ) -> None:
        """Attack all images that have a score, and record those that have no record of the attack."""
        keys = ("image_id", "path", "digest", "reference_id", "mos", "mos_normalised", "score_clean")
        facts = {
            row["image_id"]: {**{key: row.get(key) for key in keys}, "attack": label}
            for row in read_lines(self.folder)
            if row["attack"] == NO_ATTACK and row.get("score") is not None and not row.get("failure")
        }
        wanted = {image_id for image_id in facts if not store.has(image_id, label)}
        if not wanted:
            return
        aim = module.defense if self.aim == "defense" else module.base_metric
        started, planning = time.perf_counter(), None
        with torch.inference_mode(False), torch.enable_grad():
            shares = attack.craft_set(aim, Chosen(loader, facts), seed=self.seed, wanted=wanted, workspace=self.folder)
            for share in shares:
                passed = time.perf_counter() - started
                if planning is None:  # all that comes before the first share is for all
                    planning, passed = passed / len(wanted), 0.0
                seconds = planning + passed / len(share.image_ids)
                self.tell(share.result)
                rows = [facts[image_id] for image_id in share.image_ids]
                judged = self.judge(module, share.images, share.result, rows, seconds)
                for place, (row, more) in enumerate(zip(rows, judged, strict=True)):
                    target = None if share.targets is None else float(share.targets[place])
                    store.append([{**row, **more, "target": target, "set_size": len(facts)}])
                started = time.perf_counter()

    def tell(self, result: AttackResult) -> None:
        """Log what a reader should know of an attack, once."""
        for note in result.notes:
            if note not in self._told:
                self._told.add(note)
                log.warning("%s", note)

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
        self.tell(result)
        wanted = self.wanted(aim, attack, images, ids)
        judged = self.judge(module, images, result, facts, seconds)
        return [{**row, "wanted": sign} for row, sign in zip(judged, wanted, strict=True)]

    @torch.no_grad()
    def wanted(self, aim: QualityMetric, attack: Attack, images: Tensor, ids: list[str]) -> list[int]:
        """Return +1 where an attack was to raise quality and -1 where to lower it, by the draws it decided with."""
        target = Target(
            *(aim, images, self.direction),
            image_ids=ids,
            seed=self.seed,
            eot_samples=attack.eot_samples,
            through=attack.through,
        )
        return [int(sign) * aim.quality_sign for sign in target.signs.tolist()]

    @torch.no_grad()
    def judge(
        self, module: DefenseModule, images: Tensor, result: AttackResult, facts: list[dict[str, Any]], seconds: float
    ) -> list[dict[str, Any]]:
        """Return scores and distances of attacked images; all defended scores share one stream of noise."""
        ids = [row["image_id"] for row in facts]
        if missing := [place for place, image_id in enumerate(ids) if image_id not in self._clean]:
            names = [ids[place] for place in missing]
            self._clean |= dict(zip(names, reported_scores(module.defense, images[missing], names), strict=True))
        pictures = {
            "score_attacked": result.images,
            "score_unrounded": result.unrounded,
            "score_noise": noise_like(images, result.images, ids, self.seed),
        }
        scores = {key: reported_scores(module.defense, batch, ids) for key, batch in pictures.items()}
        scores["score"] = torch.stack([self._clean[image_id] for image_id in ids])
        # one by one: where a run goes on, the batch is smaller, and its scores would be rounded otherwise
        scores["score_attacked_undefended"] = torch.cat(
            [reported_scores(module.base_metric, picture[None]) for picture in result.images]
        )
        show(self.folder, module.base_metric, images, result.images, facts)
        purified = [purified_images(module.defense, batch, ids) for batch in (result.images, images)]
        rows = []
        for place, image_id in enumerate(ids):
            row: dict[str, Any] = {key: plain(float(values[place])) for key, values in scores.items()}
            row |= {key: plain(value) for key, value in image_distances(images[place], result.images[place]).items()}
            if result.rises is not None:
                row["rise_first"], row["rise_last"] = (plain(float(rise)) for rise in result.rises[place])
            for ending, pictured in zip(("purified", "purified_clean"), purified, strict=True):
                if pictured is not None and pictured.shape == images.shape:
                    distances = image_distances(images[place], pictured[place])
                    row |= {f"{name}_{ending}": plain(distances[name]) for name in ("psnr", "ssim")}
            row |= {
                "forward_calls": result.forward_calls / len(ids),
                "gradient_calls": result.gradient_calls / len(ids),
                "seconds": seconds,
            }
            row |= {
                name: bool(marked[place])
                for name, marked in zip(GRADIENTS, (result.flat, result.exploding, result.failed), strict=True)
                if marked is not None
            }
            attacked = float(scores["score_attacked"][place])
            if not math.isfinite(attacked):
                label = facts[place]["attack"]
                row["failure"] = (
                    f"metric '{module.defense.name}' scored {attacked} on {ids[place]} under attack '{label}'"
                )
            if self.save_images:
                row["attacked_path"] = save(self.folder, result.images[place], facts[place]["attack"], image_id)
            rows.append(row)
        return rows


@contextmanager
def attack_bar(trainer: pl.Trainer, attack: Attack, label: str, images: int) -> Iterator[None]:
    """Show how far an attack is on a batch, below the bar of the test."""
    passes = attack.passes()
    with side_bar(trainer, label, None if passes is None else passes * images) as advance:
        attack.watch = advance
        try:
            yield
        finally:
            attack.watch = None


def open_store(trainer: pl.Trainer) -> RecordStore:
    """Return the records of the test that runs."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, Records)).store  # type: ignore[attr-defined]


class Chosen:
    """The images of a loader's batches whose ids are among ``ids``, each time it is gone through."""

    def __init__(self, loader: Iterable[Any], ids: Collection[str]) -> None:
        self.loader = loader
        self.ids = ids

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.loader:
            rows = [row for row, name in enumerate(batch["image_id"]) if name in self.ids]
            yield {
                "image": batch["image"][rows],
                "image_id": [batch["image_id"][row] for row in rows],
                "mos_normalised": batch["mos_normalised"][rows],
            }
