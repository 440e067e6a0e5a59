"""A finished run is reported only while the files that its command gives by path are what they were."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from certiqa.entry import identity
from certiqa.entry.finished import finished_as_given
from certiqa.entry.given import GIVEN_FILES, given_files
from certiqa.errors import UserError

ROOT = Path(__file__).parents[2]


def composed(*options):
    identity.register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("evaluate", list(options))


def finish(folder, config, **facts):
    summary = {"status": "finished", "config_hash": identity.config_hash(config), **facts}
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def pictures(tmp_path):
    """A folder of images with a table of scores."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        Image.new("RGB", (64, 64), "olive").save(folder / name)
    (folder / "scores.csv").write_text("image,mos\na.png,1.5\ndeep/b.png,4.5\n")
    return folder


def test_weights_that_changed_are_noticed_and_the_option_is_named(tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"first")
    config = composed("defense=dms", f"denoiser.weights={weights}")
    finish(tmp_path, config, **{GIVEN_FILES: given_files(config)})
    assert finished_as_given(tmp_path, config)
    weights.write_bytes(b"other")
    with pytest.raises(UserError, match=r"made otherwise: what denoiser\.weights=.*w\.safetensors.*fresh=true"):
        finished_as_given(tmp_path, config)
    weights.unlink()
    assert finished_as_given(tmp_path, config), "what is gone cannot be compared"


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: Image.new("RGB", (64, 64)).save(folder / "c.png"),
        lambda folder: (folder / "deep" / "b.png").unlink(),
        lambda folder: (folder / "scores.csv").write_text("image,mos\na.png,1.5\ndeep/b.png,4.4\n"),
    ],
    ids=["an image more", "an image less", "another score"],
)
def test_a_folder_of_images_that_changed_is_noticed(pictures, tmp_path, change):
    config = composed("data=folder", f"data.root={pictures}", "defense=none")
    finish(tmp_path, config, **{GIVEN_FILES: given_files(config)})
    assert finished_as_given(tmp_path, config)
    change(pictures)
    with pytest.raises(UserError, match=r"what data\.root=.*pictures names has changed"):
        finished_as_given(tmp_path, config)


def test_a_folder_of_weights_is_told_by_its_contents(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.safetensors").write_bytes(b"12")
    config = composed("defense=diffpure", f"defense.weights={tmp_path / 'unet'}")
    before = given_files(config)
    assert list(before) == ["defense.weights"]
    (tmp_path / "unet" / "model.safetensors").write_bytes(b"34")
    assert given_files(config) != before


def test_what_is_given_by_name_is_no_file_and_old_summaries_are_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()  # has the name of a data set, and is none
    config = composed("defense=ms")
    assert given_files(config) == {}
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"first")
    config = composed("defense=dms", f"denoiser.weights={weights}")
    finish(tmp_path, config)
    assert finished_as_given(tmp_path, config)


def test_the_command_notices(pictures, tmp_path):
    command = [sys.executable, str(ROOT / "evaluate.py"), "data=folder", f"data.root={pictures}", "data.splits=all"]
    command += ["defense=none", f"paths.outputs={tmp_path / 'outputs'}"]

    def call():
        return subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    done = call()
    assert done.returncode == 0, done.stderr
    assert "finished already" in call().stdout
    Image.new("RGB", (64, 64)).save(pictures / "c.png")
    done = call()
    assert done.returncode == 1, done.stdout
    assert "certiqa: the results in" in done.stderr
    assert "were made otherwise: what data.root=" in done.stderr
    assert "finished already" not in done.stdout
