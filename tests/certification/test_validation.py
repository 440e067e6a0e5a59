"""Certificates at validation: as few draws as make a curve, as many as the primary radius takes."""

import pytest
import torch

from certiqa.callbacks import Certification
from certiqa.defenses import MedianSmoothing
from certiqa.errors import UserError
from certiqa.metrics import FrozenMetric


class Mean(torch.nn.Module):
    def forward(self, images):
        return images.mean(dim=(1, 2, 3))


def recorder(folder, **options):
    return Certification(folder, radii=[0.03, 0.06], radius=0.06, **options)


@pytest.mark.parametrize(("sigma", "draws"), [(0.12, 20), (0.06, 40)], ids=["enough for a curve", "what it takes"])
def test_draws_at_validation_reach_the_primary_radius(tmp_path, sigma, draws):
    smooth = MedianSmoothing(FrozenMetric(Mean(), name="mean"), sigma, 100)
    found = recorder(tmp_path)
    assert found.draws_at_validation(smooth) == draws
    found.check(smooth, [(8, 8)])
    with pytest.raises(UserError, match="certification.validation_samples.*num_samples>=40"):
        recorder(tmp_path, validation_samples=20).check(MedianSmoothing(smooth.metric, 0.06, 100), [(8, 8)])
    assert recorder(tmp_path, validation_samples=0).draws_at_validation(smooth) == 0
