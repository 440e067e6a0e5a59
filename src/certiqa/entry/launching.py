"""What the launchers and sweepers of ``-m`` are given: a wrong number would let a sweep wait for ever."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from certiqa.errors import UserError, require_count

NEEDED = {"parallel_jobs": 1, "timeout_min": 1, "max_num_timeout": 0}
"""Whole numbers of the launchers that must be given, with the least that each may be."""
OPTIONAL = {"array_parallelism": 1, "nodes": 1, "cpus_per_task": 1, "gpus_per_node": 0, "signal_delay_s": 0}
"""Whole numbers of the launchers that null leaves to SLURM."""
SWEEPERS = {"BasicSweeper": {"max_batch_size": 1}, "OptunaSweeper": {"n_trials": 1, "n_jobs": 1}}


def check_launcher(launcher: Mapping[str, Any], sweeper: Any) -> None:
    """Raise UserError for an option of ``hydra.launcher`` or ``hydra.sweeper`` with which no sweep can run.

    Args:
        launcher: the options of the launcher.
        sweeper: the config of the sweeper.
    """
    for key, least in NEEDED.items():
        if key in launcher and launcher[key] is None:
            raise UserError(f"hydra.launcher.{key} must be a whole number of at least {least}, got null")
    for key, least in (NEEDED | OPTIONAL).items():
        require_count(f"hydra.launcher.{key}", launcher.get(key), least)
    memory = launcher.get("mem_gb")
    if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int | float) or not memory > 0):
        raise UserError(f"hydra.launcher.mem_gb must be a number above 0, or null, got {memory!r}")
    for key, kind, example in (("setup", str, "[source ~/site.sh]"), ("gpus", int, "[0,1]")):
        given = launcher.get(key)
        if given is not None and not (isinstance(given, list) and all(type(part) is kind for part in given)):
            raise UserError(f"hydra.launcher.{key} must be a list such as {example}, or null, got {given!r}")
    more = launcher.get("additional_parameters")
    if not isinstance(more, dict | None):
        raise UserError(
            f"hydra.launcher.additional_parameters must be options of sbatch such as {{reservation: mine}}, or null, "
            f"got {more!r}"
        )
    name = str(sweeper["_target_"]).rpartition(".")[2]
    for key, least in SWEEPERS.get(name, {}).items():
        require_count(f"hydra.sweeper.{key}", sweeper.get(key), least)
