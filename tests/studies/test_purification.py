import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from certiqa.attacks import load_attack
from certiqa.defenses import PurifiedMetric, load_purifier
from certiqa.entry import identity
from certiqa.entry.pipeline import run
from certiqa.entry.report import main as report_command
from certiqa.errors import UserError
from certiqa.evaluation import read_summary, srocc
from certiqa.reports.study import write_study_report
from certiqa.studies import PurificationStudy, grid, study_figures
from certiqa.studies.figures import best_strengths
from certiqa.studies.kept import mark

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
PURIFIERS = {
    "flip": {},
    "random_noise": {"sigma": [0.02, 0.2]},
    "color_quantization": {"levels": [4]},
    "mprnet": {"weights": None},
}


@pytest.fixture
def batches():
    draws = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    images = (draws * 255).round() / 255
    ids, mos = [f"i{row}" for row in range(5)], torch.tensor([3.0, 1, 2, 5, 4])
    return [{"image": images[part], "image_id": ids[part], "mos": mos[part]} for part in (slice(0, 3), slice(3, 5))]


def study(**options):
    attacks = {"ifgsm": load_attack("ifgsm", eps=8 / 255, steps=3)}
    return PurificationStudy(PURIFIERS, attacks, **options)


def test_the_grid_has_a_cell_per_strength():
    cells = grid(PURIFIERS)
    assert [(cell.purifier, cell.strength, cell.available) for cell in cells] == [
        ("flip", "", True),
        ("random_noise", "sigma 0.02", True),
        ("random_noise", "sigma 0.2", True),
        ("color_quantization", "levels 4", True),
        ("mprnet", "", False),
    ]
    assert cells[2].options == {"sigma": 0.2}
    assert study().unavailable == ["mprnet"]
    for wrong, message in (
        ({}, "needs purifiers"),
        ({"jpeg": {"quality": []}}, "quality is empty"),
        ({"unsharp": {"kernel": [3], "amount": [1, 2]}}, "lists for kernel and amount"),
    ):
        with pytest.raises(UserError, match=message):
            grid(wrong)
    with pytest.raises(UserError, match="study.aims must be some of transfer, adaptive"):
        study(aims=["adaptiv"])
    with pytest.raises(UserError, match="quality"):
        PurificationStudy({"jpeg": {"quality": [0]}}, {"ifgsm": load_attack("ifgsm")})


def test_records_are_those_of_the_parts_by_hand(tmp_path, curved_metric, batches):
    records = study().run(curved_metric, batches, tmp_path)
    assert len(records) == 5 * 4 * 3  # images, cells, parts: none, transfer, adaptive
    defended = PurifiedMetric(curved_metric, load_purifier("color_quantization", levels=4))
    attack = load_attack("ifgsm", eps=8 / 255, steps=3)
    rows = records[records.purifier == "color_quantization"].set_index(["attack", "aim", "image_id"]).sort_index()
    for aim, victim in (("transfer", curved_metric), ("adaptive", defended)):
        found = rows.loc[("ifgsm", aim)]
        for batch in batches:
            ids = batch["image_id"]
            attacked = attack(victim, batch["image"], image_ids=ids)
            with torch.no_grad():
                for column, expected in (
                    ("score_clean", curved_metric(batch["image"])),
                    ("score_attacked_undefended", curved_metric(attacked)),
                    ("score", defended(batch["image"])),
                    ("score_attacked", defended(attacked)),
                ):
                    np.testing.assert_allclose(found.loc[ids, column], expected, atol=1e-6)
    clean = rows.loc[("none", "")]
    np.testing.assert_allclose(clean["score_attacked"], clean["score"])


def test_a_random_purifier_draws_the_same_for_clear_and_attacked(tmp_path, curved_metric, batches):
    records = study(aims=["transfer"]).run(curved_metric, batches, tmp_path)
    noisy = records[(records.strength == "sigma 0.2")]
    assert noisy.groupby("image_id")["score"].nunique().eq(1).all()
    untouched = noisy[noisy.attack == "none"]
    np.testing.assert_array_equal(untouched["score_attacked"], untouched["score"])
    assert (untouched["linf_attack"] == 0).all()
    assert not np.allclose(noisy["score"], noisy["score_clean"], atol=1e-3)


