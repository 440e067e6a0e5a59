"""Weights & Biases: one W&B run for each job, whatever becomes of the job or of the network."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from certiqa.console import plain_console
from certiqa.errors import UserError, first_line, suggest
from certiqa.evaluation.gallery import read_gallery
from certiqa.evaluation.records import read_records
from certiqa.evaluation.tracked import RADIUS, attack_rows, flat_summary, radius_curves, record_rows
from certiqa.storage.files import DamagedFileError, read_json, write_json

log = logging.getLogger(__name__)
MODES = ("online", "offline", "disabled")
STATE = "wandb.json"  # in the run's folder: the W&B run's id, and what of it has not been sent
EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 255, "preempted": 255}  # 255 is W&B's own for Ctrl-C
STEP = "trainer/global_step"


class WandbTracker(WandbLogger):
    """Lightning's W&B logger, made safe for long runs: nothing that W&B or the network does stops one.

    A run that is continued goes on in the W&B run it had. Without a key, or where W&B cannot be reached, at the start
    or later, the rest is kept in the run's folder, and ``close`` says how to send it. Only the first rank logs.

    Args:
        folder: the run's folder.
        project: W&B's project.
        entity: user or team; None for the key's own.
        group: what W&B groups runs by, e.g. a sweep.
        tags: at most 64 characters each.
        job_type: "train" or "evaluate".
        mode: "online", "offline" or "disabled"; None for what ``WANDB_MODE`` or ``wandb offline`` say, else online
            where there is a key and offline without one.
        table_rows: greatest number of rows of the table of records.
        finish_timeout: seconds to wait at the end until W&B has everything.

    Raises:
        UserError: for an option that W&B would refuse.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        project: str = "certiqa",
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        job_type: str | None = None,
        mode: str | None = None,
        table_rows: int = 10_000,
        finish_timeout: float = 120.0,
    ) -> None:
        if mode is not None and mode not in MODES:
            raise UserError(
                f"logger.mode must be null or one of {', '.join(MODES)}, got '{mode}'.{suggest(mode, MODES)}"
            )
        wrong = [tag for tag in map(str, tags) if not 1 <= len(tag) <= 64]
        if isinstance(tags, str) or wrong:
            raise UserError(f"logger.tags must be a list of texts of 1 to 64 characters, got {tags!r}; e.g. [paper,v2]")
        if group is not None and len(group) > 128:
            raise UserError(f"logger.group may have 128 characters, '{group}' has {len(group)}; shorten it")
        self.folder = Path(folder)
        self.mode = mode
        self.table_rows = table_rows
        self.finish_timeout = finish_timeout
        self.say = plain_console().print
        self._opened = False
        self._config: dict[str, Any] = {}
        super().__init__(
            name=self.folder.name,
            save_dir=str(self.folder),
            project=project,
            entity=entity,
            group=group,
            tags=list(map(str, tags)),
            job_type=job_type,
        )
        self._wandb_init.pop("anonymous", None)

    # -- the W&B run ---------------------------------------------------------------------------------------

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started at its first use."""
        if self._experiment is None:
            self.open()
        return self._experiment

    @rank_zero_only
    def open(self, config: Mapping[str, Any] | None = None) -> None:
        """Start the W&B run, or go on in the one this folder had, and give it the config.

        Raises:
            UserError: before any work, if W&B refuses the key, the project or another option.
        """
        import wandb

        mode = self.choose_mode()
        self._config = dict(config or {})
        try:
            self._start(mode)
        except Exception as error:
            if mode != "online" or isinstance(error, wandb.errors.UsageError | ValueError):
                raise UserError(f"W&B does not start: {error}; correct it, or run with logger=csv") from error
            self._go_offline(error)
        run = self._experiment
        assert run is not None
        if run.settings.mode == "online":
            self.say(f"W&B: {run.url}", soft_wrap=True)

    def choose_mode(self) -> str:
        """Return the mode of this machine and these options; never asks for a key."""
        import wandb

        # what W&B has to say is said here, in the words of a run
        settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
        if self.mode in ("offline", "disabled") or (self.mode is None and settings.mode != "online"):
            return self.mode or {"dryrun": "offline"}.get(settings.mode, settings.mode)
        try:
            has_key = wandb.login(prompt=False, verify=False)
        except wandb.errors.AuthenticationError as error:
            raise UserError(f"W&B refuses the key: {error}; correct it, or set logger.mode=offline") from error
        if not has_key and self.mode == "online":
            raise UserError(
                "logger.mode=online, but there is no key for W&B; give one with `wandb login` or WANDB_API_KEY, or set "
                "logger.mode=offline"
            )
        if not has_key:
            self.say("W&B: offline, there is no key (`wandb login`, or WANDB_API_KEY)", soft_wrap=True)
        return "online" if has_key else "offline"

    def _start(self, mode: str) -> None:
        import wandb

        state = self._state()
        run_id = state.setdefault("id", secrets.token_hex(5))
        settings = wandb.Settings(
            console="off", silent=True, finish_timeout=self.finish_timeout, finish_timeout_raises=True
        )
        options = {**self._wandb_init, "id": run_id, "mode": mode, "resume": "allow", "settings": settings}
        self._experiment = run = wandb.init(**options, reinit="finish_previous")
        self._opened = True
        run.config.update(self._config, allow_val_change=True)
        self._id = run_id
        if mode == "disabled":
            return
        # an online run has its folder on the list too, until W&B has confirmed that it has all
        state["unsent"] = [*state.get("unsent", []), self._relative(run.settings.sync_dir)]
        self._write_state(state)
        for name, step in ((STEP, None), ("train/*", STEP), ("val/*", STEP), (RADIUS, None), ("certified/*", RADIUS)):
            run.define_metric(name, step_metric=step)

    def _go_offline(self, error: Exception) -> None:
        """Keep the rest of the run here, under the same id, after W&B could not be reached."""
        import wandb

        log.warning("W&B cannot be reached", exc_info=error)
        self.say(f"W&B cannot be reached, the rest is kept here: {first_line(error)}", style="yellow", soft_wrap=True)
        with suppress(Exception):  # W&B's service holds the id; on a machine that is cleared it may be dead itself
            wandb.teardown(exit_code=1)
        wandb.setup(settings=wandb.Settings(silent=True))
        self._start("offline")

    # -- what is logged ------------------------------------------------------------------------------------

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log points of curves; trouble with W&B is written to the run's log and stops nothing."""
        try:
            super().log_metrics(metrics, step)
        except UserError:
            raise
        except Exception as error:
            log.warning("W&B did not take %s: %s", ", ".join(metrics), error)

    @rank_zero_only
    def publish(self, summary: Mapping[str, Any]) -> None:
        """Send what a run found: the summary; if it was not interrupted also tables, pictures, report and checkpoint.

        Args:
            summary: the run's summary, its folder holding the rest.
        """
        if self._experiment is None:
            return
        try:
            self._send(summary)
        except Exception as error:
            try:
                self._finish("failed" if summary.get("status") == "failed" else "interrupted")
                self._go_offline(error)
                self._send(summary)
            except Exception as again:
                log.warning("W&B", exc_info=again)
                self.say(f"W&B did not take all results: {first_line(again)}", style="yellow", soft_wrap=True)

    def _send(self, summary: Mapping[str, Any]) -> None:
        run = self._experiment
        assert run is not None
        run.summary.update(flat_summary(summary))
        if summary.get("status") in ("interrupted", "preempted"):
            return  # it goes on later, and W&B must not keep a machine waiting that is taken away
        try:
            records = read_records(self.folder)
        except UserError:
            records = None
        if records is not None and len(records):
            columns, rows = record_rows(records, self.table_rows)
            run.log({"records": table(columns, rows)})
            if len(records) > len(rows):
                self.say(f"W&B: the table shows {len(rows)} of {len(records)} records (logger.table_rows)")
        if attacks := attack_rows(summary):
            run.log({"attacks": table(list(attacks[0]), [list(row.values()) for row in attacks])})
        if pictures := self._pictures():
            run.log({"gallery": pictures})
        self._log_files(f"report-{run.id}", "report", ("report.html", "summary.json", "records.parquet"))
        self._log_files(f"denoiser-{run.id}", "model", ("checkpoints/denoiser.safetensors", "checkpoints/last.ckpt"))
        if summary.get("status") == "finished":
            for row in radius_curves(summary):
                run.log(row)

    def _pictures(self) -> list[Any]:
        import wandb

        pictures = []
        for entry in read_gallery(self.folder):
            for panel in entry["panels"]:
                score = "" if panel.get("score") is None else f", score {panel['score']:.4g}"
                caption = f"{entry['image_id']}, {panel['label']}{score}"
                pictures.append(wandb.Image(str(self.folder / panel["file"]), caption=caption))
        return pictures

    def _log_files(self, name: str, kind: str, files: Sequence[str]) -> None:
        import wandb

        there = [self.folder / file for file in files if (self.folder / file).is_file()]
        if not there:
            return
        assert self._experiment is not None
        artifact = wandb.Artifact(name, type=kind)
        for path in there:
            artifact.add_file(str(path))
        self._experiment.log_artifact(artifact)

    # -- the end -------------------------------------------------------------------------------------------

    @rank_zero_only
    def close(self, status: str) -> None:
        """End the W&B run as what it was, and say how to send what W&B does not have.

        Args:
            status: "finished", "failed", "interrupted" or "preempted" (it will be continued by itself).
        """
        if self._experiment is not None:
            self._finish(status)
        if not self._opened:
            return
        self._opened = False
        if unsent := self.unsent():
            paths = " ".join(shlex.quote(str(path)) for path in unsent)
            self.say(f"W&B: to send this run: wandb sync --include-online {paths}", soft_wrap=True, highlight=False)

    def _finish(self, status: str) -> None:
        run, self._experiment = self._experiment, None
        assert run is not None
        mode, sync_dir = run.settings.mode, run.settings.sync_dir
        try:
            if status == "preempted":
                run.mark_preempting()
            run.finish(exit_code=EXIT_CODES[status])
            if mode == "online":
                state = self._state()
                state["unsent"] = [name for name in state.get("unsent", []) if name != self._relative(sync_dir)]
                self._write_state(state)
        except Exception as error:
            log.warning("W&B", exc_info=error)
            self.say(f"W&B does not have all of this run: {first_line(error)}", style="yellow", soft_wrap=True)

    def unsent(self) -> list[Path]:
        """Return the folders of those parts of the run that W&B does not have."""
        found = [self.folder / name for name in self._state().get("unsent", [])]
        return [path for path in found if path.is_dir() and not any(path.glob("*.wandb.synced"))]

    def _relative(self, sync_dir: str) -> str:
        return os.path.relpath(os.path.realpath(sync_dir), self.folder.resolve())

    def _state(self) -> dict[str, Any]:
        try:
            state = read_json(self.folder / STATE, dict) or {}
        except DamagedFileError as error:
            log.warning("%s; the run goes on in a W&B run of its own", error)
            state = {}
        unsent = state.get("unsent")
        known = {"id": state["id"]} if isinstance(state.get("id"), str) else {}
        return {**known, "unsent": [str(name) for name in unsent] if isinstance(unsent, list) else []}

    def _write_state(self, state: dict[str, Any]) -> None:
        write_json(self.folder / STATE, state)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """Return a W&B table, in whose columns a value may be missing."""
    import wandb

    return wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
