import json
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
from certiqa.errors import UserError
from certiqa.evaluation import srocc
from certiqa.reports.study import write_study_report
from certiqa.studies import PurificationStudy, grid, study_figures
from certiqa.studies.figures import best_strengths

CONF = Path(__file__).parents[2] / "conf"
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
    config.study.attacks = {"ifgsm": {**config.study.attacks.ifgsm, "steps": 2}}
    (tmp_path / "run").mkdir()
    run(config)
    said = capsys.readouterr().out
    assert "weights not available: mprnet" in said
    folder = tmp_path / "run"
    table = pd.read_csv(folder / "study.csv")
    assert len(table) == 3 * 3
    facts = json.loads((folder / "study.json").read_text())
    assert facts["unavailable"] == ["mprnet"]
    assert facts["best"]["jpeg"] in ("quality 30", "quality 70")
    page = (folder / "report.html").read_text()
    assert "weights not available" in page
    assert page.count("<svg") == 2
    assert page.count("data:image/webp") == 4  # clear, attacked, two purifiers
    assert "pseudo-MOS" in page
    parts = {path: path.stat().st_mtime_ns for path in folder.rglob("cells/**/*.parquet")}
    run(config)
    assert {path: path.stat().st_mtime_ns for path in parts} == parts


@pytest.mark.parametrize("name", ["purification", "purification_quick"])
def test_every_strength_of_the_shipped_grids_can_be_built(name):
    identity.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("evaluate", [f"experiment={name}"])
    cells = [cell for cell in grid(OmegaConf.to_container(config.study.purifiers)) if cell.available]
    assert len(cells) >= 25
    for cell in cells:
        load_purifier(cell.purifier, **cell.options)
