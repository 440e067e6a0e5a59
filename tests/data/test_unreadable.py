"""One corrupt image among many: the run stops and names it, or goes on and says in its records what it left out."""

import logging

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from certiqa.attacks import load_attack
from certiqa.callbacks import Certification, Records
from certiqa.callbacks.attacks import Attacks
from certiqa.callbacks.gallery import Gallery
from certiqa.data import ImageDataset, ImageRecord, reading, registry
from certiqa.data.datamodule import QualityDataModule
from certiqa.defenses import MedianSmoothing
from certiqa.errors import UserError
from certiqa.evaluation import RecordStore, summarise
from certiqa.evaluation.gallery import read_gallery
from certiqa.evaluation.records import lacking
from certiqa.metrics import FrozenMetric, QualityMetric
from certiqa.training import DefenseModule

COUNT = 8
HEADER, BODY = 2, 5


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Eight images of two sizes, registered as data set ``some``: the header of one is damaged, the body of another."""
    generator = np.random.default_rng(0)
    records = []
    for row in range(COUNT):
        path = tmp_path / f"{row}.png"
        Image.fromarray(generator.integers(0, 256, (12, 12 + 4 * (row % 2), 3), np.uint8)).save(path)
        records.append(ImageRecord(path.name, path, 1 + row / 2))
    (tmp_path / f"{HEADER}.png").write_bytes(b"\x89PN")
    content = (tmp_path / f"{BODY}.png").read_bytes()
    (tmp_path / f"{BODY}.png").write_bytes(content[: len(content) // 2])
    images = ImageDataset(records, mos_range=(1, 5), name="some", fingerprint="0")
    monkeypatch.setitem(registry.DATASETS, "some", lambda *_, **__: images)
    return tmp_path


def make(**options):
    return QualityDataModule("some", test="all", eval_batch_size=3, **options)


def run_test(folder, metric, data, recorder, *others):
    """Test a metric under Lightning and return the compiled records."""
    options = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(**options, inference_mode=False, callbacks=[recorder, *others], default_root_dir=folder)
    trainer.test(DefenseModule(metric), data, verbose=False)
    return RecordStore(folder / "run").compile()


@pytest.mark.parametrize("workers", [0, 1])
def test_skipped_images_are_recorded_as_failed_and_the_others_go_on(folder, curved_metric, workers):
    data = make(on_error="skip", num_workers=workers)
    table = run_test(folder, curved_metric, data, Records(folder / "run"))
    assert len(table) == COUNT
    failed = table[table.failure.notna()]
    assert list(failed.image_id) == [f"{HEADER}.png", f"{BODY}.png"]
    assert list(failed.mos) == [1 + HEADER / 2, 1 + BODY / 2]
    assert failed.score.isna().all()
    assert failed.score_clean.isna().all()
    for name, text in zip(failed.image_id, failed.failure, strict=True):
        assert f"cannot read the image '{folder / name}'" in text
    summary = summarise(table, curved_metric, None, mos_range=(1, 5))
    assert (summary["num_images"], summary["num_failed"], summary["num_skipped"]) == (COUNT - 2, 2, 2)
    assert summary["srocc"] is not None
    rest = table[table.failure.isna()]
    for row in rest.itertuples():
        image = data.test_set[int(row.image_id[0])]["image"]
        assert row.score == pytest.approx(float(curved_metric(image[None])[0]), abs=1e-6)
    again = run_test(folder, curved_metric, make(on_error="skip"), Records(folder / "run"))
    assert again.equals(table), "a resumed run records nothing twice"


def test_certificates_of_the_others_go_on_too(folder, curved_metric):
    smooth = MedianSmoothing(curved_metric, 0.2, 60)
    recorder = Certification(folder / "run", radii=[0.05], radius=0.05, confidence=0.9, joint_confidence=0.5)
    data = make(on_error="skip")
    recorder.check(smooth, data.test_set.sizes())
    table = run_test(folder, smooth, data, recorder)
    assert table.failure.notna().sum() == table.skipped.notna().sum() == 2
    summary = summarise(table, smooth, 0.05, mos_range=(1, 5))
    assert summary["num_images"] == COUNT - 2
    assert summary["abstention_rate"] == 0
    assert summary["certified_srocc"] is not None


def test_validation_leaves_them_out(folder, curved_metric):
    options = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(**options, inference_mode=False, default_root_dir=folder)
    trainer.validate(DefenseModule(MedianSmoothing(curved_metric, 0.2, 20)), make(on_error="skip"), verbose=False)
    seen = [name for batch in make(on_error="skip").val_dataloader() for name in batch["image_id"]]
    assert len(seen) == COUNT - 2


def test_an_image_too_small_to_be_scored_stops_the_run_before_it_starts(folder):
    for row in (HEADER, BODY):
        Image.new("RGB", (12, 16)).save(folder / f"{row}.png")
    Image.new("RGB", (14, 5)).save(folder / "6.png")
    for act in (lambda data: data.test_set.sizes(), lambda data: data.setup("fit"), lambda data: data.test_set[6]):
        data = make()
        data.least_sides = (6, 3)
        with pytest.raises(UserError, match=r"the image '.*6\.png' is 5x14 pixels, smaller than the 6x3"):
            act(data)
    with pytest.raises(UserError, match=r"data\.on_error=skip"):
        data.test_set.sizes()


def test_skipped_when_too_small_it_is_recorded_and_left_out(folder, curved_metric):
    Image.new("RGB", (14, 5)).save(folder / "6.png")
    data = make(on_error="skip")
    data.least_sides = (6, 6)
    table = run_test(folder, curved_metric, data, Records(folder / "run"))
    failed = table[table.failure.notna()]
    assert list(failed.image_id) == [f"{HEADER}.png", f"{BODY}.png", "6.png"]
    assert "is 5x14 pixels, smaller than the 6x6" in list(failed.failure)[-1]
    seen = [name for batch in data.val_dataloader() for name in batch["image_id"]]
    assert len(seen) == COUNT - 3
    data = make(on_error="skip")
    data.least_sides = (600, 600)
    with pytest.raises(UserError, match="none of the 8 images of data set 'some' can be read at 600x600 pixels"):
        data.test_set.sizes()


def test_an_image_too_large_to_be_scored_is_named_or_recorded_before_it_is_read(folder, curved_metric, monkeypatch):
    for row in (HEADER, BODY):
        Image.new("RGB", (12, 16)).save(folder / f"{row}.png")
    Image.new("RGB", (40, 40)).save(folder / "6.png")
    monkeypatch.setattr(reading, "memory_bytes", lambda: 40 * 40 * 99)
    with pytest.raises(UserError, match=r"6\.png' is 40x40 pixels .*data\.resize=1024"):
        make().test_set.sizes()
    table = run_test(folder, curved_metric, make(on_error="skip"), Records(folder / "run"))
    assert list(table[table.failure.notna()].image_id) == ["6.png"]
    assert make(resize=20).test_set.sizes()[6] == (20, 20)
    assert make().train_set.sizes()[6] == (40, 40), "of a training image a crop is scored"


def test_a_broken_header_stops_the_run_at_the_size_scan(folder, curved_metric):
    for act in (lambda data: data.test_set.sizes(), lambda data: data.test_dataloader()):
        with pytest.raises(UserError, match=rf"cannot read the image '.*{HEADER}.png'.*data.on_error=skip"):
            act(make())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_body_stops_the_run_with_its_name_and_no_traceback(folder, curved_metric, workers):
    Image.new("RGB", (12, 12)).save(folder / f"{HEADER}.png")
    with pytest.raises(UserError, match=rf"^cannot read the image '.*{BODY}.png'.*data.on_error=skip$") as caught:
        run_test(folder, curved_metric, make(num_workers=workers), Records(folder / "run"))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_takes_the_next_one_and_says_so_once(folder, caplog, workers):
    def epoch():
        loader = make(on_error="skip", crop=8, batch_size=4, num_workers=workers).train_dataloader()
        loader.sampler.set_epoch(1)
        return list(loader)

    with caplog.at_level(logging.WARNING, "certiqa"):
        first, again = epoch(), epoch()
    assert all(torch.equal(one["image"], two["image"]) for one, two in zip(first, again, strict=True))
    names = sorted(name for batch in first for name in batch["image_id"])
    expected = [str(row + 1 if row in (HEADER, BODY) else row) for row in range(COUNT)]
    assert names == sorted(f"{row}.png" for row in expected)
    if workers == 0:
        told = [record.message for record in caplog.records if "in its place" in record.message]
        assert sum(f"{BODY}.png" in text for text in told) == 1


def test_training_stops_where_it_is_to(folder):
    with pytest.raises(UserError, match=r"^cannot read the image .*data.on_error=skip$"):
        list(make(crop=8, batch_size=4, num_workers=1).train_dataloader())


def test_whole_images_of_several_sizes_make_no_training_batch(folder):
    with pytest.raises(UserError, match=r"have \d sizes, a batch needs one; .*data.crop=12 or less"):
        list(make(on_error="skip", batch_size=8).train_dataloader())


def test_where_nothing_can_be_read_that_is_said(folder):
    for row in range(COUNT):
        (folder / f"{row}.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 8 images of data set 'some' can be read"):
        make(on_error="skip").test_dataloader()
    with pytest.raises(UserError, match="none of the 8 images of data set 'some' can be read"):
        list(make(on_error="skip", crop=8).train_dataloader())


def test_resizing_is_part_of_reading(folder):
    data = make(on_error="skip", resize=[10, 14])
    assert {tuple(batch["image"].shape[-2:]) for batch in data.test_dataloader() if batch["image_id"]} == {(10, 14)}
    assert set(data.test_set.sizes()) == {(10, 14)}
    assert set(make(on_error="skip", resize=6).test_set.sizes()) == {(6, 6), (6, 8)}


def test_wrong_options_are_named(folder):
    with pytest.raises(UserError, match="data.on_error must be raise or skip, got 'ignore'"):
        make(on_error="ignore").test_set  # noqa: B018


class Fragile(torch.nn.Module):
    """Fails where an image is dark, as statistics of natural scenes do where it is flat."""

    def forward(self, images):
        if bool((images.flatten(1).amax(1) == 0).any()):
            raise RuntimeError("the algorithm failed to converge\nand more")
        return images.mean(dim=(1, 2, 3))


@pytest.fixture
def dark(folder):
    """The folder, whose damaged images are whole now, and one is dark."""
    for row, colour in ((HEADER, "red"), (BODY, "black")):
        Image.new("RGB", (12, 16), colour).save(folder / f"{row}.png")
    return folder


REASON = rf"image '{BODY}.png'( under .*)?: RuntimeError: the algorithm failed to converge"


@pytest.mark.parametrize("defended", [False, True])
def test_a_metric_that_raises_on_one_image_is_named_or_recorded_as_failed(dark, defended):
    metric = FrozenMetric(Fragile(), name="fragile", score_range=(0, 1))
    recorder = Records(dark / "run")
    (dark / "run").mkdir()
    if defended:
        metric = MedianSmoothing(metric, 0.2, 60)
        recorder = Certification(dark / "run", radii=[0.02, 0.05], radius=0.05, confidence=0.9)
    with pytest.raises(UserError, match=rf"^metric 'fragile' fails on {REASON}. .*data.on_error=skip$"):
        run_test(dark, metric, make(), recorder)
    table = run_test(dark, metric, make(on_error="skip"), recorder, Gallery(dark / "run", COUNT))
    shown = read_gallery(dark / "run")
    assert [entry["image_id"] for entry in shown].count(f"{BODY}.png") == 0
    assert len(shown) == COUNT - 1
    failed = table[table.failure.notna()]
    assert list(failed.image_id) == [f"{BODY}.png"] * (2 if defended else 1)
    assert failed.score.isna().all()
    assert failed.score_clean.isna().all()
    assert failed.skipped.isna().all()
    summary = summarise(table, metric, 0.05 if defended else None, mos_range=(1, 5))
    assert (summary["num_images"], summary["num_failed"], summary["num_skipped"]) == (COUNT - 1, 1, 0)
    assert "algorithm failed" in summary["first_failure"]
    assert table[table.failure.isna()].score.notna().all()
    data = make(on_error="skip")
    ids = [record.image_id for record in data.test_set.records]
    assert lacking(table, ids, [0.02, 0.05] if defended else []) == [], "the run is whole"


def test_a_defense_that_raises_behind_a_metric_that_does_not(dark):
    class Picky(QualityMetric):
        def __init__(self, metric):
            super().__init__()
            self.metric, self.name, self.score_range = metric, "picky", (0, 1)

        def forward(self, images, *, image_ids=None, generator=None):
            return Fragile()(images) + 0 * self.metric(images)

    class Mean(torch.nn.Module):
        def forward(self, images):
            return images.mean(dim=(1, 2, 3))

    metric = Picky(FrozenMetric(Mean(), name="mean", score_range=(0, 1)))
    table = run_test(dark, metric, make(on_error="skip"), Records(dark / "run"))
    (failed,) = table[table.failure.notna()].itertuples()
    assert failed.failure.startswith(f"metric 'picky' fails on image '{BODY}.png'")
    assert failed.score_clean == 0


def test_an_attack_goes_on_with_the_others_where_the_metric_raises(dark):
    class Rising(torch.nn.Module):
        """Fails on what the attack makes of bright images."""

        def forward(self, images):
            if images.requires_grad and bool((images.flatten(1).amax(1) == 0).any()):
                raise RuntimeError("the algorithm failed to converge")
            return images.mean(dim=(1, 2, 3))

    metric = FrozenMetric(Rising(), name="rising", score_range=(0, 1))
    attacks = Attacks(dark / "run", load_attack("ifgsm", eps=4 / 255, steps=2))

    def attack(**options):
        quiet = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
        callbacks = [Records(dark / "run"), attacks]
        trainer = pl.Trainer(**quiet, inference_mode=False, callbacks=callbacks, default_root_dir=dark)
        trainer.test(DefenseModule(metric), make(**options), verbose=False)
        return RecordStore(dark / "run").compile()

    with pytest.raises(UserError, match=rf"^metric 'rising' under attack 'ifgsm' fails on {REASON}"):
        attack()
    table = attack(on_error="skip")
    attacked = table[table.attack == "ifgsm"]
    assert len(attacked) == COUNT
    assert list(attacked[attacked.failure.notna()].image_id) == [f"{BODY}.png"]
    assert attacked[attacked.failure.isna()].score_attacked.notna().all()
    assert summarise(table, metric, None)["attack_num_failed_ifgsm"] == 1


def test_validation_names_or_leaves_out_what_the_metric_raises_on(dark):
    metric = MedianSmoothing(FrozenMetric(Fragile(), name="fragile", score_range=(0, 1)), 1e-9, 60, clip=True)
    quiet = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    recorder = Certification(dark / "run", radii=[1e-10], radius=1e-10, confidence=0.9)

    def validate(**options):
        trainer = pl.Trainer(**quiet, inference_mode=False, callbacks=[recorder], default_root_dir=dark)
        return trainer.validate(DefenseModule(metric), make(**options), verbose=False)[0]

    metric.denoiser = torch.nn.Threshold(0.01, 0)  # noise makes the dark image no brighter
    with pytest.raises(UserError, match=rf"^metric 'ms' fails on {REASON}"):
        validate()
    assert validate(on_error="skip")["val/srocc"] is not None
    assert len(recorder._validation) == COUNT - 1
