"""DiffPure: the formula of its noise, what is left without steps, whose randomness it is, and diffusers folders."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from certiqa.defenses import PurifiedMetric, load_purifier
from certiqa.errors import UserError
from certiqa.metrics import check_metric

_spec = importlib.util.spec_from_file_location("networks", Path(__file__).parent / "networks.py")
networks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(networks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return networks.write_diffusion(tmp_path_factory.mktemp("diffusion"))[1]


def pictures(height, width, count=2):
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    return F.interpolate(coarse, size=(height, width), mode="bilinear")


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class Oracle(nn.Module):
    """Names exactly the noise that lies on known samples."""

    def __init__(self, clean, scheduler):
        super().__init__()
        self.clean, self.shares = clean, scheduler.alphas_cumprod

    def forward(self, sample, step):
        share = self.shares[step]
        return (sample - share.sqrt() * self.clean) / (1 - share).sqrt()


def test_without_steps_only_the_resizing_is_left(folder):
    images = pictures(20, 28)
    purifier = load_purifier("diffpure", weights=folder, steps=0)
    small = F.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
    expected = F.interpolate(small, size=(20, 28), mode="bilinear", align_corners=False)
    torch.testing.assert_close(purifier(images), expected, rtol=0, atol=1e-6)
    assert not purifier.is_random
    native = load_purifier("diffpure", weights=folder, steps=0, size="native")
    torch.testing.assert_close(native(images[..., :19, :27]), images[..., :19, :27], rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 5, 30])
def test_a_perfect_denoiser_gives_the_image_back(folder, steps):
    images = pictures(16, 16)
    purifier = load_purifier("diffpure", weights=folder, steps=steps)
    purifier.network = Oracle(2 * images - 1, purifier.scheduler)
    torch.testing.assert_close(purifier(images, generators(0, 1)), images, rtol=0, atol=2e-5)


def test_the_noise_is_that_of_the_published_schedule(folder):
    purifier = load_purifier("diffpure", weights=folder)
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    shares = (1 - betas).cumprod(0)
    sample, noise = torch.full((2, 3, 2, 2), 0.5), torch.full((2, 3, 2, 2), 2.0)
    steps = torch.tensor([4, 999])
    expected = shares[steps].sqrt() * 0.5 + (1 - shares[steps]).sqrt() * 2
    noisy = purifier.noisy(sample, noise, steps)
    torch.testing.assert_close(noisy[:, 0, 0, 0].double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(purifier.noisy(sample, noise, 4)[1, 0, 0, 0].double(), expected[0], rtol=0, atol=1e-5)


def test_the_way_back_is_ancestral_sampling(folder):
    unet, _ = networks.write_diffusion(folder / "again")
    images = pictures(16, 16, count=1)
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    shares = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)])  # shares[i + 1] is that of step i
    draw = torch.Generator().manual_seed(7)
    sample = (2 * images - 1).double()
    sample = shares[3].sqrt() * sample + (1 - shares[3]).sqrt() * torch.randn(3, 16, 16, generator=draw)
    with torch.no_grad():
        for step in (2, 1, 0):
            share, before, beta = shares[step + 1], shares[step], betas[step]
            noise = unet(sample.float(), step).sample.double()
            clean = ((sample - (1 - share).sqrt() * noise) / share.sqrt()).clamp(-1, 1)
            mean = before.sqrt() * beta / (1 - share) * clean
            mean = mean + (1 - beta).sqrt() * (1 - before) / (1 - share) * sample
            sample = mean
            if step:
                variance = (1 - before) / (1 - share) * beta
                sample = mean + variance.sqrt() * torch.randn(1, 3, 16, 16, generator=draw)
        purified = load_purifier("diffpure", weights=folder / "again", steps=3)(images, generators(7))
    torch.testing.assert_close(purified.double(), ((sample + 1) / 2).clamp(0, 1), rtol=0, atol=1e-4)


def test_randomness_is_of_the_image_alone(folder, curved_metric):
    metric = PurifiedMetric(curved_metric, load_purifier("diffpure", weights=folder))
    report = check_metric(metric, size=24, defended=True)
    assert report.ok, report.failures
    images = pictures(12, 20, count=1).expand(2, -1, -1, -1)
    purified = metric.purify(images, ["a", "b"])
    assert purified.shape == images.shape
    assert not torch.allclose(purified[0], purified[1], atol=1e-3)
    torch.testing.assert_close(metric.purify(images[:1], ["b"])[0], purified[1], rtol=0, atol=1e-5)


def test_recomputing_changes_neither_value_nor_gradient(folder):
    found = []
    for checkpoint in (False, True):
        leaf = pictures(16, 16).requires_grad_(True)
        output = load_purifier("diffpure", weights=folder, steps=2, checkpoint=checkpoint)(leaf, generators(1, 2))
        (gradient,) = torch.autograd.grad(output.square().sum(), leaf)
        found.append((output.detach(), gradient))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert found[0][1].abs().sum() > 0


def test_unsharp_follows(folder):
    images = pictures(16, 16)
    options = {"weights": folder, "steps": 2}
    soft = load_purifier("diffpure", **options)(images, generators(1, 2))
    sharp = load_purifier("diffpure_unsharp", kernel=5, amount=0.5, **options)(images, generators(1, 2))
    expected = load_purifier("unsharp", kernel=5, amount=0.5)(soft)
    torch.testing.assert_close(sharp, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(sharp, soft, atol=1e-4)


def test_a_learned_variance_is_used(tmp_path):
    from diffusers import DDPMScheduler

    unet, learned = networks.write_diffusion(tmp_path / "learned", out_channels=6)
    purifier = load_purifier("diffpure", weights=learned, steps=3)
    images = pictures(16, 16)

    def purified_by(scheduler, outputs):
        """The steps back by diffusers' own scheduler, given the first ``outputs`` channels."""
        draws = generators(1, 2)
        noise = torch.stack([torch.randn(3, 16, 16, generator=draw) for draw in draws])
        sample = scheduler.add_noise(2 * images - 1, noise, torch.tensor([2, 2]))
        for step in (2, 1, 0):
            sample = scheduler.step(unet(sample, step).sample[:, :outputs], step, sample, draws).prev_sample
        return ((sample + 1) / 2).clamp(0, 1)

    with torch.no_grad():
        found = purifier(images, generators(1, 2))
        learned = purified_by(DDPMScheduler(variance_type="learned_range"), 6)
        fixed = purified_by(DDPMScheduler(), 3)
    torch.testing.assert_close(found, learned, rtol=0, atol=1e-6)
    assert (found - fixed).abs().max() > 1e-3, "the fixed variance gives another image"


