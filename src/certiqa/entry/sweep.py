"""A sweep: which cells it has, which of them are done already, and the table of what became of them.

A cell is one job of ``-m``; it is named by its run folder, hence by the hash of what it computes. Sweeps share cells:
what another sweep has finished is not run again.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from certiqa.console import plain_console
from certiqa.entry.checks import check_config, check_reach
from certiqa.entry.composing import as_in_its_job, key_of, typed_options
from certiqa.entry.identity import NOT_SEMANTIC, SWEEP, config_hash, flat_identity
from certiqa.errors import UserError, first_line, headline
from certiqa.storage.csv_cells import safe_cell
from certiqa.storage.files import DamagedFileError, read_json, write_aside, write_json

FINISHED, FAILED, INTERRUPTED, RUNNING, WAITING = "finished", "failed", "interrupted", "running", "not started"
COLUMNS = ("cell", "state", "folder", "log", "note")


@dataclass
class Cell:
    """One job of a sweep.

    Attributes:
        label: the options that tell it from the sweep's other cells.
        folder: its run folder.
        config_hash: of what it computes.
        identity: the same, key by key.
        state: finished, failed, interrupted, running or not started.
        note: why, where there is something to say.
        log: the file to look at.
        job: the scheduler's id, empty where there is none.
        result: the file that the scheduler's job leaves at its end.
    """

    label: str
    folder: str
    config_hash: str
    identity: dict[str, Any] = field(default_factory=dict, repr=False)
    state: str = WAITING
    note: str = ""
    log: str = ""
    job: str = ""
    result: str = ""


@dataclass(frozen=True)
class Job:
    """What a launcher starts: a cell, its overrides, its number and its composed config."""

    cell: Cell
    overrides: tuple[str, ...]
    number: int
    config: DictConfig = field(repr=False)


class Sweep:
    """The cells of one ``-m`` command, in the order of its jobs.

    Args:
        config: the composed config of the sweep itself, with its ``hydra`` node.
        compose: composes one job's config from its overrides and number.

    Attributes:
        folder: holds ``table.csv``, ``sweep.json`` and the scheduler's logs; the same command has the same one.
    """

    def __init__(self, config: DictConfig, compose: Callable[[Sequence[str], int], DictConfig]) -> None:
        self.compose = compose
        self.task = str(config.task)
        self.fixed = fixed_keys(typed_options(config.hydra.overrides.task))
        self.cells: list[Cell] = []
        choice = OmegaConf.to_container(config.hydra.runtime.choices).get("experiment")  # type: ignore[union-attr]
        name = f"{self.task}-{str(choice or 'sweep').replace('/', '-')}-{sweep_hash(config)}"
        self.folder = Path(config.paths.outputs) / "sweeps" / name
        os.environ[SWEEP] = name  # W&B groups the sweep's runs by it
        self.earlier = earlier_cells(self.folder.parent, self.task)

    def plan(self, job_overrides: Sequence[Sequence[str]], first_number: int) -> list[Job]:
        """Add cells, check every one before any is started, and return the jobs that are still to be done.

        A cell that is finished is only reported, one that occurs twice is run once, and one that was run with other
        settings before is said to be new.
        """
        from certiqa.entry.admission import refuse_other_run
        from certiqa.entry.finished import finished_as_given
        from certiqa.entry.folder import locked
        from certiqa.entry.starting_over import check_own, set_aside

        jobs, wrong, finished = [], [], set()
        for place, overrides in enumerate(job_overrides):
            number = first_number + place
            config = self.compose(overrides, number)
            label = " ".join(o for o in overrides if key_of(o) not in self.fixed) or "the only one"
            try:
                words = check_config(config)
                with as_in_its_job(config) as folder:
                    check_reach(config)
                    check_name(folder)
                    if config.get("fresh"):
                        check_own(folder)
                    else:
                        refuse_other_run(folder, config)
                        if finished_as_given(folder, config):
                            finished.add(str(folder))
                    identity = config_hash(config), flat_identity(config)
            except Exception as error:
                wrong.append(f"{label}: {reason(error)}")
                continue
            cell = Cell(label, str(folder), *identity, log=str(folder / "run.log"))
            jobs.append(Job(cell, (*overrides, *words), number, config))
        if wrong:
            more = f"; and {len(wrong) - 1} more of the {len(job_overrides)} jobs" if len(wrong) > 1 else ""
            raise UserError(f"{wrong[0].rstrip('.')}{more}. Nothing was started")
        self._check_folders([job.cell for job in jobs])
        missing = []
        for job in jobs:
            cell, overrides = job.cell, job.overrides
            twin = next((other for other in self.cells if other.config_hash == cell.config_hash), None)
            if twin is not None:
                cell.note = f"the same run as {twin.label}"
            self.cells.append(cell)
            if twin is not None:
                continue
            if job.config.get("fresh"):
                job.config.fresh = False
                overrides = (*(o for o in overrides if key_of(o) != "fresh"), "fresh=false")
                if Path(cell.folder).is_dir():
                    with locked(Path(cell.folder)):
                        kept = set_aside(Path(cell.folder))
                    cell.note = f"starting over; the earlier run is kept in {kept}" if kept else ""
            if cell.folder in finished:
                cell.state, cell.note = FINISHED, "was finished already"
            else:
                missing.append(Job(cell, overrides, job.number, job.config))
        self._announce([job.cell for job in missing])
        self.write()
        return missing

    def _check_folders(self, cells: Sequence[Cell]) -> None:
        """Refuse different runs in one folder, which an own ``hydra.sweep.subdir`` can ask for."""
        owners = {cell.folder: cell for cell in self.cells}
        for cell in cells:
            other = owners.setdefault(cell.folder, cell)
            if other.config_hash != cell.config_hash:
                raise UserError(
                    f"{other.label} and {cell.label} are different runs but would share the folder '{cell.folder}'; "
                    "leave hydra.sweep.subdir as it is. Nothing was started"
                )

    def _announce(self, missing: Sequence[Cell]) -> None:
        """Say how many cells there are and how many are still to be done, and which are new since an earlier sweep."""
        done = len(self.cells) - len(missing)
        print(f"sweep of {len(self.cells)} cells: {done} done already, {len(missing)} to run; {self.folder}")
        told: dict[str, int] = {}
        for cell in missing:
            if (change := self._change_since(cell)) is not None:
                told[change] = told.get(change, 0) + 1
        for change, number in told.items():
            cells = "1 cell is" if number == 1 else f"{number} cells are"
            print(f"{cells} new, as {change} since an earlier sweep; the runs of that one are kept")

    def _change_since(self, cell: Cell) -> str | None:
        """Return what differs from a cell of the same label of an earlier sweep; None if there is none."""
        from certiqa.evaluation.identity import differences

        same = [other for other in self.earlier if other.label == cell.label]
        if not same or any(other.config_hash == cell.config_hash for other in same):
            return None
        return differences(same[-1].identity, cell.identity, most=3)

    def known_job(self, cell: Cell) -> Cell | None:
        """Return what an earlier sweep, or this one before, knows of the cell's job at the scheduler."""
        known = [other for other in self.earlier if other.config_hash == cell.config_hash and other.job]
        return known[-1] if known else None

    def settle(self, cell: Cell, returned_note: str = "", *, state: str = FAILED) -> None:
        """Note what became of a cell whose job has ended, from its folder, and write the table."""
        from certiqa.entry.folder import finished_summary

        summary = finished_summary(Path(cell.folder), cell.config_hash)
        cell.state, cell.note = (FINISHED if summary else state), returned_note
        self.write()

    def figure(self, cell: Cell, key: str | None) -> float | None:
        """Return a figure of a finished cell's summary, None without a key or before it is finished."""
        from certiqa.evaluation.summary import sound_summary

        if key is None or cell.state != FINISHED:
            return None
        value = sound_summary(cell.folder).get(key)
        return None if value is None else float(value)

    def write(self) -> None:
        """Write ``table.csv`` and ``sweep.json``; a cell that occurs twice shows what became of its twin."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for cell in self.cells:
            twin = next(other for other in self.cells if other.config_hash == cell.config_hash)
            cell.state = twin.state
        content = {"task": self.task, "arguments": sys.argv[1:], "cells": [asdict(cell) for cell in self.cells]}
        write_json(self.folder / "sweep.json", content, durable=False, default=str)
        with (
            write_aside(self.folder / "table.csv", durable=False) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            rows = csv.writer(file)
            rows.writerow(COLUMNS)
            rows.writerows(map(safe_cell, (c.label, c.state, c.folder, c.log, c.note)) for c in self.cells)

    def show(self) -> None:
        """Print the table of what finished, what did not, and where its log is."""
        from rich.table import Table
        from rich.text import Text

        table = Table("cell", "state", "log", "note", title="Sweep")
        colours = {FINISHED: "green", FAILED: "red", RUNNING: "cyan"}
        for cell in self.cells:
            log = "" if cell.state == FINISHED else cell.log
            table.add_row(
                Text(cell.label),
                Text(cell.state, colours.get(cell.state, "yellow")),
                Text(log),
                Text(headline(cell.note)),
            )
        console = plain_console()
        console.print(table)
        counts = {state: sum(cell.state == state for cell in self.cells) for state in (FINISHED, FAILED)}
        others = len(self.cells) - sum(counts.values())
        console.print(
            f"{counts[FINISHED]} finished, {counts[FAILED]} failed, {others} others; table: {self.folder / 'table.csv'}"
            + ("" if counts[FINISHED] == len(self.cells) else "; the same command runs what is missing"),
            soft_wrap=True,
        )


current: list[Sweep] = []
"""The sweep that this process launches, if it launches one."""


def conclude() -> bool:
    """Print the table of the sweep that this process launched; returns whether all of it is finished."""
    if not current:
        return True
    sweep = current.pop()
    if sweep.cells:
        sweep.write()
        sweep.show()
    return all(cell.state == FINISHED for cell in sweep.cells)


def reason(error: BaseException) -> str:
    """Return the sentence of an error of one job."""
    from certiqa.entry.app import explain

    return explain(error) or f"{type(error).__name__}: {error}"


def fixed_keys(typed: Sequence[str]) -> set[str]:
    """Return the keys that the command line gives one value each: they do not tell cells apart."""
    overrides = OverridesParser.create().parse_overrides(list(typed))
    return {override.get_key_element().lstrip("+~") for override in overrides if not override.is_sweep_override()}


def check_name(folder: Path) -> None:
    """Raise UserError where a cell's folder has a name that no folder may have."""
    for name in folder.parts:
        if len(os.fsencode(name)) > 255:
            raise UserError(
                f"no folder's name may take more than 255 bytes, but this is the run's: '{name}'; "
                "leave hydra.sweep.subdir as it is, or shorten name=..."
            )


