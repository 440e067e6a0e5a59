"""``certiqa-plan``: what an evaluation would take and could certify, without running it."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from certiqa.entry.app import run_app


def plan(config: DictConfig) -> None:
    """Print the plan of ``evaluate.py`` with the same options."""
    from certiqa.certification import require_certifiable
    from certiqa.certification.planning import plan_certification
    from certiqa.console import plain_console
    from certiqa.data.datamodule import QualityDataModule
    from certiqa.entry.agreement import check_built, check_options
    from certiqa.entry.build import build, build_defense, build_metric, check_contract, chosen_device
    from certiqa.reports.plan import plan_lines

    check_options(config)
    metric = build_metric(config)
    smooth = require_certifiable(build_defense(config, metric, trained=True))
    check_built(config, smooth, None)
    device = chosen_device(config)
    data: QualityDataModule = build(config.data)
    check_contract(metric, data.test_set.sizes())
    chosen = config.certification
    found = plan_certification(
        smooth.to(device),
        data.test_set.sizes(),
        list(chosen.radii),
        confidence=chosen.confidence,
        joint_confidence=chosen.joint_confidence,
        device=device,
    )
    console = plain_console()
    for part in plan_lines(found, smooth.sigma, chosen.confidence, chosen.joint_confidence):
        console.print(part, soft_wrap=True)


def main() -> None:
    """Compose the config from the command line and print its plan."""
    # a plan leaves no folder behind
    sys.argv += ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
    run_app(plan, "evaluate")