def test_finished_parts_are_not_done_again(tmp_path, curved_metric, batches):
    class StoppedError(Exception):
        pass

    told = []

    def stop(part):
        told.append(part)
        if len(told) == 6:
            raise StoppedError

    with pytest.raises(StoppedError):
        study().run(curved_metric, batches, tmp_path, stop)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert len(before) == 5
    again = study().run(curved_metric, batches, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    whole = study().run(curved_metric, batches, tmp_path / "other")
    pd.testing.assert_frame_equal(again, whole)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cells/**/*.parquet")}
    with torch.no_grad():
        next(curved_metric.parameters()).mul_(0.5)
    changed = study().run(curved_metric, batches, tmp_path)
    assert not np.allclose(changed["score"], whole["score"]), "parts of other weights were taken for these"
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_a_kept_attack_belongs_to_its_image_whatever_the_batches(tmp_path, curved_metric, batches):
    """The size of a batch is no part of a run: a study may go on with another."""
    whole = study().run(curved_metric, batches, tmp_path / "whole")
    single = [
        {"image": batch["image"][[row]], "image_id": [batch["image_id"][row]], "mos": batch["mos"][[row]]}
        for batch in reversed(batches)
        for row in range(len(batch["image_id"]))
    ]
    study().transfer(curved_metric, batches, study().kept(curved_metric, tmp_path, "ifgsm", ""), "ifgsm")
    again = study().run(curved_metric, single, tmp_path)
    keys = ["purifier", "strength", "attack", "aim", "image_id"]
    pd.testing.assert_frame_equal(
        again.sort_values(keys, ignore_index=True), whole.sort_values(keys, ignore_index=True), rtol=1e-5
    )


def test_an_interrupted_transfer_goes_on_where_it_was(tmp_path, curved_metric, batches):
    target = study().kept(curved_metric, tmp_path, "ifgsm", "")
    study().transfer(curved_metric, batches[:1], target, "ifgsm")
    (target / "complete").unlink()  # as if it had been killed there
    made = {path: path.stat().st_mtime_ns for path in target.glob("*.npy")}
    assert len(made) == 3
    study().transfer(curved_metric, batches, target, "ifgsm")
    assert len(list(target.glob("*.npy"))) == 5
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_parts_of_other_settings_are_not_taken(tmp_path, curved_metric, batches):
    def gains(eps, seed=0, **purifier):
        attacks = {"ifgsm": load_attack("ifgsm", eps=eps, steps=3)}
        chosen = PurificationStudy({"unsharp": {"kernel": [3], **purifier}}, attacks, seed=seed)
        records = chosen.run(curved_metric, batches, tmp_path)
        return records[records.attack != "none"]["score_attacked"].to_numpy()

    first = gains(8 / 255)
    assert not np.allclose(gains(2 / 255), first)
    assert not np.allclose(gains(8 / 255, amount=3), first)
    np.testing.assert_array_equal(gains(8 / 255), first)


def halved(images):
    return torch.full((len(images),), 4 / 255)


def far(attacked, clean):
    return (attacked - clean).abs().flatten(1).sum(1)


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("mifgsm", {"decay": 1.0}, {"decay": 0.0}),
        ("mifgsm", {}, {"normalise": False}),
        ("amifgsm", {}, {"eps_of": halved}),
        ("zhang", {"distance": "ssim"}, {"distance": far}),
    ],
)
def test_parts_of_an_attack_with_another_inner_option_are_not_taken(tmp_path, curved_metric, batches, name, one, other):
    def made(options):
        chosen = PurificationStudy({"flip": {}}, {"mine": load_attack(name, steps=4, **options)})
        records = chosen.run(curved_metric, batches, tmp_path)
        return len(list(tmp_path.rglob("cells/**/mine-*.parquet"))), records

    count, first = made(one)
    again, second = made(one)
    assert count == again == 2, "transfer and adaptive, not made again"
    pd.testing.assert_frame_equal(first, second)
    assert made(other)[0] == 4


def test_a_study_keeps_nothing_under_a_function_without_a_name(tmp_path, curved_metric, batches):
    attack = load_attack("zhang", steps=2, distance=lambda attacked, clean: far(attacked, clean))
    with pytest.raises(UserError, match="has no name of its own; define the function at the top of a module"):
        PurificationStudy({"flip": {}}, {"mine": attack}).run(curved_metric, batches, tmp_path)


@pytest.mark.parametrize(
    ("fact", "value"), [("lower_better", True), ("score_range", (0, 2)), ("hard_bounds", None), ("backward", "none")]
)
def test_a_metric_of_another_scale_or_gradient_has_parts_of_its_own(curved_metric, fact, value):
    defended = PurifiedMetric(curved_metric, load_purifier("flip"))
    before = mark(defended, "data"), mark(curved_metric, "data")
    for module in (defended, curved_metric):
        setattr(module, fact, value)
    assert mark(defended, "data") != before[0]
    assert mark(curved_metric, "data") != before[1]


