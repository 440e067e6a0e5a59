"""A photograph in another guise: its content changes for a network, its quality does not.

With few photographs a metric would learn which is which. Seen in many guises, it has to look at what was done to them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


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
