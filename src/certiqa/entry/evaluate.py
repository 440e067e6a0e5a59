"""``certiqa-evaluate``, ``python evaluate.py``: score and certify any defense without training."""

from __future__ import annotations

from omegaconf import DictConfig

from certiqa.entry.app import run_app


def evaluate(config: DictConfig) -> None:
    """Run one job; heavy imports wait until the options are known to be right."""
    from certiqa.entry.pipeline import run

    run(config)


def main() -> None:
    """Compose the config from the command line and run it."""
    run_app(evaluate, "evaluate")
