"""Worker processes end with the process that started them, whatever ended it."""

import os
import signal
import subprocess
import sys
import time

import pytest

POOL = """
import os, sys, time
from certiqa.storage.workers import worker_pool
with worker_pool(3) as pool:
    pool.submit(os.getpid).result()
    busy = [pool.submit(time.sleep, 60) for _ in range(2)]  # and the third worker waits for a task
    print("at work", flush=True)
    busy[0].result()
"""


def group_ends(leader, seconds):
    """Return whether no process of a session is left after so many seconds at most."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(leader, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.killpg(leader, signal.SIGKILL)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_is_left_when_the_parent_is_killed(number):
    running = subprocess.Popen([sys.executable, "-c", POOL], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert running.stdout.readline() == "at work\n"
    running.send_signal(number)
    assert running.wait(10) == -number
    assert group_ends(running.pid, 10)
