"""What the tests of reports share: folders of synthetic runs, and what reads their pages."""

import importlib.util
import shutil
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@cache
def load(name: str) -> ModuleType:
    """Return a module that lies beside this file."""
    spec = importlib.util.spec_from_file_location(f"reports_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def write_run() -> Any:
    """``write_run(folder, **options)`` writes a synthetic run as the entry points do."""
    return load("compared").write_run


@pytest.fixture(scope="session")
def read_comparison() -> Any:
    """``read_comparison(text)`` reads a comparison's page: the rows of its table, its links and its words."""
    return load("compared").Page


@pytest.fixture(scope="session")
def seven_runs(tmp_path_factory: pytest.TempPathFactory, write_run: Any) -> Path:
    """What ``sweep`` copies, written once."""
    root = tmp_path_factory.mktemp("seven")
    write_run(root / "evaluate" / "none", defense="none", attacks={"ifgsm": 1.2}, radii=())
    write_run(root / "evaluate" / "good", defense="dms", error=0.1, width=2.0, attacks={"ifgsm": 0.3})
    write_run(root / "evaluate" / "bad", defense="ms", error=1.2, width=4.0, attacks={"ifgsm": 0.5})
    write_run(root / "evaluate" / "jpeg", defense="jpeg", error=0.12, radii=(), attacks={"ifgsm": 1.0, "square": -0.2})
    write_run(root / "train" / "cut", defense="dms", seed=1, status="interrupted", num_images=6)
    write_run(root / "train" / "going_on", defense="dms_iqa", seed=2, status=None, num_images=3)
    write_run(root / "train" / "random", defense="ms", error=0.01, weights="random (seed 0)")
    for name in ("evaluate/none", "evaluate/bad", "evaluate/jpeg", "train/random"):
        (root / name / "report.html").write_text("<h1>a report</h1>")
    return root


@pytest.fixture
def sweep(tmp_path: Path, seven_runs: Path) -> Path:
    """Seven runs: a bare metric, two smoothed and a purified one, one interrupted, one going on, one random."""
    return shutil.copytree(seven_runs, tmp_path / "outputs")


@pytest.fixture(scope="session")
def make_run() -> Any:
    """``make_run(folder, **options)`` writes a synthetic run in one go, its records made up as well."""
    return load("reported").make_run


@pytest.fixture(scope="session")
def page_of() -> Any:
    """``page_of(folder)`` writes a run's report, checks that it stands alone, and returns its source and text."""
    return load("reported").page_of
