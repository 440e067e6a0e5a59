"""What the sweepers of ``-m`` are given: a wrong number would let a sweep wait for ever."""

from __future__ import annotations

from typing import Any

from certiqa.errors import require_count

SWEEPERS = {"BasicSweeper": {"max_batch_size": 1}, "OptunaSweeper": {"n_trials": 1, "n_jobs": 1}}


def check_sweeper(sweeper: Any) -> None:
    """Raise UserError for an option of ``hydra.sweeper`` with which no sweep can run; ``sweeper`` is its config."""
    name = str(sweeper["_target_"]).rpartition(".")[2]
    for key, least in SWEEPERS.get(name, {}).items():
        require_count(f"hydra.sweeper.{key}", sweeper.get(key), least)
