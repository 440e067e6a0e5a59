"""Fixtures shared by all tests."""

import pytest
import torch
from filelock import FileLock

from certiqa.data.cache import cache_root
from certiqa.data.mini import prepare_mini

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mini_cache():
    """The cache folder with the images of data set mini, made once for all workers and later runs."""
    root = cache_root()
    with FileLock(root / "mini.lock"):
        prepare_mini(root)
    return root
