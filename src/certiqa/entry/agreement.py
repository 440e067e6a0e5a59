"""Whether defense, denoiser, objective and weights are what the run's name says: no result under another's name."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from certiqa.data.datamodule import QualityDataModule
from certiqa.defenses import Defense, undefended
from certiqa.defenses.purifiers.registry import PURIFIERS, WITH_WEIGHTS
from certiqa.denoisers import name_of
from certiqa.descriptions import shown
from certiqa.errors import UserError
from certiqa.metrics import QualityMetric, TrainedMetric
from certiqa.metrics.trained import DIGITS, plain_resize
from certiqa.training import DenoisingObjective

SMOOTHED = {"none": "ms", "mse": "dms", "mse_ranking": "dms_iqa"}
"""What a smoothing is called, by the objective of its denoiser."""
DEFENSES = ("none", *SMOOTHED.values(), "chain", "ensemble", *PURIFIERS, *WITH_WEIGHTS)
"""The names of certiqa's own defenses: a result that bears one is of that defense."""
TRAINER_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")


def check_options(config: DictConfig) -> None:
    """Refuse options that contradict each other, before anything is built.

    Raises:
        UserError: an objective or a denoiser that is not the defense's, or a trainer's precision of which there are no
            scores; the message says which option to change.
    """
    name, wanted = config.defense.name, config.trains_with
    given = config.objective.name if config.objective else "none"
    if given != wanted:
        raise UserError(
            f"defense={name} trains with objective={wanted}, but objective={given} is asked "
            f"for; leave the objective out, or choose the defense that trains with {given}"
        )
    target = str(config.defense.get("_target_"))
    smooths = target.endswith((".MedianSmoothing", ".build_chain"))
    if config.denoiser:
        if target.startswith("certiqa.") and not smooths:
            raise UserError(f"defense={name} has no denoiser, but one is given; leave it out: denoiser=none")
        if name == "ms":
            raise UserError(
                "defense=ms smooths without a denoiser, but one is given; choose defense=dms (denoisers trained with "
                "objective=mse) or defense=dms_iqa (mse_ranking), or leave it out: denoiser=none"
            )
        if config.task == "train" and given == "none" and config.denoiser.get("weights", "") is None:
            raise UserError(
                f"defense={name} trains nothing, so that its denoiser would stay untrained; give "
                "denoiser.weights=path, or choose a defense that trains one: defense=dms or defense=dms_iqa"
            )
    elif target.endswith(".MedianSmoothing") and wanted != "none":
        raise UserError(
            f"defense={name} has a denoiser trained with objective={wanted}, but denoiser=none is asked for; choose "
            "defense=ms, which has none, or leave denoiser=none out"
        )
    check_precision(config)


def check_precision(config: DictConfig) -> None:
    """Refuse a precision of the trainer in which nothing is trained here."""
    asked = config.trainer.get("precision")
    if asked is not None and str(asked) not in TRAINER_PRECISIONS:
        raise UserError(
            f"trainer.precision={asked} is not supported: weights and scores are float32. Choose 32-true, or "
            "bf16-mixed or 16-mixed, which the training alone uses; certification.precision=bf16 scores noisy "
            "images faster"
        )


def check_built(config: DictConfig, defense: QualityMetric, objective: DenoisingObjective | None) -> None:
    """Refuse a defense that is not what its name says, now that it is built and its weights have said what they are.

    Args:
        config: the whole config.
        defense: what it built.
        objective: what the run trains for, None where it trains nothing.

    Raises:
        UserError: naming the option to change.
    """
    name, wanted = config.defense.name, config.trains_with
    if objective is not None and objective.name in ("mse", "mse_ranking"):
        through = objective.needs_metric and objective.mse_share < 1
        if through != (objective.name == "mse_ranking"):
            raise UserError(
                f"objective={objective.name} as given trains {'' if through else 'without going '}through the metric, "
                f"which is what defense={SMOOTHED['mse_ranking' if through else 'mse']} does; choose that defense, or "
                "change objective.ranking_weight, objective.target_weight and objective.mse_share"
            )
    network = defense.trained_network
    said = getattr(network, "trained_objective", None) if objective is None else None
    if said is not None and wanted != "none" and said != wanted:
        better = f"choose defense={SMOOTHED[said]}" if said in SMOOTHED else "choose the defense of that objective"
        raise UserError(
            f"the denoiser's weights {getattr(network, 'weights_source', '')} were trained with objective={said}, but "
            f"defense={name} stands for {wanted}; {better}, or other denoiser.weights"
        )
    found = kind_of(config, defense)
    if name in DEFENSES and found != name:
        raise UserError(
            f"defense.name={name} is the name of another defense than the one that is built, "
            f"{found or type(defense).__name__}; give it a name of its own, e.g. defense.name=my_{name}"
        )


def kind_of(config: DictConfig, defense: QualityMetric) -> str | None:
    """Return which of certiqa's defenses this is; None for any other."""
    if str(config.defense.get("_target_")).endswith(".build_chain"):
        return "chain"
    if undefended(defense) is defense:
        return "none"
    if defense.certifiable and defense.trained_network is not None:
        return SMOOTHED.get(config.trains_with)
    return defense.kind if isinstance(defense, Defense) else None


def notes_on_metric(metric: QualityMetric, data: QualityDataModule) -> list[str]:
    """Return what must be said where a metric that was trained here meets images that it knows, or of another size."""
    trained = getattr(metric, "base", metric)
    if not isinstance(trained, TrainedMetric):
        return []
    facts, notes = trained.facts, []
    known = set(facts.images)
    if seen := sum(digest[:DIGITS] in known for digest in data.test_set.digests().values()):
        notes.append(
            f"{seen} of {len(data.test_set)} test images are among those that metric={metric.name} learnt from: its "
            "figures on them say nothing about others. Test it with the data.split_seed that it was trained with; of a "
            "few, the data set may hold copies under other names"
        )
    if (
        facts.images
        and plain_resize(data.resize) != plain_resize(facts.resize)
        and not all(min(size) == facts.resize for size in data.test_set.sizes())
    ):
        notes.append(
            f"metric={metric.name} was trained with data.resize={shown(facts.resize)}, the images here have "
            f"data.resize={shown(data.resize)}: it may be worse on them"
        )
    return notes


def trained_parts(
    config: DictConfig, defense: QualityMetric, metric: QualityMetric, data: QualityDataModule
) -> dict[str, Any]:
    """Return what summary and report say of what was trained: architecture, weights, objective, and for whom."""
    part = defense.purified_by or defense.trained_network
    denoiser = part if defense.purified_by is None else None
    through = getattr(part, "trained_through", None)
    stated = config.objective.get("name") if config.objective else None
    notes = notes_on_metric(metric, data)
    if through is not None and through != metric.name:
        notes.append(
            f"The network of the defense was trained with metric '{through}' and stands before '{metric.name}': a "
            "transfer study, not what the defense can do for this metric"
        )
    return {
        "denoiser": None if denoiser is None else name_of(denoiser),
        "objective": stated or getattr(denoiser, "trained_objective", None),
        "network_weights": getattr(part, "weights_source", None),
        "trained_through": through,
        "notes": notes,
    }
