"""LIIF with an EDSR encoder, the network of DISCO: an image as a function of coordinates.

Chen et al., "Learning Continuous Image Representation with Local Implicit Image Function", CVPR 2021; Lim et al.,
"Enhanced Deep Residual Networks", CVPRW 2017; Ho and Vasconcelos, "DISCO", NeurIPS 2022.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from certiqa.errors import UserError

ENCODERS: dict[str, dict[str, float]] = {
    "edsr-baseline": {"n_resblocks": 16, "n_feats": 64, "res_scale": 1.0},
    "edsr": {"n_resblocks": 32, "n_feats": 256, "res_scale": 0.1},
}
"""What the authors' names of encoders stand for; a checkpoint may say otherwise."""
NEGLIGIBLE = 1e-8
"""Weights of neighbours below this share change a value in [0, 1] by less than float32 resolves."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a skip."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return ``(N, width, H, W)`` for the same shape."""
        return maps + self.scale * self.body(maps)


class Edsr(nn.Module):
    """EDSR without its upsampling: ``(N, 3, H, W)`` -> ``(N, width, H, W)``.

    The two layers that shift by a data set's mean are in published checkpoints and unused, here as there.

    Args:
        blocks: residual blocks.
        width: channels.
        res_scale: what a block's change is multiplied by.
    """

    def __init__(self, blocks: int = 16, width: int = 64, res_scale: float = 1.0) -> None:
        super().__init__()
        self.sub_mean, self.add_mean = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.head = nn.Sequential(nn.Conv2d(3, width, 3, padding=1))
        residual: list[nn.Module] = [ResidualBlock(width, res_scale) for _ in range(blocks)]
        self.body = nn.Sequential(*residual, nn.Conv2d(width, width, 3, padding=1))
        self.width = width

    def forward(self, images: Tensor) -> Tensor:
        """Return feature maps."""
        maps = self.head(images)
        return maps + self.body(maps)


