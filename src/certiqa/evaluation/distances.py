"""How far attacked images are from clean ones."""

from __future__ import annotations

import numpy as np
from skimage.metrics import structural_similarity
from torch import Tensor

PSNR_OF_EQUAL = 100.0  # dB, in place of infinity, which means and JSON cannot carry


def image_distances(clean: Tensor, attacked: Tensor) -> dict[str, float]:
    """Return linf, l2, psnr in dB and ssim of one pair of images ``(3, H, W)`` in [0, 1].

    PSNR and SSIM (7x7 uniform window, Wang et al., 2004) with a data range of 1; equal images have a PSNR of 100 dB.
    """
    first, second = (image.detach().cpu().double().permute(1, 2, 0).numpy() for image in (clean, attacked))
    error = float(np.mean((first - second) ** 2))
    return {
        "linf": float(np.abs(first - second).max()),
        "l2": float(np.sqrt(((first - second) ** 2).sum())),
        "psnr": min(PSNR_OF_EQUAL, -10 * float(np.log10(error))) if error > 0 else PSNR_OF_EQUAL,
        "ssim": float(structural_similarity(first, second, channel_axis=2, data_range=1.0)),
    }
