"""Run a command of certiqa in a process of its own, and kill it at a chosen moment.

The process is forked from one that has imported everything, which saves the ten seconds that each start takes. What it
does to files below its working directory, and each step of an optimizer, is an event with a label, such as
``append records/rank-0.jsonl`` or ``step``; a run that is repeated has the same events, so that ``the third "step"``
is the same moment each time. Events come from Python's audit hooks: the commands know nothing of this.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

PARTIAL = re.compile(r"\.([^/]+?)\.\d+-[0-9a-f]{8}\.partial")  # as certiqa.storage.files names what it writes aside
WRITES = os.O_WRONLY | os.O_RDWR
MODULES = (
    *("certiqa.attacks", "certiqa.entry.pipeline", "certiqa.entry.sweep", "hydra_plugins.certiqa_launchers"),
    *("hydra._internal.config_loader_impl", "hydra._internal.hydra", "hydra.core.override_parser.overrides_parser"),
    *("matplotlib.backends.backend_svg", "pandas", "pyarrow.parquet"),
)
LOGS = re.compile(r"run\.log$|run\.lock$|\.hydra/|^command\.")


@dataclass(frozen=True)
class Moment:
    """When to kill: before the event of this label happens for the ``number``-th time.

    Args:
        label: of the event.
        number: counted from 1.
        torn: leave the file of that event in part, as a kill in the middle of writing does.
    """

    label: str
    number: int = 1
    torn: bool = False

    def __str__(self) -> str:
        return f"{self.label} ({self.number}{', torn' if self.torn else ''})"


@dataclass(frozen=True)
class Ended:
    """What became of a command.

    Attributes:
        code: exit code; -9 where it was killed.
        output: of both streams.
        events: labels, in their order.
    """

    code: int
    output: str
    events: tuple[str, ...]

    @property
    def message(self) -> str:
        """The last line of what it printed."""
        return next((line for line in reversed(self.output.splitlines()) if line.strip()), "")


def load_everything() -> None:
    """Import what the commands import, once for all processes that are forked from this one."""
    for name in MODULES:
        import_module(name)


def run(arguments: list[str], place: Path, kill: Moment | None = None) -> Ended:
    """Run ``train.py ...`` or ``evaluate.py ...`` in a working directory, up to its end or the moment to kill it."""
    place.mkdir(parents=True, exist_ok=True)
    journal, output = place / "command.events", place / "command.output"
    process = os.fork()
    if not process:
        code = 70
        try:
            os.chdir(place)
            streams = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(streams, stream)
            events = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            code = _command(arguments, events, kill)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(process, 0)
    told = output.read_text(encoding="utf-8", errors="replace")
    return Ended(os.waitstatus_to_exitcode(status), told, tuple(journal.read_text(encoding="utf-8").splitlines()))


def _command(arguments: list[str], journal: int, kill: Moment | None) -> int:
    """Run a command's entry point in this process with the hooks in place; returns its exit code."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    seen: Counter[str] = Counter()
    dying: list[bool] = []

    def happen(label: str, event: str = "", args: tuple[Any, ...] = ()) -> None:
        seen[label] += 1
        if kill is not None and label == kill.label and seen[label] == kill.number:
            dying.append(True)  # what follows is no event
            if kill.torn:
                _tear(event, args)
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(journal, f"{label}\n".encode())

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if not dying and (label := _label(event, args)):
            happen(label, event, args)

    sys.argv = list(arguments)
    entry = import_module(f"certiqa.entry.{Path(arguments[0]).stem}")
    register_optimizer_step_pre_hook(lambda *_: happen("step"))
    sys.addaudithook(audit)
    try:
        entry.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _label(event: str, args: tuple[Any, ...]) -> str:
    """Return the label of an event of the interpreter, empty where it changes no file of the run's."""
    if event == "open" and isinstance(args[0], str | os.PathLike) and (args[2] or 0) & WRITES:
        appends = "a" in (args[1] or "") or args[2] & os.O_APPEND
        if "r+" in (args[1] or ""):
            return ""  # opened to be synced
        verb, path = "append" if appends else "write", args[0]
    elif event == "os.rename":
        verb, path = "rename", args[1]
    else:
        return ""
    place = PARTIAL.sub(r"part of \1", os.path.relpath(os.fspath(path)))
    return "" if place.startswith("..") or LOGS.search(place) else f"{verb} {place}"


def _tear(event: str, args: tuple[Any, ...]) -> None:
    """Leave a file as a kill in the middle of writing it would."""
    if event == "os.rename":
        if PARTIAL.search(os.fspath(args[0])):  # a finished file that gets another name is whole at any moment
            os.truncate(args[0], os.path.getsize(args[0]) // 2)
    elif event == "open":
        path = Path(os.fspath(args[0]))
        line = path.read_bytes().splitlines()[-1] if path.exists() and path.stat().st_size else b'[{"image_id": "00'
        if "a" in (args[1] or ""):
            with path.open("ab") as file:
                file.write(line[: len(line) // 2])
        else:
            path.write_bytes(b"")
