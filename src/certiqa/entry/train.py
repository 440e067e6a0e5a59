"""``certiqa-train``, ``python train.py``: train a denoiser, smooth the metric, certify it, report."""

from __future__ import annotations

from omegaconf import DictConfig

from certiqa.entry.app import run_app


def train(config: DictConfig) -> float | None:
    """Run one job and return what ``optimise`` asks for; heavy imports wait until the options are known to be right."""
    from certiqa.entry.pipeline import run

    return run(config)


def main() -> None:
    """Compose the config from the command line and run it."""
    run_app(train, "train")