def sweep_hash(config: DictConfig) -> str:
    """Return eight hexadecimal digits of what the command asks for: options and sweeper, not where and how fast."""
    ignored = (*NOT_SEMANTIC, "paths", "logger")
    typed = [
        text
        for text in typed_options(config.hydra.overrides.task)
        if not any(key_of(text) == key or key_of(text).startswith(f"{key}.") for key in ignored)
    ]
    sweeper = OmegaConf.to_container(config.hydra.sweeper, resolve=True, enum_to_str=True)
    text = json.dumps([str(config.task), sorted(typed), sweeper], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def earlier_cells(folder: Path, task: str) -> list[Cell]:
    """Return the cells of all sweeps of a task recorded in a folder, the oldest sweep first.

    A file that is cut short, or that another version wrote otherwise, is passed over with a note: it is only needed to
    say what changed and to find jobs that still go on.
    """
    cells = []
    for path in sorted(folder.glob("*/sweep.json"), key=lambda path: path.stat().st_mtime):
        try:
            content = read_json(path, dict) or {}
            found = [Cell(**row) for row in content["cells"]] if content["task"] == task else []
            if not all(isinstance(cell.identity, dict) for cell in found):
                raise TypeError("the identity of a cell is no object")
        except DamagedFileError as error:
            print(f"the earlier sweep in '{path}' cannot be read and is passed over ({error.reason})")
            continue
        except (TypeError, KeyError) as error:
            print(f"the earlier sweep in '{path}' cannot be read and is passed over ({first_line(error)})")
            continue
        cells += found
    return cells
