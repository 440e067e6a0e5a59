"""Purifiers that are networks: their weights as upstream writes them, padding, memory, and what is refused."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from certiqa.defenses import WITH_WEIGHTS, PurifiedMetric, PurifierEnsemble, build_chain, load_purifier, purify_with
from certiqa.defenses.purifiers.network import pad_to, shipped_weights
from certiqa.denoisers.colour_filter import ColourFilter
from certiqa.errors import UserError
from certiqa.metrics import check_metric, load_metric

_spec = importlib.util.spec_from_file_location("networks", Path(__file__).parent / "networks.py")
networks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(networks)

SIZE = {"scunet": (64, 64), "swinir": (24, 16)}


def pictures(height, width, count=2):
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    return F.interpolate(coarse, size=(height, width), mode="bilinear")


def bare(name, network, images):
    """What the network gives, called as its authors call it."""
    if name == "drunet":
        images = torch.cat([images, torch.full_like(images[:, :1], 15 / 255)], dim=1)
    output = network(images)
    output = output[0] if name == "mprnet" else output
    return F.avg_pool2d(output.clamp(0, 1), 4) if name == "real_esrgan" else output.clamp(0, 1)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_upstream_files_load_and_the_purifier_is_the_bare_network(name, tmp_path, curved_metric):
    network, path = networks.write(name, tmp_path)
    purifier = load_purifier(name, weights=path)
    images = pictures(*SIZE.get(name, (16, 24)))
    with torch.no_grad():
        expected, purified = bare(name, network, images), purifier(images)
        assert purified.shape == images.shape
        torch.testing.assert_close(purified, expected, rtol=0, atol=1e-6)
        assert (purified - images).abs().max() > 0.01, "random weights change an image"
        torch.testing.assert_close(purifier(images[1:]), purified[1:], rtol=0, atol=1e-5)
        assert torch.equal(load_purifier("restoration", weights=path)(images), purified)
    odd = pictures(19, 13, count=1)
    assert purifier(odd).shape == odd.shape
    assert purifier.keeps_size
    assert PurifiedMetric(curved_metric, purifier).name == name


@pytest.mark.parametrize("name", ["drunet", "mprnet"])
def test_padding_is_a_mirror_and_is_undone(name, tmp_path):
    network, path = networks.write(name, tmp_path)
    odd = pictures(19, 13, count=1)
    padded = F.pad(F.pad(odd, (0, 3, 0, 0), mode="reflect"), (0, 0, 0, 5), mode="reflect")  # 24x16
    with torch.no_grad():
        expected = bare(name, network, padded)[..., :19, :13]
        torch.testing.assert_close(load_purifier(name, weights=path)(odd), expected, rtol=0, atol=1e-6)


def test_a_tiny_image_is_mirrored_and_then_repeated():
    padded = pad_to(torch.tensor([[[[1.0, 2.0]]]]), (1, 5))
    assert padded.flatten().tolist() == [1, 2, 1, 1, 1]
    images = pictures(4, 4)
    assert pad_to(images, (4, 4)) is images


@pytest.mark.parametrize("name", ["mprnet", "nafnet", "real_esrgan"])
def test_recomputing_changes_neither_value_nor_gradient(name, tmp_path):
    _, path = networks.write(name, tmp_path)
    images = pictures(16, 24)
    found = []
    for checkpoint in (False, True):
        purifier = load_purifier(name, weights=path, checkpoint=checkpoint)
        leaf = images.clone().requires_grad_(True)
        output = purifier(leaf)
        (gradient,) = torch.autograd.grad((output * pictures(16, 24).flip(3)).sum(), leaf)
        found.append((output.detach(), gradient))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)
    assert found[0][1].abs().sum() > 0


def test_double_precision_images_come_back_as_such(tmp_path):
    _, path = networks.write("dncnn", tmp_path)
    assert load_purifier("dncnn", weights=path)(pictures(8, 8).double()).dtype == torch.float64


def test_upscaling_networks_are_brought_back_or_left_large(tmp_path):
    network, path = networks.write("real_esrgan", tmp_path)
    images = pictures(9, 14)
    with torch.no_grad():
        large = network(images).clamp(0, 1)
        purifier = load_purifier("real_esrgan", weights=path, outscale=4)
        torch.testing.assert_close(purifier(images), large, rtol=0, atol=1e-6)
        half = load_purifier("real_esrgan", weights=path, outscale=2)(images)
        torch.testing.assert_close(half, F.avg_pool2d(large, 2), rtol=0, atol=1e-6)
        cubic = load_purifier("real_esrgan", weights=path, downscale="bicubic")(images)
    assert cubic.shape == images.shape
    assert not torch.allclose(cubic, F.avg_pool2d(large, 4), atol=1e-4)
    assert not purifier.keeps_size
    assert purifier.output_size((9, 14)) == (36, 56)
    for wrong, message in (({"outscale": 0}, "at least 1, got 0"), ({"downscale": "lanczos"}, "area, bicubic")):
        with pytest.raises(UserError, match=message):
            load_purifier("real_esrgan", weights=path, **wrong)


def test_an_enlarging_purifier_needs_images_that_are_large_enough_afterwards(tmp_path, curved_metric):
    _, path = networks.write("real_esrgan", tmp_path)
    curved_metric.min_size = 30
    needed = {}
    for outscale in (1, 4):
        metric = PurifiedMetric(curved_metric, load_purifier("real_esrgan", weights=path, outscale=outscale))
        needed[outscale] = metric.min_size
        with torch.no_grad():
            assert metric(pictures(metric.min_size, metric.min_size)).shape == (2,)
        with pytest.raises(UserError, match=rf"at least {metric.min_size}x{metric.min_size} pixels"):
            metric(pictures(metric.min_size - 1, 40))
    assert needed == {1: 30, 4: 8}


def test_denoise_strength_mixes_two_networks(tmp_path):
    (first, path), (second, other) = (networks.write("real_esrgan", tmp_path, seed) for seed in (0, 1))
    images = pictures(8, 8)
    mixed = networks.compact()
    state = {key: 0.2 * value + 0.8 * second.state_dict()[key] for key, value in first.state_dict().items()}
    mixed.load_state_dict(state)
    with torch.no_grad():
        purified = load_purifier("real_esrgan", weights=path, denoise_weights=other, denoise_strength=0.2)(images)
        torch.testing.assert_close(purified, bare("real_esrgan", mixed.eval(), images), rtol=0, atol=1e-5)
        alone = load_purifier("real_esrgan", weights=path, denoise_weights=other, denoise_strength=1.0)(images)
        torch.testing.assert_close(alone, bare("real_esrgan", first, images), rtol=0, atol=1e-6)
    _, foreign = networks.write("dncnn", tmp_path)
    with pytest.raises(UserError, match="are not of one network"):
        load_purifier("real_esrgan", weights=path, denoise_weights=foreign)
    with pytest.raises(UserError, match=r"\[0, 1\], got 2"):
        load_purifier("real_esrgan", weights=path, denoise_weights=other, denoise_strength=2)


def test_the_noise_level_is_told_to_those_that_take_one(tmp_path):
    network, path = networks.write("drunet", tmp_path)
    images = pictures(16, 16)
    with torch.no_grad():
        expected = network(torch.cat([images, torch.full_like(images[:, :1], 0.2)], dim=1)).clamp(0, 1)
        torch.testing.assert_close(load_purifier("drunet", weights=path, noise_level=0.2)(images), expected)
    _, other = networks.write("dncnn", tmp_path)
    with pytest.raises(UserError, match="this DnCNN takes none"):
        load_purifier("dncnn", weights=other, noise_level=0.1)


def test_files_that_do_not_fit_are_refused_with_what_they_are(tmp_path):
    network, path = networks.write("dncnn", tmp_path)
    with pytest.raises(UserError, match=r"are of DnCNN, but defense=swinir is SwinIR; use defense=restoration"):
        load_purifier("swinir", weights=path)
    torch.save({"some.layer.weight": torch.zeros(3)}, tmp_path / "unknown.pth")
    with pytest.raises(UserError, match=r"holds no network that spandrel .* knows: its keys begin with some.layer"):
        load_purifier("restoration", weights=tmp_path / "unknown.pth")
    torch.save({"dncnn.0.weight": torch.zeros(3)}, tmp_path / "ours.pth")
    with pytest.raises(UserError, match="They look like a DnCNN denoiser"):
        load_purifier("restoration", weights=tmp_path / "ours.pth")
    state = network.state_dict()
    del state["model.4.bias"]
    state["model.99.extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(UserError, match="cut.pth"):
        load_purifier("dncnn", weights=tmp_path / "cut.pth")
    state = networks.compact().state_dict()
    state["body.2.surplus"] = torch.zeros(1)
    torch.save(state, tmp_path / "more.pth")
    with pytest.raises(UserError, match=r"do not fit the network that their keys name.*body\.2\.surplus"):
        load_purifier("real_esrgan", weights=tmp_path / "more.pth")
    with pytest.raises(UserError, match="knows no architecture 'Dncn'"):
        load_purifier("restoration", weights=path, architecture="Dncn")
    from spandrel.architectures.DnCNN import DnCNN

    grey = DnCNN(in_nc=1, out_nc=1, nc=8, nb=9, act_mode="R", mode="DnCNN")
    torch.save(grey.state_dict(), tmp_path / "grey.pth")
    with pytest.raises(UserError, match=r"takes 1 and gives 1 channels.*colour version"):
        load_purifier("dncnn", weights=tmp_path / "grey.pth")


@pytest.mark.parametrize("name", WITH_WEIGHTS)
@pytest.mark.parametrize("weights", [None, "???"])
def test_no_purifier_runs_without_weights(name, weights, curved_metric):
    upstream = WITH_WEIGHTS[name].upstream
    with pytest.raises(UserError, match=r"needs weights.*defense\.weights=path") as error:
        purify_with(curved_metric, name, weights=weights)
    assert upstream.file in str(error.value)
    assert upstream.source in str(error.value)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("dncnn", "spandrel", "restoration"), ("diffpure", "diffusers", "diffusion")],
)
def test_a_missing_extra_is_named(name, package, extra, tmp_path, monkeypatch):
    _, path = networks.write("dncnn", tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"pip install certiqa\[{extra}\]"):
        load_purifier(name, weights=path)


def test_mprnet_without_its_extra_is_named(tmp_path, monkeypatch):
    _, path = networks.write("mprnet", tmp_path)
    monkeypatch.setitem(sys.modules, "spandrel_extra_arches", None)
    for name in ("mprnet", "restoration"):
        with pytest.raises(UserError, match=r"pip install certiqa\[mprnet\]"):
            load_purifier(name, weights=path)


# -- the colour filter -----------------------------------------------------------------------------------------


def test_the_colour_filter_is_the_papers(tmp_path):
    torch.manual_seed(0)
    network = ColourFilter()
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_459
    torch.save({"model": network.state_dict(), "epoch": 2}, tmp_path / "fcn_mse.pth")
    images = pictures(12, 17)
    reference = torch.nn.Sequential(  # as published: the norm is declared with another number of channels
        network.conv1, torch.nn.LeakyReLU(0.2), network.conv2, torch.nn.InstanceNorm2d(8), torch.nn.LeakyReLU(0.2),
        network.conv3, torch.nn.Tanh(),
    )  # fmt: skip
    purifier = load_purifier("fcn", weights=tmp_path / "fcn_mse.pth")
    with torch.no_grad(), pytest.warns(UserWarning, match="number of features|match"):
        expected = reference(images).clamp(0, 1)
    torch.testing.assert_close(purifier(images), expected, rtol=0, atol=1e-6)
    ours = load_purifier("fcn", weights=tmp_path / "fcn_mse.pth", residual=True)(images)
    torch.testing.assert_close(ours, (images + reference(images)).clamp(0, 1).detach(), rtol=0, atol=1e-6)
    torch.save({"model": {"conv1.weight": torch.zeros(1)}}, tmp_path / "cut.pth")
    with pytest.raises(UserError, match=r"5 missing, first: conv1.bias"):
        load_purifier("fcn", weights=tmp_path / "cut.pth")


def test_an_untrained_filter_is_the_identity_never_random():
    images = pictures(10, 11)
    assert torch.equal(load_purifier("fcn", weights="untrained")(images), images)


# -- DISCO -----------------------------------------------------------------------------------------------------


def liif_as_published(network, images):
    """LIIF's query on a grid of pixel centres, written with unfold and grid_sample."""
    features = network.encoder(images)
    count, _, height, width = features.shape
    unfolded = F.unfold(features, 3, padding=1).view(count, -1, height, width)
    rows, columns = ((2 * torch.arange(side) + 1) / side - 1 for side in (height, width))
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
    centres = grid.permute(2, 0, 1).expand(count, 2, height, width)
    coordinates = grid.view(1, -1, 2).expand(count, -1, 2)
    cell = torch.ones_like(coordinates) * 2  # a pixel, in units of half a cell
    colours, areas = [], []
    for down in (-1, 1):
        for right in (-1, 1):
            asked = coordinates + torch.tensor([down / height, right / width]) + 1e-6
            asked = asked.clamp(-1 + 1e-6, 1 - 1e-6).flip(-1)[:, None]
            vector, centre = (
                F.grid_sample(maps, asked, mode="nearest", align_corners=False)[:, :, 0].permute(0, 2, 1)
                for maps in (unfolded, centres)
            )
            distance = (coordinates - centre) * torch.tensor([height, width])
            colours.append(network.imnet(torch.cat([vector, distance, cell], dim=-1)))
            areas.append(distance.prod(-1).abs() + 1e-9)
    total = sum(areas)
    mixed = sum(colour * (area / total)[..., None] for colour, area in zip(colours, areas[::-1], strict=True))
    return mixed.permute(0, 2, 1).reshape(count, 3, height, width)


