"""Full-reference distances as penalties: differentiable, one number per image, zero for equal images."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from certiqa.errors import UserError, suggest

Distance = Callable[[Tensor, Tensor], Tensor]
NEEDS = {
    "ssim": "",
    "lpips": "LPIPS_v0.1_alex-df73285e.pth and torchvision's AlexNet",
    "dists": "DISTS_weights-f5e65c96.pth and torchvision's VGG16",
}
C1, C2 = 0.01**2, 0.03**2  # of SSIM, for values in [0, 1]
REACH = 5  # of SSIM's window of 11x11
SMALLEST = REACH + 1  # side in pixels, since borders are reflected


def load_distance(name: str | Distance, device: torch.device | str = "cpu") -> Distance:
    """Return a distance ``(attacked, clean)`` -> ``(N,)`` of images ``(N, 3, H, W)`` in [0, 1].

    Args:
        name: "ssim" (1 - SSIM), "lpips" (Zhang et al., CVPR 2018) or "dists" (Ding et al., TPAMI 2020); or a
            distance of your own.
        device: where its network is put.

    Raises:
        UserError: unknown name, or weights that cannot be had.
    """
    if callable(name):
        return name
    if name not in NEEDS:
        raise UserError(f"no distance '{name}'; there are: {', '.join(NEEDS)}.{suggest(str(name), NEEDS)}")
    if name == "ssim":
        return ssim_distance
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    from certiqa.metrics.pyiqa import published

    try:
        network = published(name, DEFAULT_CONFIGS[name]["metric_opts"], trust_pickle=False)
    except UserError as error:
        raise UserError(
            f"attack.distance={name} needs pyiqa's {NEEDS[name]}, which could not be had ({error}); copy them where "
            "that message looks for them (TORCH_HOME names torch's folder), or use attack.distance=ssim"
        ) from error
    network.requires_grad_(False).to(device)

    def distance(attacked: Tensor, clean: Tensor) -> Tensor:
        return network(attacked, clean).reshape(len(attacked))

    return distance


def ssim(attacked: Tensor, clean: Tensor) -> Tensor:
    """Return the structural similarity ``(N,)`` over RGB (Wang et al., 2004), borders reflected, as torchmetrics.

    Its 11x11 windows are weighted by products with a matrix per axis: beside a small metric torchmetrics' convolution
    costs many times the metric's own passes on a CPU.
    """
    height, width = clean.shape[-2:]
    if min(height, width) < SMALLEST:
        raise UserError(f"SSIM needs images of at least {SMALLEST}x{SMALLEST} pixels, got {height}x{width}")
    rows, columns = window_matrix(height).to(clean), window_matrix(width).to(clean).T

    def local(values: Tensor) -> Tensor:
        return rows @ values @ columns

    mean, clean_mean = local(attacked), local(clean)
    covariance = local(attacked * clean) - mean * clean_mean
    variances = (local(attacked.square()) - mean.square()).clamp(min=0)
    variances = variances + (local(clean.square()) - clean_mean.square()).clamp(min=0)
    luminance = (2 * mean * clean_mean + C1) / (mean.square() + clean_mean.square() + C1)
    return (luminance * (2 * covariance + C2) / (variances + C2)).flatten(1).mean(1)


@cache
def window_matrix(side: int) -> Tensor:
    """Return ``(side, side)``: the Gaussian window of 11 and deviation 1.5 around each position, borders reflected."""
    taps = torch.exp(-(torch.arange(-REACH, REACH + 1, dtype=torch.float64).square()) / (2 * 1.5**2))
    padded = F.pad(torch.eye(side, dtype=torch.float64)[None], (REACH, REACH), mode="reflect")[0]
    return (padded.unfold(1, 2 * REACH + 1, 1) @ (taps / taps.sum())).T.contiguous()


def ssim_distance(attacked: Tensor, clean: Tensor) -> Tensor:
    """Return 1 - SSIM ``(N,)``."""
    return 1 - ssim(attacked, clean)
