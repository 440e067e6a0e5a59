"""The published metrics: upstream's files give upstream's scores, through the path that users take."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from certiqa.certification import certify
from certiqa.defenses import MedianSmoothing
from certiqa.errors import UserError
from certiqa.metrics import METRICS, check_metric, load_metric
from certiqa.metrics import clipiqa as clipiqa_module
from certiqa.metrics.folding import fold_batch_norms
from certiqa.metrics.pyiqa import nominal_range, pyiqa_metrics
from certiqa.metrics.spaq import patch_corners, patches_of
from certiqa.metrics.weights import load_strictly, read_weights

spec = importlib.util.spec_from_file_location("upstream", Path(__file__).with_name("upstream.py"))
upstream = importlib.util.module_from_spec(spec)
spec.loader.exec_module(upstream)

PUBLISHED = sorted(METRICS.keys() - {"mini", "trained"})
SMALL = {"linearity": {"resize": [128, 160]}}  # ResNeXt-101 at 498x664 takes seconds an image here


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


MADE = {}


@pytest.fixture
def published(folder, monkeypatch):
    """Make upstream's files once: name -> (options of load_metric, independent forward).

    The archive of CLIP that is made passes for the published one, which is known by its digest.
    """

    def make(name):
        if name not in MADE:
            MADE[name] = made(name)
        options, forward = MADE[name]
        if "backbone_weights" in options:
            monkeypatch.setattr(clipiqa_module, "RN50", upstream.sha256(options["backbone_weights"]))
        return options, forward

    def made(name):
        if name == "clipiqa_plus":
            prompts, archive = folder / "prompts.pth", folder / "RN50.pt"
            forward = upstream.clipiqa_plus(prompts, archive)
            return {"weights": prompts, "backbone_weights": archive}, forward
        path = folder / f"{name}.pth"
        forward = getattr(upstream, name)(path)
        return {"weights": path}, forward

    return make


def photographs(height, width, count=2, seed=0):
    """Smooth images with some noise, as photographs are, and pixels outside [0, 1], as noise makes them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 9, 9, generator=generator)
    images = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    return images + 0.05 * torch.randn(images.shape, generator=generator)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("dbcnn", (96, 129)),
        ("metaiqa", (96, 129)),
        ("metaiqa", (224, 224)),
        ("clipiqa_plus", (96, 129)),
        ("linearity", (96, 129)),
        ("spaq", (224, 224)),
        ("spaq", (250, 340)),
        ("spaq", (520, 600)),
    ],
)
def test_upstream_weights_give_upstream_scores(published, name, size):
    options, independent = published(name)
    metric = load_metric(name, **options)
    images = photographs(*size, count=1 if name in ("linearity", "spaq") else 2)
    with torch.no_grad():
        found, expected = metric(images), independent(images)
    assert found.shape == (len(images),)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * metric.range_width)
    assert metric.weights_source == Path(options["weights"]).name


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_contract_is_kept_with_upstream_weights(published, name):
    options, _ = published(name)
    metric = load_metric(name, **options, **SMALL.get(name, {}))
    report = check_metric(metric)
    assert report.ok, report.failures
    assert not any(parameter.is_meta for parameter in (*metric.parameters(), *metric.buffers()))
    assert metric.keeps_contract
    assert not any(isinstance(module, nn.BatchNorm2d) for module in metric.modules()), "BatchNorm is folded"


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_metric_certifies_and_is_attacked(name, precision):
    metric = load_metric(name, weights="random", **SMALL.get(name, {}))
    side = max(64, metric.min_size)
    images = photographs(side, side, count=1).clamp(0, 1)
    smooth = MedianSmoothing(metric, 0.1, precision=precision, num_samples=5)
    bounds = certify(smooth, images, radii=[0.02], num_samples=12, confidence=0.9, image_ids=["a"])
    assert bounds.lower[0, 0] <= bounds.score[0] <= bounds.upper[0, 0]
    assert np.isfinite(bounds.lower).all()
    # one sign step, as FGSM makes it, through the metric itself and through the smoothed one
    for scorer in (metric, smooth):
        probe = images.clone().requires_grad_(True)
        gradient = torch.autograd.grad(scorer(probe, image_ids=["a"]).sum(), probe)[0]
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0
        assert (images + 4 / 255 * gradient.sign()).clamp(0, 1).ne(images).any()


