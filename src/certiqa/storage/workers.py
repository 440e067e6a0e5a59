"""Processes that do not outlive the process that started them: workers of a pool, ranks of a run, jobs of a sweep."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool whose processes end when this one does, also when it is killed.

    A worker of a plain pool would wait for ever for the next task of a parent that is gone.

    Args:
        workers: how many processes.
    """
    return ProcessPoolExecutor(workers, initializer=_follow_parent)


def _follow_parent() -> None:
    """Leave signals to the parent, and end as soon as it has ended."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):  # of Python: Ctrl-C, and what a fork has inherited
            signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which the pool itself ends workers
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with_parent() -> None:
    """End this process at once when its parent has ended, as its other workers and ranks wait for it for ever."""
    parent = os.getppid()
    _when_over(lambda: os.getppid() == parent, lambda: os._exit(1))


def stop_with(process: int) -> None:
    """Send this process SIGTERM, so that it ends in order, when another process of this machine has ended."""

    def lives() -> bool:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it lives, and is another user's
        return True

    _when_over(lives, lambda: os.kill(os.getpid(), signal.SIGTERM))


def _when_over(holds: Callable[[], bool], then: Callable[[], None], every: float = 1.0) -> None:
    def watch() -> None:
        while holds():
            time.sleep(every)
        then()

    threading.Thread(target=watch, daemon=True).start()
