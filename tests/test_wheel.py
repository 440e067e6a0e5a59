"""An installed copy works outside the checkout, configs and assets included."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.full
def test_an_installed_wheel_runs_outside_the_checkout(tmp_path, mini_cache):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    site = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    python = home / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--no-deps", "--no-index", wheel], check=True, capture_output=True)
    # the dependencies of the environment under test, but not its editable certiqa: a .pth line is no import hook
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def call(*command):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = call(python, "-c", "import certiqa; print(certiqa.__file__)").strip()
    assert Path(where).is_relative_to(home)
    assert "dms_iqa" in call(home / "bin" / "certiqa-train", "--help")
    call(home / "bin" / "certiqa-train", "debug=fast", "defense=ms", "data.limit_test=2")
    (report,) = tmp_path.glob("outputs/train/*/report.html")
    report.unlink()
    assert str(report.parent.relative_to(tmp_path)) in call(
        home / "bin" / "certiqa-report", report.parent.relative_to(tmp_path)
    )
    assert report.is_file()
    call(home / "bin" / "certiqa-evaluate", "debug=fast", "defense=none", "data.limit_test=2")
    assert "2 runs: outputs/comparison/index.html" in call(home / "bin" / "certiqa-report", "outputs")
    call(home / "bin" / "certiqa-data", "sheet", "--types", "darken", "--out", "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
