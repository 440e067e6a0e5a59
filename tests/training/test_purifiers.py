"""Purifiers are trained by the same module as denoisers: on attacked images, or on diffusion's noise."""

import importlib.util
from pathlib import Path

import pytest
import torch

from certiqa.attacks import load_attack
from certiqa.defenses import Jpeg, PurifiedMetric, load_purifier, purify_with
from certiqa.defenses.purifiers.fcn import save_filter
from certiqa.errors import UserError
from certiqa.training import DefenseModule, DenoisingObjective
from certiqa.training.corruption import Attacked, DiffusionSteps

_spec = importlib.util.spec_from_file_location("module_tests", Path(__file__).parent / "test_module.py")
module_tests = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(module_tests)
IDS = [str(index) for index in range(8)]


def optimizer(parameters):
    return torch.optim.Adam(parameters, lr=5e-3)


def squares():
    return torch.stack([module_tests.Squares()[index]["image"] for index in range(8)])


class CountingAttack:
    """Brightens or darkens towards a better or worse score, and counts the images."""

    name = "counting"

    def __init__(self):
        self.images = 0

    def __call__(self, metric, images, direction, *, image_ids, seed):
        self.images += len(images)
        signs = direction.view(-1, 1, 1, 1) if isinstance(direction, torch.Tensor) else 1
        return (images + 0.2 * signs).clamp(0, 1)


@pytest.fixture
def filtered(curved_metric):
    torch.manual_seed(0)
    return purify_with(curved_metric, "fcn", weights="untrained")


def test_a_filter_learns_to_undo_an_attack(filtered, curved_metric, tmp_path):
    attack = load_attack("advcf", learning_rate=0.02, steps=2)
    corruption = Attacked(attack, curved_metric, "raise")
    module = DefenseModule(filtered, DenoisingObjective(), optimizer, corruption=corruption, warmup_steps=2)
    module_tests.fit(module, tmp_path, 60, gradient_clip_val=0.1)
    (attacked,), clean = corruption.pair(squares(), IDS, [0] * 8, whole=True)
    with torch.no_grad():
        before = float((attacked - clean).square().mean())
        after = float((filtered.purifier(attacked) - clean).square().mean())
    assert before > 1e-4
    assert after < 0.7 * before
    assert not any(parameter.requires_grad for parameter in filtered.parameters())
    save_filter(module.denoiser, tmp_path / "kept.safetensors", {"metric": "curved"})
    kept = load_purifier("fcn", weights=tmp_path / "kept.safetensors")
    assert torch.equal(kept(attacked), filtered.purifier(attacked))
    with pytest.raises(UserError, match="trained with residual=True, but residual=False"):
        load_purifier("fcn", weights=tmp_path / "kept.safetensors", residual=False)


def test_a_whole_image_is_attacked_once_and_crops_anew():
    attack = CountingAttack()
    corruption = Attacked(attack, None, "both")
    (first,), clean = corruption.pair(squares(), IDS, [0] * 8, whole=True)
    (again,), _ = corruption.pair(squares()[2:], IDS[2:], [3] * 6, whole=True)
    assert attack.images == 8
    assert torch.equal(again, first[2:])
    assert torch.equal(first * 255, (first * 255).round())
    moved = (first - clean).mean(dim=(1, 2, 3))
    assert (moved > 0).any()
    assert (moved < 0).any(), "both directions"
    corruption.pair(squares(), IDS, [0] * 8)
    assert attack.images == 16
    with pytest.raises(UserError, match="both, raise, lower, got 'away'"):
        Attacked(attack, None, "away")


def test_a_diffusion_model_learns_to_name_the_noise(curved_metric, networks, tmp_path):
    _, folder = networks.write_diffusion(tmp_path)
    defense = purify_with(curved_metric, "diffpure", weights=folder, size="native", checkpoint=False)
    corruption = DiffusionSteps(defense.purifier, 50, seed=0)
    (sample, steps), noise = corruption.pair(squares(), IDS, [0] * 8)
    assert sample.shape == noise.shape == (8, 3, 32, 32)
    assert int(steps.min()) >= 0
    assert int(steps.max()) < 50
    assert len(steps.unique()) > 3
    torch.testing.assert_close(sample, defense.purifier.noisy(2 * squares() - 1, noise, steps))
    assert not torch.equal(corruption.pair(squares(), IDS, [1] * 8)[1], noise), "another epoch, other noise"
    module = DefenseModule(defense, DenoisingObjective(), optimizer, corruption=corruption, warmup_steps=2)

    def error():
        with torch.no_grad():
            return float((module.denoiser(sample, steps) - noise).square().mean())

    before = error()
    module_tests.fit(module, tmp_path, 40, gradient_clip_val=1.0)
    assert error() < 0.85 * before
    with pytest.raises(UserError, match="1 to 1000, got 0"):
        DiffusionSteps(defense.purifier, 0, seed=0)
    ranking = DenoisingObjective(name="mse_ranking", ranking_weight=1.0)
    with pytest.raises(UserError, match="gives no image; train it with objective=mse"):
        DefenseModule(defense, ranking, optimizer, corruption=corruption)


@pytest.fixture
def diffusing(curved_metric, networks, tmp_path):
    """A module under training whose U-Net halves images once."""
    _, folder = networks.write_diffusion(tmp_path)
    defense = purify_with(curved_metric, "diffpure", weights=folder, size="native")
    corruption = DiffusionSteps(defense.purifier, 50, seed=0)
    return DefenseModule(defense, DenoisingObjective(), optimizer, corruption=corruption)


def test_whole_images_of_any_size_are_validated_over_their_own_pixels(diffusing, monkeypatch):
    logged = {}
    monkeypatch.setattr(diffusing, "log_dict", lambda values, **options: logged.update(values, options=options))
    images = squares()[:3, :, :31, :27]
    with torch.no_grad():
        diffusing.validation_step({"image": images, "image_id": IDS[:3]}, 0)
        (sample, steps), noise = diffusing.corruption.pair(images, IDS[:3], [0] * 3, whole=True)
        error = float((diffusing.denoiser(sample, steps) - noise).square().mean())
    assert noise.shape == (3, 3, 30, 26), "one row and one column less, and none made up"
    torch.testing.assert_close(
        sample, diffusing.defense.purifier.noisy(2 * images[..., :30, :26] - 1, noise, steps), rtol=0, atol=0
    )
    assert float(logged["val/mse"]) == pytest.approx(error, rel=1e-5)
    assert logged["options"]["sync_dist"], "the figure of several processes is of all of them"
    with pytest.raises(UserError, match="1x27 pixels is smaller than the 2x2"):
        diffusing.corruption.pair(images[..., :1, :], IDS[:3], [0] * 3)


def test_a_purifier_without_a_network_is_not_trained(curved_metric):
    corruption = Attacked(CountingAttack(), curved_metric)
    with pytest.raises(UserError, match="trains a network, but defense 'jpeg' has none"):
        DefenseModule(PurifiedMetric(curved_metric, Jpeg()), DenoisingObjective(), optimizer, corruption=corruption)


def test_checkpoints_of_a_run_hold_the_filter_alone(filtered, curved_metric):
    module = DefenseModule(
        filtered, DenoisingObjective(), optimizer, corruption=Attacked(CountingAttack(), curved_metric)
    )
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == {
        f"denoiser.conv{layer}.{part}" for layer in (1, 2, 3) for part in ("weight", "bias")
    }
