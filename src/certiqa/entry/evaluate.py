"""``certiqa-evaluate``, ``python evaluate.py``: score and certify any defense without training."""

from __future__ import annotations

from omegaconf import DictConfig

from certiqa.entry.app import run_app


def evaluate(config: DictConfig) -> float | None:
    """Run one job and return what ``optimise`` asks for; heavy imports wait until the options are known to be right."""
    from certiqa.entry.pipeline import run

    return run(config)


def main() -> None:
    """Compose the config from the command line and run it."""
    run_app(evaluate, "evaluate")
