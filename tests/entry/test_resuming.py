"""Where a stopped run goes on: the newest whole checkpoint, and one sentence about each file that is none."""

import json
import shutil
import time

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from certiqa.entry.clock import CLOCK, Clock
from certiqa.entry.resuming import Resumption, continue_curves, newest_checkpoint, set_curves_aside, set_damaged_aside

NETWORK = nn.Linear(40, 30).state_dict()


def checkpoint(path, steps, network=NETWORK):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "global_step": steps,
        "state_dict": {f"denoiser.{key}": value for key, value in network.items()},
        "loops": {"fit_loop": {"epoch_loop.state_dict": {"_batches_that_stepped": steps - 1}}},
        "optimizer_states": [],
        "lr_schedulers": [],
    }
    torch.save(content, path)
    return path


def test_the_checkpoint_of_the_most_steps_counts_whatever_it_is_called(tmp_path):
    assert newest_checkpoint(tmp_path, NETWORK) == (Resumption(), [])
    folder = tmp_path / "run" / "checkpoints"
    # a folder that was moved before the last version's checkpoints, whose copies say nothing of which is newer
    newest = checkpoint(folder / "last-v1.ckpt", 9)
    checkpoint(folder / "previous.ckpt", 4)
    checkpoint(folder / "last.ckpt", 7)
    assert newest_checkpoint(tmp_path / "run", NETWORK) == (Resumption(newest, 9, 9), [])
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert newest_checkpoint(tmp_path / "copy", NETWORK)[0].steps == 9


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in the middle lie the weights
    path.write_bytes(content)


def cut(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


DAMAGES = {
    "empty": cut(0),
    "cut to a tenth": cut(0.1),
    "cut in half": cut(0.5),
    "cut at the end": cut(0.999),
    "a bit": flipped,
    "text": lambda path: path.write_text("not a checkpoint"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a list": lambda path: torch.save([1, 2], path),
    "a dictionary": lambda path: torch.save({"state_dict": {}}, path),
    "code": lambda path: torch.save({"state_dict": print}, path),
    "another network": lambda path: checkpoint(path, 7, nn.Linear(3, 2).state_dict()),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(tmp_path, damage):
    before = checkpoint(tmp_path / "checkpoints" / "previous.ckpt", 4)
    last = checkpoint(tmp_path / "checkpoints" / "last.ckpt", 7)
    DAMAGES[damage](last)
    (tmp_path / "checkpoints" / "last.ckpt.damaged-1").write_text("of an earlier time")
    start, damaged = newest_checkpoint(tmp_path, NETWORK)
    assert start == Resumption(before, 4, 4)
    (told,) = set_damaged_aside(damaged)
    assert told.startswith(f"'{last}' is no checkpoint of this run (")
    assert told.endswith("); it is set aside as last.ckpt.damaged-2")
    assert "\n" not in told
    assert not last.exists()
    before.unlink()
    assert newest_checkpoint(tmp_path, NETWORK) == (Resumption(), [])


def test_curves_of_batches_that_are_trained_again_are_dropped_and_no_kill_loses_the_others(tmp_path):
    curves = tmp_path / "metrics.csv"
    rows = "epoch,step,train/loss\n0,4,.5\n0,9,.4\n1,14,.3\n"
    curves.write_text(rows + "1,1")  # cut short by a kill
    set_curves_aside(tmp_path)
    assert not curves.exists()
    set_curves_aside(tmp_path)  # after a kill before they were taken up
    curves.write_text("epoch,st")  # and one while they were
    set_curves_aside(tmp_path)

    class Writer:
        def __init__(self):
            self.metrics = []

    class Logger(CSVLogger):
        experiment = Writer()

        def save(self):
            assert (tmp_path / "metrics-earlier.csv").exists(), "gone before they are safe elsewhere"

    trainer = type("Trainer", (), {"loggers": [Logger(tmp_path)]})
    continue_curves(trainer, tmp_path, 14)
    assert [row["step"] for row in Logger.experiment.metrics] == ["4", "9"]
    assert not (tmp_path / "metrics-earlier.csv").exists()


def test_the_time_of_a_session_that_was_killed_counts(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("certiqa.entry.clock.time.monotonic", lambda: now[0])
    summary = {"config_hash": "a", "seconds": 1000.0, "seconds_training": 50.0}  # all that there once was
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    first = Clock(tmp_path, "a")
    with first.training():
        now[0] += 30
        first.write()  # and a kill
    second = Clock(tmp_path, "a")
    with second.training():
        now[0] += 5
    now[0] += 7
    assert second.seconds == 1042
    assert second.seconds_training == 85
    assert Clock(tmp_path, "b").seconds == 0, "of something else"
    (tmp_path / CLOCK).write_text("{")
    assert Clock(tmp_path, "a").seconds == 1000


def test_the_time_is_written_while_it_goes_on(tmp_path):
    clock = Clock(tmp_path, "a")
    clock.start(every=0.01)
    deadline = time.monotonic() + 20
    while not (tmp_path / CLOCK).is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / CLOCK).is_file()
    (tmp_path / CLOCK).unlink()
    clock.stop()
    assert Clock(tmp_path, "a").seconds > 0
