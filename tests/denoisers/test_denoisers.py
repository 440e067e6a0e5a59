"""Denoisers: what they are, and that a checkpoint says what it was trained for."""

import copy
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_model
from torch import nn

from certiqa.defenses import MedianSmoothing
from certiqa.denoisers import DENOISERS, DnCNN, UNet, load_denoiser, name_of, save_denoiser
from certiqa.errors import UserError
from certiqa.metrics.weights import load_strictly, read_weights

SMALL = {"unet": {"channels": (4, 6, 8)}, "dncnn": {"depth": 3, "width": 5}}


def random_denoiser(name, seed=0):
    """A small denoiser with random weights everywhere: an untrained U-Net is the identity."""
    generator = torch.Generator().manual_seed(seed)
    denoiser = DENOISERS[name](**SMALL[name])
    for parameter in denoiser.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return denoiser


@pytest.fixture
def saved(tmp_path):
    """Save a small denoiser; returns it and its path."""

    def make(name="unet", sigma=0.12):
        denoiser = random_denoiser(name)
        path = tmp_path / f"{name}.safetensors"
        save_denoiser(denoiser, path, sigma=sigma, notes={"epochs": "3"})
        return denoiser, path

    return make


def test_the_small_architectures_cover_all():
    assert set(SMALL) == set(DENOISERS)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(16, 16), (7, 13), (5, 3), (33, 8)])
def test_any_size_is_kept_and_each_image_is_treated_alone(name, size):
    denoiser = random_denoiser(name).eval()
    images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = denoiser(images)
        assert output.shape == images.shape
        assert not torch.equal(output, images)
        torch.testing.assert_close(denoiser(images[1:2]), output[1:2], rtol=0, atol=1e-5)


def test_the_unet_repeats_border_pixels_up_to_a_size_it_can_halve():
    denoiser = random_denoiser("unet")
    images = torch.rand(2, 3, 7, 13)
    padded = nn.functional.pad(images, (0, 3, 0, 1), mode="replicate")  # 8x16: folded by 2, then halved twice
    with torch.no_grad():
        torch.testing.assert_close(denoiser(images), denoiser(padded)[..., :7, :13], rtol=0, atol=1e-6)


def test_an_untrained_unet_removes_nothing():
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(UNet()(images), images)


@pytest.mark.parametrize("name", SMALL)
def test_a_zero_outlet_is_the_identity(name):
    denoiser = random_denoiser(name)
    outlet = denoiser.outlet if name == "unet" else denoiser.dncnn[-1]
    for parameter in outlet.parameters():
        nn.init.zeros_(parameter)
    images = 3 * torch.rand(2, 3, 9, 12) - 1  # nothing is clipped
    assert torch.equal(denoiser(images), images)


def test_dncnn_is_the_published_one():
    denoiser = DnCNN()
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == 558_336
    convolutions = [key for key, value in denoiser.state_dict().items() if value.ndim == 4]
    assert convolutions == ["dncnn.0.weight", *(f"dncnn.{2 + 3 * i}.weight" for i in range(15)), "dncnn.47.weight"]
    assert all(key.startswith("dncnn.") for key in denoiser.state_dict())
    assert "dncnn.3.running_var" in denoiser.state_dict()


def test_the_default_unet_is_small_on_disk(tmp_path):
    save_denoiser(UNet(), tmp_path / "unet.safetensors", sigma=0.12, notes={})
    assert (tmp_path / "unet.safetensors").stat().st_size <= 1_500_000
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("name", SMALL)
def test_a_checkpoint_rebuilds_architecture_options_and_weights(saved, name):
    denoiser, path = saved(name)
    loaded = load_denoiser(name, weights=path, sigma=0.12)
    assert type(loaded) is type(denoiser)
    assert loaded.state_dict().keys() == denoiser.state_dict().keys()
    images = torch.rand(2, 3, 10, 11)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), denoiser.eval()(images))


def test_another_sigma_is_refused_unless_allowed_by_name(saved):
    _, path = saved(sigma=0.12)
    with pytest.raises(UserError, match=r"trained for sigma=0\.12, but sigma=0\.06.*allow_sigma_mismatch"):
        load_denoiser("unet", weights=path, sigma=0.06)
    assert isinstance(load_denoiser("unet", weights=path, sigma=0.06, allow_sigma_mismatch=True), UNet)


