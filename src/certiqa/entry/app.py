"""What the Hydra entry points share: where conf/ is, resolvers, and errors as one clear message.

Nothing here imports torch, so that ``--help`` and a mistyped option answer at once.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from certiqa.console import accept_any_text
from certiqa.entry.composing import own_configs, own_loader, with_home_in_flags
from certiqa.entry.identity import register_resolvers
from certiqa.entry.preemption import REQUEUE, Requeue
from certiqa.entry.quoting import advice_on, advice_on_several
from certiqa.errors import UserError, suggest
from certiqa.storage.workers import end_with_parent

TRACEBACK, FULL_ERROR = "CERTIQA_TRACEBACK", "HYDRA_FULL_ERROR"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (*NO_SPACE, errno.ENAMETOOLONG, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM)

log = logging.getLogger(__name__)


def config_folder() -> Path:
    """Return the folder of the configs: inside an installed package, or conf/ of the checkout."""
    package = Path(__file__).resolve().parent.parent
    candidates = (package / "conf", package.parent.parent / "conf")
    for folder in candidates:
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"no configs at {' or '.join(map(str, candidates))}; install certiqa again")


def run_app(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run a Hydra app; print what a user did wrong as one message and exit with 1.

    The exit code is 130 after Ctrl-C, and 75 (EX_TEMPFAIL: try again) after SIGTERM, which schedulers can requeue on.
    Before the run has its folder, in the seconds of composing and importing, SIGTERM ends the process as any other.

    ``CERTIQA_TRACEBACK=1``, or Hydra's own ``HYDRA_FULL_ERROR=1``, shows the traceback too.
    """
    accept_any_text()
    register_resolvers()
    if int(os.environ.get("LOCAL_RANK") or 0):  # Lightning's launcher, or torchrun, has started this rank
        end_with_parent()
    # a metric._target_ of the user's own lies where the command is run, also beside an installed certiqa-train
    sys.path.append(os.getcwd())
    sys.argv[1:] = with_home_in_flags(sys.argv[1:])
    wants_traceback = os.environ.get(TRACEBACK, os.environ.get(FULL_ERROR)) == "1"
    try:
        try:
            guarded = GuardedTask(task, wants_traceback)
            with own_loader(), raising_hydras_errors(wants_traceback):
                hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=config_name)(guarded)()
        finally:
            complete = conclude_sweep()
        if not complete:
            sys.exit(1)
    except Requeue:
        print("certiqa: stopped by SIGTERM; what is done is kept, the same command continues", file=sys.stderr)
        sys.exit(REQUEUE)
    except KeyboardInterrupt:
        print("certiqa: interrupted; what is done is kept, the same command continues", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        fail(error, wants_traceback)


@contextmanager
def raising_hydras_errors(wants_traceback: bool) -> Iterator[None]:
    """Let Hydra raise its errors instead of printing them its own way.

    Processes that are started meanwhile, as those of DDP, inherit that; whether they show tracebacks is told apart.
    """
    told = {FULL_ERROR: "1", TRACEBACK: str(int(wants_traceback))}
    before = {key: os.environ.get(key) for key in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for key, value in before.items():
            del os.environ[key]
            if value is not None:
                os.environ[key] = value


def conclude_sweep() -> bool:
    """Print the table of the sweep that this was, if it was one; returns whether all of it is finished."""
    sweeps = sys.modules.get("certiqa.entry.sweep")  # imported by the launchers alone
    return sweeps is None or bool(sweeps.conclude())


@dataclass(frozen=True)
class GuardedTask:
    """A job whose errors are told here: Hydra would add lines of its own around them.

    Args:
        task: the job, of the composed config; may return the figure that a sweeper optimises.
        wants_traceback: whether to show tracebacks of the user's errors too.
    """

    task: Callable[[DictConfig], Any]
    wants_traceback: bool = False

    def __call__(self, config: DictConfig) -> Any:
        """Run the only job of this process: an error ends it with exit code 1."""
        try:
            return self.task(config)
        except Exception as error:
            fail(error, self.wants_traceback)

    def as_one_of_several(self, config: DictConfig) -> Any:
        """Run a job of a sweep; raises JobFailedError, after the same message, so that the others go on."""
        try:
            return self.task(config)
        except Exception as error:
            message = tell(error, self.wants_traceback)
            from certiqa.entry.admission import begin_log_of_failure

            begin_log_of_failure()
            log.error("%s", message)
            raise JobFailedError(message) from None


class JobFailedError(Exception):
    """A job of a sweep failed; the text is what its own terminal or log says."""


def fail(error: Exception, wants_traceback: bool) -> NoReturn:
    """Print the one message and exit with 1; where it is read by nobody any more, as by ``| head``, say nothing."""
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush at exit complains
        sys.exit(128 + signal.SIGPIPE)
    tell(error, wants_traceback)
    sys.exit(1)


def tell(error: Exception, wants_traceback: bool) -> str:
    """Print and return the one message; a traceback where asked for, or where the error is not the user's."""
    message = explain(error)
    if wants_traceback or message is None:
        traceback.print_exception(error)
    message = message or f"unexpected {type(error).__name__}: {error}"
    print(f"certiqa: {message}", file=sys.stderr, flush=True)
    return message


def explain(error: BaseException) -> str | None:
    """Return what the user did wrong; None where the error is not the user's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        if isinstance(cause, OSError) and cause.errno in UNWRITABLE:
            return _unwritable(cause)
        if type(cause).__name__ == "MisconfigurationException":  # Lightning's, of options that do not go together
            return f"Lightning cannot run with these options: {' '.join(str(cause).split())}"
        cause = cause.__cause__
    text = str(error)
    if isinstance(error, OverrideParseException):
        return advice_on(error, sys.argv[1:])
    if several := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'", text):
        return advice_on_several(several.group(1))
    if isinstance(error, MissingConfigException):
        return _missing_option(text)
    if text.startswith("Config group override must be"):  # a plain ValueError of Hydra's
        return _no_option_of_a_group()
    if isinstance(error, ConfigCompositionException | HydraException | OmegaConfBaseException) and not isinstance(
        error, InstantiationException
    ):
        return _unknown_key(text) or _first_paragraph(error)
    if isinstance(error, InstantiationException):
        return _first_paragraph(error)
    return None


def _unwritable(error: OSError) -> str:
    """Return what to do about a file or folder that the system refuses to write."""
    place = f"'{error.filename}'" if error.filename else "the run's files"
    advice = "free space there, or set paths.outputs to another folder"
    if error.errno == errno.ENAMETOOLONG:
        advice = "no name of a file or folder may take more than 255 bytes; shorten name=... or the hydra.*.dir in use"
    elif error.errno not in NO_SPACE:
        advice = "change its permissions, or set paths.outputs to a folder that can be written"
    return f"cannot write {place}: {error.strerror}; {advice}"


def _no_option_of_a_group() -> str:
    """Return what to say of a group that is set to null, a number or a mapping."""
    typed = [text.lstrip("+~").partition("=") for text in sys.argv[1:]]
    folder = config_folder()
    groups = [
        (key, value)
        for key, _, value in typed
        if (folder / key).is_dir() and not (folder / key / f"{value}.yaml").is_file()
    ]
    key, value = groups[0] if groups else ("a group", "null")
    options = sorted(path.stem for path in (folder / key).glob("*.yaml"))
    return f"{key}={value} is no option of {key}; there are: {', '.join(options)}"


def _missing_option(text: str) -> str:
    """Turn ``Could not find 'defense/dmsiqa'`` into a sentence with the nearest option."""
    match = re.search(r"(?:Could not find|Could not load) '([\w/]+)/([\w.-]+)'", text)
    if match is None:
        return text
    group, option = match.groups()
    places = [place / group for place in (config_folder(), own_configs(sys.argv[1:])) if place]
    options = sorted({path.stem for place in places for path in place.glob("*.yaml")})
    if (group, option) == ("hydra/sweeper", "optuna"):
        return "the Optuna sweeper is not installed; it is an extra: pip install 'certiqa[search]'"
    return f"no option '{option}' for {group}; there are: {', '.join(options)}.{suggest(option, options)}"


def _unknown_key(text: str) -> str | None:
    """Turn Hydra's complaint about an unknown key into a sentence with the nearest known key."""
    match = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' (?:is )?not in", text)
    group = re.search(r"override '([^']+)'\. No match in the defaults list", text)
    if group:
        groups = sorted(path.name for path in config_folder().iterdir() if path.is_dir())
        name = group.group(1)
        return f"no config group '{name}'; there are: {', '.join(groups)}.{suggest(name, groups)}"
    if match is None:
        return None
    key = match.group(1)
    known = known_keys()
    if key in known:
        return f"'{key}' is a key of other options of '{key.split('.')[0]}' than the one that is chosen"
    hint = suggest(key, known) or suggest(key.split(".")[-1], [name.split(".")[-1] for name in known])
    return (
        f"unknown key '{key}'.{hint} (`--cfg job` shows all keys; +{key}=... adds one that a class of your own needs)"
    )


def known_keys() -> list[str]:
    """Return every dotted key of the configs, read from the files themselves."""
    names: set[str] = set()
    root = config_folder()
    for path in root.rglob("*.yaml"):
        config = OmegaConf.load(path)
        if not isinstance(config, DictConfig):
            continue
        first = path.read_text(encoding="utf-8").splitlines()[:1]
        is_global = path.parent == root or bool(first and "_global_" in first[0])
        prefix = "" if is_global else ".".join(path.parent.relative_to(root).parts) + "."
        names.update(prefix + name for name in _dotted(config) if not name.startswith("defaults"))
    return sorted(names)


def _dotted(config: DictConfig, prefix: str = "") -> list[str]:
    names: list[str] = []
    for key in config:
        name = f"{prefix}{key!s}"
        names.append(name)
        child = config._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            names += _dotted(child, f"{name}.")
    return names


def _first_paragraph(error: BaseException) -> str:
    text = str(error.__cause__ or error)
    return f"{text.strip().splitlines()[0] if text.strip() else type(error).__name__}"
