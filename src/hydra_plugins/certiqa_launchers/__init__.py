"""The launchers of ``-m``: ``hydra/launcher=sequential`` (one job after another), ``local`` (processes) and ``slurm``.

Hydra looks for launchers in the namespace package ``hydra_plugins`` at every start, so nothing heavy is imported here.
All of them check every job before the first is started, run only what is not finished, go on when a job fails, and
leave the table of the sweep (``certiqa.entry.sweep``).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

if TYPE_CHECKING:
    from certiqa.entry.sweep import Job, Sweep

LAUNCHER = "CERTIQA_LAUNCHER"  # in the environment of jobs on this machine: the process that waits for them


class SweepLauncher(Launcher):
    """What the three launchers share."""

    def __init__(self, **params: Any) -> None:
        self.params: dict[str, Any] = {
            key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for key, value in params.items()
        }
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.task_function: TaskFunction | None = None
        self.program, self.arguments_typed = sys.argv[0], sys.argv[1:]
        self.sweep: Sweep | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take the job in its form for sweeps, in which an error does not end the process."""
        from certiqa.entry.launching import check_sweeper

        check_sweeper(OmegaConf.to_container(config.hydra.sweeper))
        self.hydra_context, self.config = hydra_context, config
        self.task_function = getattr(task_function, "as_one_of_several", task_function)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the sweep's table out of what is sent to other processes."""
        return {**self.__dict__, "sweep": None}

    def require(self) -> None:
        """Raise UserError where jobs cannot be started on this machine at all."""

    @abstractmethod
    def run_jobs(self, sweep: Sweep, jobs: Sequence[Job]) -> None:
        """Run the jobs to their ends, noting in the sweep what became of each."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run what is missing of a batch of jobs."""
        from certiqa.entry import sweep as sweeps

        assert self.config is not None
        self.require()
        if self.sweep is None:
            self.sweep = sweeps.Sweep(self.config, self.compose)
            sweeps.current[:] = [self.sweep]
        known = len(self.sweep.cells)
        jobs = self.sweep.plan(job_overrides, initial_job_idx)
        if jobs:
            self.run_jobs(self.sweep, jobs)
        self.sweep.write()
        cells = self.sweep.cells[known:]
        return [self.returned(cell, overrides) for cell, overrides in zip(cells, job_overrides, strict=True)]

    def returned(self, cell: Any, overrides: Sequence[str]) -> JobReturn:
        """Return what a sweeper is told of a cell: a failure only to one that optimises, or it would stop the rest."""
        from certiqa.entry.app import JobFailedError
        from certiqa.entry.sweep import FINISHED

        assert self.config is not None
        assert self.sweep is not None
        result = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
        figure = self.sweep.figure(cell, self.config.get("optimise"))
        result.return_value = figure
        optimises = not str(self.config.hydra.sweeper._target_).endswith(".BasicSweeper")
        if optimises and (cell.state != FINISHED or figure is None):
            missing = "set optimise=val_srocc or another validation figure" if cell.state == FINISHED else cell.note
            result.return_value, result.status = JobFailedError(missing), JobStatus.FAILED
        return result

    def compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        """Compose one job's config."""
        assert self.config is not None
        assert self.hydra_context is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config

    def command_of(self, overrides: Sequence[str], config: DictConfig) -> list[str]:
        """Return the command line that runs one job alone, as run folders note it and DDP's processes repeat it.

        Args:
            overrides: the job's.
            config: the job's, composed; it is told to lie where the sweep puts it, as the command line is if need be.
        """
        from certiqa.entry.composing import as_in_its_job, config_flags, key_of, typed_options
        from certiqa.entry.quoting import as_text

        assert self.config is not None
        groups = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep", "hydra.mode")
        kept = [
            text for text in typed_options(self.config.hydra.overrides.hydra) if not key_of(text).startswith(groups)
        ]
        with as_in_its_job(config) as folder:
            place = [] if folder == Path(config.hydra.run.dir) else [as_text("hydra.run.dir", str(folder))]
        with read_write(config.hydra.run):
            config.hydra.run.dir = str(folder)
        flags = config_flags(self.arguments_typed)
        return [self.program, *flags, *kept, *overrides, *place, "hydra.mode=RUN"]


