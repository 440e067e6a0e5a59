"""What a run records of attacked images, and the files it writes."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from certiqa.attacks import load_attack
from certiqa.attacks.suite import noise_like
from certiqa.callbacks import Attacks
from certiqa.callbacks.attacked_pictures import save
from certiqa.evaluation.attacked import summarise_attacks
from certiqa.evaluation.manifest import write_manifest
from certiqa.evaluation.records import to_table
from certiqa.metrics import FrozenMetric


class Broken(nn.Module):
    """The mean; NaN of images brighter than ``above``; of those darker than ``below`` a pixel's slope is infinite."""

    def __init__(self, below=0.0, above=2.0):
        super().__init__()
        self.below, self.above = below, above

    def forward(self, images):
        scores = images.flatten(1).mean(1)
        first = images[:, 0, 0, 0]
        root = torch.where(first < self.below, first - first.detach(), 1).sqrt()  # of 0 the slope is infinite
        scores = scores + root - root.detach()
        return torch.where(scores > self.above, torch.nan, scores)


def metric_of(network, **facts):
    return FrozenMetric(network, name="tested", **{"score_range": (0, 1), **facts})


def attacked(tmp_path, metric, images, name="ifgsm", *, aim="defense", undefended=None, **options):
    """The rows that a run records of images named a, b, ..."""
    callback = Attacks(tmp_path, direction=options.pop("direction", "raise"), aim=aim, save_images=False)
    module = SimpleNamespace(defense=metric, base_metric=undefended or metric)
    facts = [{"image_id": name_of, "attack": name} for name_of in "abcd"[: len(images)]]
    attack = load_attack(name, **{"eps": 4 / 255, **options})
    found = callback.run(module, attack, images, facts)
    return [{**row, **more} for row, more in zip(facts, found, strict=True)]


def greys(*values):
    return torch.stack([torch.full((3, 8, 8), value) for value in values])


def test_an_image_whose_gradient_was_not_finite_is_no_failure(tmp_path):
    rows = attacked(tmp_path, metric_of(Broken(below=0.3)), greys(0.2, 0.6))
    assert [row["gradient_not_finite"] for row in rows] == [True, False]
    assert not any("failure" in row for row in rows)
    json.dumps(rows, allow_nan=False)


def test_a_score_that_is_not_finite_is_a_failure(tmp_path):
    rows = attacked(tmp_path, metric_of(Broken(above=0.605)), greys(0.2, 0.6), "fgsm")
    assert [row.get("failure") for row in rows] == [None, "metric 'tested' scored nan on b under attack 'fgsm'"]
    json.dumps(rows, allow_nan=False)
    summary = summarise_attacks(to_table(rows).assign(score_clean=np.nan), metric_of(Broken()))
    assert (summary["attack_num_images_fgsm"], summary["attack_num_failed_fgsm"]) == (1, 1)


class Flat(nn.Module):
    """The mean, at most 0.3: bright images have no gradient."""

    def forward(self, images):
        return images.flatten(1).mean(1).clamp(max=0.3)


class Steep(nn.Module):
    """The mean, ``slope`` times as steep as it says."""

    def forward(self, images):
        means = images.flatten(1).mean(1)
        return means.detach() + 110 * 255 * (means - means.detach())


@pytest.mark.parametrize(
    ("network", "columns", "warning"),
    [
        (Flat(), ([False, True], [False, False]), "the gradient was zero for 1 of 2 images"),
        (Steep(), ([False, False], [True, True]), "the gradient explodes for 2 of 2 images"),
    ],
)
def test_what_was_wrong_with_gradients_reaches_the_summary(tmp_path, network, columns, warning):
    metric = metric_of(network)
    rows = attacked(tmp_path, metric, greys(0.1, 0.6), steps=2)
    for name, expected in zip(("gradient_zero", "gradient_exploding"), columns, strict=True):
        assert [row[name] for row in rows] == expected
    summary = summarise_attacks(to_table(rows).assign(score_clean=np.nan), metric)
    assert any(warning in text for text in summary["attack_warnings"])


def test_the_gradients_of_a_set_attack_are_recorded_too(tmp_path):
    metric = metric_of(Flat())
    images, ids = greys(0.1, 0.2, 0.25, 0.6), list("abcd")
    callback = Attacks(tmp_path)
    for name in ("sma", "rank_inversion"):
        attack = load_attack(name, eps=4 / 255, steps=2)
        (share,) = attack.craft_set(metric, [{"image": images, "image_id": ids}])
        module = SimpleNamespace(defense=metric, base_metric=metric)
        facts = [{"image_id": image_id, "attack": name} for image_id in ids]
        rows = callback.judge(module, share.images, share.result, facts, 0.0)
        assert [row["gradient_zero"] for row in rows] == [False, False, False, True], name
        assert not any("wanted" in row for row in rows), "some rise, others fall"


@pytest.mark.parametrize("lower_better", [False, True])
@pytest.mark.parametrize("direction", ["raise", "lower", "away"])
def test_the_way_that_quality_was_to_go_is_recorded(tmp_path, direction, lower_better):
    metric = metric_of(Broken(), lower_better=lower_better)
    rows = attacked(tmp_path, metric, greys(0.2, 0.8), direction=direction)
    sign = -1 if lower_better else 1
    moved = [sign * (row["score_attacked"] - row["score"]) for row in rows]
    assert [row["wanted"] for row in rows] == np.sign(moved).tolist()
    assert [row["wanted"] for row in rows] == {"raise": [1, 1], "lower": [-1, -1], "away": [sign, -sign]}[direction]


def test_away_is_decided_by_the_metric_aimed_at(tmp_path):
    brighter = metric_of(nn.Sequential(Broken(), nn.Identity()), score_range=(0, 0.2))
    rows = attacked(tmp_path, metric_of(Broken()), greys(0.2), direction="away", aim="undefended", undefended=brighter)
    assert rows[0]["wanted"] == -1, "0.2 is low for the defense, high for the metric without it"
    assert rows[0]["score_attacked"] < rows[0]["score"]


def test_the_control_has_the_norm_of_the_attack():
    images = 0.3 + 0.4 * torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    moved = torch.tensor([0.0, 0.01, 0.04]).view(3, 1, 1, 1) * torch.randn(
        images.shape, generator=torch.Generator().manual_seed(2)
    )
    lengths, controls = (
        (batch - images).flatten(1).norm(dim=1)
        for batch in (images + moved, noise_like(images, images + moved, list("abc")))
    )
    torch.testing.assert_close(controls, lengths)


def test_every_attacked_image_has_a_picture_of_its_own(tmp_path):
    ids = ["a/1.png", "a_1.png", "a/1", "a_1", "1.png", "x" * 300, "x" * 301]
    paths = [save(tmp_path, greys(i / 10)[0], "ifgsm (transfer)", image_id) for i, image_id in enumerate(ids)]
    records = pd.DataFrame({"attacked_path": [*paths, None], "attack": "ifgsm (transfer)", "image_id": [*ids, "none"]})
    manifest = tmp_path / "attacked" / "manifest.csv"
    for before in (None, "half a li"):
        if before is not None:
            manifest.write_text(before)
        write_manifest(tmp_path, records)
        with open(manifest, newline="") as file:
            lines = list(csv.DictReader(file))
        assert [(line["file"], line["image_id"]) for line in lines] == list(zip(paths, ids, strict=True))
    for i, path in enumerate(paths):
        with Image.open(tmp_path / path) as picture:
            assert np.asarray(picture)[0, 0, 0] == round(255 * i / 10), ids[i]
    assert paths[4] == "attacked/ifgsm_transfer/1.png"