@pytest.mark.parametrize(("trained", "fitting", "other"), [(0.12, 0.12, 0.5), ((0.05, 0.2), 0.1, 0.5)])
def test_smoothing_with_another_sigma_is_refused_too(saved, trained, fitting, other):
    _, path = saved(sigma=trained)
    denoiser = load_denoiser("unet", weights=path)
    assert np.all(denoiser.trained_sigma == np.array(trained))
    assert MedianSmoothing(nn.Identity(), fitting, denoiser=denoiser).sigma == fitting
    with pytest.raises(UserError, match=rf"trained for sigma={re.escape(str(denoiser.trained_sigma))}, but sigma=0\.5"):
        MedianSmoothing(nn.Identity(), other, denoiser=copy.deepcopy(denoiser))
    allowed = load_denoiser("unet", weights=path, allow_sigma_mismatch=True)
    assert MedianSmoothing(nn.Identity(), other, denoiser=allowed).sigma == other
    untrained = load_denoiser("unet", sigma=fitting)
    assert MedianSmoothing(nn.Identity(), other, denoiser=untrained).sigma == other


def test_a_range_of_sigma_is_accepted_inside_only(saved):
    _, path = saved(sigma=(0.05, 0.2))
    for sigma in (0.05, 0.12, 0.2):
        load_denoiser("unet", weights=path, sigma=sigma)
    for sigma in (0.04, 0.21):
        with pytest.raises(UserError, match=r"\[0\.05, 0\.2\]"):
            load_denoiser("unet", weights=path, sigma=sigma)


def test_another_architecture_is_named(saved):
    _, path = saved("unet")
    with pytest.raises(UserError, match="are of a unet; use denoiser=unet"):
        load_denoiser("dncnn", weights=path)


def test_unknown_names_and_impossible_options_are_refused():
    with pytest.raises(UserError, match=r"no denoiser 'unett'.*Did you mean 'unet'\?"):
        load_denoiser("unett")
    with pytest.raises(UserError, match="depth=1"):
        load_denoiser("dncnn", depth=1)
    with pytest.raises(UserError, match=r"\[8\]"):
        load_denoiser("unet", channels=[8])
    with pytest.raises(UserError, match="no weights at 'nowhere'"):
        load_denoiser("unet", weights="nowhere")


class Recursive(nn.Module):
    """One block used three times."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        block = nn.Conv2d(3, 3, 3, padding=1)
        self.steps = nn.ModuleList([block] * 3)
        self.gain = nn.Parameter(torch.rand(3))

    def forward(self, images):
        for step in self.steps:
            images = step(images)
        return images * self.gain.view(3, 1, 1)


def test_a_network_that_shares_tensors_comes_back_whole(tmp_path, images):
    network, other = Recursive(0), Recursive(1)
    save_denoiser(network, tmp_path / "ours.safetensors", sigma=0.1, notes={})
    state, metadata = read_weights(tmp_path / "ours.safetensors")
    assert metadata["denoiser"].endswith("Recursive")
    other.load_state_dict(state)
    torch.testing.assert_close(other(images), network(images))

    save_model(network, str(tmp_path / "theirs.safetensors"))  # keeps one name of each tensor
    other = Recursive(1)
    load_strictly(other, read_weights(tmp_path / "theirs.safetensors")[0], "theirs.safetensors")
    torch.testing.assert_close(other(images), network(images))
    assert other.steps[0].weight is other.steps[2].weight
    state.pop("gain")
    with pytest.raises(UserError, match="1 missing, first: gain"):
        load_strictly(other, state, "cut.safetensors")


@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser_is_exported(name):
    denoiser = random_denoiser(name).eval()
    images = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(denoiser, (images,)).module()
    torch.testing.assert_close(exported(images), denoiser(images))


def test_name_of_a_denoiser():
    assert name_of(UNet(channels=(2, 2))) == "unet"
    assert name_of(DnCNN(depth=2, width=1)) == "dncnn"
    assert name_of(nn.Identity()).endswith("Identity")
