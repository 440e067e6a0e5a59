"""A metric and its mirror, where lower is better, from training to report: the same figures, intervals mirrored."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from PIL import Image
from torch import nn

from certiqa.data import registry
from certiqa.data.images import ImageDataset, ImageRecord
from certiqa.entry import identity, pipeline
from certiqa.errors import UserError
from certiqa.evaluation import read_summary
from certiqa.evaluation.gallery import read_gallery
from certiqa.metrics import FrozenMetric, require_metric
from certiqa.reports import comparison_table

CONF = Path(__file__).parents[2] / "conf"
MOS_RANGE = (0.0, 10.0)
MIRRORS = {"negative": 0.0, "turned in its range": 1.0, "turned elsewhere": 90.0}
FIGURES = (
    "rmse",
    "rmse_undefended",
    "certified_mse",
    "certified_srocc",
    "certified_krocc",
    "certified_plcc",
    "tau_srocc",
)
OF_THE_MIRROR = {  # what may differ between the two summaries
    *("metric_range", "lower_better", "weights_fingerprint", "command", "seconds", "seconds_training"),
    *("images_per_second",),
}


class Light(nn.Module):
    """A steep, curved function of an image's pixels in (0, 1)."""

    def forward(self, images):
        return torch.sigmoid(9 * images.square().mean(dim=(1, 2, 3)) - 3 + images[:, 0].mean(dim=(1, 2)))


class Mirrored(nn.Module):
    """``total`` minus the scores of another network."""

    def __init__(self, network, total):
        super().__init__()
        self.network, self.total = network, total

    def forward(self, images):
        return self.total - self.network(images)


def light(**facts):
    return FrozenMetric(Light(), **{"name": "light", "score_range": (0, 1), "hard_bounds": (0, 1), **facts})


