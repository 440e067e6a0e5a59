"""What several test files share: metrics whose answers are known, small images, and a browser."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import nn

from certiqa.data.mini import prepare_mini
from certiqa.metrics import FrozenMetric
from certiqa.storage.cache import cache_root

torch.set_num_threads(1)
if "PYTEST_XDIST_WORKER" in os.environ:  # commands that tests start share the cores with the other worker
    os.environ.setdefault("OMP_NUM_THREADS", "1")


class Linear(nn.Module):
    """``w . x / numel + b``: its smoothed score and its certificate have closed forms."""

    def __init__(self, weight, bias):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", torch.tensor(bias))

    def forward(self, images):
        return (images * self.weight).flatten(1).mean(1) + self.bias


class Curved(nn.Module):
    """A smooth nonlinear score in (0, 1), for images of any size from 3x3."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.features = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2

    def forward(self, images):
        return torch.sigmoid(self.head(torch.nn.functional.softplus(self.features(images)).mean(dim=(2, 3))))


@pytest.fixture
def images():
    """Four random images of 8x8 pixels."""
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def linear_metric():
    """Make a linear metric: ``linear_metric(size=8, **facts)``; the weight is ``metric.network.weight``."""

    def make(size=8, **facts):
        weight = torch.randn(3, size, size, generator=torch.Generator().manual_seed(11))
        return FrozenMetric(Linear(weight, 0.5), **{"name": "linear", "score_range": (-1, 1), **facts})

    return make


@pytest.fixture
def curved_metric():
    return FrozenMetric(Curved(), name="curved", score_range=(0, 1), hard_bounds=(0, 1), min_size=3)


@pytest.fixture(scope="session")
def mini_cache():
    """The cache folder with the images of data set mini, made once for all workers and later runs."""
    root = cache_root()
    with FileLock(root / "mini.lock"):
        prepare_mini(root)
    return root


def helper(place):
    """Return a module of helpers below this folder, which is no package."""
    path = Path(__file__).parent / place
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def miniatures():
    """The module that writes miniatures of the official layouts."""
    return helper("data/miniatures.py")


@pytest.fixture(scope="session")
def networks():
    """The module that writes small networks in the layouts of upstream files."""
    return helper("defenses/networks.py")


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium with one page."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed; apt-get install chromium")
        pytest.skip("chromium is not installed")
    opened = helper("browser.py").Browser(binary, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
