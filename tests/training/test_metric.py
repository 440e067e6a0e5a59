"""Metrics trained on rated images: head, fine-tuning, the file they are kept in, and the command that makes them."""

import csv
import importlib.util
import json
import os
import signal
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from torchvision.models import mobilenet_v2, resnet18

from certiqa.data import DATASETS, load_dataset
from certiqa.data.folder import load_folder
from certiqa.defenses import noise_key
from certiqa.errors import UserError
from certiqa.evaluation import srocc
from certiqa.metrics import TrainedMetric, backbones, check_metric, load_metric
from certiqa.metrics.backbones import PooledFeatures, mean_and_deviation
from certiqa.metrics.trained import FORMAT, TrainedFacts, build_network, save_metric
from certiqa.training.metric import MetricFit, MetricModule
from certiqa.training.objective import correlation

spec = importlib.util.spec_from_file_location("forked", Path(__file__).parents[1] / "forked.py")
forked = importlib.util.module_from_spec(spec)
spec.loader.exec_module(forked)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A file in place of the ImageNet weights: random ones, but of the right network."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("imagenet") / "mobilenet_v2.pth"
    torch.save(mobilenet_v2(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """Forty images whose opinion score is how dark they are, but for noise: something that can be learnt."""
    folder = tmp_path_factory.mktemp("rated")
    generator = np.random.default_rng(0)
    with (folder / "scores.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "mos"])
        for row in range(40):
            level = generator.uniform(40, 215)
            pixels = generator.normal(level, 20, (48, 48, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{row}.png")
            table.writerow([f"{row}.png", round(100 - level / 2.55, 2)])
    return folder


def test_autocast_does_not_round_mean_and_deviation():
    maps = 10 + 0.05 * torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        mean, deviation = mean_and_deviation(maps)
    torch.testing.assert_close(mean, maps.mean(dim=(2, 3)))
    torch.testing.assert_close(deviation, (maps.var(dim=(2, 3), correction=0) + 1e-6).sqrt(), rtol=1e-2, atol=0)


def test_features_are_mean_and_deviation_of_the_layers_of_torchvisions_network(imagenet):
    features = PooledFeatures(imagenet=True, weights=imagenet, layers=["features.1", "features.4"]).eval()
    images = torch.rand(2, 3, 40, 56)
    plain = mobilenet_v2(weights=None)
    plain.load_state_dict(torch.load(imagenet, weights_only=True))
    normalised = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    with torch.no_grad():
        maps = [plain.eval().features[:last](normalised) for last in (2, 5)]
        expected = torch.cat(
            [f(each, dim=(2, 3)) for each in maps for f in (torch.mean, lambda m, dim: m.std(dim, correction=0))], 1
        )
        assert features(images) == pytest.approx(expected, abs=2e-3)


def test_a_constant_map_has_a_deviation_with_a_finite_slope():
    maps = torch.full((1, 2, 4, 4), 0.3, requires_grad=True)
    mean_and_deviation(maps)[1].sum().backward()
    assert maps.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "mobilnet_v2"}, r"no classifier 'mobilnet_v2'.*Did you mean 'mobilenet_v2'\?"),
        ({"backbone": "timm/resnt18"}, r"timm has no model 'resnt18'. Did you mean 'resnet18'\?"),
        ({"backbone": "vgg11"}, r"which layers of vgg11 .*features\.5"),
        ({"layers": ["features.99"]}, r"no layer 'features.99'"),
        ({"imagenet": True, "weights": "nowhere.pth"}, r"no weights at 'nowhere.pth'"),
        (
            {"backbone": "resnet18", "imagenet": True},
            r"download https://\S+resnet18\S+ and put it at .*backbone_weights",
        ),
        ({"backbone": "timm/resnet18", "imagenet": True}, r"metric_fit.backbone_weights=PATH"),
    ],
)
def test_backbones_that_there_are_not_are_told_with_what_there_is(options, message, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=message):
        PooledFeatures(**options)


def test_weights_that_torchvision_has_downloaded_are_found(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    torch.manual_seed(1)
    state = resnet18(weights=None).state_dict()
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    assert backbones.imagenet_weights("resnet18").name == "resnet18-f37072fd.pth"
    features = PooledFeatures("resnet18", imagenet=True)
    assert features(torch.rand(1, 3, 64, 64)).shape == (1, 2 * (64 + 128 + 256 + 512))


def test_timms_networks_give_features_of_their_stages():
    features = PooledFeatures("timm/test_resnet").eval()
    with torch.no_grad():
        assert features(torch.rand(2, 3, 64, 64)).shape[0] == 2


def test_a_saved_metric_is_the_network_and_keeps_the_contract(tmp_path):
    torch.manual_seed(3)
    facts = TrainedFacts("mobilenet_v2", ["features.2"], 48, (1.0, 5.0), lower_better=True, data="mine", resize=96)
    network = build_network(facts)
    save_metric(network, tmp_path / "metric.safetensors", facts)
    metric = load_metric("trained", weights=tmp_path / "metric.safetensors")
    images = torch.rand(3, 3, 33, 40)
    with torch.no_grad():
        assert torch.equal(metric(images), network(images))
        linear = network.head(network.features(images)).squeeze(1)
        assert metric(images) == pytest.approx(1 + 4 / (1 + torch.exp(-(linear - 3))))
    assert metric.hard_bounds == (1, 5)
    assert (metric.score_range, metric.lower_better, metric.weights_source) == ((1, 5), True, "metric.safetensors")
    assert metric.facts.resize == 96
    assert check_metric(metric, size=64).ok


def test_other_files_are_no_trained_metrics(tmp_path):
    with pytest.raises(UserError, match=r"metric\.weights=PATH"):
        load_metric("trained")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match=r"no metric that this version of certiqa trained.*experiment=metric"):
        TrainedMetric(tmp_path / "foreign.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "bad.safetensors", {"format": FORMAT, "facts": "{"})
    with pytest.raises(UserError, match="damaged"):
        TrainedMetric(tmp_path / "bad.safetensors")


def test_the_correlation_of_the_loss_is_pearsons():
    first, second = torch.rand(2, 9, generator=torch.Generator().manual_seed(0))
    assert float(correlation(first, second)) == pytest.approx(np.corrcoef(first, second)[0, 1], abs=1e-5)
    assert float(correlation(torch.ones(4), second[:4])) == 0


@pytest.fixture(scope="module")
def command(rated, imagenet):
    """Run ``train.py experiment=metric`` in a folder."""

    def start(folder, *more):
        given = [
            *("experiment=metric", "data=folder", f"data.root={rated}", "data.resize=null", "data.crop=40"),
            *("data.mos_range=[0,100]", "data.num_workers=0", f"metric_fit.backbone_weights={imagenet}"),
            *("metric_fit.layers=[features.1,features.3]", f"paths.outputs={folder}", *more),
        ]
        folder.mkdir(exist_ok=True)
        return forked.run([sys.executable, ROOT / "train.py", *given], cwd=folder)

    return start


def test_a_metric_is_trained_judged_carded_and_used(command, rated, tmp_path):
    done = command(tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("metric/folder-metric-*")
    summary = json.loads((folder / "summary.json").read_text())
    with (folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores, mos = ([float(row[key]) for row in rows] for key in ("score", "mos"))
    assert summary["status"] == "finished"
    assert summary["srocc"] == pytest.approx(srocc(scores, mos))
    card = (folder / "card.md").read_text()
    assert f"SROCC {summary['srocc']:.3f}" in card
    assert "licence of the data" in card
    weights = folder / "metric.safetensors"
    metric = TrainedMetric(weights)
    test = load_dataset("folder", "test", root=rated, mos_range=(0, 100))
    found = {item["image_id"]: float(metric(item["image"][None])) for item in (test[row] for row in range(len(test)))}
    assert {row["image_id"]: float(row["score"]) for row in rows} == pytest.approx(found, abs=1e-3)
    train = load_dataset("folder", "train", root=rated, mos_range=(0, 100))
    fitted = [float(metric(train[row]["image"][None])) for row in range(len(train))]
    assert srocc(fitted, [record.mos for record in train.records]) > 0.9  # brightness is easily told
    assert "trained already" in command(tmp_path).stdout

    used = [
        "evaluate.py",
        "defense=none",
        "metric=trained",
        f"metric.weights={weights}",
        "data=folder",
        f"data.root={rated}",
    ]
    used += [f"paths.outputs={tmp_path}", "data.mos_range=[0,100]", "data.num_workers=0", "data.test=all"]
    plain = forked.run([sys.executable, ROOT / used[0], *used[1:]], cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    (run_of_it,) = tmp_path.glob("evaluate/folder-trained-none-*")
    told = json.loads((run_of_it / "summary.json").read_text())
    assert told["srocc"] == pytest.approx(summary["srocc"])
    assert told["notes"] == []
    others = forked.run(
        [sys.executable, ROOT / used[0], *used[1:], "data.split_seed=1", "data.resize=64"], cwd=tmp_path
    )
    assert "test images are among those that metric=trained learnt from" in " ".join(others.stdout.split())
    assert "was trained with data.resize=null" in " ".join(others.stdout.split())


def test_cross_validation_leaves_out_all_images_of_a_reference():
    generator = np.random.default_rng(0)
    features, mos = (np.repeat(generator.normal(size=shape), 2, axis=0) for shape in ((40, 90), (40,)))
    fit = MetricFit(penalties=[0.001, 1.0], folds=4)
    apart = fit._cross_validated(
        features, mos, [str(row // 2) for row in range(80)], [""] * 80
    )  # nothing can be learnt
    assert max(np.abs(apart)) < 0.5
    known = fit._cross_validated(features, mos, [str(row) for row in range(80)], [""] * 80)  # the other copy is known
    assert min(known) > 0.6
    with pytest.raises(UserError, match=r"metric_fit.folds=4 needs as many training images, there are 3"):
        fit._cross_validated(features[:3], mos[:3], ["a", "b", "c"], [""] * 3)


@pytest.fixture(scope="module")
def two_sets(rated, tmp_path_factory):
    """The rated images as one set, and as another with opinion scores of another scale, better the lower they are."""
    other = tmp_path_factory.mktemp("other")
    lines = (rated / "scores.csv").read_text().splitlines()[1:]
    cells = [(name, float(mos)) for name, mos in (line.split(",") for line in lines)]
    for name, _ in cells:
        (other / name).symlink_to(rated / name)
    (other / "scores.csv").write_text("image,dmos\n" + "".join(f"{name},{10 - mos / 10}\n" for name, mos in cells))
    return {"here": {"root": str(rated), "mos_range": [0, 100]}, "there": {"root": str(other), "lower_better": True}}


def test_a_metric_is_trained_on_a_union_and_judged_on_each_of_its_sets(two_sets, imagenet, tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "here", load_folder)
    monkeypatch.setitem(DATASETS, "there", load_folder)
    sets = json.dumps(two_sets | {"there": two_sets["there"] | {"mos_range": [0, 10]}}).replace('"', "")
    given = [
        *("experiment=metric", "data=union", f"+data={{sets:{sets}}}", "data.sets.livec=null", "data.sets.mini=null"),
        *("data.resize=null", "data.crop=40", "data.num_workers=0", f"metric_fit.backbone_weights={imagenet}"),
        *("metric_fit.layers=[features.1]", "metric_fit.fine_tune=true", "trainer.max_epochs=1", "data.batch_size=8"),
    ]
    done = forked.run([sys.executable, ROOT / "train.py", *given, f"paths.outputs={tmp_path}"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("metric/union-metric-*")
    summary = json.loads((folder / "summary.json").read_text())
    table = pd.read_csv(folder / "scores.csv")
    assert list(summary["sets"]) == ["here", "there"]
    assert "srocc" not in summary
    for name, rows in table.groupby("set"):
        assert rows.mos.between(1, 5).all()
        assert summary["sets"][name]["srocc"] == pytest.approx(spearmanr(rows.score, rows.mos)[0])
    one, other = (rows.mos.to_numpy() for _, rows in table.groupby("set"))
    assert one == pytest.approx(other, abs=1e-6)  # the same images, on the union's scale
    card = (folder / "card.md").read_text()
    assert "test images of here" in card
    assert "test images of there" in card
    assert f"{summary['val_srocc']:.3f} on average" in done.stdout


def test_a_loss_on_a_union_correlates_within_each_set():
    network = build_network(TrainedFacts("mobilenet_v2", ["features.1"], 32, (0.0, 1.0)))
    module = MetricModule(network, torch.optim.Adam, mos_range=(0.0, 1.0))
    module.log = lambda *given, **more: None
    images, wanted = torch.rand(6, 3, 32, 32), torch.tensor([0.1, 0.2, 0.3, 0.9, 0.8, 0.6])
    batch = {"image": images, "epoch": torch.zeros(6, dtype=int), "image_id": list("abcdef"), "mos_normalised": wanted}
    keys = [noise_key(0, "train", name, 0) % 2 == 1 for name in "abcdef"]
    shown = torch.where(torch.tensor(keys)[:, None, None, None], images.flip(-1), images)
    scores = network(shown).detach()
    within = [np.corrcoef(scores[part], wanted[part])[0, 1] for part in (slice(3), slice(3, 6))]
    expected = float((scores - wanted).square().mean()) + (1 - np.mean(within)) / 2
    loss = module.training_step(batch | {"source": ["one"] * 3 + ["two"] * 3}, 0)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-4)


def test_several_processes_are_refused_before_any_work(command, tmp_path):
    refused = command(tmp_path, "trainer.devices=2")
    assert refused.returncode == 1
    assert "trained by one process" in refused.stderr
    assert not list(tmp_path.glob("metric/*/summary.json"))


@pytest.mark.full
def test_fine_tuning_goes_on_where_it_was_killed_and_keeps_the_best_by_validation(command, tmp_path, monkeypatch):
    tuned = ["metric_fit.fine_tune=true", "trainer.max_epochs=3", "data.batch_size=8", "callbacks.checkpoint.minutes=0"]
    done = command(tmp_path / "whole", *tuned)
    assert done.returncode == 0, done.stderr
    step, steps = MetricModule.training_step, count()

    def deadly(module, *given):
        if next(steps) == 6:  # in the second pass
            os.kill(os.getpid(), signal.SIGKILL)
        return step(module, *given)

    with monkeypatch.context() as patch:
        patch.setattr(MetricModule, "training_step", deadly)
        assert command(tmp_path / "killed", *tuned).returncode == -signal.SIGKILL
    resumed = command(tmp_path / "killed", *tuned)
    assert "continuing from" in resumed.stdout, resumed.stderr
    kept, summaries = [], []
    for name in ("whole", "killed"):
        (folder,) = tmp_path.glob(f"{name}/metric/*")
        kept.append(load_file(folder / "metric.safetensors"))
        summaries.append(json.loads((folder / "summary.json").read_text()))
    assert all(torch.equal(value, kept[1][key]) for key, value in kept[0].items())
    assert summaries[0]["val_srocc"] == summaries[1]["val_srocc"] >= summaries[0]["val_srocc_head"]
    assert summaries[0]["steps"] == 12