@pytest.mark.full
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_metric_certifies_at_224_at_the_authors_sizes(name, precision):
    smooth = MedianSmoothing(load_metric(name, weights="random"), 0.1, precision=precision)
    images = photographs(224, 224, count=1).clamp(0, 1)
    bounds = certify(smooth, images, radii=[0.02], num_samples=12, confidence=0.9, image_ids=["a"])
    assert bounds.lower[0, 0] <= bounds.score[0] <= bounds.upper[0, 0]
    probe = images.clone().requires_grad_(True)
    assert torch.autograd.grad(smooth.metric(probe).sum(), probe)[0].abs().max() > 0


@pytest.mark.full
def test_linearity_at_the_authors_size(published):
    options, independent = published("linearity")
    images = photographs(384, 512, count=1)
    with torch.no_grad():
        torch.testing.assert_close(
            load_metric("linearity", **options)(images), independent(images), rtol=1e-5, atol=1e-3
        )


@pytest.mark.parametrize("name", [*PUBLISHED, "mini"])
def test_random_weights_are_seeded_and_say_so(name):
    options = SMALL.get(name, {})
    side = 224 if name == "spaq" else 64
    images = photographs(side, side, count=1).clamp(0, 1)
    state = torch.random.get_rng_state()
    first, again, other = (load_metric(name, weights="random", seed=seed, **options) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"
    with torch.no_grad():
        assert torch.equal(first(images), again(images))
        assert not torch.equal(first(images), other(images))
    assert first.weights_source == "random (seed 0)"


def test_following_to_moves_all_of_clip_and_its_features_are_computed_once(published, monkeypatch):
    from pyiqa.archs.clipiqa_arch import PromptLearner

    options, _ = published("clipiqa_plus")
    metric = load_metric("clipiqa_plus", **options)
    assert "network.visual.conv1.weight" in metric.state_dict()
    assert not any("transformer" in key for key in metric.state_dict()), "the text tower is not kept"
    monkeypatch.setattr(PromptLearner, "forward", lambda *_: pytest.fail("the text features were computed again"))
    metric(photographs(64, 64))
    metric.to(torch.float64)
    assert all(value.dtype == torch.float64 for value in metric.parameters())


def test_an_unknown_archive_of_code_is_refused(published, monkeypatch):
    options, _ = published("clipiqa_plus")
    monkeypatch.setattr(clipiqa_module, "RN50", "0" * 64)
    with pytest.raises(UserError, match="TorchScript archive"):
        load_metric("clipiqa_plus", **options)


def test_prompts_of_another_shape_are_refused(tmp_path):
    torch.save(torch.zeros(2, 8, 512), tmp_path / "prompts.pth")
    with pytest.raises(UserError, match=r"\(2, 16, 512\): its shape is \(2, 8, 512\)"):
        load_metric("clipiqa_plus", weights=tmp_path / "prompts.pth")


TRAINING_SCRIPT = """
import sys
from certiqa.metrics import load_metric
import torch
print(sys.argv[0])
print(float(load_metric("metaiqa")(torch.full((1, 3, 64, 64), 0.3))))
"""


def test_a_script_named_train_gets_the_fine_tuned_metaiqa(tmp_path):
    cache = tmp_path / "cache" / "weights"
    cache.mkdir(parents=True)
    fine_tuned = upstream.metaiqa(cache / "Metaiqa_livec.pth", seed=1)
    prior = upstream.metaiqa(cache / "Metaiqa_prior.pth", seed=2)
    (tmp_path / "train.py").write_text(TRAINING_SCRIPT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "train.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "CERTIQA_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=True,
    )
    script, score = done.stdout.split()[-2:]
    assert script.endswith("train.py")
    grey = torch.full((1, 3, 64, 64), 0.3)
    with torch.no_grad():
        assert float(score) == pytest.approx(float(fine_tuned(grey)), abs=1e-5)
        assert abs(float(score) - float(prior(grey))) > 1e-3, "the two files must be told apart"


def test_weights_of_another_architecture_are_named(published):
    options, _ = published("metaiqa")
    with pytest.raises(UserError, match=r"do not fit DbcnnNetwork: .*missing, first: features1.*look like metaiqa"):
        load_metric("dbcnn", weights=options["weights"])
    options, _ = published("linearity")
    state, _ = read_weights(options["weights"])
    torch.save(state, options["weights"].with_name("alone.pth"))
    with pytest.raises(UserError, match="has no 'k' and 'b'"):
        load_metric("linearity", weights=options["weights"].with_name("alone.pth"))


@pytest.mark.parametrize("name", ["linearity", "spaq"])
def test_missing_weights_say_which_file_to_get_and_where_to_put_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CERTIQA_CACHE", str(tmp_path))
    file = {"linearity": "p1q2.pth", "spaq": "BL_release.pt"}[name]
    with pytest.raises(UserError, match=rf"needs '{file}' .*file-sharing site.*put it at '{tmp_path}/weights/{file}'"):
        load_metric(name)
    upstream_file = getattr(upstream, name)
    (tmp_path / "weights").mkdir()
    upstream_file(tmp_path / "weights" / file)
    assert load_metric(name, **SMALL.get(name, {})).weights_source == file


def test_options_that_a_metric_does_not_have_are_named():
    with pytest.raises(UserError, match="metric 'metaiqa' has no option 'size'; it has: device, resize, seed, weights"):
        load_metric("metaiqa", size=3)
    with pytest.raises(UserError, match=r"metric.resize must be \[height, width\] in pixels, or native, got \[0, 3\]"):
        load_metric("metaiqa", weights="random", resize=[0, 3])
    with pytest.raises(UserError, match="at least 224, the side of a patch, or native, got 100"):
        load_metric("spaq", weights="random", resize=100)
    with pytest.raises(UserError, match="at least 224x224 pixels, got 200x300"):
        load_metric("spaq", weights="random")(torch.zeros(1, 3, 200, 300))


def test_resizing_is_a_choice():
    images = photographs(96, 130, count=1)
    with torch.no_grad():
        scores = [load_metric("metaiqa", weights="random", resize=size)(images) for size in ([224, 224], "native")]
    assert scores[0] != scores[1]


def test_patches_cover_the_borders_as_in_the_paper():
    assert [len(patch_corners(side)) for side in (224, 512, 683, 384, 768, 1024)] == [1, 4, 6, 3, 6, 9]
    assert patch_corners(683)[-1] == 683 - 224
    assert patches_of(photographs(384, 512)).shape == (2 * 12, 3, 224, 224)
    images = photographs(230, 340)
    whole = load_metric("spaq", weights="random", resize="native")
    few = load_metric("spaq", weights="random", resize="native", patches_at_once=5)
    with torch.no_grad():
        torch.testing.assert_close(whole(images), few(images), rtol=1e-5, atol=1e-4)


def test_folding_leaves_lookalikes_alone():
    class Parallel(nn.Module):
        """Has the names of a residual block, but calls them otherwise."""

        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, images):
            return self.conv1(images) + self.bn1(images)

    network = upstream.shake(Parallel())
    images = torch.rand(2, 3, 8, 8)
    before = network(images)
    fold_batch_norms(network)
    assert torch.equal(network(images), before)


