"""Ridge regression in closed form."""

from __future__ import annotations

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
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-6
    standard = (features - mean) / deviation
    gram = standard.T @ standard / len(standard) + penalty * np.eye(standard.shape[1])
    weights = np.linalg.solve(gram, standard.T @ (targets - targets.mean()) / len(standard)) / deviation
    return weights, float(targets.mean() - mean @ weights)
