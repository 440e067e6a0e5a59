"""``train.py experiment=metric``: train a metric on rated images, say how good it is, and write its card."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning import seed_everything
from pytorch_lightning.callbacks import EarlyStopping
from rich.console import Console
from rich.table import Table

from certiqa.console import plain_console
from certiqa.data.datamodule import QualityDataModule
from certiqa.data.images import ImageDataset
from certiqa.data.registry import PUBLISHED
from certiqa.entry.admission import take
from certiqa.entry.build import build, build_trainer, chosen_device
from certiqa.entry.clock import Clock
from certiqa.entry.finished import finished_as_given
from certiqa.entry.folder import shown
from certiqa.entry.given import GIVEN_FILES
from certiqa.entry.identity import config_hash
from certiqa.entry.inputs import inputs_of, keep_inputs, read_inputs, refuse_changes
from certiqa.entry.log import quiet_lightning
from certiqa.entry.resuming import newest_checkpoint, set_damaged_aside
from certiqa.entry.tracking import build_loggers
from certiqa.errors import UserError
from certiqa.evaluation import measures, write_summary
from certiqa.metrics.trained import TrainedFacts, TrainedNetwork, save_metric
from certiqa.storage.csv_cells import safe_cell
from certiqa.storage.files import write_aside
from certiqa.training.metric import MetricFit, MetricModule, features_of, opinions

WEIGHTS, CARD = "metric.safetensors", "card.md"
FIGURES = {"srocc": measures.srocc, "plcc": measures.plcc, "krocc": measures.krocc, "rmse": measures.rmse}


def train_metric(config: DictConfig, folder: Path) -> None:
    """Train a metric in its folder; a finished one is only reported, fine-tuning goes on where it was stopped."""
    console = plain_console()
    done = None if config.fresh else finished_as_given(folder, config)
    if done is not None and (folder / WEIGHTS).is_file() and (folder / CARD).is_file():
        console.print(f"this metric is trained already (fresh=true starts over): {folder}", soft_wrap=True)
        print_figures(done, console)
        return
    if config.trainer.devices != 1 or config.trainer.num_nodes != 1:
        raise UserError(
            f"a metric is trained by one process, got trainer.devices={config.trainer.devices} and "
            f"trainer.num_nodes={config.trainer.num_nodes}; leave both at 1"
        )
    quiet_lightning()
    seed_everything(config.seed, verbose=False)
    data: QualityDataModule = build(config.data)
    fit: MetricFit = build(config.metric_fit)
    inputs = inputs_of(config, data, ("train", "validation", "test"))
    if not config.fresh:
        refuse_changes(folder, config, read_inputs(folder), inputs)
    if not data.test_set.has_opinions:
        raise UserError(
            f"the test images of '{data.dataset_name}' have no opinion scores, so nothing can be said of it"
        )
    network, facts, chosen = fit.with_head(data, chosen_device(config))
    if kept := take(folder, config):
        console.print(f"starting over; the earlier metric is kept in {kept}", soft_wrap=True)
    keep_inputs(folder, inputs)
    clock = Clock(folder, config_hash(config))
    found: dict[str, Any] = {"status": "failed", **chosen}
    clock.start()
    try:
        if fit.fine_tune:
            found |= fine_tune(config, folder, fit, network, facts, data, chosen["val_srocc"])
        sets, table = judged(network.to(chosen_device(config)), data, data.test_set)
        save_metric(network, folder / WEIGHTS, facts)
        with write_aside(folder / "scores.csv") as partial:
            table.map(safe_cell).to_csv(partial, index=False)
        found |= {"sets": sets, "status": "finished"}
        if len(sets) == 1:
            found |= sets[data.dataset_name]
    except KeyboardInterrupt:
        found["status"] = "interrupted"
        raise
    finally:
        clock.stop()
        known = {
            "task": config.task,
            "name": config.name,
            "config_hash": config_hash(config),
            GIVEN_FILES: inputs[GIVEN_FILES],
            "seconds": round(clock.seconds, 1),
            "data": data.dataset_name,
            "mos_kind": data.test_set.mos_kind,
            "num_train": len(data.train_set),
            "num_validation": len(data.validation_set),
            "num_images": len(data.test_set),
            "split_seed": data.split_seed,
            "backbone": fit.backbone,
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        }
        write_summary(folder, known | found)
    with write_aside(folder / CARD) as partial:
        partial.write_text(card(known | found, facts, data), encoding="utf-8")
    print_figures(known | found, console)
    resize = "" if facts.resize is None else f" data.resize={str(facts.resize).replace(' ', '')}"
    console.print(f"metric: {shown(folder / WEIGHTS)}, its card beside it; use it with", soft_wrap=True)
    console.print(
        f"  python evaluate.py defense=ms data={data.dataset_name}{resize} metric=trained "
        f"metric.weights={shown(folder / WEIGHTS)}",
        soft_wrap=True,
    )


def fine_tune(
    config: DictConfig,
    folder: Path,
    fit: MetricFit,
    network: TrainedNetwork,
    facts: TrainedFacts,
    data: QualityDataModule,
    before: float,
) -> dict[str, Any]:
    """Train head and backbone further, keep the best by the validation images, and return what is to be told.

    ``before`` is the SROCC on those with the head alone, which has to be surpassed.
    """
    console = plain_console()
    module = MetricModule(
        network,
        build(config.training.optimizer),
        mos_range=facts.mos_range,
        lower_better=facts.lower_better,
        warmup_steps=config.training.warmup_steps,
        seed=config.seed,
    )
    module.best_srocc = before
    module.best = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
    callbacks: list[pl.Callback] = [build(config.callbacks[name]) for name in ("checkpoint", "progress")]
    callbacks.insert(0, EarlyStopping("val/srocc", mode="max", patience=fit.patience))
    trainer = build_trainer(config, callbacks, build_loggers(config))
    start, damaged = newest_checkpoint(folder, module.state_dict())
    for told in set_damaged_aside(damaged):
        console.print(told, style="yellow", soft_wrap=True)
    if start.checkpoint:
        console.print(f"continuing from {start.checkpoint}, step {start.steps}", soft_wrap=True)
    trainer.fit(module, data, ckpt_path=start.checkpoint, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    network.load_state_dict(module.best)
    network.requires_grad_(False).eval()
    return {"val_srocc_head": before, "val_srocc": module.best_srocc, "steps": trainer.global_step}


def judged(
    network: TrainedNetwork, data: QualityDataModule, images: ImageDataset
) -> tuple[dict[str, dict[str, Any]], pd.DataFrame]:
    """Return figures by data set, and the scores, of a metric on whole images.

    Correlations are positive where it is right.
    """
    table = pd.DataFrame(
        {
            "set": [record.source or images.name for record in images.records],
            "image_id": [record.image_id for record in images.records],
            "mos": opinions(images),
            "score": features_of(network, data, images),
        }
    )
    sets = {}
    for name, rows in table.groupby("set", sort=False):
        scores, mos = rows.score.to_numpy(), rows.mos.to_numpy()
        sets[str(name)] = {
            **{key: measure(scores, mos) for key, measure in FIGURES.items()},
            "srocc_interval": list(measures.bootstrap_interval(measures.srocc, scores, mos)),
        }
    return sets, table


def print_figures(found: dict[str, Any], console: Console) -> None:
    """Print what is known of a trained metric."""
    table = Table(
        title=f"{found['name']}: {found['num_images']} test images, {found['mos_kind']}",
        caption=f"SROCC on validation images {found['val_srocc']:.3f}{' on average' if len(found['sets']) > 1 else ''}",
    )
    for name in ("set", "SROCC", "PLCC", "KROCC", "RMSE"):
        table.add_column(name, justify="left" if name == "set" else "right")
    for name, figures in found["sets"].items():
        low, high = figures["srocc_interval"]
        rest = (f"{figures[key]:.3f}" for key in ("plcc", "krocc", "rmse"))
        table.add_row(name, f"{figures['srocc']:.3f} [{low:.3f}, {high:.3f}]", *rest)
    console.print(table)


def card(found: dict[str, Any], facts: TrainedFacts, data: QualityDataModule) -> str:
    """Return the model card in Markdown."""
    known = {name: f"{published.licence} ({published.page})" for name, published in PUBLISHED.items()}
    licences = [f"{name}: {known.get(name, 'that of the images themselves')}" for name in found["sets"]]
    tuning = (
        f"fine-tuned for {found['steps']} steps, the best by SROCC on validation images kept "
        f"({found['val_srocc_head']:.3f} before, {found['val_srocc']:.3f} after)"
        if "steps" in found
        else "backbone as it is"
    )
    layers = ", ".join(map(str, facts.layers or ()))
    rows = {
        "network": f"{facts.backbone}, ImageNet weights; mean and deviation of {layers}; "
        f"linear head, ridge penalty {found['penalty']:g} by cross-validation; {tuning}",
        "input": f"RGB in [0, 1], sides of at least 32 pixels; trained with data.resize={facts.resize}",
        "output": f"{found['mos_kind']} on {facts.mos_range[0]:g} to {facts.mos_range[1]:g}, "
        f"{'lower' if facts.lower_better else 'higher'} is better",
        "data": f"{data.dataset_name}: {found['num_train']} images to train, {found['num_validation']} to validate, "
        f"{found['num_images']} to test; split_seed {found['split_seed']}",
        "licence of the data": "; ".join(licences),
        "made by": f"`{found['command']}`",
    }
    for name, figures in found["sets"].items():
        low, high = figures["srocc_interval"]
        rows[f"test images of {name}"] = (
            f"SROCC {figures['srocc']:.3f} [{low:.3f}, {high:.3f}] (95 % bootstrap over images), "
            f"PLCC {figures['plcc']:.3f}, KROCC {figures['krocc']:.3f}, RMSE {figures['rmse']:.3f}"
        )
    lines = [f"# Model card: {found['name']}", "", "| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {key} | {value} |" for key, value in rows.items()), ""])
