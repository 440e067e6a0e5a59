"""Copies and pickles of defended metrics are of their own: no cached function keeps them at the original's weights."""

import copy
import pickle

import pytest
import torch
from torch import nn

from certiqa.defenses import MedianSmoothing
from certiqa.defenses.purifiers.network import recompute_blocks
from certiqa.metrics import FrozenMetric

SIGMA = 0.12


class Mean(nn.Module):
    """The mean pixel plus a bias."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return images.mean(dim=(1, 2, 3)) + self.bias


class Blocks(nn.Module):
    """A network of one block, itself made of modules, as the large purifiers are."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))

    def forward(self, images):
        return self.body(images)


def deep(module):
    return copy.deepcopy(module)


def pickled(module):
    return pickle.loads(pickle.dumps(module))


@pytest.fixture
def compiles(monkeypatch):
    """Stands in for the compiler, which takes half a minute: like its functions, these cannot be copied or pickled."""
    monkeypatch.setattr(torch, "compile", lambda function: lambda images: function(images))


@pytest.mark.parametrize("again", [deep, pickled])
def test_a_copy_of_a_compiled_defense_scores_with_its_own_weights(compiles, images, again):
    smooth = MedianSmoothing(FrozenMetric(Mean()), SIGMA, 5, compile=True)
    before = smooth(images)
    twin = again(smooth)
    twin.metric.network.bias.data += 1
    torch.testing.assert_close(twin(images), before + 1)
    torch.testing.assert_close(smooth(images), before)
    assert twin.compiles


@pytest.mark.parametrize("again", [deep, pickled])
def test_a_copy_of_a_network_that_recomputes_its_blocks_has_its_own_weights(images, again):
    network = Blocks()
    recompute_blocks(network)
    twin = again(network)
    for parameter in twin.parameters():
        nn.init.ones_(parameter)
    inputs = images.clone().requires_grad_(True)
    twin(inputs).sum().backward()
    torch.testing.assert_close(twin(images), images.sum(dim=1, keepdim=True).expand_as(images) + 1)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(parameter.grad is not None for parameter in twin.parameters())
