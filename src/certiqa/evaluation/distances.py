"""How far attacked images are from clean ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor

from certiqa.errors import UserError

SSIM_WINDOW = 7  # pixels
PSNR_OF_EQUAL = 100.0  # dB, in place of infinity, which means and JSON cannot carry


def image_distances(clean: Tensor, attacked: Tensor) -> dict[str, float]:
    """Return linf, l2, psnr in dB and ssim of one pair of images ``(3, H, W)`` in [0, 1].

    PSNR and SSIM (7x7 uniform window, Wang et al., 2004) with a data range of 1; equal images have a PSNR of 100 dB.
    SSIM is NaN for images with a side below 7 pixels.

    Raises:
        UserError: two images of different shapes, or of another than ``(3, H, W)``.
    """
    if clean.shape != attacked.shape or clean.ndim != 3 or len(clean) != 3:
        raise UserError(
            f"distances are between two images (3, H, W) of one size, got {tuple(clean.shape)} and "
            f"{tuple(attacked.shape)}; compare the images of a batch one by one"
        )
    first, second = (image.detach().cpu().double().permute(1, 2, 0).numpy() for image in (clean, attacked))
    error = float(np.mean((first - second) ** 2))
    return {
        "linf": float(np.abs(first - second).max()),
        "l2": float(np.sqrt(((first - second) ** 2).sum())),
        "psnr": min(PSNR_OF_EQUAL, -10 * float(np.log10(error))) if error > 0 else PSNR_OF_EQUAL,
        "ssim": _ssim(first, second),
    }


def _ssim(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    if min(first.shape[:2]) < SSIM_WINDOW:
        return float("nan")
    return float(structural_similarity(first, second, win_size=SSIM_WINDOW, channel_axis=2, data_range=1.0))
