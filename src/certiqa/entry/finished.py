"""Whether a run is finished: it says so, it is made of what its command names now, and no record is lacking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig

from certiqa.attacks import UniversalAttack
from certiqa.callbacks import Attacks, Records
from certiqa.data.datamodule import QualityDataModule
from certiqa.entry.build import build
from certiqa.entry.folder import finished_summary
from certiqa.entry.given import GIVEN_FILES
from certiqa.entry.identity import config_hash
from certiqa.entry.inputs import Inputs, inputs_of, read_inputs, refuse_changes
from certiqa.errors import UserError
from certiqa.evaluation.record_lines import NO_ATTACK, read_lines
from certiqa.evaluation.records import compile_records, lacking, read_records, to_table
from certiqa.training import DefenseModule


def finished_as_given(folder: Path, config: DictConfig) -> dict[str, Any] | None:
    """Return the summary of a finished run of this config, None where the run has to go on.

    A compiled file of records that is missing or damaged is made again.

    Args:
        folder: the run's.
        config: what is asked for.

    Raises:
        UserError: a file, an image or a source that the command names is another one than the run's.
    """
    summary = finished_summary(folder, config_hash(config))
    if summary is None:
        return None
    then = read_inputs(folder) or {GIVEN_FILES: summary.get(GIVEN_FILES)}
    refuse_changes(folder, config, then, _inputs_now(config, then))
    measured = config.task in ("purification", "metric") or config.get(
        "optimise"
    )  # neither has records of single images
    return summary if measured or _is_whole(folder, summary, then) else None


def _inputs_now(config: DictConfig, then: Inputs) -> Inputs:
    """Return what the run would be made of now, without images that are not there any more."""
    parts = list(then.get("images") or ())
    if parts:
        try:
            data: QualityDataModule = build(config.data)
            data.resize = None  # or copies would be made
            return inputs_of(config, data, parts)
        except UserError:
            pass
    return inputs_of(config, None)


def _is_whole(folder: Path, summary: dict[str, Any], then: Inputs) -> bool:
    """Return whether every image has all its records; of an older run, whether as many have as its summary counts."""
    images = (then.get("images") or {}).get("test")
    rows = read_lines(folder)
    try:
        table = to_table(rows) if rows else read_records(folder)
    except UserError:
        return images is None
    if images is None:
        images = set(table[table["attack"] == NO_ATTACK]["image_id"])
        if len(images) != summary.get("num_images", 0) + summary.get("num_failed", 0):
            return False
    if lacking(table, images, summary.get("radii") or (), summary.get("attacks") or ()):
        return False
    if rows:
        compile_records(folder)
    return True


def parts_used(config: DictConfig, module: DefenseModule, callbacks: list[pl.Callback]) -> list[str]:
    """Return which parts of the data decide a run's results."""
    attacks = [attack for each in callbacks if isinstance(each, Attacks) for attack in each.attacks.values()]
    fits = any(isinstance(attack, UniversalAttack) and attack.pattern is None for attack in attacks)
    return [
        *(["train"] if module.objective is not None or fits else []),
        "validation" if config.get("optimise") else "test",
    ]


def require_whole(folder: Path, data: QualityDataModule, recorder: Records, callbacks: list[pl.Callback]) -> None:
    """Raise UserError where a test has ended and an image lacks a record: the run is not finished."""
    names = [each.label(name) for each in callbacks if isinstance(each, Attacks) for name in each.attacks]
    images = [record.image_id for record in data.test_set.records]
    if missing := lacking(to_table(read_lines(folder)), images, recorder.recorded_radii, names):
        raise UserError(
            f"{len(missing)} of {len(images)} test images are not recorded as they should be, the first is "
            f"'{missing[0]}'; the same command makes their records"
        )
