"""advcf and ab_offset: curves and chroma, and the colour space under them."""

import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab

from certiqa.attacks import load_attack
from certiqa.attacks.colour import AB_UNIT, apply_curves, offset_chroma
from certiqa.attacks.colour_space import lab_to_rgb, rgb_to_lab


@pytest.fixture
def colours():
    """All corners of the cube, greys, and random colours, as a double image (1, 3, 16, 24)."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(3, 16 * 24, generator=generator, dtype=torch.float64)
    values[:, :8] = torch.tensor([[i & 1, i >> 1 & 1, i >> 2] for i in range(8)], dtype=torch.float64).T
    values[:, 8:20] = torch.linspace(0, 0.1, 12)
    return values.view(1, 3, 16, 24)


def test_lab_is_that_of_skimage(colours):
    lab = rgb_to_lab(colours)
    expected = rgb2lab(colours[0].permute(1, 2, 0).numpy())
    assert np.abs(lab[0].permute(1, 2, 0).numpy() - expected).max() < 0.01  # its breakpoints are rounded to 4 digits
    assert torch.allclose(lab_to_rgb(lab), colours, atol=1e-6)
    again = lab_to_rgb(torch.from_numpy(expected).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(again - lab2rgb(expected)).max() < 1e-4
    single = (colours.float() * 255).round() / 255
    assert torch.equal((lab_to_rgb(rgb_to_lab(single)) * 255).round(), (single * 255).round())


def test_lab_has_gradients_everywhere(colours):
    offsets = torch.zeros(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(offset_chroma(rgb_to_lab(colours), offsets).square().sum(), offsets)
    assert torch.isfinite(slope).all()
    assert (slope != 0).all()
    inner = (0.2 + 0.6 * torch.rand(1, 3, 2, 3, dtype=torch.float64)).requires_grad_(True)
    assert torch.autograd.gradcheck(rgb_to_lab, inner)
    assert torch.autograd.gradcheck(lambda lab: lab_to_rgb(lab), rgb_to_lab(inner).detach().requires_grad_(True))


def test_offsets_keep_lightness(curved_metric):
    images = 0.35 + 0.3 * torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    result = load_attack("ab_offset", limit=0.05).craft(curved_metric, images)
    change = rgb_to_lab(result.unrounded) - rgb_to_lab(images)
    assert change[:, 0].abs().max() < 0.02
    assert 1 < float(change[:, 1:].abs().max()) <= 0.05 * AB_UNIT + 0.05


def test_curves_start_as_the_identity(colours):
    rises = torch.full((1, 3, 64), 1 / 64, dtype=torch.float64)
    assert torch.allclose(apply_curves(colours, rises), colours, atol=1e-9)
    assert torch.allclose(apply_curves(colours, 7 * rises), colours, atol=1e-9), "a common factor changes nothing"


def test_curves_are_those_of_the_paper(colours):
    rises = torch.rand(1, 3, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    pieces = [(colours[:, :, None] - i / 64).clamp(0, 1 / 64) for i in range(64)]
    expected = 64 * sum(rises[..., i, None, None] * piece[:, :, 0] for i, piece in enumerate(pieces))
    expected = expected / rises.sum(2)[..., None, None]
    assert torch.allclose(apply_curves(colours, rises), expected, atol=1e-12)


def test_curves_keep_order_and_ends(curved_metric, images):
    values = torch.linspace(0, 1, 256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    result = load_attack("advcf", learning_rate=0.01, weight=0.0).craft(curved_metric, values)
    curves = result.unrounded[0].flatten(1)
    assert (curves.diff(dim=1) >= 0).all()
    assert torch.allclose(curves[:, [0, -1]], torch.tensor([0.0, 1.0]).expand(3, 2), atol=1e-5)
    assert (curves - values[0].flatten(1)).abs().max() > 0.01
    doubled = torch.cat([images, images.flip(3)], dim=3)  # equal colours stay equal
    attacked = load_attack("advcf", learning_rate=0.01)(curved_metric, doubled)
    assert torch.equal(attacked, attacked.flip(3))
