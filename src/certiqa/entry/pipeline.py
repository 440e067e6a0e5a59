"""The story of a run: build, train where there is something to train, certify, summarise, report."""

from __future__ import annotations

import logging
import platform
import shlex
import shutil
import sys
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only

from certiqa import __version__
from certiqa.callbacks import Certification, Checkpoints, Records
from certiqa.certification import require_certifiable
from certiqa.certification.planning import plan_certification
from certiqa.console import plain_console
from certiqa.data.datamodule import QualityDataModule
from certiqa.defenses import undefended
from certiqa.entry.admission import refuse_other_run, take
from certiqa.entry.agreement import check_built, check_options, trained_parts
from certiqa.entry.build import (
    build,
    build_attack,
    build_callbacks,
    build_defense,
    build_metric,
    build_module,
    build_trainer,
    check_contract,
    check_shares,
    let_go_of_ranks,
    run_folder,
    sides_to_score,
)
from certiqa.entry.clock import Clock
from certiqa.entry.finished import finished_as_given, parts_used, require_whole
from certiqa.entry.folder import locked, shown
from certiqa.entry.given import GIVEN_FILES
from certiqa.entry.identity import config_hash, flat_identity
from certiqa.entry.inputs import inputs_of, keep_inputs, read_inputs, refuse_changes
from certiqa.entry.limits import refuse_limits
from certiqa.entry.log import begin_logs, quiet_lightning
from certiqa.entry.preemption import Preemption, stopping_on_signals
from certiqa.entry.purification import run_study
from certiqa.entry.resuming import (
    Resumption,
    continue_curves,
    newest_checkpoint,
    set_curves_aside,
    set_damaged_aside,
)
from certiqa.entry.starting_over import check_own
from certiqa.entry.tracking import build_loggers, closing_loggers, publish, start_tracking
from certiqa.entry.train_metric import train_metric
from certiqa.entry.trained import keep_weights
from certiqa.errors import UserError, suggest
from certiqa.evaluation import RecordStore, summarise, write_summary
from certiqa.evaluation.identity import OtherRunError
from certiqa.evaluation.records import check_records
from certiqa.evaluation.summary import finite
from certiqa.metrics import QualityMetric
from certiqa.metrics.weights import fingerprint
from certiqa.reports import print_summary, write_report
from certiqa.reports.plan import headline
from certiqa.training import DefenseModule
from certiqa.training.corruption import ATTACKED

log = logging.getLogger(__name__)
console = plain_console()
STUDIES = {"metric": train_metric, "purification": run_study}
"""Tasks that are no runs of one defense."""


@closing_loggers()
def run(config: DictConfig) -> float | None:
    """Run one job of ``train.py`` or ``evaluate.py`` in its folder; returns what ``optimise`` asks for."""
    refuse_limits(config.trainer)
    folder = run_folder(config)
    first_rank = not getattr(rank_zero_only, "rank", None)
    if config.fresh:
        check_own(folder)
    else:
        refuse_other_run(folder, config)
    with locked(folder) if first_rank else nullcontext(), stopping_on_signals() as preemption:
        if config.task in STUDIES:
            STUDIES[config.task](config, folder)
            return None
        check_options(config)
        return run_in_folder(config, folder, first_rank, preemption)


