"""The figure that lays the proven floor beside what was found."""

import pytest

from certiqa.reports.floors import Curve, attack_points, correlation_plot, write_floor_figure

SUMMARY = {
    "srocc": 0.8,
    "srocc_undefended": 0.85,
    "certified_srocc_r0.06": 0.5,
    "certified_srocc_r0.12": 0.3,
    "worst_found_srocc_r0.06": 0.55,
    "worst_found_srocc_r0.12": 0.36,
    "attacks": ["pgd_l2", "ifgsm", "unrated"],
    "attack_l2_max_pgd_l2": 0.06,
    "attack_srocc_pgd_l2": 0.7,
    "attack_l2_max_ifgsm": 6.0,
    "attack_srocc_ifgsm": 0.1,
    "attack_l2_max_unrated": 0.05,
}


def test_only_rated_attacks_within_the_radii_stand_beside_the_floor():
    assert attack_points(SUMMARY, 0.125) == [("pgd_l2", 0.06, 0.7)]
    assert {name for name, *_ in attack_points(SUMMARY, 10)} == {"pgd_l2", "ifgsm"}


def test_floor_lowest_found_and_attacks_are_told_apart():
    with_all = correlation_plot(SUMMARY, [0.06, 0.12], "MOS")
    assert with_all is not None
    assert "triangles" in with_all.caption
    assert "Squares: SROCC measured under attack (pgd_l2)" in with_all.caption
    bare = {key: value for key, value in SUMMARY.items() if "found" not in key and "attack" not in key}
    without = correlation_plot(bare, [0.06, 0.12], "MOS")
    assert without is not None
    assert "triangles" not in without.caption
    assert "Squares" not in without.caption
    assert len(without.svg) < len(with_all.svg)
    assert correlation_plot({"srocc": 0.8}, [], "MOS") is None


def test_one_panel_for_each_defense(tmp_path):
    attacks = {"sma_l2": [0.7, 0.6]}
    curves = [Curve(name, 0.8, [0.06, 0.12], [0.5, 0.3], [0.55, 0.36], attacks) for name in ("ms", "dms")]
    write_floor_figure(tmp_path / "floor.svg", curves, "pseudo-MOS")
    text = (tmp_path / "floor.svg").read_text(encoding="utf-8")
    for part in ("MS", "DMS", "sma_l2 (measured)", "certified floor (proven)", "lowest found in the intervals"):
        assert part in text
    assert text.count("no perturbation") == pytest.approx(1)
