"""A run is finished only where nothing is lacking, and only as long as what it is made of is what it was."""

import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf, open_dict
from PIL import Image

from certiqa.entry import checks, finished, inputs, pipeline
from certiqa.entry import identity as identities
from certiqa.errors import UserError
from certiqa.evaluation import read_records, read_summary

ROOT = Path(__file__).parents[2]
METRIC = """import torch
from helping import GAIN

class Mine(torch.nn.Module):
    name, score_range, lower_better = "mine", (0, 1), False

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.tensor(1.0))

    def forward(self, images):
        return images.flatten(1).mean(1) * self.weight * GAIN
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Five bmp images with scores, a metric in two modules of one's own, and a cache of digests."""
    monkeypatch.setenv("CERTIQA_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for row in range(5):
        pixels = generator.integers(40 * row, 40 * row + 60, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{row}.bmp")
    lines = [f"{row}.bmp,{1 + row / 2}" for row in range(5)]
    (tmp_path / "images" / "scores.csv").write_text("\n".join(["image,mos", *lines]) + "\n")
    (tmp_path / "mine_.py").write_text(METRIC)
    (tmp_path / "helping.py").write_text("GAIN = 1.0\n")
    monkeypatch.setattr(pipeline, "write_report", lambda folder: None)  # what takes longest
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("mine_", "helping"):
        sys.modules.pop(name, None)


def config_of(place, *options):
    """Compose what ``evaluate.py data=folder ...`` would."""
    identities.register_resolvers()
    given = ["data=folder", f"data.root={place / 'images'}", "data.splits=all", f"data.cache={place / 'cache'}"]
    given += ["metric._target_=mine_.Mine", "callbacks.gallery.num_images=0"]
    given += [
        "defense=ms",
        "num_samples=40",
        "sigma=0.2",
        "certification.radii=[0.02,0.05]",
        "certification.radius=0.05",
    ]
    given += ["certification.confidence=0.9", "certification.joint_confidence=null", "trainer.accelerator=cpu"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("evaluate", [*given, f"paths.run={place / 'run'}", *options])
    GlobalHydra.instance().clear()
    return config


def run(place, *options):
    (place / "run").mkdir(exist_ok=True)
    pipeline.run(config_of(place, *options))
    return read_summary(place / "run")


FIGURES = ("num_images", "srocc", "plcc", "certified_delta_median", "certified_delta_mean_r0.02", "score_sd")


def figures(summary):
    assert summary["status"] == "finished"
    return {key: summary[key] for key in FIGURES}


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"}


def overwrite(path, place=-1):
    """Change one byte of a file in place; its size and time of change stay what they were."""
    about, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 1
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def comparable(table):
    """Return records without what takes its own time, and with one kind of nothing."""
    table = table.drop(columns="seconds").astype(object)
    return table.where(table.notna(), None)


def forget_sources():
    """Import the modules of one's own anew, as another process does."""
    for name in ("mine_", "helping"):
        sys.modules.pop(name, None)


CHANGES = {
    r"the image '3\.bmp' changed since": ("images/3.bmp", -1),
    r"data\.root=.* names has changed since": ("images/scores.csv", -2),
    "the source of mine_ has changed since": ("mine_.py", -7),  # + for *
    "the source of helping has changed since": ("helping.py", -2),
}


def test_a_run_made_of_something_else_is_refused_by_name_and_stays_as_it_is(place):
    run(place)
    lines = place / "run" / "records" / "rank-0.jsonl"
    for finish in (True, False):
        if not finish:  # killed after two images
            (place / "run" / "summary.json").unlink()
            lines.write_bytes(b"".join(lines.read_bytes().splitlines(keepends=True)[:2]))
        before = files_of(place / "run")
        for named, (file, at) in CHANGES.items():
            overwrite(place / file, at)
            forget_sources()
            with pytest.raises(UserError, match=rf"made otherwise: .*{named}.*Undo.*fresh=true"):
                pipeline.run(config_of(place))
            assert files_of(place / "run") == before
            overwrite(place / file, at)


def test_records_know_their_images_where_the_list_of_digests_is_lost(place):
    run(place)
    (place / "run" / "summary.json").unlink()
    (place / "run" / inputs.INPUTS).write_bytes(b"{}")
    overwrite(place / "images" / "3.bmp")
    with pytest.raises(UserError, match=r"made of other images: '3\.bmp' changed since"):
        pipeline.run(config_of(place))


def test_what_changed_back_or_is_gone_is_reported(place, capsys):
    run(place)
    overwrite(place / "images" / "3.bmp")
    overwrite(place / "images" / "3.bmp")
    (place / "images").rename(place / "elsewhere")
    pipeline.run(config_of(place))
    assert "finished already" in capsys.readouterr().out


def test_an_older_run_without_digests_is_reported(place, capsys):
    run(place)
    (place / "run" / inputs.INPUTS).unlink()
    lines = place / "run" / "records" / "rank-0.jsonl"
    rows = [json.loads(line)["content"] for line in lines.read_text().splitlines()]
    lines.write_text("".join(json.dumps([{**row, "digest": None} for row in image]) + "\n" for image in rows))
    assert finished.finished_as_given(place / "run", config_of(place))
    lines.write_text(lines.read_text().replace('"4.bmp"', '"5.bmp"', 1))  # one row of two
    assert finished.finished_as_given(place / "run", config_of(place)) is None


def test_any_damage_to_the_records_of_a_finished_run_is_made_good(place):
    expected = figures(run(place, "attack=fgsm"))
    lines, parquet = place / "run" / "records" / "rank-0.jsonl", place / "run" / "records.parquet"
    whole, table = lines.read_bytes(), comparable(read_records(place / "run"))
    chooser = random.Random(0)
    for _ in range(3):
        at = chooser.randrange(len(whole))
        lines.write_bytes(whole[:at] + bytes([whole[at] ^ chooser.randrange(1, 256)]) + whole[at + 1 :])
        assert figures(run(place, "attack=fgsm")) == expected
        pd.testing.assert_frame_equal(comparable(read_records(place / "run")), table)
        whole = lines.read_bytes()
    parquet.unlink()
    run(place, "attack=fgsm")
    pd.testing.assert_frame_equal(comparable(read_records(place / "run")), table)
    parquet.write_bytes(parquet.read_bytes()[:-9])
    run(place, "attack=fgsm")
    pd.testing.assert_frame_equal(comparable(pd.read_parquet(parquet)), table)
    lines.unlink()
    parquet.unlink()
    assert figures(run(place, "attack=fgsm")) == expected


def test_images_that_were_skipped_lack_nothing(place, capsys):
    (place / "images" / "2.bmp").write_bytes(b"BM")
    summary = run(place, "data.on_error=skip")
    assert (summary["status"], summary["num_images"], summary["num_skipped"]) == ("finished", 4, 1)
    run(place, "data.on_error=skip")
    assert "finished already" in capsys.readouterr().out


def test_a_run_whose_images_have_no_records_does_not_end_as_finished(place, monkeypatch):
    monkeypatch.setattr("certiqa.callbacks.Certification.score", lambda *_: iter(()))
    (place / "run").mkdir()
    with pytest.raises(
        UserError, match=r"5 of 5 test images are not recorded as they should be, the first is '0\.bmp'"
    ):
        pipeline.run(config_of(place))
    assert read_summary(place / "run")["status"] == "failed"


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("limit_test_batches=0", r"data\.limit_test"),
        ("limit_test_batches=1", r"data\.limit_test"),
        ("limit_test_batches=0.5", r"data\.limit_test"),
        ("fast_dev_run=true", "debug=fast"),
        ("overfit_batches=2", r"trainer\.max_steps"),
        ("limit_train_batches=0", r"trainer\.max_steps"),
        ("limit_val_batches=0", r"data\.validation_images"),
    ],
)
def test_limits_that_leave_out_images_are_refused_before_any_work(place, option, advice):
    config = config_of(place, f"+trainer.{option}")
    for refuse in (pipeline.run, checks.check_job):
        with pytest.raises(UserError, match=rf"trainer\.{option.split('=')[0]}=.* leaves out images; .*{advice}"):
            refuse(config)
    assert not (place / "run").exists()
    checks.check_job(config_of(place, "+trainer.limit_test_batches=1.0", "+trainer.max_time=null"))


def test_training_images_and_older_lists_belong_to_what_a_run_is_made_of(place):
    config, data = config_of(place), pipeline.build(config_of(place, "data.splits=random").data)
    made = inputs.inputs_of(config, data, ["train", "test"])
    assert set(made["images"]["train"]).isdisjoint(made["images"]["test"])
    name = next(iter(made["images"]["train"]))
    overwrite(place / "images" / name)
    now = inputs.inputs_of(config, data, ["train", "test"])
    with pytest.raises(UserError, match=rf"the image '{name}' changed since"):
        inputs.refuse_changes(place, config, made, now)
    inputs.refuse_changes(place, config, None, now)
    inputs.refuse_changes(place, config, {"given_files": None}, now)
    other = OmegaConf.create(config)
    with open_dict(other):
        other.seed = 7
    inputs.refuse_changes(place, other, made, inputs.inputs_of(other, data, ["train"]))  # another run, refused as such
