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


FOLLOWER = """
import os, signal, sys, time
from certiqa.storage.workers import end_with_parent, stop_with
if sys.argv[1] == "parent":
    end_with_parent()
else:
    signal.signal(signal.SIGTERM, lambda *_: (print("in order", flush=True), sys.exit(0)))
    stop_with(int(sys.argv[2]))
print("at work", flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2], str(os.getpid())])
time.sleep(60)
"""


@pytest.mark.parametrize("way", ["parent", "launcher"])
def test_a_rank_and_a_job_end_with_the_process_that_started_them(way):
    command = [sys.executable, "-c", PARENT, FOLLOWER, way]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert running.stdout.readline() == "at work\n"
    os.kill(running.pid, signal.SIGKILL)
    running.wait(10)
    assert group_ends(running.pid, 10)
    assert running.stdout.read() == ("in order\n" if way == "launcher" else "")
