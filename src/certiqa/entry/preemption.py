"""Signals by which schedulers take a machine away: stop where it is safe, and ask to be started again."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

REQUEUE = os.EX_TEMPFAIL  # 75; e.g. RequeueExit=75 in slurm.conf


class Requeue(KeyboardInterrupt):
    """The run was told to stop and wants to be continued.

    Args:
        number: the signal that said so.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@dataclass
class Preemption:
    """Whether a signal to stop has come, and whether it may still interrupt.

    Attributes:
        received: the signal, None so far.
        deferred: true while signals are only noted: results are written, which is quick and must not be cut short, or a
            training step is under way, after which the training looks here by itself.
    """

    received: int | None = None
    deferred: bool = False

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Interrupt; only the first signal does, since a scheduler sends several."""
        first, self.received = self.received is None, self.received or number
        if first and not self.deferred:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise Requeue if a signal has come."""
        if self.received is not None:
            raise Requeue(self.received)


def warning_signal() -> int | None:
    """Return the signal by which submitit tells a job that its time is up; None outside its jobs."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


@contextmanager
def stopping_on_signals() -> Iterator[Preemption]:
    """Turn SIGTERM, and submitit's warning in its jobs, into KeyboardInterrupt, and that at the end into Requeue.

    One may stand inside another: what came too late to interrupt the inner one is noted by the outer.
    """
    preemption = Preemption()
    numbers = [number for number in (signal.SIGTERM, warning_signal()) if number is not None]
    main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, preemption.stop) for number in numbers} if main_thread else {}
    try:
        yield preemption
    except KeyboardInterrupt:
        preemption.check()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        outer = getattr(before.get(preemption.received or 0), "__self__", None)
        if isinstance(outer, Preemption):
            outer.received = outer.received or preemption.received
