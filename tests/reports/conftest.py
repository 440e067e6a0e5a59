"""What the tests of reports share: a browser, and folders of synthetic runs."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
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
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed; apt-get install chromium")
        pytest.skip("chromium is not installed")
    opened = load("browser").Browser(binary, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def write_run() -> Any:
    """``write_run(folder, **options)`` writes a synthetic run as the entry points do."""
    return load("compared").write_run


@pytest.fixture(scope="session")
def make_run() -> Any:
    """``make_run(folder, **options)`` writes a synthetic run in one go, its records made up as well."""
    return load("reported").make_run


@pytest.fixture(scope="session")
def page_of() -> Any:
    """``page_of(folder)`` writes a run's report, checks that it stands alone, and returns its source and text."""
    return load("reported").page_of