class Perceptron(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int = 3) -> None:
        super().__init__()
        widths = [inputs, *hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Return ``(..., outputs)`` of ``(..., inputs)``."""
        result: Tensor = self.layers(features)
        return result


class Liif(nn.Module):
    """A local implicit image function: colours at coordinates, from features around them.

    Args:
        encoder: ``(N, 3, h, w)`` -> ``(N, width, h, w)``.
        hidden: widths of the perceptron's hidden layers.
        local_ensemble: mix the four feature vectors around a coordinate by the opposite areas.
        feat_unfold: a feature vector is that of its 3x3 neighbourhood.
        cell_decode: the perceptron is told the size of a pixel.
        chunk: coordinates at a time; changes the memory alone.
        checkpoint: compute the perceptron's maps again in the backward pass.
    """

    def __init__(
        self,
        encoder: Edsr,
        hidden: Sequence[int] = (256, 256, 256, 256),
        *,
        local_ensemble: bool = True,
        feat_unfold: bool = True,
        cell_decode: bool = True,
        chunk: int = 32768,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.local_ensemble, self.feat_unfold, self.cell_decode = local_ensemble, feat_unfold, cell_decode
        self.chunk, self.checkpoint = chunk, checkpoint
        self.imnet = Perceptron(encoder.width * (9 if feat_unfold else 1) + 2 + 2 * cell_decode, hidden)

    def forward(self, images: Tensor) -> Tensor:
        """Return colours at the images' own pixels, ``(N, 3, H, W)``: a query as large as the input."""
        return self.query(self.encoder(images), (int(images.shape[-2]), int(images.shape[-1])))

    def query(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Return colours ``(N, 3, *size)`` on a grid of pixel centres over features ``(N, width, h, w)``."""
        points = size[0] * size[1]
        colours = [
            self._colours(features, size, torch.arange(start, min(points, start + self.chunk), device=features.device))
            for start in range(0, points, self.chunk)
        ]
        return torch.cat(colours, dim=1).transpose(1, 2).reshape(len(features), 3, *size)

    def _colours(self, features: Tensor, size: tuple[int, int], points: Tensor) -> Tensor:
        """Return colours ``(N, P, 3)`` at points of the grid, given by their running numbers ``(P,)``."""
        height, width = (int(side) for side in features.shape[-2:])
        rows, row_distance = self._neighbours(points // size[1], size[0], height)
        columns, column_distance = self._neighbours(points % size[1], size[1], width)
        corners = [(row, column) for row in range(len(rows)) for column in range(len(columns))]
        areas = torch.stack([(row_distance[r] * column_distance[c]).abs() + 1e-9 for r, c in corners])
        shares = (areas.flip(0) if len(corners) > 1 else areas) / areas.sum(0)  # each by the opposite corner's area
        cell = [2 / size[0] * height, 2 / size[1] * width] if self.cell_decode else []
        total = features.new_zeros(len(features), len(points), 3)
        for (r, c), share in zip(corners, shares, strict=True):
            kept = (share > NEGLIGIBLE).nonzero().flatten()
            if not len(kept):
                continue
            place = (rows[r][kept], columns[c][kept])
            told = [row_distance[r][kept], column_distance[c][kept]]
            told += [torch.full_like(told[0], side) for side in cell]
            facts = torch.stack(told, dim=1).to(features).expand(len(features), -1, -1)
            if self.checkpoint and torch.is_grad_enabled():
                decoded = recompute(self._decode, features, *place, facts, use_reentrant=False)
            else:
                decoded = self._decode(features, *place, facts)
            total = total.index_add(1, kept, decoded * share[kept, None].to(features))
        return total

    def _neighbours(self, pixels: Tensor, length: int, cells: int) -> tuple[Tensor, Tensor]:
        """Return, for pixel centres along one axis, the cells that are asked, and how far from their centres they lie.

        Both ``(2, P)``, or ``(1, P)`` without the ensemble; distances in units of half a cell, as upstream has them.
        """
        centres = (2 * pixels.double() + 1) / length - 1  # in [-1, 1]
        shifts = torch.tensor([-1.0, 1.0] if self.local_ensemble else [0.0], device=pixels.device, dtype=torch.float64)
        asked = centres + (shifts / cells)[:, None] + (1e-6 if self.local_ensemble else 0.0)
        asked = asked.clamp(-1 + 1e-6, 1 - 1e-6)
        index = ((asked + 1) * cells / 2).floor().long().clamp(0, cells - 1)
        return index, (centres - ((2 * index.double() + 1) / cells - 1)) * cells

    def _decode(self, features: Tensor, rows: Tensor, columns: Tensor, facts: Tensor) -> Tensor:
        """Return the perceptron's colours ``(N, K, 3)`` for K cells."""
        if self.feat_unfold:
            padded = F.pad(features, (1, 1, 1, 1))
            around = [padded[:, :, rows + row, columns + column] for row in range(3) for column in range(3)]
            gathered = torch.stack(around, dim=2).flatten(1, 2)  # channel by channel, as torch.nn.Unfold orders them
        else:
            gathered = features[:, :, rows, columns]
        colours: Tensor = self.imnet(torch.cat([gathered.transpose(1, 2), facts], dim=2))
        return colours


def build_liif(spec: Mapping[str, Any], source: object, *, chunk: int, checkpoint: bool) -> Liif:
    """Return the network that a checkpoint's ``model`` entry describes, without weights.

    Args:
        spec: ``{"name": "liif", "args": {"encoder_spec": ..., "imnet_spec": ..., ...}}``.
        source: what the error calls it.
        chunk: see ``Liif``.
        checkpoint: see ``Liif``.

    Raises:
        UserError: another model or encoder than are known here.
    """
    options = dict(spec.get("args") or {})
    encoder, imnet = (options.get(f"{part}_spec") or {} for part in ("encoder", "imnet"))
    name = encoder.get("name")
    if spec.get("name") != "liif" or name not in ENCODERS or imnet.get("name") != "mlp":
        raise UserError(
            f"'{source}' describes a '{spec.get('name')}' with encoder '{name}' and '{imnet.get('name')}'; DISCO is a "
            f"liif with encoder {' or '.join(ENCODERS)} and an mlp"
        )
    sizes = ENCODERS[name] | dict(encoder.get("args") or {})
    if not sizes.get("no_upsampling", True):
        raise UserError(f"the encoder in '{source}' upsamples; DISCO's has no_upsampling=True")
    return Liif(
        Edsr(int(sizes["n_resblocks"]), int(sizes["n_feats"]), float(sizes["res_scale"])),
        list((imnet.get("args") or {}).get("hidden_list") or (256, 256, 256, 256)),
        chunk=chunk,
        checkpoint=checkpoint,
        **{key: bool(options.get(key, True)) for key in ("local_ensemble", "feat_unfold", "cell_decode")},
    )
