"""A training that was stopped anywhere ends with the weights and curves of one that was not."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from certiqa.attacks import load_attack
from certiqa.callbacks import Certification, Checkpoints, DurableCheckpointIO
from certiqa.callbacks.checkpoints import LAST, PREVIOUS
from certiqa.data import ImageDataset, ImageRecord, registry
from certiqa.data.datamodule import QualityDataModule
from certiqa.defenses import MedianSmoothing, purify_with
from certiqa.denoisers import UNet
from certiqa.entry.resuming import continue_curves, newest_checkpoint, set_curves_aside
from certiqa.errors import UserError
from certiqa.metrics import FrozenMetric
from certiqa.training import DefenseModule, DenoisingObjective
from certiqa.training.corruption import Attacked

BATCHES = 3  # in a pass over 13 images in batches of four
STEPS = 11


class Killed(BaseException):
    """Neither caught nor cleaned up after, as kill -9."""


class KillAt(pl.Callback):
    """Kills at the n-th call of a hook, before callbacks that come later have theirs."""

    def __init__(self, hook, count):
        def kill(*args, **kwargs):
            if next(calls) == count:
                raise Killed

        calls = itertools.count(1)
        setattr(self, hook, kill)


class Forgetful(nn.Module):
    """A denoiser with dropout, which draws from PyTorch's global generator."""

    def __init__(self, widths):
        super().__init__()
        self.unet, self.dropout = UNet(widths), nn.Dropout(0.3)

    def forward(self, images):
        return self.unet(self.dropout(images))


class Textured(nn.Module):
    """A smooth nonlinear score in (0, 1), which counts its calls."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.features, self.head, self.calls = nn.Conv2d(3, 4, 3), nn.Linear(4, 1), 0

    def forward(self, images):
        self.calls += 1
        return torch.sigmoid(self.head(nn.functional.softplus(self.features(images)).mean(dim=(2, 3)))).flatten()


@pytest.fixture(scope="module", autouse=True)
def photographs(tmp_path_factory):
    """Thirteen images with opinion scores as data set ``some``."""
    generator, folder = np.random.default_rng(0), tmp_path_factory.mktemp("some")
    records = []
    for row in range(13):
        path = folder / f"{row}.png"
        Image.fromarray(generator.integers(0, 256, (24, 24, 3), np.uint8)).save(path)
        records.append(ImageRecord(path.name, path, 1 + 3 * float(generator.random())))
    images = ImageDataset(records, mos_range=(1, 5), name="some", fingerprint="0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.DATASETS, "some", lambda *_, **__: images)
        yield


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=5e-3)


def metric():
    return FrozenMetric(Textured(), name="textured", score_range=(0, 1), hard_bounds=(0, 1), min_size=3)


def smoothing(network=UNet):
    torch.manual_seed(0)
    defense = MedianSmoothing(metric(), 0.1, 9, network((8, 8)))
    objective = DenoisingObjective("ours", ranking_weight=1.0, target_weight=1.0, mse_share=0.3, mse_crop=16)
    return DefenseModule(defense, objective, adam, warmup_steps=3)


def session(module, folder, *callbacks, minutes=0.0, keeper=None, data=None, **options):
    """Train from the last checkpoint, or from the beginning; returns the trainer."""
    folder.mkdir(exist_ok=True)
    set_curves_aside(folder)
    certification = Certification(folder, radii=[0.02], radius=0.02, confidence=0.8, validation_samples=9)
    keeper = keeper or Checkpoints(folder / "checkpoints", minutes)
    certify = [certification] if isinstance(module.defense, MedianSmoothing) else []
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version="", flush_logs_every_n_steps=20),
        callbacks=[*certify, *callbacks, keeper],
        plugins=[DurableCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=2,
        use_distributed_sampler=False,
        **{"max_steps": STEPS, "val_check_interval": 4, "check_val_every_n_epoch": None, **options},
    )
    start, damaged = newest_checkpoint(folder, module.denoiser.state_dict())
    assert not damaged
    continue_curves(trainer, folder, start.batches)
    data = QualityDataModule("some", batch_size=4, seed=3, **{"validation_images": 5, **(data or {})})
    trainer.fit(module, data, ckpt_path=start.checkpoint, weights_only=True)
    return trainer


def state(module, folder):
    """Return the weights and the curves."""
    weights = torch.cat([parameter.flatten() for parameter in module.denoiser.parameters()])
    with (folder / "metrics.csv").open() as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    return weights, rows


def killed_and_continued(make, folder, *kills, **options):
    """Kill one session after the other, each in a fresh module as in a fresh process, and let the last one end."""
    for hook, count in kills:
        with pytest.raises(Killed):
            session(make(), folder, KillAt(hook, count), **options)
    module = make()
    trainer = session(module, folder, **options)
    return trainer, *state(module, folder)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Weights and curves of a run that nobody stops."""
    return killed_and_continued(smoothing, tmp_path_factory.mktemp("unbroken") / "run")[1:]


@pytest.mark.parametrize(
    "kills",
    [
        [("on_train_batch_end", BATCHES)],  # after the last batch of a pass
        [("on_train_batch_start", BATCHES + 1)],  # before the first of the next
        [("on_train_epoch_end", 1)],
        [("on_before_zero_grad", 9)],  # in a step, with the metric's scores at work
        [("on_validation_end", 2)],
        [("on_train_end", 1)],
        [
            ("on_train_batch_end", 5),
            ("on_train_batch_end", 1),
            ("on_validation_batch_end", 1),
            ("on_train_epoch_end", 1),
        ],
    ],
    ids=lambda kills: "-".join(f"{hook}-{count}" for hook, count in kills),
)
def test_weights_and_curves_are_those_of_an_unbroken_run(unbroken, tmp_path, kills):
    trainer, weights, curves = killed_and_continued(smoothing, tmp_path / "run", *kills)
    assert torch.equal(weights, unbroken[0])
    assert curves == unbroken[1]
    assert trainer.global_step == STEPS
    assert not (tmp_path / "run" / "metrics-earlier.csv").exists()


