"""Full-reference distances as penalties: differentiable, one number per image, zero for equal images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from certiqa.errors import UserError, suggest

Distance = Callable[[Tensor, Tensor], Tensor]
NEEDS = {
    "ssim": "",
    "lpips": "LPIPS_v0.1_alex-df73285e.pth and torchvision's AlexNet",
    "dists": "DISTS_weights-f5e65c96.pth and torchvision's VGG16",
}
SMALLEST = 6  # side in pixels: the 11x11 window is padded by reflecting 5


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
    """Return the structural similarity ``(N,)`` over RGB (Wang et al., TIP 2004; 11x11 Gaussian window of 1.5)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(clean.shape[-2:]) < SMALLEST:
        raise UserError(
            f"SSIM needs images of at least {SMALLEST}x{SMALLEST} pixels, got {clean.shape[-2]}x{clean.shape[-1]}"
        )
    values = structural_similarity_index_measure(attacked, clean, data_range=1.0, reduction="none")
    return values.reshape(len(attacked))  # type: ignore[union-attr]


def ssim_distance(attacked: Tensor, clean: Tensor) -> Tensor:
    """Return 1 - SSIM ``(N,)``."""
    return 1 - ssim(attacked, clean)