class OneByOneLauncher(SweepLauncher):
    """Runs jobs one after another in this process."""

    def run_jobs(self, sweep: Sweep, jobs: Sequence[Job]) -> None:
        """Run them in turn; what interrupts one ends the sweep, an error does not."""
        from certiqa.entry.preemption import stopping_on_signals
        from certiqa.entry.sweep import INTERRUPTED, RUNNING

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.task_function is not None
        setup_globals()
        arguments = sys.argv
        with stopping_on_signals() as preemption:
            for place, job in enumerate(jobs):
                print(f"[{place + 1}/{len(jobs)}] {job.cell.label}", flush=True)
                job.cell.state = RUNNING
                sys.argv = self.command_of(job.overrides, job.config)
                try:
                    returned = run_job(
                        hydra_context=self.hydra_context,
                        task_function=self.task_function,
                        config=job.config,
                        job_dir_key="hydra.sweep.dir",
                        job_subdir_key="hydra.sweep.subdir",
                    )
                except BaseException:
                    sweep.settle(job.cell, "stopped", state=INTERRUPTED)
                    raise
                finally:
                    sys.argv = arguments
                    configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
                sweep.settle(job.cell, note_of(returned))
                preemption.check()


class ProcessLauncher(SweepLauncher, BaseSubmititLauncher):
    """What launchers share whose jobs are processes of submitit's."""

    def __init__(self, **params: Any) -> None:
        SweepLauncher.__init__(self, **params)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See ``SweepLauncher``."""
        SweepLauncher.setup(self, hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """See ``SweepLauncher``."""
        return SweepLauncher.launch(self, job_overrides, initial_job_idx)

    def arguments(self, job: Job) -> tuple[Any, ...]:
        """Return what ``__call__`` is given in the job's own process."""
        state = Singleton.get_state()
        return list(job.overrides), "hydra.sweep.dir", job.number, f"job_{job.number}", state, job.cell.config_hash

    def __call__(
        self,
        sweep_overrides: list[str],
        job_dir_key: str,
        job_num: int,
        job_id: str,
        singleton_state: dict[type, Any],
        expected_hash: str,
    ) -> JobReturn:
        """Run one job in its own process; when the scheduler warns, stop in order and ask to be started again."""
        from certiqa.console import accept_any_text
        from certiqa.entry.app import JobFailedError
        from certiqa.entry.composing import as_in_its_job
        from certiqa.entry.identity import config_hash, register_resolvers
        from certiqa.entry.preemption import REQUEUE, Requeue, warning_signal
        from certiqa.storage.workers import stop_with

        register_resolvers()
        if launcher := os.environ.get(LAUNCHER):
            stop_with(int(launcher))
        sys.path.append(os.getcwd())
        accept_any_text()
        Singleton.set_state(singleton_state)
        setup_globals()
        config = self.compose(sweep_overrides, job_num)
        sys.argv = self.command_of(sweep_overrides, config)
        with as_in_its_job(config):
            found = config_hash(config)
        if found != expected_hash:
            raise JobFailedError("the configs have changed since the sweep was started; start it again")
        warning = warning_signal()
        assert warning is not None
        ask_again = signal.getsignal(warning)  # submitit's: writes down what to call, requeues, exits
        try:
            returned = BaseSubmititLauncher.__call__(
                self, sweep_overrides, job_dir_key, job_num, job_id, singleton_state
            )
        except Requeue as stop:
            if stop.number != warning:
                sys.exit(REQUEUE)  # SIGTERM: the scheduler itself decides whether the job runs again
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            assert callable(ask_again)
            ask_again(warning, None)
            time.sleep(600)  # the first process has asked for all; ending here would end it before it could
            sys.exit(REQUEUE)
        if returned.status is JobStatus.FAILED:
            raise JobFailedError(note_of(returned))
        return returned


