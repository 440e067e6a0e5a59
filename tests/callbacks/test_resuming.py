"""Callbacks used from Python: a folder's records go on as they were begun, or are refused by name."""

import re

import numpy as np
import pytest
import pytorch_lightning as pl
from PIL import Image
from torch import nn

from certiqa.callbacks import Certification, Records
from certiqa.data import ImageDataset, ImageRecord, registry
from certiqa.data.datamodule import QualityDataModule
from certiqa.defenses import MedianSmoothing
from certiqa.errors import UserError
from certiqa.evaluation import RecordStore
from certiqa.metrics import FrozenMetric
from certiqa.reports.comparison.gather import NOT_SETTINGS
from certiqa.storage.files import read_json
from certiqa.training import DefenseModule

SMOOTH = {"sigma": 0.2, "num_samples": 60}
REQUEST = {"radii": [0.05], "radius": 0.05, "confidence": 0.9}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for a run, and four images as data set ``some``."""
    generator = np.random.default_rng(0)
    records = []
    for row in range(4):
        path = tmp_path / f"{row}.png"
        Image.fromarray(generator.integers(0, 256, (12, 12, 3), np.uint8)).save(path)
        records.append(ImageRecord(path.name, path, 1 + row / 2))
    images = ImageDataset(records, mos_range=(1, 5), name="some", fingerprint="0")
    monkeypatch.setitem(registry.DATASETS, "some", lambda *_, **__: images)
    return tmp_path / "run"


def run_test(metric, recorder, batches=1.0, at_once=1, **options):
    """Test a smoothed metric under Lightning; returns the images that this call recorded."""
    quiet = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(**quiet, inference_mode=False, callbacks=[recorder], limit_test_batches=batches)
    data = QualityDataModule("some", test="all", eval_batch_size=at_once)
    defense = metric if at_once > 1 else MedianSmoothing(metric, **SMOOTH | options)
    trainer.test(DefenseModule(defense), data, verbose=False)
    return recorder.num_recorded


@pytest.mark.parametrize("kind", [Records, Certification])
def test_an_interrupted_test_goes_on_whatever_its_speed(folder, curved_metric, kind):
    asked = REQUEST if kind is Certification else {}
    assert run_test(curved_metric, kind(folder, **asked), batches=2) == 2
    assert run_test(curved_metric, kind(folder, **asked), batch_size=3, workers=1) == 2
    table = RecordStore(folder).compile()
    assert sorted(table.image_id) == [f"{row}.png" for row in range(4)]


class Rounding(nn.Module):
    """Adds to each score what depends on the number of images scored with it, as kernels round by the batch's size."""

    def forward(self, images):
        return images.flatten(1).mean(dim=1) + 2.0 ** -len(images)


def test_the_rest_of_a_batch_that_was_recorded_in_part_is_scored_as_if_it_was_not_interrupted(folder, monkeypatch):
    metric = FrozenMetric(Rounding(), name="rounding", score_range=(0, 1))
    whole = folder.with_name("whole")
    assert run_test(metric, Records(whole), at_once=4) == 4
    append, killed = RecordStore.append, iter([False, False, True])

    def stop(store, rows):
        if next(killed):
            raise KeyboardInterrupt
        append(store, rows)

    with monkeypatch.context() as patch:
        patch.setattr(RecordStore, "append", stop)
        with pytest.raises(SystemExit):  # Lightning's answer to Ctrl-C
            run_test(metric, Records(folder), at_once=4)
    assert run_test(metric, Records(folder), at_once=4) == 2
    scores = [
        dict(table[["image_id", "score"]].values) for table in (RecordStore(at).compile() for at in (whole, folder))
    ]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("smooth", "request_", "named"),
    [
        ({"sigma": 0.4}, {}, "sigma was 0.2, is 0.4"),
        ({"num_samples": 80}, {}, "num_samples was 60, is 80"),
        ({"precision": "bf16"}, {}, "precision was fp32, is bf16"),
        ({"clip": False}, {}, "clip was True, is False"),
        ({}, {"seed": 7}, "seed was 0, is 7"),
        ({}, {"num_samples": 80}, "num_samples was 60, is 80"),
        ({}, {"radii": [0.05, 0.06]}, "radii was [0.05], is [0.05, 0.06]"),
        ({}, {"confidence": 0.95}, "confidence was 0.9, is 0.95"),
        ({}, {"joint_confidence": 0.5}, "joint_confidence was None, is 0.5"),
        ({}, {"randomised": True}, "randomised was False, is True"),
        ({}, {"tolerance": 0.04}, "stopping was None, is {'tolerance': 0.04"),
    ],
)
def test_certificates_of_another_making_are_refused(folder, curved_metric, smooth, request_, named):
    run_test(curved_metric, Certification(folder, **REQUEST), batches=2)
    with pytest.raises(UserError, match=rf"made otherwise: .*recorder\.{re.escape(named)}"):
        run_test(curved_metric, Certification(folder, **REQUEST | request_), **smooth)


@pytest.mark.parametrize("smooth", [{"sigma": 0.4}, {"num_samples": 80}, {"seed": 7}])
def test_scores_of_another_making_are_refused(folder, curved_metric, smooth):
    run_test(curved_metric, Records(folder), batches=2)
    with pytest.raises(UserError, match=rf"made otherwise: .*recorder\.{next(iter(smooth))} was"):
        run_test(curved_metric, Records(folder), **smooth)


def test_settings_are_no_columns_of_a_comparison_and_a_given_identity_stays_as_it_is(folder, curved_metric):
    run_test(curved_metric, Certification(folder, **REQUEST))
    kept = read_json(folder / "records" / "identity.json", dict)
    own = kept.keys() - {"format", "weights", "data", "device"}
    assert {key.rpartition(".")[2] for key in own} >= {"sigma", "radii", "seed", "stopping"}
    assert all(NOT_SETTINGS.match(key) for key in own)
    recorder = Certification(folder.with_name("command"), **REQUEST)
    recorder.identity = {"sigma": 0.2}
    run_test(curved_metric, recorder)
    kept = read_json(recorder.folder / "records" / "identity.json", dict)
    assert kept.keys() == {"format", "weights", "data", "device", "sigma"}
