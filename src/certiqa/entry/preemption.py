"""SIGTERM, by which schedulers take a machine away: stop where it is safe, and ask to be started again."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from types import FrameType

REQUEUE = os.EX_TEMPFAIL  # 75; e.g. RequeueExit=75 in slurm.conf


class Requeue(KeyboardInterrupt):
    """The run was told to stop and wants to be continued."""


@dataclass
class Preemption:
    """Whether SIGTERM has come."""

    received: bool = False


def stop_on_sigterm() -> Preemption:
    """Turn SIGTERM into KeyboardInterrupt, which ends a run in order; returns where it is noted."""
    preemption = Preemption()

    def stop(number: int, frame: FrameType | None) -> None:
        preemption.received = True
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
    return preemption
