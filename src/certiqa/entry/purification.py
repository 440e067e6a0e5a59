"""``evaluate.py experiment=purification``: the study of purifiers, cell by cell."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import seed_everything
from rich.console import Console
from rich.progress import Progress

from certiqa.attacks import Attack
from certiqa.data.datamodule import QualityDataModule
from certiqa.entry.build import build, build_metric, number, refuse_untrained, run_folder
from certiqa.entry.folder import shown
from certiqa.errors import UserError
from certiqa.metrics import QualityMetric
from certiqa.reports.study import print_study, write_study_report
from certiqa.storage.files import write_aside
from certiqa.studies import PurificationStudy, study_figures
from certiqa.studies.figures import best_strengths


def run_study(config: DictConfig) -> None:
    """Run the study in its folder; finished cells are not run again."""
    console = Console()
    folder = run_folder(config)
    seed_everything(config.seed, verbose=False)
    study = build_study(config)
    metric = build_metric(config)
    data: QualityDataModule = build(config.data)
    data.setup("test")
    if study.unavailable:
        names = ", ".join(study.unavailable)
        console.print(f"weights not available: {names}; give study.purifiers.NAME.weights=PATH", style="yellow")
    started = time.monotonic()
    loader = data.test_dataloader()
    with Progress(console=console) as bars:
        task = bars.add_task("purification study", total=study.num_parts)

        def done(part: str) -> None:
            bars.update(task, advance=1, description=part)

        records = study.run(metric, loader, folder, done, data.test_set.fingerprint)
    figures = study_figures(records, metric)
    best = best_strengths(figures)
    with write_aside(folder / "records.parquet") as partial:
        records.to_parquet(partial, index=False)
    with write_aside(folder / "study.csv") as partial:
        figures.to_csv(partial, index=False)
    facts = describe(config, study, metric, best) | {"seconds": round(time.monotonic() - started, 1)}
    if "transfer" in study.aims:
        chosen = [cell for cell in study.cells if best[cell.purifier] == cell.strength]
        first, attack = next(iter(loader)), next(iter(study.attacks))
        facts["gallery"] = study.gallery(metric, first, chosen, folder, attack, data.test_set.fingerprint)
    with write_aside(folder / "study.json") as partial:
        partial.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    print_study(figures, facts, console)
    console.print(f"report: {shown(write_study_report(folder))}", soft_wrap=True)


def build_study(config: DictConfig) -> PurificationStudy:
    """Build the study with its attacks; budgets may be written as ``4/255``."""
    content = OmegaConf.to_container(config.study, resolve=True)
    assert isinstance(content, dict)
    refuse_untrained(content, "study")
    attacks: dict[str, Attack] = {}
    for name, options in (content.pop("attacks") or {}).items():
        if options is None:  # taken out on the command line
            continue
        attack = build(OmegaConf.create({key: number(value) for key, value in options.items()}))
        if not isinstance(attack, Attack):
            raise UserError(f"study.attacks.{name!s} must be a certiqa.attacks.Attack, got {type(attack).__name__}")
        attacks[str(name)] = attack
    return PurificationStudy(attacks=attacks, seed=config.seed, **{str(key): value for key, value in content.items()})


def describe(
    config: DictConfig, study: PurificationStudy, metric: QualityMetric, best: dict[str, str]
) -> dict[str, Any]:
    """Return what a reader of the table must know."""
    return {
        "name": config.name,
        "metric": metric.name,
        "weights": str(metric.weights_source or ""),
        "data": config.data.name,
        "pseudo_mos": config.data.name == "mini",
        "score_range": metric.score_range,
        "direction": study.direction,
        "attacks": {name: attack_options(config, name) for name in study.attacks},
        "aims": study.aims,
        "best": best,
        "unavailable": study.unavailable,
        "seed": config.seed,
        "status": "finished",
        "folder": str(Path(config.paths.run).name),
    }


def attack_options(config: DictConfig, name: str) -> str:
    """Return an attack's options in one line."""
    options = OmegaConf.to_container(config.study.attacks[name], resolve=True)
    assert isinstance(options, dict)
    return ", ".join(f"{key!s} {value}" for key, value in options.items() if key != "_target_" and value is not None)
