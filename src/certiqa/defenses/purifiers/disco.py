"""DISCO: an image queried anew, pixel by pixel, from a local implicit function (Ho and Vasconcelos, NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from certiqa.defenses.purifiers.geometric import is_number
from certiqa.defenses.purifiers.network import NetworkPurifier, Upstream, given_weights
from certiqa.denoisers.implicit import build_liif
from certiqa.errors import UserError
from certiqa.metrics.weights import load_strictly, read_content
from certiqa.options import PositiveInt


class Disco(NetworkPurifier):
    """LIIF with an EDSR encoder, asked for as many pixels as the image has.

    The authors ask for 299x299 whatever the image is, which changes its size and shape; this keeps both.

    Args:
        weights: path of the authors' checkpoint, whose ``model`` entry says the network: ``{"name", "args", "sd"}``.
        chunk: pixels queried at a time; changes the memory alone.
        checkpoint: less memory in the backward pass, see
            ``NetworkPurifier``.

    Raises:
        UserError: no weights, another layout, or keys that do not fit.
    """

    name = "disco"
    upstream = Upstream("a DISCO checkpoint for ImageNet", "the authors, http://www.svcl.ucsd.edu/projects/disco")

    def __init__(
        self, weights: str | Path | None = None, *, chunk: PositiveInt = 32768, checkpoint: bool = False
    ) -> None:
        if not given_weights(weights):
            raise self.missing_weights()
        if not (is_number(chunk) and chunk >= 1):
            raise UserError(f"chunk must be at least 1 pixel, got {chunk!r}")
        assert weights is not None
        content, _ = read_content(weights)
        model = content.get("model") if isinstance(content, Mapping) else None
        if not isinstance(model, Mapping) or not isinstance(model.get("sd"), Mapping):
            raise UserError(
                f"'{weights}' is no DISCO checkpoint: it has no entry 'model' of the form {{name, args, sd}}; give the "
                "authors' file as it is"
            )
        network = build_liif(model, weights, chunk=chunk, checkpoint=checkpoint)
        load_strictly(network, model["sd"], weights)
        super().__init__(network, checkpoint=checkpoint)

    def restore(self, images: Tensor) -> Tensor:
        """Return the network's colours, which it takes and gives in [-1, 1]."""
        return self.network(images * 2 - 1) / 2 + 0.5