def test_a_network_without_memory_takes_the_tensors_themselves():
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = {"0.weight": torch.rand(2, 3), "0.bias": torch.rand(2)}
    state |= {f"1.{key}": torch.rand(2) for key in ("weight", "bias", "running_mean", "running_var")}
    load_strictly(network, state, "here")  # without num_batches_tracked, as old files are
    assert network[0].weight.data_ptr() == state["0.weight"].data_ptr()
    assert network.eval()(torch.rand(4, 3)).isfinite().all()


# -- any other metric of pyiqa ---------------------------------------------------------------------------------


def test_a_pyiqa_metric_scores_as_pyiqa_does(tmp_path):
    from pyiqa.archs.cnniqa_arch import CNNIQA

    torch.manual_seed(1)
    network = CNNIQA(pretrained_model_path=str(saved(CNNIQA, tmp_path / "cnniqa.pth"))).eval()
    metric = load_metric("cnniqa", weights=tmp_path / "cnniqa.pth")
    images = photographs(70, 90)
    with torch.no_grad():
        torch.testing.assert_close(metric(images), network(images).squeeze(1), rtol=1e-5, atol=1e-5)
    assert (metric.name, metric.score_range, metric.lower_better) == ("cnniqa", (0.0, 1.0), False)
    assert check_metric(metric).ok
    probe = images.requires_grad_(True)
    assert torch.autograd.grad(metric(probe).sum(), probe)[0].abs().max() > 0