def test_with_workers_too(unbroken, tmp_path):
    options = {"data": {"num_workers": 1}}
    _, weights, curves = killed_and_continued(smoothing, tmp_path / "run", ("on_train_batch_end", 5), **options)
    assert torch.equal(weights, unbroken[0])
    assert curves == unbroken[1]


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: smoothing(Forgetful), {}),
        (smoothing, {"max_steps": -1, "max_epochs": 3, "val_check_interval": 2, "check_val_every_n_epoch": 1}),
        (smoothing, {"accumulate_grad_batches": 2, "max_steps": 6}),
        (smoothing, {"limit_train_batches": 2, "max_steps": 7}),
        (lambda: purifying(), {"data": {"crop": 16}}),
    ],
    ids=["dropout", "passes", "accumulated", "limited", "crops, each attacked anew"],
)
def test_so_it_is_with_other_networks_and_trainers(tmp_path, make, options):
    _, weights, curves = killed_and_continued(make, tmp_path / "unbroken", **options)
    _, again, curves_again = killed_and_continued(make, tmp_path / "run", ("on_train_batch_end", 6), **options)
    assert torch.equal(again, weights)
    assert curves_again == curves


def purifying(folder=None):
    torch.manual_seed(0)
    defense = purify_with(metric(), "fcn", weights="untrained")
    attack = Attacked(load_attack("ifgsm", eps=8 / 255, steps=2), defense.metric, seed=1, keep_in=folder)
    return DefenseModule(defense, DenoisingObjective(), adam, corruption=attack)


def test_attacked_images_are_kept_for_the_run_that_goes_on(tmp_path):
    _, weights, _ = killed_and_continued(purifying, tmp_path / "unbroken")
    folder = tmp_path / "attacked"
    with pytest.raises(Killed):
        session(purifying(folder), tmp_path / "run", KillAt("on_train_batch_end", 5))
    (folder / sorted(path.name for path in folder.iterdir())[-1]).write_bytes(b"cut short")
    module = purifying(folder)
    session(module, tmp_path / "run")
    assert torch.equal(state(module, tmp_path / "run")[0], weights)
    again = purifying(folder)
    session(again, tmp_path / "again")
    assert torch.equal(state(again, tmp_path / "again")[0], weights)
    assert again.base_metric.network.calls == 2, "all were attacked before: only the validations score"


def test_between_two_checkpoints_lie_minutes_or_a_validation(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(Checkpoints, "write", lambda self, trainer: steps.append(trainer.global_step))
    session(smoothing(), tmp_path / "run", minutes=60)
    assert steps == [3, 7, STEPS], "before each validation, and at the end"
    steps.clear()
    session(smoothing(), tmp_path / "every", minutes=0)
    assert steps == [*range(1, STEPS), STEPS]


@pytest.mark.parametrize("minutes", [-1, True, "often", float("nan")])
def test_minutes_that_are_none_are_refused(tmp_path, minutes):
    with pytest.raises(UserError, match=r"callbacks\.checkpoint\.minutes must be a number of at least 0"):
        Checkpoints(tmp_path, minutes)


class Signal:
    """Stands for the signals of a run: one comes in the course of a step."""

    received, deferred = None, False


def test_a_signal_lets_the_step_end_and_leaves_a_checkpoint(unbroken, tmp_path):
    signals, heard = Signal(), []

    class Sender(pl.Callback):
        def on_before_backward(self, trainer, *_):
            if trainer.global_step == 4:
                heard.append(signals.deferred)
                signals.received = 15

        def on_validation_batch_start(self, *_):
            heard.append(signals.deferred)

    keeper = Checkpoints(tmp_path / "run" / "checkpoints", 60)
    keeper.signals = signals
    with pytest.raises(SystemExit):  # as Lightning ends after an interruption
        session(smoothing(), tmp_path / "run", Sender(), keeper=keeper)
    assert heard == [False, True], "a validation is cut short, a step is not"
    assert not signals.deferred
    start, _ = newest_checkpoint(tmp_path / "run", smoothing().denoiser.state_dict())
    assert start.steps == 5
    _, weights, curves = killed_and_continued(smoothing, tmp_path / "run")
    assert torch.equal(weights, unbroken[0])
    assert curves == unbroken[1]


def test_what_ended_a_training_is_remembered(tmp_path):
    class Enough(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 5

    module = smoothing()
    assert session(module, tmp_path / "run", Enough()).global_step == 5
    again = smoothing()
    assert session(again, tmp_path / "run").global_step == 5
    assert torch.equal(state(again, tmp_path / "run")[0], state(module, tmp_path / "run")[0])


def test_a_checkpoint_is_never_seen_half_written(tmp_path, monkeypatch):
    session(smoothing(), tmp_path / "run", max_steps=2)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [LAST, PREVIOUS]
    before = (folder / LAST).read_bytes()

    def full_disk(path, content):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        DurableCheckpointIO().save_checkpoint({}, folder / LAST)
    assert (folder / LAST).read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == [LAST, PREVIOUS]
