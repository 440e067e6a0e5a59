"""Attacks that hide where people look less: a RMSE sphere, activity maps, perceptual penalties, high frequencies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from certiqa.attacks.adam import AdamAttack, Problem, non_negative
from certiqa.attacks.base import Attack, image_generator, per_image
from certiqa.attacks.distances import NEEDS, Distance, load_distance
from certiqa.attacks.gradient import Best
from certiqa.attacks.parts import TINY, project_l2
from certiqa.attacks.target import Target
from certiqa.errors import UserError, suggest
from certiqa.options import Budget, NonNegative, PositiveInt, Step, Through

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class MADC(Attack):
    """Maximum differentiation on the sphere of equal RMSE (Wang and Simoncelli, "MAD competition", JoV 2008).

    The first signed step reaches the sphere; the others follow the gradient's part that is orthogonal to the gradient
    of the RMSE, image by image, and are scaled back to the sphere. Public ports never reach their sphere (8 steps of
    .001), take the inner products over the whole batch, and come back by small signed steps; here the return is exact.
    Rounding to 8 bits may add to the RMSE, at most half a step.

    Args:
        eps: RMSE, in [0, 1] pixel units.
        steps: gradients.
        step_size: of the signed steps after the first; default eps / steps times 2.5, at most eps.
        best: return the best iterate instead of the last; costs one more forward pass.
        eot_samples: see ``Target``.
        through: see ``Target``.
    """

    name = "madc"
    norm = "rmse"

    def __init__(
        self,
        eps: Budget = 10 / 255,
        *,
        steps: PositiveInt = 8,
        step_size: Step | None = None,
        best: bool = True,
        eot_samples: PositiveInt = 1,
        through: Through = "mean",
    ) -> None:
        super().__init__(eps, eot_samples=eot_samples, through=through)
        self.steps, self.best = self.at_least("steps", steps, 1), best
        usual = min(self.eps, 2.5 * self.eps / self.steps)
        self.step_size = usual if step_size is None else self.above_zero("step_size", step_size)

    def perturb(self, target: Target, images: Tensor) -> Tensor:
        """Return the best or last iterate."""
        radius = self.eps * images[0].numel() ** 0.5
        attacked = images.clone()
        keeper = Best(target, images) if self.best else None
        for step in range(self.steps):
            values, gradient = target.gradient(attacked)
            if keeper:
                keeper.see(attacked, values)
            size = self.step_size if step else self.eps
            ahead = attacked + size * orthogonal(gradient, attacked - images).sign()
            attacked = project_l2(ahead, images, radius, onto_sphere=True)
        if keeper is None:
            return attacked
        keeper.see(attacked, target.values(attacked))
        return keeper.images


def orthogonal(gradient: Tensor, change: Tensor) -> Tensor:
    """Return the part of each image's gradient that is orthogonal to its change; all of it where nothing changed."""
    along = (gradient * change).flatten(1).sum(1) / change.square().flatten(1).sum(1).clamp(min=TINY)
    return gradient - per_image(along, change) * change


class Korhonen(AdamAttack):
    """Adam where the image is busy (Korhonen and You, "Adversarial Attacks Against Blind...", QoEVMA 2022).

    Args:
        learning_rate: of Adam, in [0, 1] pixel units; no value moves much more than this times ``steps``.
        steps: gradients.
        weighted: False follows the released code: a map of the horizontal derivative of luma multiplies the gradient,
            which Adam's normalisation undoes, so that only where the map is 0 matters. (Negative values of its map,
            falling edges wider than the dilation, would turn the gradient round there; here they count as 0.) True
            takes the magnitude of both derivatives and multiplies the update, so that quiet pixels move less.
        options: ``best``, ``eot_samples``, ``through``, see ``AdamAttack``.
    """

    name = "korhonen"

    def __init__(
        self, learning_rate: Step = 0.005, *, steps: PositiveInt = 10, weighted: bool = False, **options: object
    ) -> None:
        super().__init__(learning_rate, steps=steps, **options)  # type: ignore[arg-type]
        self.weighted = weighted

    def problem(self, target: Target, images: Tensor) -> Problem:
        """Return the change before the map as parameters."""
        activity = activity_map(images, both=self.weighted)
        scale = activity if self.weighted else (activity > 0).to(images)

        def feasible(change: Tensor) -> Tensor:
            room = scale.clamp(min=TINY)
            return change.clamp(-images / room, (1 - images) / room)

        return Problem(torch.zeros_like(images), lambda change: (images + scale * change).clamp(0, 1), None, feasible)


