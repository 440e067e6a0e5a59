"""Run a command in a process of its own that is forked from the tests': it need not import anything anew.

What a shell's user would see is the same: arguments, working directory, environment, both streams and the exit code.
That the scripts start at all, and how they take signals, is tested by processes that are started as a shell does.
"""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from importlib import import_module
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from rich.console import Console


def run(words, *, cwd, env=None, timeout=300):
    """Run ``[interpreter, script, arguments...]`` as ``subprocess.run(..., capture_output=True, text=True)`` does."""
    _, script, *arguments = map(str, words)
    entry = import_module(f"certiqa.entry.{Path(script).stem}")
    import_module("certiqa.entry.pipeline")
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = os.fork()
        if not process:
            code = 70
            try:
                code = _as_script(entry, [script, *arguments], cwd, env, out.fileno(), errors.fileno())
            except BaseException:
                traceback.print_exc()
            finally:
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
                os._exit(code)
        status = _wait(process, timeout)
        told = []
        for file in (out, errors):
            file.seek(0)
            told.append(file.read().decode(errors="replace"))
    return subprocess.CompletedProcess(words, os.waitstatus_to_exitcode(status), *told)


def _wait(process, timeout):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.02)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise TimeoutError(f"the command takes more than {timeout} s")


def _as_script(entry, arguments, cwd, env, out, errors):
    """Make this process what the interpreter is when it starts a script, and run it; returns the exit code."""
    os.chdir(cwd)
    for number, file in ((1, out), (2, errors)):
        os.dup2(file, number)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", buffering=1) for number in (1, 2))  # noqa: SIM115
    if env is not None:
        os.environ.clear()
        os.environ.update(env)
    os.environ.pop("HYDRA_FULL_ERROR", None)
    logging.getLogger().handlers.clear()
    for module in list(sys.modules.values()):
        if isinstance(console := getattr(module, "console", None), Console):  # it was made with the tests' own width
            console.width = int(os.environ.get("COLUMNS", "80"))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    GlobalHydra.instance().clear()
    sys.argv = arguments
    sys.path[:0] = [str(Path(arguments[0]).parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.modules["__main__"] = types.ModuleType("__main__")  # what Lightning starts more processes by
    sys.modules["__main__"].__file__ = arguments[0]
    try:
        entry.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0
