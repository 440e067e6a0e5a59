"""A run holds a metric of the user's own to the contract, at the sizes that it tests, and asks for no more."""

import numpy as np
import pytest
import torch
from torch import nn

from certiqa.errors import UserError


class InNumpy(nn.Module):
    """A metric without a gradient."""

    score_range = (0, 1)

    def forward(self, images):
        pixels = images.detach().cpu().numpy()
        return torch.tensor([float(np.abs(np.diff(one, axis=-1)).mean()) for one in pixels])


class RandomIfOblong(nn.Module):
    score_range = (0, 1)

    def forward(self, images):
        scores = images.mean(dim=(1, 2, 3))
        return scores if images.shape[-1] == images.shape[-2] else scores * torch.rand(())


FEW = ("num_samples=40", "certification.radii=[0.03]", "certification.radius=0.03")


@pytest.fixture
def on_pictures(run_here, six_pictures):
    def run(metric, *options):
        data = ("data=folder", f"data.root={six_pictures}", f"metric._target_={__name__}.{metric.__name__}")
        return run_here("evaluate", *data, "certification.joint_confidence=null", *options)

    return run


@pytest.mark.parametrize("options", [("defense=ms", *FEW), ("defense=none", "attack=square", "attack.queries=4")])
def test_a_metric_without_a_gradient_is_certified_and_attacked_by_queries(on_pictures, options):
    summary, _ = on_pictures(InNumpy, *options)
    assert (summary["status"], summary["num_images"]) == ("finished", 6)


def test_an_attack_that_needs_a_gradient_says_so_before_any_work(on_pictures):
    with pytest.raises(UserError, match=r"(?s)'innumpy' breaks.*no gradient reaches the images.*attack=square"):
        on_pictures(InNumpy, "defense=none", "attack=fgsm")


def test_a_metric_is_probed_at_the_sizes_that_are_tested(on_pictures):
    with pytest.raises(UserError, match=r"(?s)deterministic: the same images scored .*\(40x64 pixels\)"):
        on_pictures(RandomIfOblong, "defense=none")
