"""No result stands under another's name: defense, denoiser, objective and weights agree, or the run is refused."""

import pytest
import torch
from torch import nn

from certiqa.defenses import reported_scores
from certiqa.denoisers import UNet, load_denoiser, save_denoiser
from certiqa.errors import UserError
from certiqa.evaluation import read_records
from certiqa.metrics import load_metric
from certiqa.metrics.weights import save_weights
from certiqa.reports.tables import comparison_table

FEW = (
    "num_samples=40",
    "certification.radii=[0.03]",
    "certification.radius=0.03",
    "certification.joint_confidence=null",
)


class Blur(nn.Module):
    """A denoiser of the user's own, which nobody trains."""

    def forward(self, images):
        return nn.functional.avg_pool2d(images, 3, 1, 1)


@pytest.fixture
def on_pictures(run_here, six_pictures):
    def run(task, *options):
        return run_here(task, "data=folder", f"data.root={six_pictures}", *FEW, *options)

    return run


@pytest.fixture
def weights(tmp_path):
    """Write the weights of a small denoiser that says this of itself; returns the path."""

    def make(channels=(16, 32, 64), **notes):
        path = tmp_path / f"{'-'.join(notes.values())}-{len(channels)}.safetensors"
        save_denoiser(UNet(channels), path, sigma=0.12, notes=notes)
        return path

    return make


def on_networks(summary):
    """Return the notes of a summary but the one that these pictures are smaller than those that mini learnt from."""
    return [note for note in summary["notes"] if "metric=mini was trained with data.resize=224" not in note]


REFUSED = [
    ("evaluate", ("denoiser=none",), r"defense=dms_iqa has a denoiser.*denoiser=none is asked for; choose defense=ms"),
    ("evaluate", ("defense=dms", "denoiser=none"), "choose defense=ms"),
    (
        "evaluate",
        ("denoiser.weights=mini_dms",),
        r"mini_dms were trained with objective=mse.*choose defense=dms, or",
    ),
    ("evaluate", ("defense=dms", "denoiser.weights=mini_dms_iqa"), "choose defense=dms_iqa"),
    ("train", ("defense=ms", "denoiser=unet"), r"defense=ms smooths without a denoiser.*denoiser=none"),
    ("evaluate", ("defense=ms", "denoiser=unet", "denoiser.weights=mini_dms"), "choose defense=dms"),
    ("train", ("defense=chain", "denoiser=unet", "defense.steps=[ms]"), "its denoiser would stay untrained"),
    ("evaluate", ("defense=jpeg", "denoiser=unet"), r"defense=jpeg has no denoiser.*denoiser=none"),
    (
        "evaluate",
        ("denoiser.channels=[8,16]",),
        r"of a unet with channels=\[16, 32, 64\].*set denoiser.channels=\[16",
    ),
    (
        "evaluate",
        ("defense=jpeg", "defense.name=none"),
        "defense.name=none is the name of another.*name=my_none",
    ),
    (
        "evaluate",
        ("defense=fcn", "defense.purifier=jpeg"),
        "unknown key 'defense.weights'.* has no option 'weights'",
    ),
    ("evaluate", ("defense=ms", "defense.name=dms_iqa"), "defense.name=dms_iqa is the name of another defense .* ms;"),
    ("train", ("defense=dms", "+objective.ranking_weight=0.1"), "which is what defense=dms_iqa does"),
    ("train", ("objective.ranking_weight=0", "objective.target_weight=0"), "which is what defense=dms does"),
    ("train", ("objective.mse_share=1",), "without going through the metric, which is what defense=dms does"),
    ("evaluate", ("trainer.precision=64-true",), r"trainer.precision=64-true is not supported.*bf16-mixed"),
    ("train", ("trainer.precision=bf16-true",), "trainer.precision=bf16-true is not supported"),
    ("train", ("trainer.precision=16-true",), "trainer.precision=16-true is not supported"),
]


@pytest.mark.parametrize(("task", "options", "said"), REFUSED)
def test_what_does_not_agree_is_refused_before_any_work(on_pictures, task, options, said):
    with pytest.raises(UserError, match=said):
        on_pictures(task, *options)


