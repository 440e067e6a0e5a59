"""Options of launchers and sweepers with which a sweep would wait for ever, or end in its middle, are refused."""

import re

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["local", "hydra.launcher.parallel_jobs=0"], "parallel_jobs must be a whole number of at least 1, .*got 0"),
        (
            ["local", "hydra.launcher.parallel_jobs=null"],
            "parallel_jobs must be a whole number of at least 1, got null",
        ),
        (["local", "hydra.launcher.timeout_min=0"], "timeout_min must be a whole number of at least 1, .*got 0"),
        (
            ["local", "hydra.launcher.gpus=0"],
            "gpus must be a list, each entry a whole number of at least 0, or null, got 0",
        ),
        (
            ["local", "hydra.launcher.setup=true"],
            "setup must be a list, each entry text, not empty, or null, got true",
        ),
        (["slurm", "hydra.launcher.array_parallelism=0"], "array_parallelism must be a whole number of at least 1"),
        (["slurm", "hydra.launcher.mem_gb=-1"], "mem_gb must be a number above 0 or null, got -1"),
        (["slurm", "hydra.launcher.additional_parameters=[hold]"], "additional_parameters must be a mapping"),
        (["sequential", "hydra.sweeper.max_batch_size=0"], "max_batch_size must be a whole number of at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_launcher_that_could_not_run_is_refused(sweep, tmp_path, arguments, message):
    launcher, option = arguments
    code, _, errors, _ = sweep("defense=none", "seed=0,1", f"hydra/launcher={launcher}", option)
    assert code == 1
    assert re.search(f"^certiqa: hydra.*{message}", errors), errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.glob("o/*/*/runs"))


@pytest.mark.parametrize("option", ["n_trials=0", "n_jobs=0"])
def test_a_search_without_trials_is_refused(sweep, option):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="the extra certiqa[search] is not installed")
    code, _, errors, _ = sweep("hparams_search=dms_iqa", f"hydra.sweeper.{option}", name="train")
    assert code == 1
    assert f"hydra.sweeper.{option.partition('=')[0]} must be a whole number of at least 1" in errors