def activity_map(images: Tensor, *, both: bool = False) -> Tensor:
    """Return where images are busy, ``(N, 1, H, W)`` in [0, 1]; ones for an image without any activity.

    Sobel derivatives of luma, the border of one pixel set to 0, over the image's maximum, dilated by a disc of 5x5.

    Args:
        images: ``(N, 3, H, W)``.
        both: magnitude of both derivatives; else the positive part of the horizontal one.
    """
    luma = (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)
    across = luma.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack([across, across.T])[:, None]
    padded = F.pad(luma, (1, 1, 1, 1), mode="replicate")
    slopes = F.conv2d(padded, kernels)
    busy = slopes.norm(dim=1, keepdim=True) if both else slopes[:, :1].clamp(min=0)
    inner = torch.zeros_like(busy)
    inner[..., 1:-1, 1:-1] = busy[..., 1:-1, 1:-1]
    peak = inner.amax(dim=(1, 2, 3), keepdim=True)
    flat = peak <= 1e-6  # what rounding leaves of a constant image's derivative
    inner = inner / peak.clamp(min=TINY)
    wide = F.max_pool2d(F.pad(inner, (2, 2, 1, 1)), (3, 5), stride=1)
    high = F.max_pool2d(F.pad(inner, (1, 1, 2, 2)), (5, 3), stride=1)
    return torch.where(flat, torch.ones_like(inner), torch.maximum(wide, high))


class Zhang(AdamAttack):
    """Adam on ``J - weight * D(attacked, clean)`` (Zhang et al., "Perceptual Attacks of...", NeurIPS 2022).

    J keeps its sign, where the paper moves the score either way by its square; Adam keeps its state, where the
    authors' code starts it anew at each step and so follows signs. Their DISTS penalty has the wrong sign; here every D
    is a distance that is paid for.

    Args:
        learning_rate: of Adam, in [0, 1] pixel units.
        steps: gradients; 200 in the paper.
        weight: of the distance, per share of the metric's range.
        distance: "ssim" (1 - SSIM), "lpips" or "dists", whose networks must be had, or a function (attacked, clean)
            -> ``(N,)``.
        start_noise: largest value of the uniform noise that it starts from, in [0, 1] pixel units; above 0, since a
            distance has no gradient at the clean image.
        best: return the best iterate by that objective; by default the last, as in the paper, since the best is often
            an early one, whatever the learning rate.
        options: ``eot_samples``, ``through``, see ``AdamAttack``.
    """

    name = "zhang"

    def __init__(
        self,
        learning_rate: Step = 0.005,
        *,
        steps: PositiveInt = 10,
        weight: NonNegative = 1.0,
        distance: str | Distance = "ssim",
        start_noise: Budget = 1 / 255,
        best: bool = False,
        **options: object,
    ) -> None:
        super().__init__(learning_rate, steps=steps, best=best, **options)  # type: ignore[arg-type]
        non_negative(self, weight=weight)
        if not 0 < start_noise <= 1:
            raise UserError(
                f"attack.start_noise of {self.name} must be in (0, 1], e.g. 1/255, got {start_noise}: at the clean "
                "image itself the distance has no gradient"
            )
        if not callable(distance) and distance not in NEEDS:
            raise UserError(f"no distance '{distance}'; there are: {', '.join(NEEDS)}.{suggest(str(distance), NEEDS)}")
        self.weight, self.distance, self.start_noise = float(weight), distance, float(start_noise)

    def problem(self, target: Target, images: Tensor) -> Problem:
        """Return the pixels as parameters."""
        distance = load_distance(self.distance, images.device)
        start = torch.empty_like(images)
        for row, image_id in zip(start, target.image_ids, strict=True):
            draw = torch.rand(row.shape, generator=image_generator(target.seed, self.name, image_id)).to(row)
            row.copy_((draw * 2 - 1) * self.start_noise)
        return Problem(
            (images + start).clamp(0, 1),
            lambda attacked: attacked,
            lambda attacked, _: self.weight * distance(attacked, images),
            lambda attacked: attacked.clamp(0, 1),
        )


class SSAH(AdamAttack):
    """Adam that pays for low frequencies (after Luo et al., "Frequency-driven Imperceptible...", CVPR 2022).

    Of SSAH's loss only the low-frequency part has a meaning for a score: its Haar low band is the mean of 2x2 blocks.
    The penalty is a sum over the image, so it weighs more on larger ones.

    Args:
        learning_rate: of Adam, in [0, 1] pixel units; no value moves much more than this times ``steps``.
        steps: gradients.
        weight: of the smooth l1 length of the change of block means, per share of the metric's range.
        options: ``best``, ``eot_samples``, ``through``, see ``AdamAttack``.
    """

    name = "ssah"

    def __init__(
        self, learning_rate: Step = 0.001, *, steps: PositiveInt = 10, weight: NonNegative = 0.1, **options: object
    ) -> None:
        super().__init__(learning_rate, steps=steps, **options)  # type: ignore[arg-type]
        non_negative(self, weight=weight)
        self.weight = float(weight)

    def problem(self, target: Target, images: Tensor) -> Problem:
        """Return the pixels as parameters."""

        def penalty(attacked: Tensor, _: Tensor) -> Tensor:
            change = low_band(attacked - images)
            return self.weight * F.smooth_l1_loss(change, torch.zeros_like(change), reduction="none").flatten(1).sum(1)

        return Problem(images, lambda attacked: attacked, penalty, lambda attacked: attacked.clamp(0, 1))


def low_band(images: Tensor) -> Tensor:
    """Return each pixel's 2x2 block mean, ``(N, C, H, W)``; odd sides are continued by their last row or column."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, width % 2, 0, height % 2), mode="replicate")
    return F.interpolate(F.avg_pool2d(padded, 2), scale_factor=2, mode="nearest")[..., :height, :width]