def test_a_saved_model_and_a_bare_unet_load(folder, tmp_path):
    first = load_purifier("diffpure", weights=folder)
    first.save(tmp_path / "kept")
    images = pictures(16, 16)
    expected = first(images, generators(1, 2))
    for place in (tmp_path / "kept", folder / "unet"):
        assert torch.equal(load_purifier("diffpure", weights=place)(images, generators(1, 2)), expected)


OTHER = {"beta_start": 1e-3, "beta_end": 0.05, "num_train_timesteps": 500, "variance_type": "fixed_large"}
"""A schedule that is not the usual one."""


def test_a_model_at_the_root_of_its_folder_has_its_own_schedule(tmp_path):
    _, flat = networks.write_diffusion(tmp_path / "flat", at_root=True, **OTHER)
    _, nested = networks.write_diffusion(tmp_path / "nested", **OTHER)
    assert not (flat / "unet").exists()
    found, expected = (load_purifier("diffpure", weights=folder) for folder in (flat, nested))
    shares = (1 - torch.linspace(1e-3, 0.05, 500)).cumprod(0)
    torch.testing.assert_close(found.scheduler.alphas_cumprod, shares, rtol=0, atol=1e-6)
    assert found.scheduler.config.variance_type == "fixed_large"
    images = pictures(16, 16)
    assert torch.equal(found(images, generators(1, 2)), expected(images, generators(1, 2)))
    # what is there and is broken is not replaced by the usual schedule
    (flat / "scheduler_config.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot load the scheduler.*tried scheduler/sched.*; scheduler_config.json"):
        load_purifier("diffpure", weights=flat)


def test_a_unet_alone_gets_the_usual_schedule_with_a_warning(tmp_path, caplog):
    _, flat = networks.write_diffusion(tmp_path / "flat", at_root=True, **OTHER)
    load_purifier("diffpure", weights=flat)
    assert not caplog.records
    (flat / "scheduler_config.json").unlink()
    assert load_purifier("diffpure", weights=flat).scheduler.config.num_train_timesteps == 1000
    assert "has no scheduler_config.json" in caplog.text