def mirror(total):
    ends = (total - 1, total)
    return FrozenMetric(Mirrored(Light(), total), name="light", score_range=ends, hard_bounds=ends, lower_better=True)


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Sixteen small images, brighter towards the end of the list, with opinion scores that mostly agree."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(5)
    records = []
    for number, opinion in enumerate([1.0, 0.4, 2.2, 3.5, 2.9, 4.1, 5.6, 5.0, 6.2, 7.7, 6.9, 8.0, 9.1, 8.5, 9.6, 9.9]):
        low = (40 + 11 * number + rng.uniform(-25, 25, (5, 5, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(low).resize((24, 24), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
        records.append(ImageRecord(f"{number:02d}.png", folder / f"{number:02d}.png", opinion))
    everything = ImageDataset(records, mos_range=MOS_RANGE, name="squares", fingerprint="squares")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.DATASETS, "squares", lambda split, **_: everything)
        yield everything


def run(metric, folder, *overrides, name="train"):
    """Run a job in this process as ``train.py`` or ``evaluate.py`` would, with a metric made here; its folder."""
    identity.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.MonkeyPatch.context() as patch:
        given = [
            "debug=fast",
            "data.name=squares",
            "~data.guises",
            "data.limit_test=8",
            *overrides,
            f"paths.outputs={folder}",
        ]
        config = compose(name, given, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        config.paths.run = str(folder)
        patch.setattr(pipeline, "build_metric", lambda _: require_metric(metric))
        folder.mkdir()
        pipeline.run(config)
    return folder


TRAINED = (
    "trainer.log_every_n_steps=1",
    "defense=dms_iqa",
    "denoiser.channels=[8,8]",
    "objective.mse_share=0",
    "objective.ranking_weight=0.05",
    "objective.ranking=hinge",
    "objective.ranking_margin=0.5",
)


@pytest.fixture(scope="module")
def plain(squares, tmp_path_factory):
    return run(light(), tmp_path_factory.mktemp("plain") / "run", *TRAINED)


@pytest.fixture(scope="module", params=MIRRORS)
def mirrored(request, squares, tmp_path_factory):
    total = MIRRORS[request.param]
    return total, run(mirror(total), tmp_path_factory.mktemp("mirrored") / "run", *TRAINED)


def summary_of(folder):
    return read_summary(folder)


def test_every_figure_of_the_summary_is_the_same(plain, mirrored):
    first, second = summary_of(plain), summary_of(mirrored[1])
    assert list(first) == list(second)
    assert second["lower_better"]
    assert all(isinstance(first[key], float) for key in FIGURES)
    assert first["certified_srocc"] > 0.5  # and it says something
    for key in first.keys() - OF_THE_MIRROR:
        expected = pytest.approx(first[key], abs=2e-3) if isinstance(first[key], float) else first[key]
        assert second[key] == expected, key


def test_records_are_mirrored(plain, mirrored):
    total, folder = mirrored
    first, second = (pd.read_parquet(path / "records.parquet") for path in (plain, folder))
    pairs = [("score", "score"), ("score_clean", "score_clean"), ("lower", "upper"), ("joint_lower", "joint_upper")]
    pairs += [("upper", "lower"), ("joint_upper", "joint_lower"), ("median_lower", "median_upper")]
    for here, there in pairs:
        assert np.isfinite(first[here].to_numpy(float)).all()
        assert np.allclose(total - second[there].to_numpy(float), first[here].to_numpy(float), atol=2e-4), here
    same = ["image_id", "mos", "mos_normalised", "radius", "num_samples", "abstained", "stop"]
    pd.testing.assert_frame_equal(first[same], second[same])


def test_training_and_validation_curves_are_the_same(plain, mirrored):
    first, second = (pd.read_csv(path / "metrics.csv") for path in (plain, mirrored[1]))
    wanted = {"train/loss", "train/ranking", "train/target", "val/srocc", "val/certified_delta", "val/score_sd"}
    assert wanted <= set(first)
    for name in wanted:
        values = first[name].dropna().to_numpy(float)
        assert values.size
        assert np.allclose(second[name].dropna().to_numpy(float), values, atol=2e-3), name
    assert (first["train/ranking"].dropna() > 0).all()
    assert (first["val/srocc"].dropna() > 0).all()


def test_the_gallery_shows_the_same_images_with_mirrored_scores(plain, mirrored):
    total, folder = mirrored
    first, second = (read_gallery(path) for path in (plain, folder))
    assert [entry["image_id"] for entry in first] == [entry["image_id"] for entry in second]
    for one, other in zip(first, second, strict=True):
        for panel, turned in zip(one["panels"], other["panels"], strict=True):
            assert panel["label"] == turned["label"]
            assert total - turned["score"] == pytest.approx(panel["score"], abs=1e-3)


def dots(page, key):
    """Where the points of a figure are drawn."""
    figure = re.search(rf'<figure class="plot" id="plot-{key}".*?</figure>', page, re.DOTALL)
    assert figure is not None
    places = re.findall(r'<use [^>]*?x="([\d.]+)" y="([\d.]+)"[^>]*fill', figure[0])
    return np.array(places, dtype=float), re.sub(r"<[^>]+>", " ", figure[0])


@pytest.mark.parametrize("key", ["score-undefended", "score-defended", "delta", "correlation"])
def test_figures_of_the_report_show_the_same(plain, mirrored, key):
    (first, _), (second, text) = (dots((path / "report.html").read_text(), key) for path in (plain, mirrored[1]))
    if key.startswith("score"):
        assert first.shape == (8, 2)
        # apart in their labels only: up is better in both, so rising points and SROCC > 0 agree; the width left to
        # the points depends on the labels
        assert np.corrcoef(second[:, 0], first[:, 0])[0, 1] > 0.999999
        assert "score (lower is better)" in text
        assert "up is better" in text
    elif key == "correlation":
        assert "the scores count negated" in text
    else:
        assert len(first) >= 2
    assert np.allclose(second[:, 1], first[:, 1], atol=0.5)


def test_tables_show_the_same_and_name_the_direction(plain, mirrored):
    tables = [comparison_table(summary_of(path)) for path in (plain, mirrored[1])]
    columns = [[list(column.cells) for column in table.columns] for table in tables]
    numbers = [[re.findall(r"[\u2212-]?[\d.]+", str(cell)) for column in table for cell in column] for table in columns]
    assert [len(cell) for cell in numbers[0]] == [len(cell) for cell in numbers[1]]
    for here, there in zip(
        *([float(value.replace("\u2212", "-")) for cell in table for value in cell] for table in numbers), strict=True
    ):
        assert there == pytest.approx(here, rel=0.02, abs=2e-3)
    assert "Lower scores are better" in str(tables[1].caption)
    assert "Lower scores are better" not in str(tables[0].caption)
    page = (mirrored[1] / "report.html").read_text()
    assert "turned round because lower is better" in page
    assert "left is better" in page
    assert "correlations are of its negated scores" in page
    page = (plain / "report.html").read_text()
    assert not [words for words in ("(lower is better)", "left is better", "negated", "turned round") if words in page]


def test_a_metric_without_a_range_works_and_shows_dashes(squares, tmp_path):
    unranged = light(score_range=None, hard_bounds=None, weights_source="random (seed 0)")
    folder = run(unranged, tmp_path / "run", "defense=ms", name="evaluate")
    summary = summary_of(folder)
    assert summary["status"] == "finished"
    for key in ("metric_range", "rmse", "certified_mse", "certified_delta_range_share", "certified_mse_r0.06"):
        assert summary[key] is None, key
    assert summary["certified_srocc"] > 0
    assert summary["weights"] == "random (seed 0)"
    page = (folder / "report.html").read_text()
    assert "random weights: every number here is meaningless" in page
    assert re.search(r"<td>RMSE</td>\s*<td>-</td>\s*<td>-</td>", page)
    assert "of the metric's range" not in re.sub(r"<[^>]+>", "", page)
    with pytest.raises(UserError, match=r"normalises scores by the metric's range, but 'light' states none"):
        run(unranged, tmp_path / "refused", *TRAINED)
