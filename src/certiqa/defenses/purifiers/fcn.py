"""The colour filter as a purifier, and its weights: the authors' file, the shipped ones, or those of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from certiqa.defenses.purifiers.network import NetworkPurifier, Upstream, given_weights, shipped_weights
from certiqa.denoisers.colour_filter import ColourFilter
from certiqa.errors import UserError
from certiqa.metrics.weights import SHIPPED, load_strictly, read_weights, save_weights

UNTRAINED = "untrained"


class Fcn(NetworkPurifier):
    """The FCN colour filter of Gushchin et al. (arXiv 2404.06957), made against colour attacks such as AdvCF.

    Args:
        weights: path of the authors' ``fcn_mse.pth``, or of the ``checkpoints/purifier.safetensors`` of a ``train.py
            defense=fcn`` run; the name of shipped weights; None for the shipped ones of metric mini, ``mini_fcn``;
            "untrained" for training.
        residual: whether the network's output is added to the image, see
            ``ColourFilter``. None takes what the file says; the authors' file
            says nothing and is not residual, an untrained filter is.
        checkpoint: one image at a time in the backward pass, see
            ``NetworkPurifier``.

    Raises:
        UserError: no weights, or weights of another network.
    """

    name = "fcn"
    thread_safe = True
    shipped = "fcn"
    upstream = Upstream("fcn_mse.pth", "the authors of arXiv 2404.06957, who host it privately")

    def __init__(
        self, weights: str | Path | None = None, *, residual: bool | None = None, checkpoint: bool = False
    ) -> None:
        metadata: dict[str, str] = {}
        weights = weights if given_weights(weights) else shipped_weights(self.shipped)
        if weights is None:
            raise self.missing_weights()
        if str(weights) == UNTRAINED:
            network = ColourFilter(residual is None or residual)
        else:
            path = SHIPPED / f"{weights}.safetensors" if str(weights) in shipped_filters() else Path(weights)
            state, metadata = read_weights(path)
            said = json.loads(metadata.get("residual", "null"))
            if said is not None and residual is not None and said != residual:
                raise UserError(
                    f"the weights in '{path}' were trained with residual={said}, but residual={residual} is asked for"
                )
            network = ColourFilter(bool(residual if said is None else said))
            load_strictly(network, state, path)
        super().__init__(network, checkpoint=checkpoint)
        self.weights_source = str(weights)
        self.trained_through = metadata.get("metric")  # the metric whose attacks it was trained on

    @classmethod
    def missing_weights(cls) -> UserError:
        """Return the error of a purifier without weights."""
        return UserError(
            f"{super().missing_weights()}; or train one for your metric with `python train.py experiment=fcn "
            f"metric=...`. Shipped: {', '.join(shipped_filters()) or 'none'}"
        )


def shipped_filters() -> list[str]:
    """Return the names of the colour filters shipped with the package, ``<metric>_fcn``."""
    return sorted(path.stem for path in SHIPPED.glob("*_fcn.safetensors"))


def save_filter(network: ColourFilter, path: str | Path, notes: Mapping[str, str]) -> None:
    """Write weights as safetensors, with what else the network is, and ``notes``, as metadata."""
    metadata = {key: str(value) for key, value in notes.items()}
    save_weights(network, path, metadata | {"purifier": "fcn", "residual": json.dumps(network.residual)})