def test_a_picture_without_a_score_is_shown_without_one(tmp_path, curved_metric, batches):
    chosen = study()
    chosen.run(curved_metric, batches, tmp_path)
    kept = chosen.kept(curved_metric, tmp_path, "ifgsm", "")
    chosen.kept = lambda *arguments: kept  # the attack made while the metric was whole
    with torch.no_grad():
        next(curved_metric.parameters()).fill_(torch.nan)
    pictures = chosen.gallery(curved_metric, batches, chosen.cells, tmp_path, "ifgsm")
    assert {picture["score"] for picture in pictures} == {None}


def test_what_needs_a_whole_set_is_refused():
    for name, options in (("sma", {}), ("uap", {}), ("rank_inversion", {})):
        with pytest.raises(UserError, match=f"study.attacks.mine is {name}, which needs a whole set"):
            PurificationStudy(PURIFIERS, {"mine": load_attack(name, **options)})


def test_null_takes_a_purifier_out():
    assert [cell.purifier for cell in grid({"flip": None, "jpeg": {"quality": 30}})] == ["jpeg"]
    with pytest.raises(UserError, match="needs purifiers"):
        grid({"flip": None})


def test_cells_that_metric_or_images_cannot_meet_are_left_out_before_any_work(curved_metric):
    curved_metric.min_size = 12
    purifiers = {"random_crop": {"size": [8, 12, 20]}, "resize": {"scale": [0.5, 0.9]}, "flip": {}}
    chosen = PurificationStudy(purifiers, {"ifgsm": load_attack("ifgsm", eps=8 / 255)})
    chosen.leave_out(curved_metric, [(16, 24), (18, 16)])
    assert [cell.label for cell in chosen.cells] == ["random_crop size 12", "resize scale 0.9", "flip"]
    reasons = {cell.label: reason for cell, reason in chosen.inapplicable}
    assert set(reasons) == {"random_crop size 8", "random_crop size 20", "resize scale 0.5"}
    assert "12x12" in reasons["random_crop size 8"]
    tiny = PurificationStudy({"flip": {}}, {"ifgsm": load_attack("ifgsm", eps=8 / 255)})
    with pytest.raises(UserError, match="no purifier of this study can be run: .*12"):
        tiny.leave_out(curved_metric, [(8, 8)])


def test_batches_without_a_readable_image_are_passed_over(tmp_path, curved_metric, batches):
    empty = {"image": torch.empty(0, 3, 1, 1), "image_id": [], "mos": torch.empty(0), "failed": [{"failure": "no"}]}
    found = study().run(curved_metric, [empty, *batches, empty], tmp_path)
    assert found["image_id"].nunique() == 5
    cells = study().cells
    pictures = study().gallery(curved_metric, [empty, *batches], cells, tmp_path, "ifgsm")
    assert len(pictures) == 2 + len(cells)


def test_opinion_scores_where_lower_is_better_count_turned_round(tmp_path, curved_metric, batches):
    records = study().run(curved_metric, batches, tmp_path)
    figures = study_figures(records, curved_metric)
    turned = study_figures(records.assign(mos=6 - records["mos"]), curved_metric, mos_lower_better=True)
    for key in ("clear_srocc_mos", "robust_attacked_srocc_mos"):
        assert figures[key].abs().max() > 0.05
        np.testing.assert_allclose(turned[key], figures[key])


def test_figures_and_the_best_strength(tmp_path, curved_metric, batches):
    figures = study_figures(study().run(curved_metric, batches, tmp_path), curved_metric)
    assert len(figures) == 4 * 3
    flip = figures[(figures.purifier == "flip") & (figures.aim == "adaptive")].iloc[0]
    assert flip["gain"] > 0
    assert flip["gain_low"] <= flip["gain"] <= flip["gain_high"]
    none = figures[(figures.purifier == "flip") & (figures.attack == "none")].iloc[0]
    assert none["both_defended_abs_gain"] == 0
    records = study().run(curved_metric, batches, tmp_path)
    clean = records[(records.purifier == "flip") & (records.attack == "none")]
    assert none["robust_clear_srocc_mos"] == pytest.approx(srocc(clean["score"], clean["mos"]))
    best = best_strengths(figures)
    noise = figures[(figures.purifier == "random_noise") & (figures.aim == "adaptive")]
    assert best["random_noise"] == noise.loc[noise["robust_abs_gain"].idxmin(), "strength"]
    assert best["flip"] == ""