class LocalLauncher(ProcessLauncher):
    """Runs each job in a process of its own on this machine, several at a time."""

    def run_jobs(self, sweep: Sweep, jobs: Sequence[Job]) -> None:
        """Keep ``parallel_jobs`` processes busy; interrupted, stop those that run."""
        import submitit

        from certiqa.entry.preemption import stopping_on_signals
        from certiqa.entry.sweep import INTERRUPTED, RUNNING

        check_processes(self.params, jobs)
        # jobs that outlived a launcher that was killed would hold their folders against the same command
        os.environ[LAUNCHER] = str(os.getpid())
        executor = submitit.LocalExecutor(folder=sweep.folder / "jobs" / "%j")
        waiting = list(jobs)
        running: dict[int, tuple[Any, Job]] = {}
        with stopping_on_signals():
            try:
                while waiting or running:
                    for slot in range(self.params["parallel_jobs"]):
                        if waiting and slot not in running:
                            job = waiting.pop(0)
                            executor.update_parameters(**self.resources(slot))
                            process = executor.submit(self, *self.arguments(job))
                            job.cell.state, job.cell.log = RUNNING, str(process.paths.stderr)
                            running[slot] = process, job
                            print(f"{job.cell.label}: process {process.job_id}", flush=True)
                            sweep.write()
                    for slot, (process, job) in list(running.items()):
                        if process.done():
                            sweep.settle(job.cell, outcome(process.paths.result_pickle, job.cell.log))
                            print(f"{job.cell.label}: {job.cell.state}", flush=True)
                            del running[slot]
                    time.sleep(0.2)
            except BaseException:
                for process, _ in running.values():
                    process.cancel()
                deadline = time.monotonic() + 30
                while time.monotonic() < deadline and not all(process.done() for process, _ in running.values()):
                    time.sleep(0.1)
                for _, job in running.values():
                    sweep.settle(job.cell, "stopped", state=INTERRUPTED)
                raise

    def resources(self, slot: int) -> dict[str, Any]:
        """Return submitit's parameters of the job in a slot; jobs take turns on the GPUs."""
        gpus = self.params["gpus"]
        if gpus is None:
            import torch

            gpus = list(range(torch.cuda.device_count()))
        found = {"gpus_per_node": 1, "visible_gpus": (gpus[slot % len(gpus)],)} if gpus else {}
        return {"timeout_min": self.params["timeout_min"], "setup": self.params["setup"] or (), **found}


class SlurmLauncher(ProcessLauncher):
    """Submits the jobs as one SLURM job array, waits for them, and takes up those that an earlier call submitted."""

    def require(self) -> None:
        """Raise UserError where there is no SLURM, it does not answer, or the partition is none of its own."""
        from certiqa.entry.slurm import require_slurm

        require_slurm(self.params["partition"])

    def run_jobs(self, sweep: Sweep, jobs: Sequence[Job]) -> None:
        """Submit what is not in the queue, and wait for all; interrupted, leave the jobs to SLURM."""
        from certiqa.entry.slurm import ACTIVE, standings_for_sure
        from certiqa.entry.sweep import RUNNING

        check_processes(self.params, jobs)
        known = {job.number: sweep.known_job(job.cell) for job in jobs}
        queue = standings_for_sure([cell.job for cell in known.values() if cell])
        new = []
        for job in jobs:
            found = known[job.number]
            if found is not None and found.job in queue and queue[found.job].state in ACTIVE:
                cell = job.cell
                cell.state, cell.job, cell.log, cell.result = RUNNING, found.job, found.log, found.result
                cell.note = f"in the queue already as job {found.job}"
            else:
                new.append(job)
        if taken := len(jobs) - len(new):
            print(f"{taken} jobs are in the queue already", flush=True)
        if new:
            self.submit(sweep, new)
        sweep.write()
        try:
            self.wait(sweep, list(jobs))
        except KeyboardInterrupt:
            ids = sorted({job.cell.job.split("_")[0] for job in jobs})
            print(
                f"\nthe jobs go on without this terminal; `scancel {' '.join(ids)}` stops them, and the same command "
                "waits for them again",
                file=sys.stderr,
            )
            raise

    def submit(self, sweep: Sweep, jobs: Sequence[Job]) -> None:
        """Submit jobs as one array."""
        import submitit
        from submitit.core.utils import FailedJobError

        from certiqa.entry.slurm import submission_error
        from certiqa.entry.sweep import RUNNING

        folder = sweep.folder / "jobs" / "%j"
        executor = submitit.AutoExecutor(
            folder=folder, cluster="slurm", slurm_max_num_timeout=self.params["max_num_timeout"]
        )
        everywhere = ("name", "timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes")
        own = {key: value for key, value in self.params.items() if value is not None and key != "max_num_timeout"}
        parameters = {key if key in everywhere else f"slurm_{key}": value for key, value in own.items()}
        executor.update_parameters(**parameters)
        arguments = [self.arguments(job) for job in jobs]
        try:
            submitted = executor.map_array(self, *zip(*arguments, strict=True))
        except FailedJobError as error:
            raise submission_error(str(error), len(jobs)) from error
        for job, entry in zip(jobs, submitted, strict=True):
            cell = job.cell
            cell.state, cell.job, cell.note = RUNNING, entry.job_id, ""
            cell.log, cell.result = str(entry.paths.stderr), str(entry.paths.result_pickle)
        print(f"submitted {len(jobs)} jobs: {submitted[0].job_id.split('_')[0]}", flush=True)

    def wait(self, sweep: Sweep, jobs: list[Job]) -> None:
        """Wait until each job has left its result, or has left the queue without one."""
        from certiqa.entry.slurm import ACTIVE, GRACE_SECONDS, standings, waiting_line

        left: dict[str, float] = {}  # when a job was first seen to have left the queue
        pause = 1.0
        told: str | None = None
        while jobs:
            queue = standings([job.cell.job for job in jobs])
            line = waiting_line((queue or {}).values())
            if line not in (None, told):
                print(line, flush=True)
                told = line
            for job in list(jobs):
                cell, now = job.cell, time.monotonic()
                state = ACTIVE[0] if queue is None else queue[cell.job].state if cell.job in queue else "GONE"
                if state in ACTIVE:
                    left.pop(cell.job, None)
                    continue
                if not Path(cell.result).is_file() and now - left.setdefault(cell.job, now) < GRACE_SECONDS:
                    continue
                note = outcome(Path(cell.result), cell.log, state)
                sweep.settle(cell, note, state=state_of(note))
                print(f"{cell.label}: {cell.state}", flush=True)
                jobs.remove(job)
            if jobs:
                time.sleep(pause)
                pause = min(15.0, pause * 1.2)


