"""Attacks as a user runs them: evaluate.py attack=NAME."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from certiqa.evaluation import read_summary
from certiqa.reports.tables import range_width

spec = importlib.util.spec_from_file_location("forked", Path(__file__).parents[1] / "forked.py")
forked = importlib.util.module_from_spec(spec)
spec.loader.exec_module(forked)

ROOT = Path(__file__).parents[2]
FAST = ["data.limit_test=4", "data.eval_batch_size=2", "num_samples=50", "certification.radii=[0.06]"]


def evaluate(outputs, *options, expect=0):
    words = [sys.executable, str(ROOT / "evaluate.py"), *FAST, *options, f"paths.outputs={outputs}"]
    done = forked.run(words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "140"})
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def only_folder(outputs):
    (folder,) = (path for path in (outputs / "evaluate").iterdir() if ".previous" not in path.name)
    return folder


def test_an_attack_leaves_records_figures_pictures_and_files(tmp_path, mini_cache):
    options = ["attack=ifgsm", "attack.eps=4/255", "attack.save_images=true", "defense=ms"]
    done = evaluate(tmp_path, *options)
    folder = only_folder(tmp_path)
    assert "-ms-ifgsm-" in folder.name
    table = pd.read_parquet(folder / "records.parquet")
    attacked = table[table.attack == "ifgsm"]
    assert len(attacked) == 4
    assert (attacked.linf <= 4 / 255 + 1e-6).all()
    assert (attacked.score_attacked > attacked.score).all(), "quality was to be raised"
    assert attacked[["score_unrounded", "score_noise", "psnr", "ssim", "seconds"]].notna().all().all()
    assert (table[table.attack == "none"].lower.notna()).all(), "certificates stand beside"
    summary = read_summary(folder)
    assert summary["attacks"] == ["ifgsm"]
    assert summary["attack_gain_ifgsm"] > summary["attack_gain_of_noise_ifgsm"]
    assert summary["num_images"] == 4
    assert "Attacks, measured" in done.stdout
    page = (folder / "report.html").read_text()
    assert "Attacks beside the certificate" in page
    assert "ifgsm, x10" in page
    manifest = pd.read_csv(folder / "attacked" / "manifest.csv")
    assert sorted(manifest.image_id) == sorted(attacked.image_id)
    with Image.open(folder / manifest.file[0]) as picture:
        assert picture.size == (224, 224)
    lines = (folder / "records" / "rank-0.jsonl").read_text().splitlines()
    assert len(lines) == 8

    # a run that lost its last lines goes on from there
    (folder / "records" / "rank-0.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    (folder / "records.parquet").unlink()
    (folder / "summary.json").write_text(json.dumps({**summary, "status": "interrupted"}))
    evaluate(tmp_path, *options)
    again = pd.read_parquet(folder / "records.parquet")
    pd.testing.assert_frame_equal(
        again.drop(columns=["seconds", "path"]), table.drop(columns=["seconds", "path"]), rtol=0, atol=1e-5
    )


def test_a_transfer_attack_is_another_one(tmp_path, mini_cache):
    evaluate(tmp_path, "attack=fgsm", "attack.aim=undefended", "attack.direction=lower", "defense=jpeg")
    table = pd.read_parquet(only_folder(tmp_path) / "records.parquet")
    attacked = table[table.attack == "fgsm (transfer)"]
    assert len(attacked) == 4
    assert (attacked.score_attacked_undefended < attacked.score_clean).all()
    # the images that the metric behind the purifier saw are compared with the clear ones
    assert (
        attacked[["ssim_purified", "psnr_purified", "ssim_purified_clean", "psnr_purified_clean"]].notna().all().all()
    )
    assert (attacked.psnr_purified < attacked.psnr_purified_clean).all()
    summary = read_summary(only_folder(tmp_path))
    change = (attacked.score_clean - attacked.score_attacked).abs().mean()
    assert summary["attack_robust_abs_gain_fgsm (transfer)"] == pytest.approx(change / range_width(summary), rel=1e-5)
    quality = (attacked.ssim_purified + attacked.psnr_purified / 40).mean()
    assert summary["attack_purified_quality_fgsm (transfer)"] == pytest.approx(quality, rel=1e-6)
    page = (only_folder(tmp_path) / "report.html").read_text()
    assert "What the defense undoes, measured" in page
    assert list((only_folder(tmp_path) / "gallery").glob("*purified.png")), "the gallery shows it"


@pytest.mark.full
def test_a_set_attack_runs_after_all_images_and_goes_on_where_it_stopped(tmp_path, mini_cache):
    options = ["attack=sma", "attack.plan=reverse", "attack.steps=4", "defense=none"]
    evaluate(tmp_path, *options)
    folder = only_folder(tmp_path)
    table = pd.read_parquet(folder / "records.parquet")
    clean, attacked = (table[table.attack == name].set_index("image_id") for name in ("none", "sma"))
    assert len(attacked) == 4
    assert (attacked.linf <= 4 / 255 + 1e-6).all()
    assert (attacked.set_size == 4).all()
    assert sorted(attacked.target.round(5)) == sorted(clean.score.round(5)), "the plan deals out the clean scores"
    before, after = clean.score, attacked.score_attacked
    assert ((after - attacked.target).abs() <= (before - attacked.target).abs() + 1e-6).all()
    summary = read_summary(folder)
    assert summary["attack_srocc_with_clean_sma"] < 0 < summary["attack_mae_with_clean_sma"]
    for key in ("srocc_with_mos", "krocc_with_mos_low", "plcc_with_mos_before", "rmse_with_mos_unrounded"):
        assert summary[f"attack_{key}_sma"] is not None
    assert "Places before and after sma" in (folder / "report.html").read_text()

    path = folder / "records" / "rank-0.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-2]) + "\n")
    (folder / "records.parquet").unlink()
    (folder / "summary.json").write_text(json.dumps({**summary, "status": "interrupted"}))
    evaluate(tmp_path, *options)
    again = pd.read_parquet(folder / "records.parquet")
    pd.testing.assert_frame_equal(
        again.drop(columns=["seconds", "path"]), table.drop(columns=["seconds", "path"]), rtol=0, atol=1e-5
    )
    assert not list(folder.glob("perturbations-*"))


@pytest.mark.full
def test_rank_inversion_in_a_run_takes_batches_of_any_size(tmp_path, mini_cache):
    for size in (1, 4):
        evaluate(
            tmp_path / str(size),
            "attack=rank_inversion",
            "attack.steps=3",
            "defense=none",
            f"data.eval_batch_size={size}",
        )
    one, other = (
        pd.read_parquet(only_folder(tmp_path / size) / "records.parquet").query("attack == 'rank_inversion'")
        for size in ("1", "4")
    )
    assert one.score_attacked.to_numpy() == pytest.approx(other.score_attacked.to_numpy(), abs=0.05)
    assert not list(only_folder(tmp_path / "1").glob("perturbations-*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["attack=ifgsm", "attack.eps=2"], "attack.eps must be a number above 0 and at most 1"),
        *(
            pytest.param(options, message, marks=pytest.mark.full)
            for options, message in (
                (["attack=ifgms"], "no option 'ifgms' for attack"),
                (["attack=sma", "data.limit_test=2"], "at least 3 images, but 2 are tested"),
                (["attack=sma", "attack.direction=lower", "defense=none"], "attack 'sma' has no direction"),
                (["attack=sma", "attack.plan=revers", "defense=none"], "Did you mean 'reverse'"),
                (["attack=ifgsm", "attack.eps=0"], "attack.eps must be a number above 0"),
                (["attack=ifgsm", "attack.aim=somebody"], "attack.aim must be defense or undefended"),
                (["attack=ifgsm", "attack.direction=up"], "attack.direction must be raise, lower or away"),
                (["attack=ifgsm", "defense=jpeg", "defense.backward=none"], "its step 'jpeg' stops it"),
            )
        ),
    ],
)
def test_bad_options_get_one_message(tmp_path, mini_cache, options, message):
    done = evaluate(tmp_path, *options, expect=1)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