def run_in_folder(config: DictConfig, folder: Path, first_rank: bool, preemption: Preemption) -> float | None:
    """Run the job; returns the figure that ``optimise`` names, None without one.

    Nothing is written, and with ``fresh`` nothing moved, before all is built and the folder is known to be this run's.
    """
    if not config.fresh and (done := finished_as_given(folder, config)):
        console.print(f"this run is finished already (fresh=true starts over): {folder}", soft_wrap=True)
        if first_rank and not (folder / "report.html").is_file():  # the run was killed just before it
            write_report(folder)
        print_summary(done)
        return optimised(config, done)
    quiet_lightning()
    pl.seed_everything(config.seed, verbose=False)
    metric = build_metric(config)
    defense = build_defense(config, metric, trained=config.task == "evaluate")
    data: QualityDataModule = build(config.data)
    data.least_sides = sides_to_score(defense)
    facts = describe(config, defense, data)
    callbacks = build_callbacks(config, defense, data)
    if first_rank:
        for note in (*facts["data_notes"], *facts["notes"]):
            console.print(note, style="yellow")
    recorder = next(callback for callback in callbacks if isinstance(callback, Records))
    recorder.identity = flat_identity(config)
    for callback in callbacks:
        if isinstance(callback, Checkpoints):
            callback.signals = preemption
    module = build_module(config, defense)
    check_built(config, defense, module.objective)
    attack = build_attack(config)
    check_contract(metric, data.test_set.sizes(), [attack] if attack else [], module.objective)
    inputs = inputs_of(config, data, parts_used(config, module, callbacks))
    if not config.fresh:
        refuse_changes(folder, config, read_inputs(folder), inputs)
    facts[GIVEN_FILES] = inputs[GIVEN_FILES]
    trainer = build_trainer(config, callbacks, build_loggers(config))
    check_shares(trainer, data)
    data.test_set.sizes_or_none()  # an image that cannot be read or scored stops the run here or nowhere
    if first_rank and isinstance(recorder, Certification):
        announce(recorder, defense, data)
    if first_rank:
        if not config.fresh:
            identity = recorder.identity_of(module, data.test_set, trainer.strategy.root_device)
            untrained = {"weights"} if module.objective else set()
            check_records(folder, identity, data.test_set.digests(), unknown=untrained)
        if kept := take(folder, config):
            console.print(f"starting over; the earlier run is kept in {kept}", soft_wrap=True)
        keep_inputs(folder, inputs)
        if module.objective is not None:
            set_curves_aside(folder)
        start_tracking(trainer, config)
    else:
        begin_logs()
    status, tested, refused = "failed", None, False
    clock = Clock(folder, config_hash(config))
    facts["device"] = name_of_device(trainer.strategy.root_device)
    if first_rank:
        clock.start()
    try:
        if module.objective is not None:
            with clock.training():
                train(trainer, module, data, folder, fresh=config.fresh)
            if first_rank:
                added = [note for note in data.train_set.notes if note not in facts["data_notes"]]
                facts["data_notes"] += added
                console.print("\n".join(added), style="yellow", end="\n" if added else "")
            facts["seconds_training"] = round(clock.seconds_training, 1)
        tested = time.monotonic()
        if config.get("optimise"):
            facts |= validate(trainer, module, data)
        else:
            trainer.test(module, data, verbose=False)
            if first_rank:
                require_whole(folder, data, recorder, callbacks)
        status = "finished"
    except OtherRunError:
        refused = True
        raise
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns Ctrl-C into SystemExit
        status = "interrupted"
        let_go_of_ranks(trainer)
        raise KeyboardInterrupt from error
    finally:
        preemption.deferred = True
        clock.stop()
        facts |= {"status": status, "seconds": round(clock.seconds, 1)}
        recorded = recorder.num_recorded * trainer.world_size  # images are shared out evenly
        facts["images_per_second"] = recorded / (time.monotonic() - tested) if tested and recorded else None
        summary = finish(folder, defense, config, facts, callbacks) if first_rank and not refused else {}
    if not first_rank:
        return None
    print_summary(summary)
    console.print(f"report: {shown(folder / 'report.html')}", soft_wrap=True)
    if summary.get("num_skipped"):
        console.print(
            f"{summary['num_skipped']} images could not be read and were skipped; their records say why. "
            f"The first: {summary['first_failure']}",
            style="yellow",
            soft_wrap=True,
        )
    scored, failed = summary.get("num_images", 0), summary.get("num_failed", 0)
    if failed > summary.get("num_skipped", 0) or (failed and not scored):
        raise UserError(
            f"{failed} of {failed + scored} images could not be scored "
            f"and are left out of every figure; their records say why. The first: {summary['first_failure']}"
        )
    return optimised(config, summary)