def saved(architecture, path):
    """Save a state dict of pyiqa's architecture in its container, ``params``."""
    torch.save({"params": upstream.shake(load_metric("cnniqa", weights="random").network.network).state_dict()}, path)
    return path


def test_lower_better_and_ranges_are_those_that_pyiqa_states():
    metric = load_metric("piqe", weights="random")
    assert metric.lower_better
    assert metric.score_range == (0.0, 100.0)
    assert nominal_range("~-3, ~3") == (-3.0, 3.0)
    assert nominal_range("0, ~") is None
    assert nominal_range(None) is None
    assert load_metric("cnniqa", weights="random", score_range=(0, 5)).score_range == (0.0, 5.0)


def test_what_pyiqa_downloads_is_checked_and_loaded_safely(tmp_path, monkeypatch):
    from pyiqa.utils import download_util

    from certiqa.metrics import pyiqa as adapter

    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(tmp_path))
    asked = []

    def fetched(content):
        def fetch(url, target, *, sha256=None):
            asked.append((url, sha256))
            torch.save(content, target)

        return fetch

    state = load_metric("cnniqa", weights="random").network.network.state_dict()
    monkeypatch.setattr(adapter, "fetch", fetched({"params": state}))
    metric = load_metric("cnniqa")
    assert metric.weights_source == "pyiqa's cnniqa"
    assert torch.equal(metric.network.network.state_dict()["conv1.weight"], state["conv1.weight"])
    assert asked[0][1] == "e6f14c91", "the digits in the file's name are checked"

    for path in tmp_path.iterdir():
        path.unlink()
    monkeypatch.setattr(adapter, "fetch", fetched({"params": {"another.weight": torch.zeros(2)}}))
    with pytest.raises(UserError, match=r"another\.weight"):
        load_metric("cnniqa")

    for path in tmp_path.iterdir():
        path.unlink()
    monkeypatch.setattr(adapter, "fetch", fetched({"params": state, "who": Foreign()}))
    with pytest.raises(UserError, match=r"metric\.trust_pickle=true"):
        load_metric("cnniqa")


class Foreign:
    """Unpickling this would run code of its author's choice."""

    def __reduce__(self):
        return (pytest.fail, ("a foreign class was unpickled",))


def test_a_total_mismatch_never_passes_in_silence():
    from certiqa.metrics.pyiqa import loading

    network = nn.Linear(2, 2)
    with (
        loading(lambda *_: None, trust_pickle=False),
        pytest.raises(UserError, match="none of the weights' keys fits Linear"),
    ):
        network.load_state_dict({"other": torch.zeros(1)}, strict=False)
    network.load_state_dict({"other": torch.zeros(1)}, strict=False)  # outside, torch is as it was


def test_names_that_are_not_known_are_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"no metric 'hyperiq'.*Did you mean 'hyperiqa'\?"):
        load_metric("hyperiq")
    with pytest.raises(UserError, match="no metric 'lpips'"):
        load_metric("lpips")
    assert "fid" not in pyiqa_metrics()
