"""What a composed config holds: each section as the signature of a function, whose annotations say what is allowed.

Sections with a ``_target_`` are what that class or function takes, by its own signature. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Len

from certiqa.options import (
    Budget,
    Choices,
    Confidence,
    Count,
    Node,
    NonNegative,
    OptionsOf,
    Positive,
    PositiveInt,
    PositiveShare,
    Probability,
    Radius,
    Says,
    Seed,
    Share,
    Text,
)
from certiqa.signatures import CONSTRAINTS, NOTHING_MORE, hands_on

TASKS = ("train", "evaluate", "purification", "metric")
PRECISIONS = ("fp32", "bf16", "fp16")


def paths(*, outputs: Text, run: Text) -> None:
    """Where runs write."""


def certification(
    *,
    radii: Annotated[Sequence[Radius], Len(1)],
    radius: Radius,
    confidence: Confidence,
    joint_confidence: Probability | None,
    tolerance: Probability | None,
    saturation: Probability | None,
    first_look: PositiveInt,
    look_ratio: Annotated[float, Gt(1)],
    randomised: bool,
    precision: Annotated[str, Choices(*PRECISIONS)],
    compile: bool,
    validation_samples: Count | None,
) -> None:
    """How scores are certified."""


def training(
    *,
    optimizer: Annotated[Any, Node()],
    sigma: Budget | Annotated[Sequence[Budget], Len(2, 2), Says("a noise level, or a range [low, high] of them")],
    warmup_steps: Count,
    restart: bool,
    direction: Annotated[str, Choices("both", "raise", "lower")],
    last_step: Annotated[int, Ge(1)],
) -> None:
    """How a denoiser or purifier is trained."""


def attack_run(
    *,
    direction: Annotated[str, Choices("raise", "lower", "away")] | None,
    aim: Annotated[str, Choices("defense", "undefended")],
    save_images: bool,
) -> None:
    """How an attack is run; the rest of its section is the attack's own."""


def no_attack(*, eps: Radius = 0.0) -> None:
    """What may be set though no attack is chosen: the budget that a sweep gives to those that it compares."""


def logger(
    *,
    project: Text = "",
    entity: Text | None = None,
    group: Text | None = None,
    tags: Sequence[Text] = (),
    mode: Annotated[str, Choices("online", "offline", "disabled")] | None = None,
    table_rows: Count = 0,
    finish_timeout: NonNegative = 0,
    **loggers: Annotated[Any, Node()] | None,
) -> None:
    """The loggers of a run, each with a ``_target_``, and what they share."""


def callbacks(**callbacks: Annotated[Any, Node()] | None) -> None:
    """The callbacks of a run; null takes one out."""


def attacks(**attacks: Annotated[Any, Node()] | None) -> None:
    """The attacks of a study; null takes one out."""


def _purifiers(given: Mapping[str, Any]) -> dict[str, Any]:
    from certiqa.defenses.purifiers.registry import PURIFIERS, WITH_WEIGHTS

    known = PURIFIERS | WITH_WEIGHTS
    return {name: Annotated[Any, OptionsOf(known[name], several=True)] | None for name in known}


@hands_on(_purifiers)
def purifiers(**options: Any) -> None:
    """The purifiers of a study by name, with their options, of which one may be a list; null takes one out."""


def study(
    *,
    purifiers: Annotated[Any, OptionsOf(purifiers)],
    attacks: Annotated[Any, OptionsOf(attacks)],
    aims: Annotated[Sequence[Annotated[str, Choices("transfer", "adaptive")]], Len(1)],
    direction: Annotated[str, Choices("raise", "lower", "away")],
) -> None:
    """A study of purifiers."""


def nothing() -> None:
    """A section that is empty where its option is none."""


