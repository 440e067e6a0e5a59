"""The dashboard of tracked runs: its panels name what runs log, and it becomes a view of the project."""

import json
import subprocess
import sys

import pytest

from certiqa.entry.dashboard import main as dashboard_command
from certiqa.reports.dashboard import PINNED, dashboard, workspace


def test_the_dashboard_names_only_keys_that_runs_log(tracked_run):
    _, _, file = tracked_run
    logged = {key for row in file.history for key in row} | set(file.summary)
    logged |= {key.removesuffix("._type") for key in file.summary if key.endswith("._type")}
    assert set(PINNED) <= logged
    wanted = {key for section in dashboard(["fgsm"]) for panel in section.panels for key in panel.all_keys}
    options = {key.removeprefix("config:") for key in wanted if key.startswith("config:")}
    assert options <= set(file.config)
    assert not {key for key in wanted if not key.startswith("config:")} - logged


def test_the_dashboard_becomes_a_workspace_with_every_panel():
    sections = dashboard(["ifgsm", "square"])
    model = workspace(sections, entity="me", project="certiqa", name="certiqa")._to_model()
    built = model.spec.section.panel_bank_config.sections
    assert [section.name for section in built] == [section.name for section in sections]
    for section, other in zip(sections, built, strict=True):
        assert len(section.panels) == len(other.panels)
        for panel, made in zip(section.panels, other.panels, strict=True):
            text = made.model_dump_json(by_alias=True)
            for key in panel.all_keys:
                assert key.removeprefix("config:") in text, (panel.title, key)
    names = " ".join(section.name for section in sections)
    for word in ("Correlation", "Certificates against radius", "Attack gains", "Sweeps"):
        assert word in names


def test_proven_and_measured_figures_share_no_panel():
    for section in dashboard(["ifgsm"]):
        for panel in section.panels:
            proven = {key for key in panel.all_keys if key.startswith("certified")}
            assert not proven or not any(key.startswith("attack") for key in panel.all_keys), panel.title


def test_the_dashboard_command_prints_its_definition_and_knows_the_attacks(capsys):
    dashboard_command(["--print", "--attacks", "ifgsm"])
    printed = json.loads(capsys.readouterr().out)
    assert "attack_gain_ifgsm" in str(printed)
    assert "attack_gain_square" not in str(printed)
    with pytest.raises(SystemExit) as stop:
        dashboard_command(["--attacks", "ifgs"])
    assert stop.value.code == 1
    assert "no attack 'ifgs'" in capsys.readouterr().err


@pytest.mark.full
def test_the_dashboard_is_saved_as_a_view_of_the_project(tmp_path, wandb_runs):
    server = wandb_runs.FakeServer(lives=1)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "certiqa.entry.dashboard", "--attacks", "ifgsm", "--name", "ours"],
            env=wandb_runs.environment(tmp_path, WANDB_BASE_URL=server.address, WANDB_API_KEY=wandb_runs.KEY),
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        server.stop()
    assert done.returncode == 0, done.stderr
    (view,) = server.views
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("me", "certiqa", "ours")
    assert "attack_gain_ifgsm" in view["spec"]
    assert done.stdout.strip().startswith(f"{server.address}/me/certiqa?nw=")
