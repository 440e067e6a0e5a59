"""What is asked of SLURM's own commands: is it there, which partitions has it, what has become of jobs."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

from certiqa.errors import UserError, suggest

ACTIVE = (
    *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"),
    *("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "PREEMPTED", "RESV_DEL_HOLD"),
)
"""States of jobs that have not ended, or will be started again."""
STUCK = (
    *("BadConstraints", "PartitionNodeLimit", "PartitionTimeLimit", "DependencyNeverSatisfied", "MaxMemPerLimit"),
    *("InvalidAccount", "InvalidQOS", "AccountNotAllowed", "QOSNotAllowed", "JobHeldUser", "JobHeldAdmin"),
    *("AssocMaxCpuPerJobLimit", "AssocMaxGRESPerJob", "AssocMaxWallDurationPerJobLimit", "QOSMaxCpuPerJobLimit"),
    *("QOSMaxGRESPerJob", "QOSMaxWallDurationPerJobLimit", "launch failed requeued held"),
)
"""Reasons for which a job waits until somebody does something about it."""
GRACE_SECONDS = 10.0  # for results to show on a shared disk after a job has left the queue
ELSEWHERE = "run the sweep with hydra/launcher=local (processes on this machine) or hydra/launcher=sequential (in turn)"


def require_slurm(partition: str | None) -> None:
    """Raise UserError where SLURM is not there or does not answer, or has no such partition."""
    for command in ("sbatch", "srun", "squeue", "sinfo"):
        if shutil.which(command) is None:
            raise UserError(f"there is no SLURM on this machine ({command} is not on the PATH); {ELSEWHERE}")
    asked = subprocess.run(["sinfo", "--noheader", "--format=%R"], capture_output=True, text=True)
    if asked.returncode:
        problem = (asked.stderr.strip().splitlines() or ["sinfo failed"])[-1]
        raise UserError(f"SLURM does not answer ({problem}); try again later, or {ELSEWHERE}")
    partitions = sorted(set(asked.stdout.split()))
    wrong = [name for name in (partition or "").split(",") if name and name not in partitions]
    if wrong:
        raise UserError(
            f"hydra.launcher.partition={partition}: SLURM has no partition '{wrong[0]}'; there are: "
            f"{', '.join(partitions)}.{suggest(wrong[0], partitions)}"
        )


class Standing(NamedTuple):
    """What SLURM says of a job: its state, and why it waits if it does."""

    state: str
    reason: str = ""


def standings(jobs: Sequence[str]) -> dict[str, Standing] | None:
    """Return how those jobs stand that SLURM still knows; None where it does not answer.

    Args:
        jobs: ids, of arrays as ``12_0``.
    """
    if not jobs:
        return {}
    roots = sorted({job.split("_")[0] for job in jobs})
    asked = subprocess.run(
        ["squeue", "--array", "--noheader", "--states=all", "--format=%i %T %r", f"--jobs={','.join(roots)}"],
        capture_output=True,
        text=True,
    )
    if asked.returncode and "Invalid job id" not in asked.stderr:
        return None
    lines = [line.split(maxsplit=2) for line in asked.stdout.splitlines() if line.strip()]
    return {job: Standing(*rest) for job, *rest in lines if job in set(jobs)}


def standings_for_sure(jobs: Sequence[str], tries: int = 5, pause: float = 3.0) -> dict[str, Standing]:
    """Return how jobs stand; an unanswered question is asked again, since jobs taken for gone would be run twice.

    Raises:
        UserError: SLURM does not answer.
    """
    for left in reversed(range(tries)):
        if (found := standings(jobs)) is not None:
            return found
        if left:
            time.sleep(pause)
    raise UserError(
        f"squeue does not answer, so it is not known which of {len(jobs)} jobs of an earlier call still go on; nothing "
        "was submitted. Give the same command again when it does"
    )


def waiting_line(found: Collection[Standing]) -> str | None:
    """Return why jobs wait in the queue, in a line; None where none does or SLURM has not looked at them yet."""
    reasons = sorted({each.reason for each in found if each.state == "PENDING"} - {"", "None"})
    if not reasons:
        return None
    line = f"waiting in the queue: {', '.join(reasons)}"
    if stuck := [reason for reason in reasons if reason in STUCK]:
        line += f"; {stuck[0]} does not pass by itself: release the jobs, or cancel them and change hydra.launcher.*"
    return line


def submission_error(text: str, jobs: int) -> UserError:
    """Return what sbatch refused, in words."""
    lines = re.findall(r"sbatch: error: (.*)", text)
    told = lines[-1] if lines else text.strip().splitlines()[-1]
    if "Invalid job array" in text:
        told += f" (MaxArraySize is below the {jobs} jobs; hydra.sweeper.max_batch_size=500 sends them in parts)"
    return UserError(f"SLURM refused the sweep: {told}; see hydra.launcher.* (`--cfg hydra` shows it)")


def ending(state: str) -> str:
    """Return what a state of SLURM means for a job that left no result."""
    meanings = {
        "OUT_OF_MEMORY": "out of memory; hydra.launcher.mem_gb gives more",
        "TIMEOUT": "out of time; hydra.launcher.timeout_min gives more",
        "CANCELLED": "cancelled",
        "NODE_FAIL": "its machine failed",
        "GONE": "it left the queue without a result",
    }
    return meanings.get(state, f"SLURM says {state}")