@pytest.fixture
def hub(monkeypatch):
    """A hub of one's own in place of the real one: ``hub[name] = folder``, ``hub[file]`` an error to be raised."""
    import diffusers.configuration_utils
    import diffusers.models.modeling_utils
    import diffusers.utils.hub_utils
    from huggingface_hub.errors import EntryNotFoundError

    asked = []
    models = {"asked": asked}

    def download(name, filename, subfolder=None, local_files_only=False, **_):
        place = models[name] / (subfolder or "") / filename
        asked.append(local_files_only)
        if isinstance(models.get(filename), Exception):
            raise models[filename]
        if not place.is_file():
            raise EntryNotFoundError(f"404: {subfolder}/{filename}")
        return str(place)

    monkeypatch.setattr(diffusers.configuration_utils, "hf_hub_download", download)
    monkeypatch.setattr(diffusers.utils.hub_utils, "hf_hub_download", download)
    monkeypatch.setattr(diffusers.models.modeling_utils, "_fetch_index_file", lambda **_: None)
    monkeypatch.setattr(diffusers.models.modeling_utils, "_resolve_revision", lambda *_, **__: None, raising=False)
    return models


@pytest.mark.parametrize("at_root", [False, True])
def test_a_model_on_the_hub_has_its_own_schedule(at_root, hub, tmp_path, caplog):
    from huggingface_hub.errors import LocalEntryNotFoundError

    _, hub["google/ddpm-church-256"] = networks.write_diffusion(tmp_path, at_root=at_root, **OTHER)
    purifier = load_purifier("diffpure", weights="google/ddpm-church-256")
    assert purifier.scheduler.config.num_train_timesteps == 500
    # the network is there, from a cache say, but the hub cannot be asked for the scheduler: no other is taken
    hub["scheduler_config.json"] = LocalEntryNotFoundError("no connection")
    with pytest.raises(UserError, match=r"cannot load the scheduler.*scheduler_config.json.*hf download google/ddpm"):
        load_purifier("diffpure", weights="google/ddpm-church-256")
    del hub["scheduler_config.json"]
    assert not caplog.records
    next(tmp_path.rglob("scheduler_config.json")).unlink()
    usual = load_purifier("diffpure", weights="google/ddpm-church-256")
    assert usual.scheduler.config.num_train_timesteps == 1000
    assert "has no scheduler_config.json" in caplog.text


def test_a_hub_that_does_not_answer_is_said(hub):
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub["google/ddpm-church-256"] = Path("nowhere")
    hub["config.json"] = LocalEntryNotFoundError("no connection")
    reason = "the hub is out of reach, and no copy is here"
    with pytest.raises(UserError, match=f"tried unet/config.json: {reason}; config.json: {reason}.*there is none of"):
        load_purifier("diffpure", weights="google/ddpm-church-256")
    assert hub["asked"] == [False, True], "then only the copies on this machine are asked for"
    hub["config.json"] = OSError("403 forbidden")
    with pytest.raises(UserError, match=r"tried unet/config.json: OSError: .*; config.json: OSError: "):
        load_purifier("diffpure", weights="google/ddpm-church-256")


def test_what_does_not_fit_is_refused(folder, tmp_path):
    _, broken = networks.write_diffusion(tmp_path / "broken")
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["conv_in.weight"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"do not fit the U-Net.*1 missing, first: \['conv_in.weight'\]"):
        load_purifier("diffpure", weights=broken)
    config = json.loads((folder / "unet" / "config.json").read_text())
    _, grey = networks.write_diffusion(tmp_path / "latent", out_channels=4)
    with pytest.raises(UserError, match=r"gives 4 channels.*RGB"):
        load_purifier("diffpure", weights=grey)
    assert config["sample_size"] == 16
    (tmp_path / "256x256_diffusion_uncond.pt").write_bytes(b"x")
    with pytest.raises(UserError, match="is a file; DiffPure takes the folder"):
        load_purifier("diffpure", weights=tmp_path / "256x256_diffusion_uncond.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot load an unconditional diffusers U-Net"):
        load_purifier("diffpure", weights=tmp_path / "empty")
    for size, nearest in ((17, "16 or 18"), (1, "2")):
        with pytest.raises(UserError, match=rf"multiple of 2.*got {size}; give size={nearest}, or size=native"):
            load_purifier("diffpure", weights=folder, size=size)
    unet_config = broken / "unet" / "config.json"
    save_file(load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"), file, metadata={"format": "pt"})
    unet_config.write_text(json.dumps(config | {"sample_size": 15}))
    with pytest.raises(UserError, match="got 15, the model's own sample_size; give size=14 or 16"):
        load_purifier("diffpure", weights=broken)
    assert load_purifier("diffpure", weights=broken, size=18).size == 18
    for options, message in (
        ({"steps": 1001}, "0 to 1000"),
        ({"steps": -1}, "got -1"),
        ({"size": "large"}, "native, or null"),
        ({"architecture": {"norm_num_groups": 4}}, "weights bring their own"),
    ):
        with pytest.raises(UserError, match=message):
            load_purifier("diffpure", weights=folder, **options)
