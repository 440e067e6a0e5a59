import itertools
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from certiqa.attacks import UAP, CumulativeUAP, GenerativeUAP, load_attack
from certiqa.attacks.generator import PatternUNet
from certiqa.attacks.parts import tile
from certiqa.data.datamodule import QualityDataModule
from certiqa.errors import UserError
from certiqa.metrics import FrozenMetric, MiniMetric

EPS = 10 / 255
OPTIONS = {
    "uap": {"size": 16, "lr": 0.01},
    "cumulative_uap": {"size": 16, "sign": True},
    "generative_uap": {"width": 2, "epochs": 4, "lr": 0.01},
}


def make(name, **options):
    return load_attack(name, **{**OPTIONS[name], **options})


def photos(number, height, width, seed=0):
    return torch.rand(number, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def loader():
    """Three batches of two images as data modules yield them."""
    return [{"image": photos(2, 24, 32, seed), "image_id": [f"{seed}a", f"{seed}b"]} for seed in range(3)]


@pytest.fixture(params=OPTIONS)
def name(request):
    return request.param


def test_the_pattern_keeps_eps_and_helps_images_it_has_not_seen(name, curved_metric, loader):
    held_out = photos(3, 40, 56, seed=9)
    noise = (held_out + EPS * photos(3, 40, 56, seed=10).sub(0.5).sign()).clamp(0, 1)
    for direction, sign in (("raise", 1), ("lower", -1)):
        attack = make(name).fit(curved_metric, loader, direction)
        assert attack.pattern.shape == (1, 3, attack.size, attack.size)
        assert float(attack.pattern.abs().max()) <= EPS + 1e-7
        result = attack.craft(curved_metric, held_out, direction)
        assert (result.forward_calls, result.gradient_calls) == (0, 0)
        assert float((result.images - held_out).abs().max()) <= EPS + 1e-6
        gain = sign * (curved_metric(result.unrounded) - curved_metric(held_out))
        assert bool((gain > sign * (curved_metric(noise) - curved_metric(held_out))).all())
        assert bool((gain > 0).all())


@pytest.mark.parametrize("size", [(16, 16), (40, 56), (7, 30), (33, 9)])
def test_patterns_repeat_and_are_cropped(size, curved_metric, loader):
    attack = make("uap", amplitude=0.5).fit(curved_metric, loader)
    images = torch.full((2, 3, *size), 0.5)
    change = attack.craft(curved_metric, images).unrounded - images
    rows, columns = torch.arange(size[0]) % 16, torch.arange(size[1]) % 16
    expected = 0.5 * attack.pattern[:, :, rows][..., columns]
    torch.testing.assert_close(change, expected.expand_as(change))
    assert tile(attack.pattern, *size).shape == (1, 3, *size)


def test_lower_better_and_the_seed(name, curved_metric, loader):
    raised = make(name).fit(curved_metric, loader, "raise", seed=4).pattern
    state = torch.random.get_rng_state()
    assert torch.equal(raised, make(name).fit(curved_metric, loader, "raise", seed=4).pattern)
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's randomness is left alone
    curved_metric.lower_better = True
    attack = make(name).fit(curved_metric, loader, "lower", seed=4)
    assert torch.equal(raised, attack.pattern)
    assert attack(curved_metric, photos(1, 9, 9), "lower").shape == (1, 3, 9, 9)


def test_the_metric_stays_as_it_is(name, loader):
    class Trainable(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(3, 2, 3)

        def forward(self, images):
            return self.features(images).square().flatten(1).mean(1)

    network = Trainable()
    metric = FrozenMetric(network, name="trainable", score_range=(0, 1))
    network.requires_grad_(True)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    make(name).fit(metric, loader)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_save_and_load(name, curved_metric, loader, tmp_path):
    attack = make(name).fit(curved_metric, loader, seed=3)
    attack.save(tmp_path / "pattern.safetensors")
    other = make(name, pattern_file=tmp_path / "pattern.safetensors")
    assert torch.equal(other.pattern, attack.pattern)
    steps = 3 * attack.epochs
    expected = {"attack": name, "metric": "curved", "direction": "raise", "seed": "3", "steps": str(steps)}
    assert expected.items() <= other.facts.items()
    images = photos(2, 20, 12)
    assert torch.equal(other(curved_metric, images), attack(curved_metric, images))
    with pytest.raises(UserError, match="fitted to raise all scores"):
        other(curved_metric, images, "lower")
    with pytest.raises(UserError, match="fitted to raise all scores"):
        other(curved_metric, images, targets=torch.zeros(2))


def test_files_that_do_not_fit_are_refused(curved_metric, loader, tmp_path):
    path = tmp_path / "pattern.safetensors"
    make("uap").fit(curved_metric, loader).save(path)
    with pytest.raises(UserError, match="is 16x16 pixels, but attack.size is 32; set attack.size=16"):
        UAP(size=32).load(path)
    with pytest.raises(UserError, match="is of attack 'uap', not 'cumulative_uap'"):
        CumulativeUAP(size=16).load(path)
    with pytest.raises(UserError, match="was fitted for eps=0.0392157, but attack.eps is 0.1"):
        UAP(0.1, size=16).load(path)
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="holds no universal pattern"):
        UAP(size=16).load(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no weights at"):
        UAP(size=16).load(tmp_path / "missing.safetensors")


def test_use_before_fit_and_directions(name, curved_metric, loader, tmp_path):
    attack = make(name)
    with pytest.raises(UserError, match=r"call fit\(metric, loader\) .* or load\(path\)"):
        attack(curved_metric, photos(1, 8, 8))
    with pytest.raises(UserError, match="no pattern to save"):
        attack.save(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="one pattern for all images.*got 'away'"):
        attack.fit(curved_metric, loader, "away")
    with pytest.raises(UserError, match="gave no images in pass 1"):
        attack.fit(curved_metric, [])
    with pytest.raises(UserError, match="gave no images in pass 2"):
        make(name, epochs=2).fit(curved_metric, iter(loader))
    with pytest.raises(UserError, match="must yield dicts with 'image', or tensors .* got str"):
        attack.fit(curved_metric, ["image"])


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: UAP(amplitude=2), "attack.amplitude of uap must be above 0 and at most 1"),
        (lambda: UAP(size=0), "at least 1"),
        (lambda: UAP(lr=0), "attack.lr of uap must be a number above 0"),
        (lambda: GenerativeUAP(size=128), "attack.size of generative_uap must be a multiple of 256"),
        (lambda: GenerativeUAP(width=0), "attack.width"),
    ],
)
def test_options_out_of_range_are_named(make_it, words):
    with pytest.raises(UserError, match=words):
        make_it()


