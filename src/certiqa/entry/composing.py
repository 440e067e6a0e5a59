"""How configs are composed: as Hydra does, with keys that only swept options have, and ``~`` for the home folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal import hydra as hydra_commands
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

CONFIG_FLAGS = ("config_path", "config_name", "config_dir")
HOME_FLAGS = ("--config-path", "--config-dir")


class ConfigLoader(ConfigLoaderImpl):
    """Hydra's loader of configs, with three things added.

    - The config of a sweep as a whole is composed before any swept option is chosen, so it lacks the keys that only
      those options have. There such keys are left to the jobs: ``-m attack=ifgsm,apgd attack.eps=4/255``. Each job
      is composed strictly before the first one starts.
    - ``~`` stands for the home folder in ``paths.*`` and in Hydra's own folders, wherever it was written.
    - The working directory stays that of the command, so that relative paths are those that were typed.
    """

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """See Hydra's."""
        chosen = list(overrides)
        while True:
            try:
                config = super().load_configuration(config_name, chosen, run_mode, from_shell, validate_sweep_overrides)
                break
            except ConfigCompositionException as error:
                lacking = _lacking_key(error)
                fewer = [text for text in chosen if lacking is None or key_of(text) != lacking]
                if run_mode != RunMode.MULTIRUN or len(fewer) == len(chosen):
                    raise
                chosen = fewer
        if len(chosen) < len(overrides):
            left = set(config.hydra.overrides.hydra)
            config.hydra.overrides.task = [text for text in overrides if text not in left]
        _settle_folders(config)
        return config


def _lacking_key(error: BaseException) -> str | None:
    """Return the key that an override of Hydra's could not find, None where something else is wrong."""
    match = re.match(r"Could not (?:override|delete from config\.) '([^']+)'", str(error))
    return match.group(1) if match and "No match in the defaults list" not in str(error) else None


def key_of(override: str) -> str:
    """Return the key of an override: ``attack.eps`` of ``++attack.eps=4/255``."""
    return override.lstrip("+~").partition("=")[0]


def typed_options(overrides: ListConfig) -> list[str]:
    """Return overrides that Hydra keeps in a config as they were typed: ``${...}`` in them is resolved in the jobs."""
    content = OmegaConf.to_container(overrides)
    assert isinstance(content, list)
    return [str(text) for text in content]


def _settle_folders(config: DictConfig) -> None:
    with read_write(config), open_dict(config):
        for section in (config.get("paths"), config.hydra.run, config.hydra.sweep):
            if isinstance(section, DictConfig):
                for key, value in OmegaConf.to_container(section, resolve=False).items():  # type: ignore[union-attr]
                    if (place := with_home(value)) != value:
                        section[key] = place
        config.hydra.job.chdir = False


def with_home(content: Any) -> Any:
    """Return a value, or all values of a nested dict or list, with ``~`` at its start as the home folder.

    >>> with_home({"weights": "~/w.safetensors", "size": 3})["weights"].endswith("/w.safetensors")
    True
    """
    if isinstance(content, dict):
        return {key: with_home(value) for key, value in content.items()}
    if isinstance(content, list):
        return [with_home(value) for value in content]
    return os.path.expanduser(content) if isinstance(content, str) else content


@contextmanager
def own_loader() -> Iterator[None]:
    """Let Hydra's commands compose with this loader; Hydra has no option for it."""
    name, before = ConfigLoaderImpl.__name__, hydra_commands.ConfigLoaderImpl
    setattr(hydra_commands, name, ConfigLoader)
    try:
        yield
    finally:
        setattr(hydra_commands, name, before)


@contextmanager
def as_in_its_job(config: DictConfig) -> Iterator[Path]:
    """Let ``${hydra:...}`` in a composed job of a sweep be what it is when the job runs; yields the job's folder."""
    known = HydraConfig.instance()
    before = known.cfg
    known.set_config(config)
    try:
        folder = Path(config.hydra.sweep.dir, config.hydra.sweep.subdir)
        with read_write(config.hydra.runtime):
            config.hydra.runtime.output_dir = str(folder.absolute())
        known.set_config(config)
        yield folder
    finally:
        known.cfg = before


def config_flags(arguments: Sequence[str]) -> list[str]:
    """Return what of a command line says where configs are: ``--config-dir``, ``--config-path``, ``--config-name``.

    >>> config_flags(["-cd", "mine", "-m", "seed=0,1"])
    ['--config-dir=mine']
    """
    given = vars(get_args_parser().parse_known_args(list(arguments))[0])
    return [f"--{flag.replace('_', '-')}={given[flag]}" for flag in CONFIG_FLAGS if given[flag] is not None]


def own_configs(arguments: Sequence[str]) -> Path | None:
    """Return the folder that a command line gives with ``--config-dir``."""
    given = get_args_parser().parse_known_args(list(arguments))[0].config_dir
    return Path(given) if given else None


def with_home_in_flags(arguments: Sequence[str]) -> list[str]:
    """Return a command line with ``~`` as the home folder in ``--config-dir=~/mine``, which shells leave as it is.

    >>> with_home_in_flags(["--config-dir=~/mine", "seed=0"])[0].endswith("~/mine")
    False
    """
    parts = [text.partition("=") for text in arguments]
    return [f"{flag}{mark}{with_home(value) if flag in HOME_FLAGS else value}" for flag, mark, value in parts]
