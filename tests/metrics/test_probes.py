"""What ``check_metric`` probes: the sizes that are tested, also those that a metric treats otherwise than others."""

import pytest
import torch
from torch import nn

from certiqa.errors import UserError
from certiqa.metrics import check_metric, require_metric
from certiqa.metrics.check import MOST_PIXELS, probed_sizes
from certiqa.metrics.pyiqa import OneScore


class Mean(nn.Module):
    score_range = (0, 1)

    def forward(self, images):
        return images.mean(dim=(1, 2, 3))


class CropsLarge(Mean):
    """Takes a random crop of what is larger than 224 pixels, as networks of that size do."""

    def forward(self, images):
        if min(images.shape[-2:]) > 224:
            top = int(torch.randint(images.shape[-2] - 223, ()))
            images = images[..., top : top + 224, :224]
        return super().forward(images)


class BatchDependentIfOblong(Mean):
    def forward(self, images):
        scores = super().forward(images)
        return scores if images.shape[-1] == images.shape[-2] else scores - scores.mean()


class Squeezing(Mean):
    """Answers one image with a tensor without axes, as NIQE of pyiqa does."""

    def forward(self, images):
        return super().forward(images).squeeze()


class RefusesOne(Mean):
    def forward(self, images):
        assert len(images) > 1, "needs a batch"
        return super().forward(images)


class InNumpy(Mean):
    def forward(self, images):
        return torch.from_numpy(images.numpy().mean(axis=(1, 2, 3)))


@pytest.mark.parametrize(
    ("broken", "sizes", "named"),
    [
        (CropsLarge, [(240, 240)], "deterministic"),
        (CropsLarge, None, "deterministic"),
        (BatchDependentIfOblong, [(32, 32), (32, 48)], "independent of the batch"),
        (BatchDependentIfOblong, None, "independent of the batch"),
    ],
)
def test_what_goes_wrong_at_another_size_is_found_there(broken, sizes, named):
    torch.manual_seed(0)
    failures = check_metric(broken(), sizes=sizes).failures
    assert named in failures
    height, width = sizes[-1] if sizes else (256, 320)
    assert f"({height}x{width} pixels)" in failures[named]
    assert named not in check_metric(broken(), sizes=[(64, 64)]).failures
    assert named not in check_metric(broken(), sizes=sizes).passed


@pytest.mark.parametrize(
    ("broken", "said"),
    [(Squeezing, "'squeezing' returned shape () for 1 images"), (RefusesOne, "1 16x16 probe images: needs a batch")],
)
def test_what_fails_for_one_image_is_reported_not_raised(broken, said):
    failures = check_metric(broken(), size=16).failures
    assert list(failures) == ["one score per image"]
    assert said in failures["one score per image"]


def test_a_pyiqa_network_that_squeezes_one_image_is_a_metric():
    network = OneScore(Squeezing())
    assert check_metric(network, size=16).ok
    assert network(torch.rand(1, 3, 16, 16)).shape == (1,)


def test_a_metric_in_numpy_needs_no_gradient_unless_it_is_asked_for():
    assert require_metric(InNumpy(), gradient=False).name == "innumpy"
    with pytest.raises(UserError, match=r"(?s)differentiable: no gradient can be taken.*attack=square, do without"):
        require_metric(InNumpy())


def test_a_run_probes_the_smallest_the_largest_and_the_most_oblong_size():
    assert probed_sizes([(30, 30), (50, 10), (100, 100), (60, 60)] * 2) == [(50, 10), (100, 100)]
    assert probed_sizes([(48, 48), (40, 64), (30, 70)]) == [(30, 70), (40, 64)]
    assert probed_sizes([(224, 224)]) == [(224, 224)]
    assert probed_sizes([(64, 64), (9000, 9000)]) == [(64, 64)], "two of these would fill the memory"
    assert probed_sizes([(9000, 9000)]) == [(9000, 9000)]
    assert probed_sizes([]) == []
    assert MOST_PIXELS < 9000 * 9000
