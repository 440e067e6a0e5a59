"""Training a denoiser through a frozen metric with a real Lightning trainer."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from certiqa.defenses import MedianSmoothing, no_defense
from certiqa.denoisers import UNet
from certiqa.errors import UserError
from certiqa.metrics import FrozenMetric
from certiqa.training import DefenseModule, DenoisingObjective


class MeanBrightness(nn.Module):
    """Scores an image by its mean, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return self.gain * images.mean(dim=(1, 2, 3))


class Squares(Dataset):
    """Smooth random images with a made-up opinion score."""

    def __len__(self):
        return 8

    def __getitem__(self, key):
        index = key[1] if isinstance(key, tuple) else key
        generator = torch.Generator().manual_seed(index)
        low = torch.rand(1, 3, 4, 4, generator=generator)
        image = nn.functional.interpolate(low, size=(32, 32), mode="bilinear")[0]
        return {
            "image": image,
            "image_id": f"{index}.png",
            "mos": float(index),
            "mos_normalised": index / 7,
            "epoch": 0,
            "is_crop": False,
        }


def make(objective=None, sigma=0.1, **options):
    torch.manual_seed(0)
    metric = FrozenMetric(MeanBrightness(), score_range=(0, 1))
    defense = MedianSmoothing(metric, sigma, 9, UNet((8, 8)))
    optimizer = lambda parameters: torch.optim.Adam(parameters, lr=5e-3)  # noqa: E731
    return DefenseModule(defense, objective or DenoisingObjective(), optimizer, **{"warmup_steps": 2, **options})


def fit(module, folder, steps, **options):
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"enable_checkpointing": False, **options},
    )
    trainer.fit(module, DataLoader(Squares(), 4))
    return trainer


def denoising_error(module):
    images = torch.stack([Squares()[index]["image"] for index in range(8)])
    noisy = module.defense.noisy(images, [str(i) for i in range(8)], [0] * 8, 1, "validate")
    with torch.no_grad():
        return float((module.defense.denoise(noisy) - images).square().mean())


def test_training_removes_noise_and_leaves_the_metric_alone(tmp_path):
    module = make()
    before, gain = denoising_error(module), module.base_metric.network.gain.clone()
    fit(module, tmp_path, 120, gradient_clip_val=0.1)
    assert denoising_error(module) < 0.6 * before
    assert torch.equal(module.base_metric.network.gain, gain)
    assert not any(parameter.requires_grad for parameter in module.defense.parameters())


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path):
    weights = [fit_and_flatten(make(seed=seed), tmp_path) for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def fit_and_flatten(module, folder):
    fit(module, folder, 3)
    return torch.cat([parameter.flatten() for parameter in module.denoiser.parameters()])


def test_the_metric_is_used_only_after_the_phase_of_mse_alone(tmp_path):
    module = make(DenoisingObjective(ranking_weight=1.0, target_weight=1.0, mse_share=0.5, mse_crop=16))
    network = module.base_metric.network
    network.calls = 0
    fit(module, tmp_path, 4)
    # two steps with the metric: a forward each, and the clean scores of 8 images in their two batches, once
    assert network.calls == 2 + 2


def test_clean_scores_are_computed_once(tmp_path):
    module = make(DenoisingObjective(target_weight=1.0))
    network = module.base_metric.network
    network.calls = 0
    fit(module, tmp_path, 8)
    assert network.calls == 8 + 2, "8 forwards of denoised images, and each of the 2 batches of clean ones once"


def test_gradients_of_the_score_terms_reach_the_denoiser():
    module = make(DenoisingObjective(mse_weight=0.0, target_weight=1.0))
    module.setup("fit")
    images = Squares()[0]["image"][None]
    scores = module.base_metric(module.denoiser(images))
    terms = module.objective.score_terms(scores, scores.detach() + 1, torch.zeros(1), module.base_metric)
    module.objective.total(terms).backward()
    assert any(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.denoiser.parameters()
    )


def test_training_noise_has_the_stated_levels_and_depends_on_the_epoch():
    module = make(sigma=0.1)
    module.corruption.clip = False
    images = torch.full((2, 3, 64, 64), 0.5)
    first = module.corruption.noisy(images, ["a", "b"], [0, 0])
    assert float((first - 0.5).std()) == pytest.approx(0.1, rel=0.03)
    assert torch.equal(first[1], module.corruption.noisy(images[1:], ["b"], [0])[0])
    assert not torch.equal(first[1], module.corruption.noisy(images[1:], ["b"], [1])[0])
    ranged = make(DenoisingObjective(), sigma=0.1)
    ranged = DefenseModule(ranged.defense, ranged.objective, ranged.optimizer, sigma=[0.05, 0.3])
    ranged.corruption.clip = False
    many = ranged.corruption.noisy(images[:1].expand(40, -1, -1, -1), [str(i) for i in range(40)], [0] * 40) - 0.5
    levels = many.flatten(1).std(dim=1)
    assert 0.045 < float(levels.min()) < 0.1
    assert 0.25 < float(levels.max()) < 0.31


def test_checkpoints_hold_the_denoiser_alone_and_load_strictly(tmp_path):
    module = make()
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == {f"denoiser.{key}" for key in module.denoiser.state_dict()}
    other = make()
    nn.init.zeros_(other.denoiser.inlet.weight)
    other.on_load_checkpoint(checkpoint)
    assert torch.equal(other.denoiser.inlet.weight, module.denoiser.inlet.weight)
    checkpoint = {"state_dict": {"denoiser.inlet.weight": module.denoiser.inlet.weight}}
    with pytest.raises(UserError, match=r"missing, first: inlet.bias"):
        other.on_load_checkpoint(checkpoint)


def test_learning_rate_warms_up_and_decays_to_zero(tmp_path):
    module = make(warmup_steps=5)
    rates = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(module, tmp_path, 20, callbacks=[Watch()])
    assert rates[0] < max(rates)
    assert rates[-1] < 0.05 * max(rates)


def test_the_learning_rate_starts_again_with_the_ranking(tmp_path):
    rates = {}
    for restart in (False, True):
        module = make(DenoisingObjective(target_weight=1.0, mse_share=0.5), warmup_steps=1, restart=restart)
        found = rates[restart] = []

        class Watch(pl.Callback):
            def on_train_batch_start(self, trainer, *_, found=found):
                found.append(trainer.optimizers[0].param_groups[0]["lr"])

        fit(module, tmp_path / str(restart), 12, callbacks=[Watch()])
    assert rates[False][6] < rates[False][1]
    assert rates[True][6:] == rates[True][:6]


def test_what_cannot_be_trained_is_refused():
    metric = FrozenMetric(MeanBrightness(), score_range=(0, 1))
    with pytest.raises(UserError, match=r"trains a denoiser, but defense 'ms' has none"):
        DefenseModule(MedianSmoothing(metric, 0.1), DenoisingObjective())
    with pytest.raises(UserError, match="has none"):
        DefenseModule(no_defense(metric), DenoisingObjective())
    rangeless = MedianSmoothing(FrozenMetric(MeanBrightness()), 0.1, denoiser=UNet((8, 8)))
    with pytest.raises(UserError, match="states none"):
        DefenseModule(rangeless, DenoisingObjective(ranking_weight=1.0))
    with pytest.raises(UserError, match="positive level or a range"):
        make(sigma=0.1).__class__(make().defense, DenoisingObjective(), sigma=[0.3, 0.1])
