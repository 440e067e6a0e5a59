"""Whether a command may write to a folder: only where it holds no results, or those of this very run.

Hydra would write ``.hydra`` and ``run.log`` before anything is known of the folder; both are written here instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from certiqa.entry.identity import config_hash, flat_identity
from certiqa.entry.log import begin_logs
from certiqa.entry.starting_over import set_aside
from certiqa.evaluation.identity import OtherRunError, differences, identity_file
from certiqa.evaluation.summary import sound_summary
from certiqa.storage.files import DamagedFileError, read_json, write_aside

CONFIG = ".hydra/config.yaml"
RESULTS = ("records/rank-*.jsonl", "records.parquet", "checkpoints/*", "study.json", "cells/*", "transfer/*")
"""What takes time to make."""


def refuse_other_run(folder: Path, config: DictConfig) -> None:
    """Raise OtherRunError where a folder holds results of another configuration.

    The summary decides, before there is one the configuration that the run was started with; what of both is damaged
    cannot tell, and the records are left to refuse the run.

    Args:
        folder: where the command would write.
        config: what it asks for.
    """
    if not holds_results(folder):
        return
    before = started_with(folder)
    then = sound_summary(folder).get("config_hash") or (before and config_hash(before))
    if then is None or then == config_hash(config):
        return
    identity = _flat(folder, before)
    own = flat_identity(config)
    changes = differences({key: value for key, value in identity.items() if key in own}, own) if identity else ""
    raise OtherRunError(
        f"'{folder}' holds the results of another run{f': {changes}' if changes else ''}. Give this one a folder of "
        "its own (leave hydra.run.dir and hydra.sweep.subdir out, and it gets one), or set fresh=true to start over "
        "in this one (the old results are kept aside)"
    )


def holds_results(folder: Path) -> bool:
    """Return whether a folder holds anything that a run took time to make."""
    return any(True for pattern in RESULTS for _ in folder.glob(pattern)) or (
        sound_summary(folder).get("status") == "finished"
    )


def started_with(folder: Path) -> DictConfig | None:
    """Return the configuration that a folder's run was started with; None where it does not say or is damaged."""
    try:
        config = OmegaConf.load(folder / CONFIG)
        assert isinstance(config, DictConfig)
        config_hash(config)
    except Exception:  # of YAML, of OmegaConf, or of a configuration that lacks what every one has
        return None
    return config


def _flat(folder: Path, config: DictConfig | None) -> dict[str, Any]:
    """Return the flat configuration of a folder's run, to name differences; empty where nothing says it."""
    try:
        stamped = read_json(identity_file(folder), dict)
    except DamagedFileError:
        stamped = None
    return stamped or (flat_identity(config) if config is not None else {})


def take(folder: Path, config: DictConfig) -> Path | None:
    """Begin to write to a folder that is this run's; called when all that can be checked before the work is checked.

    Args:
        folder: the run's.
        config: the composed one; with ``fresh`` an earlier run is moved aside.

    Returns:
        where that was moved to, None if there was none.
    """
    kept = set_aside(folder) if config.fresh else None
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    contents = {"config.yaml": OmegaConf.to_yaml(own)}
    if HydraConfig.initialized():
        contents["hydra.yaml"] = OmegaConf.to_yaml(OmegaConf.create({"hydra": HydraConfig.get()}))
        contents["overrides.yaml"] = OmegaConf.to_yaml(HydraConfig.get().overrides.task)
    (folder / CONFIG).parent.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        with write_aside(folder / ".hydra" / name) as partial:
            partial.write_text(text, encoding="utf-8")
    begin_logs()
    return kept


def begin_log_of_failure() -> None:
    """Begin the log of a job of a sweep that failed, where no earlier results lie in its folder."""
    if not holds_results(Path(HydraConfig.get().runtime.output_dir)):
        begin_logs()