def test_loaders_of_tensors_and_large_batches(curved_metric):
    images = photos(6, 16, 16)
    whole = make("uap", batch_size=2).fit(curved_metric, [images])
    assert whole.facts["steps"] == str(3 * 5)
    split = make("uap").fit(curved_metric, list(images.split(2)))
    assert torch.equal(whole.pattern, split.pattern)
    tuples = make("uap").fit(curved_metric, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), 2))
    assert torch.equal(whole.pattern, tuples.pattern)


def test_the_linear_optimum(linear_metric):
    metric = linear_metric(size=16)
    images = photos(4, 16, 16) * 0.6 + 0.2
    attack = make("cumulative_uap").fit(metric, [images], "raise")
    attack_more = make("cumulative_uap", epochs=10).fit(metric, [images], "raise")
    assert float((attack_more.pattern - EPS * metric.network.weight.sign()).abs().max()) < 1e-7
    assert float((attack.pattern - EPS / 2 * metric.network.weight.sign()).abs().max()) < 1e-7


def test_an_image_whose_gradient_is_not_finite_is_left_out(linear_metric):
    class Holed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear_metric(size=16).network

        def forward(self, images):
            return torch.where(images[:, 0, 0, 0] > 0.9, torch.nan, self.inner(images))

    images = photos(2, 16, 16) * 0.6 + 0.2
    holed = torch.cat([images[:1], torch.ones(1, 3, 16, 16)])
    attack = make("cumulative_uap", epochs=10)
    with pytest.warns(UserWarning, match="10 gradients were not finite"):
        attack.fit(FrozenMetric(Holed(), name="holed"), [holed])
    assert bool(attack.pattern.isfinite().all())
    assert float(attack.pattern.abs().max()) == pytest.approx(EPS)


def test_a_pattern_next_to_nothing_is_warned_of(linear_metric):
    with pytest.warns(UserWarning, match="of eps; raise attack.lr"):
        CumulativeUAP(size=16, lr=0.01).fit(linear_metric(size=16), [photos(2, 16, 16)])


def test_the_generator_is_that_of_pix2pix():
    network = PatternUNet(width=64)
    shapes = [tuple(level[-2 if index == 0 else 1].weight.shape) for index, level in enumerate(network.down[1:], 1)]
    assert shapes == [(128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4)] + 4 * [(512, 512, 4, 4)]
    assert sum(isinstance(module, nn.Dropout) for module in network.modules()) == 3
    assert sum(isinstance(module, nn.InstanceNorm2d) for module in network.modules()) == 6 + 7
    small = PatternUNet(width=2).eval()
    latent = torch.rand(1, 3, 256, 512)
    pattern = small(latent).detach()
    assert pattern.shape == latent.shape
    assert float(pattern.abs().max()) <= 1
    assert torch.equal(pattern, small(latent))  # no dropout


@pytest.mark.parametrize("name", ["uap", "cumulative_uap"])
def test_held_out_photographs_of_the_embedded_metric(name, mini_cache):
    metric = MiniMetric()
    data = QualityDataModule("mini", batch_size=8, crop=48, cache=mini_cache)
    train = list(itertools.islice(data.train_dataloader(), 4))
    held_out = torch.stack([data.test_set[row]["image"][:, :48, :64] for row in range(0, 12, 2)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack = make(name, size=48).fit(metric, train, progress=False)
    attacked = attack(metric, held_out)
    lengths = (attacked - held_out).flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    noise = torch.randn(held_out.shape, generator=torch.Generator().manual_seed(0))
    noisy = (held_out + noise * lengths / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
    assert float((metric(attacked) - metric(held_out)).mean()) > 0.2
    assert float((metric(attacked) - metric(noisy)).mean()) > 0.2
