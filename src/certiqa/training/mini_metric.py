"""How the embedded metric is made: a ridge head on frozen ImageNet features, fitted to pseudo-MOS.

``python train.py experiment=mini_metric`` runs it. With fourteen contents the danger is to learn the contents:
fine-tuning the network memorises them. So the features stay frozen, the head is linear, and each photograph is seen in
many guises: other crops, mirrored, other tone and colour *before* the distortion, which changes the content but not
the label.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Len
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from certiqa.data.distortions import DISTORTIONS, distort
from certiqa.data.images import ImageDataset, to_tensor
from certiqa.data.mini import ASSETS, CROP, LEVELS, SPLITS, cell_means
from certiqa.data.reading import read_image
from certiqa.data.registry import load_dataset
from certiqa.evaluation import measures
from certiqa.metrics.backbones import imagenet_weights
from certiqa.metrics.folding import fold_batch_norms
from certiqa.metrics.mini import MOS_RANGE, MiniNetwork
from certiqa.metrics.weights import load_strictly, read_weights, save_weights
from certiqa.options import Count, Positive, Seed
from certiqa.storage.workers import worker_pool
from certiqa.training.ridge import ridge_path

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class MetricFit:
    """The outcome: figures are SROCC against pseudo-MOS over pooled images.

    Attributes:
        penalty: the chosen ridge penalty.
        cross_validated: mean over groups of training photographs, each left out of the fit, and their values.
        groups: the value of each group.
        validation: on the three photographs.
        test: on the five; it chose nothing.
        test_plcc: PLCC on the five.
        per_photograph: mean over left-out training photographs of the SROCC inside one photograph.
    """

    penalty: float
    cross_validated: float
    groups: tuple[float, ...]
    per_photograph: float
    validation: float
    test: float
    test_plcc: float


def fit_mini_metric(
    path: str | Path,
    *,
    variants: Count = 8,
    penalties: Annotated[Sequence[Positive], Len(1)] = (0.01, 0.03, 0.1, 0.3, 1.0),
    num_groups: Annotated[int, Ge(2)] = 5,
    seed: Seed = 0,
    cache: str | Path | None = None,
) -> MetricFit:
    """Fit the head, write backbone and head to ``path`` as safetensors, and return the figures.

    Args:
        path: where the weights go.
        variants: augmented copies of the training set beside the plain one.
        penalties: ridge penalties, chosen among by the mean of cross-validated and validation SROCC.
        num_groups: groups of photographs left out in turn.
        seed: of the augmentation and the grouping.
        cache: folder of the data set's cache.
    """
    network = imagenet_network()
    backbone = _fast_backbone(network)
    plain = {
        split: features_of(backbone, load_dataset("mini", split, cache=cache)) for split in ("train", "validation")
    }
    parts = [plain["train"]] + ([features_of_variants(backbone, variants, seed)] if variants else [])
    features = np.concatenate([part[0] for part in parts])
    targets = to_logits(np.concatenate([part[1] for part in parts]))
    photographs = np.concatenate([part[2] for part in parts])

    train, validation = plain["train"], plain["validation"]
    names = np.random.default_rng(seed).permutation(sorted(SPLITS["train"]))
    groups = [set(names[start::num_groups]) for start in range(num_groups)]
    outs = [np.isin(photographs, list(group)) for group in groups]
    without = [ridge_path(features[~out], targets[~out], penalties) for out in outs]  # a list over penalties each
    trials = []
    for place, (weights, bias) in enumerate(ridge_path(features, targets, penalties)):
        on_validation = measures.srocc(validation[0] @ weights + bias, validation[1])
        values, inside = [], []
        for group, heads in zip(groups, without, strict=True):
            held_weights, held_bias = heads[place]
            held = np.isin(train[2], list(group))
            scores = train[0] @ held_weights + held_bias
            values.append(measures.srocc(scores[held], train[1][held]))
            inside += [measures.srocc(scores[train[2] == name], train[1][train[2] == name]) for name in group]
        sum_of_both = float(np.mean(values)) + on_validation
        trials.append((sum_of_both, penalties[place], values, float(np.mean(inside)), on_validation, weights, bias))
    _, penalty, values, per_photograph, on_validation, weights, bias = max(trials, key=lambda trial: trial[:2])

    with torch.no_grad():
        network.head.weight.copy_(torch.from_numpy(weights)[None])
        network.head.bias.fill_(float(bias))
    facts = {"metric": "mini", "variants": str(variants), "penalty": str(penalty), "seed": str(seed)}
    save_weights(network, path, facts)
    test = features_of(backbone, load_dataset("mini", "test", cache=cache))
    scores = MOS_RANGE[0] + (MOS_RANGE[1] - MOS_RANGE[0]) / (1 + np.exp(-(test[0] @ weights + bias)))
    return MetricFit(
        penalty=penalty,
        cross_validated=float(np.mean(values)),
        groups=tuple(values),
        per_photograph=per_photograph,
        validation=on_validation,
        test=measures.srocc(scores, test[1]),
        test_plcc=measures.plcc(scores, test[1]),
    )


def imagenet_network() -> MiniNetwork:
    """Return the network with ImageNet features (Sandler et al., 2018) and an unfitted head.

    Raises:
        UserError: if the package that carries the ImageNet weights is not installed.
    """
    path = imagenet_weights("mobilenet_v2")
    whole = mobilenet_v2(weights=None)
    load_strictly(whole, read_weights(path)[0], path)
    network = MiniNetwork()
    network.backbone.features.load_state_dict(whole.features[: len(network.backbone.features)].state_dict())
    return network.eval().requires_grad_(False)


def _fast_backbone(network: MiniNetwork) -> nn.Module:
    """Return a copy of the backbone with its BatchNorms folded; the network keeps its own."""
    copy = MiniNetwork().eval().requires_grad_(False)
    copy.load_state_dict(network.state_dict())
    fold_batch_norms(copy)
    return copy.backbone.to(memory_format=torch.channels_last)


def features_of(backbone: nn.Module, images: ImageDataset) -> tuple[Array, Array, NDArray[np.str_]]:
    """Return (features, opinion scores, photograph names) of a data set."""
    with Progress() as progress:
        rows = progress.track(range(0, len(images), 25), description=f"features of {len(images)} images")
        batches = [
            _pooled(backbone, torch.stack([images[row]["image"] for row in range(start, min(start + 25, len(images)))]))
            for start in rows
        ]
    mos = np.array([record.mos for record in images.records], dtype=float)
    return np.concatenate(batches), mos, np.array([record.reference_id for record in images.records])


def features_of_variants(backbone: nn.Module, variants: int, seed: int) -> tuple[Array, Array, NDArray[np.str_]]:
    """Return the same for augmented copies of the training photographs."""
    jobs = [(name, variant, seed) for variant in range(variants) for name in SPLITS["train"]]
    ratings = cell_means()
    mos = np.array([ratings[kind.type_id, level] for kind in DISTORTIONS.values() for level in LEVELS])
    batches = []
    workers = max(1, (os.cpu_count() or 1) - 1)
    with Progress() as progress, worker_pool(workers) as pool:
        made = pool.map(distorted_variant, *zip(*jobs, strict=True))
        for crops in progress.track(made, total=len(jobs), description="augmented photographs"):
            tensors = torch.stack([to_tensor(crop) for crop in crops])
            batches += [_pooled(backbone, chunk) for chunk in tensors.split(25)]
    names = np.array([name for name, _, _ in jobs for _ in mos])
    return np.concatenate(batches), np.tile(mos, len(jobs)), names


@torch.inference_mode()
def _pooled(backbone: nn.Module, images: Tensor) -> Array:
    return backbone(images.contiguous(memory_format=torch.channels_last)).double().numpy()


def distorted_variant(photograph: str, variant: int, seed: int) -> list[Pixels]:
    """Return the 125 cells of one photograph, each from another random guise and crop of it."""
    pixels = read_image(ASSETS / "photos" / f"{photograph}.png")
    key = hashlib.blake2b(f"{seed}|{variant}|{photograph}".encode(), digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(key, "little"))
    return list(_distorted_crops(pixels, generator))


def _distorted_crops(pixels: Pixels, generator: np.random.Generator) -> Iterator[Pixels]:
    height, width = pixels.shape[:2]
    for kind in DISTORTIONS.values():
        for level in LEVELS:
            guise = random_guise(pixels, generator)
            top, left = (int(generator.integers(side - CROP + 1)) for side in (height, width))
            number = int(generator.integers(2**30))
            distorted = distort(guise, kind.type_id, level, seed=number, focus=(top, left, CROP, CROP))
            yield distorted[top : top + CROP, left : left + CROP]


def random_guise(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Return the photograph with random tone, saturation, white balance, channel order and orientation."""
    image = (pixels / 255.0) ** np.exp(generator.uniform(-0.5, 0.5))
    grey = image.mean(axis=2, keepdims=True)
    image = grey + (image - grey) * generator.uniform(0.3, 1.5)
    image = image * np.exp(generator.uniform(-0.15, 0.15, 3))
    middle = image.mean()
    image = middle + (image - middle) * generator.uniform(0.6, 1.3)
    if generator.random() < 0.3:
        image = image[:, :, generator.permutation(3)]
    if generator.random() < 0.5:
        image = image[:, ::-1]
    return np.ascontiguousarray((image.clip(0, 1) * 255).round().astype(np.uint8))


def to_logits(mos: Array) -> Array:
    """Map opinion scores in (1, 5) to what the head predicts before its sigmoid."""
    share = (mos - MOS_RANGE[0]) / (MOS_RANGE[1] - MOS_RANGE[0])
    return np.log(share / (1 - share))