@pytest.mark.parametrize(("count", "drawn"), [(2, 0), (5, 2)], ids=["two images", "no opinion scores"])
def test_a_page_without_correlations_or_a_range(tmp_path, curved_metric, batches, count, drawn):
    records = study().run(curved_metric, batches, tmp_path)
    kept = records[records["image_id"].isin(records["image_id"].unique()[:count])].assign(mos=np.nan)
    curved_metric.score_range = None
    figures = study_figures(kept, curved_metric)
    assert ("robust_clear_srocc_clear" in figures) == (count > 2)
    assert "robust_clear_srocc_mos" not in figures
    best = best_strengths(figures)
    facts = dict.fromkeys(("name", "weights", "metric", "data", "direction", "seed", "status"), "")
    facts |= {"score_range": None, "pseudo_mos": False, "attacks": {}, "best": best, "unavailable": []}
    figures.to_csv(tmp_path / "study.csv", index=False)
    (tmp_path / "study.json").write_text(json.dumps(facts))
    page = write_study_report(tmp_path).read_text()
    assert page.count("<svg") == drawn
    assert "in the metric&#39;s own units" in page
    assert "%</td>" not in page


def test_the_command_leaves_a_table_and_a_page_and_goes_on(tmp_path, mini_cache, capsys):
    identity.register_resolvers()
    options = ["experiment=purification_quick", "data.limit_test=3", f"data.cache={mini_cache}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("evaluate", [*options, f"paths.outputs={tmp_path}"], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    config.paths.run = str(tmp_path / "run")
    OmegaConf.set_struct(config, False)
    config.study.purifiers = {"flip": {}, "jpeg": {"quality": [30, 70]}, "mprnet": {"weights": None}}
    config.study.purifiers.random_crop = {"size": [300]}
    config.study.attacks = {"ifgsm": {**config.study.attacks.ifgsm, "steps": 2}}
    (tmp_path / "run").mkdir()
    run(config)
    said = capsys.readouterr().out
    assert "weights not available: mprnet" in said
    assert "left out: random_crop size 300: " in said
    folder = tmp_path / "run"
    table = pd.read_csv(folder / "study.csv")
    assert len(table) == 3 * 3
    facts = json.loads((folder / "study.json").read_text())
    assert facts["unavailable"] == ["mprnet"]
    assert facts["best"]["jpeg"] in ("quality 30", "quality 70")
    page = (folder / "report.html").read_text()
    assert "weights not available" in page
    assert "not applicable" in page
    assert page.count("<svg") == 2
    assert page.count("data:image/webp") == 4  # clear, attacked, two purifiers
    assert "pseudo-MOS" in page
    parts = {path: path.stat().st_mtime_ns for path in folder.rglob("cells/**/*.parquet")}
    run(config)
    assert "this study is finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    assert read_summary(folder)["status"] == "finished"
    (folder / "report.html").unlink()
    report_command([str(folder)])
    assert (folder / "report.html").read_text() == page
    config.fresh = True
    run(config)
    assert (tmp_path / "run.previous-1" / "study.csv").is_file()
    assert (folder / "study.csv").is_file()


@pytest.mark.full
def test_a_sweep_of_studies_ends_finished_and_is_not_run_again(tmp_path, mini_cache):
    options = ["experiment=purification_quick", "seed=0,1", "data.limit_test=2", f"data.cache={mini_cache}"]
    options += [f"study.purifiers.{name}=null" for name in shipped_purifiers() if name != "flip"]
    options += ["study.attacks.advcf=null", "study.attacks.ifgsm.steps=1", "study.aims=[transfer]"]
    words = [sys.executable, ROOT / "evaluate.py", "-m", *options, f"paths.outputs={tmp_path}"]
    first = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "0 done already, 2 to run" in first.stdout
    again = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 done already, 0 to run" in again.stdout


def shipped_purifiers():
    return OmegaConf.load(CONF / "experiment" / "purification.yaml").study.purifiers


@pytest.mark.full
def test_a_study_that_is_told_to_stop_says_so_and_goes_on(tmp_path, mini_cache):
    words = [sys.executable, str(ROOT / "evaluate.py"), "experiment=purification_quick", f"data.cache={mini_cache}"]
    words += ["data.limit_test=4", "study.attacks.advcf=null", f"paths.outputs={tmp_path}"]
    running = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("cells/**/*.parquet")):
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.2)
    twin = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert twin.returncode == 1
    assert "another process runs the same configuration" in twin.stderr
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 75
    (summary,) = tmp_path.rglob("summary.json")
    assert json.loads(summary.read_text())["status"] == "interrupted"


@pytest.mark.parametrize("name", ["purification", "purification_quick", "purification_table"])
def test_every_strength_of_the_shipped_grids_can_be_built(name):
    identity.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("evaluate", [f"experiment={name}"])
    cells = [cell for cell in grid(OmegaConf.to_container(config.study.purifiers)) if cell.available]
    assert len(cells) >= (20 if name == "purification_table" else 25)  # without mini's networks
    for cell in cells:
        load_purifier(cell.purifier, **cell.options)