def test_weights_that_agree_or_say_nothing_are_taken(on_pictures, weights, tmp_path):
    summary, _ = on_pictures("evaluate", "defense=dms", "denoiser.weights=mini_dms")
    named = {key: summary[key] for key in ("defense", "denoiser", "objective", "network_weights", "trained_through")}
    assert named == {
        "defense": "dms",
        "denoiser": "unet",
        "objective": "mse",
        "network_weights": "mini_dms",
        "trained_through": None,
    }
    assert on_networks(summary) == []
    save_weights(UNet(), tmp_path / "foreign.safetensors", {})
    summary, _ = on_pictures("evaluate", f"denoiser.weights={tmp_path / 'foreign.safetensors'}")
    assert (summary["defense"], summary["status"]) == ("dms_iqa", "finished")


def test_a_denoiser_trained_through_another_metric_is_said_in_summary_table_and_report(on_pictures, weights):
    other = weights(metric="dbcnn", objective="mse_ranking", trained_through="dbcnn")
    summary, folder = on_pictures("evaluate", f"denoiser.weights={other}")
    assert summary["trained_through"] == "dbcnn"
    (note,) = on_networks(summary)
    assert "trained with metric 'dbcnn' and stands before 'mini': a transfer study" in note
    assert "a transfer study" in (folder / "report.html").read_text()
    assert "a transfer study" in str(comparison_table(summary).caption)
    plain = weights(metric="dbcnn", objective="mse", trained_through="")
    assert on_networks(on_pictures("evaluate", "defense=dms", f"denoiser.weights={plain}")[0]) == []


def test_a_filter_trained_on_attacks_of_another_metric_is_said(on_pictures, tmp_path):
    from certiqa.defenses.purifiers.fcn import save_filter
    from certiqa.denoisers.colour_filter import ColourFilter

    path = tmp_path / "filter.safetensors"
    save_filter(ColourFilter(True), path, {"metric": "dbcnn", "objective": "mse"})
    summary, _ = on_pictures("evaluate", "defense=fcn", f"defense.weights={path}")
    assert "trained with metric 'dbcnn'" in on_networks(summary)[0]
    assert on_networks(on_pictures("evaluate", "defense=fcn")[0]) == []


def test_one_s_own_denoiser_is_recorded_as_what_it_is(on_pictures):
    summary, _ = on_pictures("evaluate", "defense=ms", "defense.name=blurred", f"+denoiser._target_={__name__}.Blur")
    assert (summary["defense"], summary["denoiser"]) == ("blurred", f"{__name__}.Blur")


def test_what_is_trained_says_its_objective_and_metric(on_pictures):
    options = ["debug=fast", "trainer.max_steps=2", "data.crop=32", "data.mos_range=null", "defense=dms"]
    _, folder = on_pictures("train", *options)
    denoiser = load_denoiser("unet", weights=folder / "checkpoints" / "denoiser.safetensors")
    assert (denoiser.trained_objective, denoiser.trained_through) == ("mse", None)


def test_an_option_of_the_architecture_must_be_that_of_the_weights(weights):
    path = weights((8, 16), objective="mse")
    assert load_denoiser("unet", weights=path).channels == (8, 16)
    assert load_denoiser("unet", weights=path, channels=(8, 16)).channels == (8, 16)
    with pytest.raises(UserError, match=r"of a unet with channels=\[8, 16\].*set denoiser.channels=\[8, 16\]"):
        load_denoiser("unet", weights=path, channels=(16, 32, 64))


@pytest.mark.parametrize("defense", ["none", "ms"])
def test_the_trainers_precision_reaches_no_score(on_pictures, defense):
    found = []
    for precision in ("32-true", "bf16-mixed"):
        summary, folder = on_pictures("evaluate", f"defense={defense}", f"trainer.precision={precision}")
        rows = read_records(folder)
        found.append(dict(zip(rows["image_id"], zip(rows["score_clean"], rows["score"], strict=True), strict=True)))
        assert summary["precision"] == "fp32"
    assert len(found[0]) == 6
    assert found[0] == found[1]


def test_a_large_image_of_a_batch_is_scored_alone():
    seen = []
    metric = load_metric("mini")
    metric.network.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    images = torch.rand(3, 3, 40, 48)
    assert torch.equal(reported_scores(metric, images, ["a", "b", "c"]), metric(images))
    reported_scores(metric, torch.rand(2, 3, 1100, 1000))
    assert seen == [3, 3, 1, 1]
