"""What a certification is asked with by mistake: refused with what is wrong, or answered as it should be."""

import numpy as np
import pytest
import torch

from certiqa.callbacks import Certification
from certiqa.certification import Stopping, certify, look_sizes, sequential_ranks
from certiqa.defenses import MedianSmoothing
from certiqa.errors import UserError

SIGMA = 0.12


@pytest.fixture
def smooth(linear_metric):
    return MedianSmoothing(linear_metric(), SIGMA, 100)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"radii": []}, "radii is empty"),
        ({"num_samples": 100.7}, "num_samples=100.7 must be a whole number"),
        ({"num_samples": 0}, "num_samples=0 must be a whole number of draws, at least 1"),
        ({"seed": 1.0}, r"seed=1\.0 must be a whole number"),
        ({"seed": 1.0, "randomised": True}, r"seed=1\.0 must be a whole number"),
        ({"image_ids": ["a", "b", "c", "\ud800"]}, r"image id '\\ud800' holds a lone surrogate"),
    ],
)
def test_a_certification_names_what_is_wrong(smooth, images, asked, named):
    with pytest.raises(UserError, match=named):
        certify(smooth, images, **{"radii": 0.05, "image_ids": list("abcd")} | asked)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: Stopping(0.02, 0.03, first_look=50.5), r"first_look\) need whole numbers .*50\.5"),
        (lambda: Stopping(0.02, 0.03, first_look=0), "at least 1, got"),
        (lambda: Stopping(0.02, 0.03, look_ratio=float("inf")), "look_ratio=inf must be greater than 1"),
        (lambda: look_sizes(50, 100.5), r"whole numbers of draws, at least 1, got \(50, 100\.5\)"),
        (lambda: sequential_ranks(0.03, SIGMA, (), 0.9), r"at least 1, got \(\)"),
        (lambda: sequential_ranks(0.03, SIGMA, [10.5, 20], 0.9), r"got \(10\.5, 20\)"),
        (lambda: MedianSmoothing(torch.nn.Identity(), SIGMA, 100.7), "must be whole and at least 1, got 100.7"),
        (lambda: MedianSmoothing(torch.nn.Identity(), SIGMA, float("nan")), "must be whole and at least 1, got nan"),
    ],
)
def test_numbers_that_cannot_be_are_named(call, named):
    with pytest.raises(UserError, match=named):
        call()


def test_no_draws_are_not_the_number_of_the_defense(smooth, tmp_path):
    recorder = Certification(tmp_path, radii=[0.05], radius=0.05, num_samples=0)
    with pytest.raises(UserError, match="num_samples=0 must be a whole number"):
        recorder.request(smooth, 4)
    assert Certification(tmp_path, radii=[0.05], radius=0.05).request(smooth, 4).num_samples == 100


def test_looks_may_be_a_list():
    assert sequential_ranks(0.03, SIGMA, [50, 100], 0.9) == sequential_ranks(0.03, SIGMA, (50, 100), 0.9)


@pytest.mark.parametrize("images", [torch.empty(0, 3, 8, 8), []], ids=["tensor", "list"])
def test_no_images_have_no_rows(smooth, images):
    bounds = certify(smooth, images, [0.03, 0.06], joint_confidence=0.9)
    for found in (bounds.lower, bounds.upper, bounds.joint_lower, bounds.joint_upper, bounds.half_width):
        assert found.shape == (0, 2)
    assert bounds.score.shape == bounds.draws.shape == (0,)
    assert bounds.draws.dtype == np.int64