def check_processes(params: dict[str, Any], jobs: Sequence[Job]) -> None:
    """Raise UserError where jobs want more processes than the launcher gives each."""
    from certiqa.errors import UserError

    for job in jobs:
        trainer = job.config.trainer
        given, wanted = params.get("tasks_per_node", 1), trainer.devices
        if not isinstance(given, int):
            raise UserError(f"hydra.launcher.tasks_per_node={given} must be a number, as trainer.devices is")
        if wanted != given and ("tasks_per_node" in params or str(trainer.strategy).startswith("ddp")):
            advice = (
                f"set hydra.launcher.tasks_per_node={wanted}"
                if "tasks_per_node" in params
                else "use hydra/launcher=sequential, or slurm"
            )
            raise UserError(
                f"{job.cell.label}: trainer.devices={wanted}, but the launcher starts {given} process a job; {advice}"
            )


def note_of(returned: JobReturn) -> str:
    """Return the message of a job that failed, empty for one that did not."""
    return str(returned._return_value) if returned.status is JobStatus.FAILED else ""


def outcome(result: Path, log: str, state: str = "") -> str:
    """Return what a submitit job that has ended says of itself: empty where all is well.

    Args:
        result: the pickle that it leaves, in the folder that this sweep gave it.
        log: its standard error.
        state: the scheduler's word.
    """
    from certiqa.entry.slurm import ending
    from certiqa.errors import headline

    if result.is_file():
        from submitit.core.utils import pickle_load

        kind, content = pickle_load(result)
        if kind == "success":
            return ""
        told = str(content).strip()
        _, mark, message = told.rpartition("JobFailedError: ")
        return headline(message) if mark else told.splitlines()[-1]
    lines = Path(log).read_text(errors="replace").strip().splitlines() if Path(log).is_file() else []
    last = f" (its log ends: {' / '.join(lines[-2:])})" if lines else ""
    return f"{ending(state) if state else 'its process ended without a result'}{last}"


def state_of(note: str) -> str:
    """Return the state of a cell that is not finished though its job has ended."""
    from certiqa.entry.sweep import FAILED, INTERRUPTED

    return INTERRUPTED if note.startswith("cancelled") else FAILED
