"""Ridge regression in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def ridge(features: Array, targets: Array, penalty: float) -> tuple[Array, float]:
    """Return weights and bias of the ridge regression on standardised features, in closed form.

    Args:
        features: ``(N, F)``.
        targets: ``(N,)``.
        penalty: of the squared weights of standardised features, beside the mean squared error.
    """
    return ridge_path(features, targets, [penalty])[0]


def ridge_path(features: Array, targets: Array, penalties: Sequence[float]) -> list[tuple[Array, float]]:
    """Return what ``ridge`` returns for several penalties, from one decomposition."""
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-6
    standard = (features - mean) / deviation
    wanted = (targets - targets.mean()) / len(standard)
    wide = standard.shape[1] > len(standard)  # then the Gram matrix of the rows is the smaller one
    gram = (standard @ standard.T if wide else standard.T @ standard) / len(standard)
    values, vectors = np.linalg.eigh(gram)
    projected = vectors.T @ (wanted if wide else standard.T @ wanted)
    found = []
    for penalty in penalties:
        solution = vectors @ (projected / (values + penalty))
        weights = (standard.T @ solution if wide else solution) / deviation
        found.append((weights, float(targets.mean() - mean @ weights)))
    return found
