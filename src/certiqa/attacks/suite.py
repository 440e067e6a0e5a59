"""Several attacks as one, and the control that every attack must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from certiqa.attacks.base import Attack, AttackResult, image_generator, per_image
from certiqa.attacks.sets import SetAttack
from certiqa.attacks.target import Direction, Target
from certiqa.errors import UserError
from certiqa.metrics import QualityMetric
from certiqa.metrics.base import as_metric
from certiqa.options import Budget


class Noise(Attack):
    """Random signs of size eps: what any attack with a gradient or queries should beat.

    Args:
        eps: size of every pixel's change, in [0, 1] pixel units.
    """

    name = "noise"
    uses_gradient = False

    def __init__(self, eps: Budget = 10 / 255, **options: object) -> None:
        super().__init__(eps, **options)  # type: ignore[arg-type]

    def perturb(self, target: Target, images: Tensor) -> Tensor:
        """Return the noisy images."""
        signs = torch.stack(
            [_signs(image, target.seed, name) for image, name in zip(images, target.image_ids, strict=True)]
        )
        return (images + self.eps * signs).clamp(0, 1)


def noise_like(images: Tensor, attacked: Tensor, image_ids: Sequence[str], seed: int = 0) -> Tensor:
    """Return ``images`` with noise of each attack's own l2 norm: signs where it moved every pixel by the same."""
    signs = torch.stack([_signs(image, seed, name) for image, name in zip(images, image_ids, strict=True)])
    lengths = (attacked - images).flatten(1).norm(dim=1)
    return (images + signs * per_image(lengths / signs[0].numel() ** 0.5, images)).clamp(0, 1)


def _signs(image: Tensor, seed: int, image_id: str) -> Tensor:
    draws = torch.rand(image.shape, generator=image_generator(seed, "noise", image_id))
    return (draws < 0.5).to(image) * 2 - 1


class Suite(Attack):
    """Runs its members one after another; its own answer is each image's worst case.

    Args:
        attacks: name -> attack.
        eps: what the members' budgets were made from; kept for the reader.
    """

    name = "suite"
    norm = "none"

    def __init__(self, attacks: Mapping[str, Attack], eps: Budget | None = None) -> None:
        super().__init__(eps)
        if not attacks:
            raise UserError("a suite needs at least one attack; give attack.attacks")
        self.attacks = dict(attacks)

    def craft(
        self,
        metric: QualityMetric,
        images: Tensor,
        direction: Direction = "raise",
        *,
        targets: Tensor | None = None,
        image_ids: Sequence[str] | None = None,
        seed: int = 0,
    ) -> AttackResult:
        """Return, image by image, what the most successful member made of it."""
        if sets := [name for name, attack in self.attacks.items() if isinstance(attack, SetAttack)]:
            raise UserError(
                f"{', '.join(sets)} of the suite attack a whole set and have no direction: run the suite with "
                "evaluate.py, which attacks the set after its images, or call craft_set of each"
            )
        metric = as_metric(metric)
        # a single draw of a random metric would choose by chance
        judge = Target(metric, images, direction, targets=targets, image_ids=image_ids, seed=seed, eot_samples=None)
        best = judge.values(images)
        worst = AttackResult(images.clone(), images.clone(), 0, 0, torch.zeros_like(judge.failed))
        for attack in self.attacks.values():
            result = attack.craft(metric, images, direction, targets=targets, image_ids=image_ids, seed=seed)
            values = judge.values(result.images)
            better = values > best
            best = torch.where(better, values, best)
            for name in ("images", "unrounded"):
                chosen = torch.where(per_image(better, images), getattr(result, name), getattr(worst, name))
                setattr(worst, name, chosen)
            worst.forward_calls += result.forward_calls
            worst.gradient_calls += result.gradient_calls
            worst.failed |= result.failed
            worst.notes += result.notes
        worst.forward_calls += judge.forward_calls
        return worst


def members(attack: Attack) -> dict[str, Attack]:
    """Return the attacks to run by name: those of a suite, or the one itself."""
    return dict(attack.attacks) if isinstance(attack, Suite) else {attack.name: attack}