def test_disco_is_liif_on_the_images_own_grid(tmp_path):
    path, _ = networks.write_disco(tmp_path)
    images = pictures(11, 14)
    purifier = load_purifier("disco", weights=path, chunk=40)
    with torch.no_grad():
        expected = (liif_as_published(purifier.network, images * 2 - 1) / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(purifier(images), expected, rtol=0, atol=2e-6)
        torch.testing.assert_close(load_purifier("disco", weights=path)(images), purifier(images), rtol=0, atol=1e-6)
    gradients = []
    for checkpoint in (False, True):
        leaf = images.clone().requires_grad_(True)
        load_purifier("disco", weights=path, chunk=40, checkpoint=checkpoint)(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_disco_is_queried_on_any_grid(tmp_path):
    path, _ = networks.write_disco(tmp_path)
    network = load_purifier("disco", weights=path).network
    features = network.encoder(pictures(4, 5))
    for parameter in network.imnet.layers[-1].parameters():
        torch.nn.init.zeros_(parameter)
    network.imnet.layers[-1].bias.data = torch.tensor([0.1, 0.2, 0.3])
    colours = network.query(features, (9, 10))
    torch.testing.assert_close(colours, torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1).expand(2, 3, 9, 10))


def test_what_is_no_disco_is_refused(tmp_path):
    path, state = networks.write_disco(tmp_path)
    torch.save({"model": state}, tmp_path / "bare.pth")
    with pytest.raises(UserError, match="no entry 'model' of the form"):
        load_purifier("disco", weights=tmp_path / "bare.pth")
    path, _ = networks.write_disco(tmp_path, name="metasr")
    with pytest.raises(UserError, match="describes a 'metasr'"):
        load_purifier("disco", weights=path)
    with pytest.raises(UserError, match="upsamples"):
        networks.write_disco(tmp_path, encoder={"no_upsampling": False})
    with pytest.raises(UserError, match="at least 1 pixel"):
        load_purifier("disco", weights=path, chunk=0)


# -- as a defense ----------------------------------------------------------------------------------------------


def test_a_network_defense_keeps_the_contract(tmp_path, curved_metric):
    _, path = networks.write("real_esrgan", tmp_path)
    metric = purify_with(curved_metric, "real_esrgan", weights=path, denoise_strength=0.5)
    report = check_metric(metric, size=24, defended=True)
    assert report.ok, report.failures
    assert (metric.name, metric.backward) == ("real_esrgan", "native")
    metric = purify_with(curved_metric, "real_esrgan", weights=path, backward="identity")
    leaf = pictures(12, 12).requires_grad_(True)
    (gradient,) = torch.autograd.grad(metric.purify(leaf).sum(), leaf)
    assert torch.equal(gradient, torch.ones_like(leaf))


def test_a_filter_without_weights_takes_the_shipped_ones_as_the_command_does(images):
    shipped = load_purifier("fcn", weights="mini_fcn")
    assert torch.equal(load_purifier("fcn")(images), shipped(images))
    metric = load_metric("mini")
    pictures = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    expected = purify_with(metric, "fcn", weights="mini_fcn")(pictures)
    assert torch.equal(purify_with(metric, "fcn")(pictures), expected)
    assert torch.equal(build_chain(metric, ["fcn"])(pictures), expected)
    assert torch.equal(PurifierEnsemble(metric, ["fcn"])(pictures), expected)
    assert shipped_weights("diffusion") == "mini_diffusion"
    assert shipped_weights(None) is None
