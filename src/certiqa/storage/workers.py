"""Worker processes that do not outlive the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
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
