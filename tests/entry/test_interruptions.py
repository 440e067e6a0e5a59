"""A few of the kills and damages of benchmarks/interruptions.py, which makes over a hundred."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "interruptions.py"
SOME = (
    "training: (in the middle|in the ranking)|kill: evaluation: while an image|second cell"
    "|damage: (checkpoint|identity|records$|table of a finished)"
)


@pytest.mark.full
def test_the_same_command_ends_as_if_nothing_had_happened():
    command = [sys.executable, str(SCRIPT), "--sample", "2", "--processes", "1", "--only", SOME]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n16 cases, 0 failed" in done.stdout
