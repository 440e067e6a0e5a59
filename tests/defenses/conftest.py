"""What the tests of purifiers share: purifiers that do something to small pictures, draws, and the pictures."""

import pytest
import torch
import torch.nn.functional as F

from certiqa.defenses import load_purifier

OPTIONS = {
    "random_crop": {"size": 16},
    "random_noise": {"sigma": 0.05},
    "gaussian_blur": {"kernel": 11},
    "median_blur": {"kernel": 5},
    "bilateral": {"sigma_color": 0.2},
    "unsharp": {"kernel": 5, "amount": 1.5},
    "jpeg": {"quality": 30},
    "diff_jpeg": {"quality": 30},
}


def made(name, **options):
    return load_purifier(name, **{**OPTIONS.get(name, {}), **options})


@pytest.fixture
def make():
    """Make a purifier by name, with options that show on pictures of 24x32."""
    return made


@pytest.fixture
def seeds():
    """Make generators: ``seeds(1, 2)`` for two images."""
    return lambda *numbers: [torch.Generator().manual_seed(number) for number in numbers]


@pytest.fixture
def pictures():
    """Three smooth pictures with some noise, float64, 24x32, on the 8-bit grid."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(3, 3, 6, 6, generator=generator, dtype=torch.float64)
    fine = F.interpolate(coarse, size=(24, 32), mode="bilinear")
    fine = fine + 0.03 * torch.randn(fine.shape, generator=generator, dtype=torch.float64)
    return (fine.clamp(0, 1) * 255).round() / 255
