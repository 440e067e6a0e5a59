"""``evaluate.py experiment=purification``: the study of purifiers, cell by cell."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import seed_everything
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

from certiqa.attacks import Attack
from certiqa.console import plain_column, plain_console
from certiqa.data.datamodule import QualityDataModule
from certiqa.data.images import ImageDataset
from certiqa.entry.admission import take
from certiqa.entry.build import build, build_metric, check_contract, chosen_device, refuse_untrained
from certiqa.entry.clock import Clock
from certiqa.entry.composing import with_home
from certiqa.entry.finished import finished_as_given
from certiqa.entry.folder import shown
from certiqa.entry.given import GIVEN_FILES
from certiqa.entry.identity import config_hash, public_config
from certiqa.entry.inputs import inputs_of, keep_inputs, read_inputs, refuse_changes
from certiqa.errors import UserError
from certiqa.evaluation import write_summary
from certiqa.metrics import QualityMetric
from certiqa.reports.study import print_study, read_study, write_study_report
from certiqa.storage.csv_cells import safe_cell
from certiqa.storage.files import sha256, write_aside, write_json
from certiqa.studies import PurificationStudy, study_figures
from certiqa.studies.figures import best_strengths

log = logging.getLogger(__name__)


def run_study(config: DictConfig, folder: Path) -> None:
    """Run the study in its folder; finished parts are not run again, and a finished study is only reported."""
    console = plain_console()
    if not config.fresh and finished_as_given(folder, config) and (found := finished_study(folder)):
        console.print(f"this study is finished already (fresh=true starts over): {folder}", soft_wrap=True)
    else:
        seed_everything(config.seed, verbose=False)
        study = build_study(config)
        metric = build_metric(config).to(chosen_device(config))
        data: QualityDataModule = build(config.data)
        data.setup("test")
        check_contract(metric, data.test_set.sizes(), study.attacks.values())
        study.leave_out(metric, data.test_set.sizes())
        inputs = inputs_of(config, data, ["test"])
        if not config.fresh:
            refuse_changes(folder, config, read_inputs(folder), inputs)
        if kept := take(folder, config):
            console.print(f"starting over; the earlier study is kept in {kept}", soft_wrap=True)
        keep_inputs(folder, inputs)
        status, clock = "failed", Clock(folder, config_hash(config))
        clock.start()
        try:
            facts = make_study(config, folder, console, study, metric, data)
            status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            clock.stop()
            known = facts if status == "finished" else {"name": config.name}
            known |= {"status": status, "seconds": round(clock.seconds, 1), GIVEN_FILES: inputs[GIVEN_FILES]}
            write_summary(folder, {"task": config.task, "config_hash": config_hash(config), **known})
        found = read_study(folder)
    print_study(*found, console)
    console.print(f"report: {shown(write_study_report(folder))}", soft_wrap=True)


def finished_study(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """Return the figures and facts of a finished study, None where they are damaged and have to be made again."""
    try:
        return read_study(folder)
    except UserError as error:
        log.warning("%s", error)
        return None


def make_study(
    config: DictConfig,
    folder: Path,
    console: Console,
    study: PurificationStudy,
    metric: QualityMetric,
    data: QualityDataModule,
) -> dict[str, Any]:
    """Run what is missing, write its tables, and return what a reader must know."""
    images = data.test_set
    if study.unavailable:
        names = ", ".join(study.unavailable)
        console.print(f"weights not available: {names}; give study.purifiers.NAME.weights=PATH", style="yellow")
    for cell, reason in study.inapplicable:
        console.print(f"left out: {cell.label}: {reason}", style="yellow")
    loader = data.test_dataloader()
    columns = (plain_column(), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("purification study", total=study.num_parts)

        def done(part: str) -> None:
            bars.update(task, advance=1, description=part)

        records = study.run(metric, loader, folder, done, images.fingerprint)
    figures = study_figures(records, metric, mos_lower_better=images.mos_lower_better)
    best = best_strengths(figures)
    with write_aside(folder / "records.parquet") as partial:
        records.to_parquet(partial, index=False)
    with write_aside(folder / "study.csv") as partial:
        figures.map(safe_cell).to_csv(partial, index=False)
    facts = describe(config, study, metric, images, best) | {"figures": sha256(folder / "study.csv")}
    facts["num_images"] = int(records["image_id"].nunique())
    if skipped := len(images) - facts["num_images"]:
        facts["num_skipped"] = skipped
        console.print(f"{skipped} of {len(images)} images could not be read and were skipped", style="yellow")
    if "transfer" in study.aims:
        chosen = [cell for cell in study.cells if best[cell.purifier] == cell.strength]
        attack = next(iter(study.attacks))
        facts["gallery"] = study.gallery(metric, loader, chosen, folder, attack, images.fingerprint)
    write_json(folder / "study.json", facts)
    return facts


def build_study(config: DictConfig) -> PurificationStudy:
    """Build the study with its attacks; budgets may be written as ``4/255``."""
    content = with_home(OmegaConf.to_container(config.study, resolve=True))
    assert isinstance(content, dict)
    refuse_untrained(content, "study")
    attacks: dict[str, Attack] = {}
    for name, options in (content.pop("attacks") or {}).items():
        if options is None:  # taken out on the command line
            continue
        attack = build(OmegaConf.create(options))
        if not isinstance(attack, Attack):
            raise UserError(f"study.attacks.{name!s} must be a certiqa.attacks.Attack, got {type(attack).__name__}")
        attacks[str(name)] = attack
    return PurificationStudy(attacks=attacks, seed=config.seed, **{str(key): value for key, value in content.items()})


def describe(
    config: DictConfig, study: PurificationStudy, metric: QualityMetric, images: ImageDataset, best: dict[str, str]
) -> dict[str, Any]:
    """Return what a reader of the table must know."""
    return {
        "name": config.name,
        "metric": metric.name,
        "weights": str(metric.weights_source or ""),
        "data": config.data.name,
        "pseudo_mos": images.mos_kind == "pseudo-MOS",
        "score_range": metric.score_range,
        "direction": study.direction,
        "attacks": {name: attack_options(config, name) for name in study.attacks},
        "aims": study.aims,
        "best": best,
        "unavailable": study.unavailable,
        "inapplicable": [
            {"purifier": cell.purifier, "strength": cell.strength, "reason": reason}
            for cell, reason in study.inapplicable
        ],
        "seed": config.seed,
        "status": "finished",
        "folder": str(Path(config.paths.run).name),
    }


def attack_options(config: DictConfig, name: str) -> str:
    """Return an attack's options in one line."""
    options = public_config(config.study.attacks[name])
    return ", ".join(f"{key!s} {value}" for key, value in options.items() if key != "_target_" and value is not None)