def name_of_device(device: torch.device) -> str:
    """Return what computes: the GPU's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"


def validate(trainer: pl.Trainer, module: DefenseModule, data: QualityDataModule) -> dict[str, Any]:
    """Return the figures of the validation images as keys of the summary: ``val_srocc``, ..."""
    (figures,) = trainer.validate(module, data, verbose=False)
    return {name.replace("/", "_"): finite(float(value)) for name, value in figures.items()}


def optimised(config: DictConfig, summary: dict[str, Any]) -> float | None:
    """Return the validation figure that a sweeper asked for by ``optimise``."""
    if not config.get("optimise"):
        return None
    figures = {key: value for key, value in summary.items() if key.startswith("val_")}
    if config.optimise not in figures:
        raise UserError(
            f"optimise={config.optimise} is no validation figure of this run; there are: {', '.join(figures)}."
            f"{suggest(config.optimise, figures)}"
        )
    if figures[config.optimise] is None:
        raise UserError(
            f"{config.optimise} of this run is not a number: the scores or the opinion scores of its validation images "
            "do not differ; raise data.validation_images, or optimise another figure"
        )
    return float(figures[config.optimise])


def announce(recorder: Certification, defense: QualityMetric, data: QualityDataModule) -> None:
    """Say what the certification will take and can give, before any work."""
    smooth = require_certifiable(defense)
    plan = plan_certification(
        smooth,
        data.test_set.sizes(),
        recorder.radii,
        num_samples=recorder.num_samples,
        confidence=recorder.confidence,
        joint_confidence=recorder.joint_confidence,
        probe_seconds=None,
    )
    console.print(headline(plan), soft_wrap=True)


def train(
    trainer: pl.Trainer, module: DefenseModule, data: QualityDataModule, folder: Path, *, fresh: bool = False
) -> None:
    """Train the denoiser or purifier, from the last checkpoint if there is one, and keep its weights."""
    # of an earlier run that the first rank moves aside another may still see the checkpoint
    start, damaged = (Resumption(), []) if fresh else newest_checkpoint(folder, module.denoiser.state_dict())
    if trainer.is_global_zero:
        for told in set_damaged_aside(damaged):
            place = f"step {start.steps}" if start.checkpoint else "the beginning"
            console.print(f"{told}; training goes on from {place}", style="yellow", soft_wrap=True)
        if start.checkpoint:
            console.print(f"continuing from {start.checkpoint}, step {start.steps}", soft_wrap=True)
        continue_curves(trainer, folder, start.batches)
    trainer.fit(module, data, ckpt_path=start.checkpoint, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    assert module.objective is not None
    notes = {
        "metric": module.base_metric.name,
        "objective": module.objective.name,
        "trained_through": module.base_metric.name if module.objective.needs_metric else "",
        "data": data.dataset_name,
        "steps": str(trainer.global_step),
        "certiqa": __version__,
    }
    if trainer.is_global_zero:
        keep_weights(module, folder / "checkpoints", notes)
        shutil.rmtree(folder / ATTACKED, ignore_errors=True)


def describe(config: DictConfig, defense: QualityMetric, data: QualityDataModule) -> dict[str, Any]:
    """Return the facts of a run that are known before it starts."""
    smooth = defense if defense.certifiable else None
    metric = undefended(defense)
    return {
        "task": config.task,
        "name": config.name,
        "metric": metric.name,
        "metric_range": None if metric.score_range is None else list(metric.score_range),
        "lower_better": metric.lower_better,
        "weights": metric.weights_source,
        "defense": config.defense.name,
        **trained_parts(config, defense, metric, data),
        "data": data.dataset_name,
        "mos_kind": data.test_set.mos_kind,
        "mos_range": None if data.test_set.mos_range is None else list(data.test_set.mos_range),
        "mos_lower_better": data.test_set.mos_lower_better,
        "sigma": smooth.sigma if smooth else None,
        "num_samples": smooth.num_samples if smooth else None,
        "confidence": config.certification.confidence if smooth else None,
        "radii": list(config.certification.radii) if smooth else [],
        "seed": config.seed,
        "precision": smooth.precision if smooth else "fp32",
        "training_precision": str(config.trainer.get("precision")) if config.task == "train" else None,
        "config_hash": config_hash(config),
        "data_notes": list(data.test_set.notes),
        "data_fingerprint": data.test_set.fingerprint,
        "weights_fingerprint": fingerprint(metric),
        "versions": {
            "certiqa": __version__,
            "python": platform.python_version(),
            "torch": version("torch"),
            "pytorch-lightning": version("pytorch-lightning"),
        },
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def finish(
    folder: Path, defense: QualityMetric, config: DictConfig, facts: dict[str, Any], callbacks: list[pl.Callback]
) -> dict[str, Any]:
    """Compile the records so far, and write summary and report, whatever ended the run."""
    recorder = next(callback for callback in callbacks if isinstance(callback, Records))
    table = RecordStore(folder).compile()
    radius = recorder.radius if isinstance(recorder, Certification) else None
    scale = tuple(facts["mos_range"]) if facts["mos_range"] else None
    summary = facts | summarise(table, defense, radius, mos_range=scale, mos_lower_better=facts["mos_lower_better"])
    summary["batch_sizes"] = defense.batch_sizes_used if defense.certifiable else []
    write_summary(folder, summary)
    try:
        write_report(folder)
    except UserError as error:
        log.warning("no report: %s", error)
    publish(summary)
    return summary