def job(
    *,
    task: Annotated[str, Choices(*TASKS)],
    name: Text,
    seed: Seed,
    sigma: Budget,
    num_samples: PositiveInt,
    fresh: bool,
    paths: Annotated[Any, OptionsOf(paths)],
    certification: Annotated[Any, OptionsOf(certification)],
    data: Annotated[Any, Node()],
    metric: Annotated[Any, Node()],
    denoiser: Annotated[Any, Node(without=nothing)] | None,
    objective: Annotated[Any, Node(without=nothing)] | None,
    defense: Annotated[Any, Node()],
    attack: Annotated[Any, Node(also=attack_run, without=no_attack)],
    callbacks: Annotated[Any, OptionsOf(callbacks)],
    logger: Annotated[Any, Node(without=logger)] | None,
    trainer: Annotated[Any, Node()],
    trains_with: Text,
    optimise: Text | None = None,
    training: Annotated[Any, OptionsOf(training)] = None,
    study: Annotated[Any, OptionsOf(study)] = None,
    metric_fit: Annotated[Any, Node()] = None,
) -> None:
    """Everything that one job of ``train.py`` or ``evaluate.py`` is told."""


CONSTRAINTS |= {
    "pytorch_lightning.trainer.trainer.Trainer": {
        "max_steps": Annotated[int, Ge(-1)],
        "max_epochs": PositiveInt | Literal[-1] | None,
        "min_steps": Count | None,
        "min_epochs": Count | None,
        "val_check_interval": PositiveInt | PositiveShare,
        "check_val_every_n_epoch": PositiveInt | None,
        "num_sanity_val_steps": Annotated[int, Ge(-1)] | None,
        "log_every_n_steps": Count | None,
        "limit_train_batches": Count | Share | None,
        "limit_val_batches": Count | Share | None,
        "limit_test_batches": Count | Share | None,
        "accumulate_grad_batches": PositiveInt,
        "gradient_clip_val": NonNegative | None,
        "gradient_clip_algorithm": Annotated[str, Choices("norm", "value")] | None,
        "devices": PositiveInt | Literal[-1, "auto"] | Annotated[Sequence[Count], Len(1)],
        "num_nodes": PositiveInt,
        "accelerator": Annotated[str, Choices("auto", "cpu", "gpu", "cuda", "mps", "tpu")],
        "strategy": Annotated[
            str,
            Choices(
                "auto",
                "ddp",
                "ddp_find_unused_parameters_true",
                "ddp_find_unused_parameters_false",
                "ddp_spawn",
                "fsdp",
            ),
        ],
        "reload_dataloaders_every_n_epochs": Count,
    },
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint": {
        "save_top_k": Annotated[int, Ge(-1)],
        "every_n_epochs": Count | None,
        "every_n_train_steps": Count | None,
        "mode": Annotated[str, Choices("min", "max")],
    },
    "pytorch_lightning.callbacks.progress.rich_progress.RichProgressBar": {"refresh_rate": Count},
    "pytorch_lightning.loggers.csv_logs.CSVLogger": {"flush_logs_every_n_steps": PositiveInt},
    "pytorch_lightning.loggers.tensorboard.TensorBoardLogger": {
        **dict.fromkeys(("comment", "filename_suffix"), str),
        **dict.fromkeys(("purge_step", "max_queue", "flush_secs"), Count),
        NOTHING_MORE: None,
    },
    "torch.optim.optimizer.Optimizer": {
        "lr": Positive,
        "weight_decay": NonNegative,
        "eps": Positive,
        "momentum": NonNegative,
        "betas": tuple[Share, Share],
    },
    "hydra_plugins.certiqa_launchers.LocalLauncher": {
        "parallel_jobs": PositiveInt,
        "gpus": Sequence[Count] | None,
        "timeout_min": PositiveInt,
        "setup": Sequence[Text] | None,
    },
    "hydra_plugins.certiqa_launchers.SlurmLauncher": {
        **dict.fromkeys(("name", "gres", "constraint", "exclude", "comment"), Text | None),
        **dict.fromkeys(("partition", "account", "qos"), Text | None),
        **dict.fromkeys(("timeout_min", "tasks_per_node"), PositiveInt),
        **dict.fromkeys(("nodes", "array_parallelism", "cpus_per_task"), PositiveInt | None),
        **dict.fromkeys(("gpus_per_node", "signal_delay_s"), Count | None),
        "max_num_timeout": Count,
        "mem_gb": Positive | None,
        "setup": Sequence[Text] | None,
        "additional_parameters": Mapping[str, Any] | None,
    },
}
