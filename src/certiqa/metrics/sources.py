"""Where the weights of published metrics come from, and where certiqa looks for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from certiqa.errors import UserError
from certiqa.storage.cache import cache_root
from certiqa.storage.fetch import fetch

HUB = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main"
CLIP_HUB = "https://openaipublic.azureedge.net/clip/models"
RN50 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"


@dataclass(frozen=True)
class WeightFile:
    """One file that a metric needs.

    Attributes:
        metric: whose it is.
        filename: what it is called upstream and in the cache.
        megabytes: its size, rounded; computed from the number of parameters.
        licence: under what its authors give it.
        source: where a person finds it.
        url: where a program downloads it; None where only a person can, by hand.
        sha256: digest, or the first digits that the name states; None where none is published, and the host's own
            digest is used.
    """

    metric: str
    filename: str
    megabytes: float
    licence: str
    source: str
    url: str | None = None
    sha256: str | None = None

    @property
    def path(self) -> Path:
        """Where the cache keeps it."""
        return cache_root() / "weights" / self.filename

    def present(self) -> Path | None:
        """Return where the file is: the cache, or where pyiqa and CLIP keep theirs; None where it is nowhere."""
        hub = Path(torch.hub.get_dir())
        places = (self.path, hub / "pyiqa" / self.filename, hub / "clip" / self.filename)
        return next((path for path in places if path.is_file()), None)

    def locate(self) -> Path:
        """Return where the file is, downloaded if need be.

        Raises:
            UserError: it cannot be downloaded; the message says which file to get where, and where to put it.
        """
        found = self.present()
        if found is not None:
            return found
        if self.url is None:
            raise UserError(
                f"metric '{self.metric}' needs '{self.filename}' ({self.megabytes:g} MB), which its authors keep on a "
                f"file-sharing site that only a person can download from: get it at {self.source} and put it at "
                f"'{self.path}', or give metric.weights=path (metric.weights=random for a smoke run)"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return fetch(self.url, self.path, sha256=self.sha256)
        except UserError as error:
            raise UserError(
                f"metric '{self.metric}' needs '{self.filename}' ({self.megabytes:g} MB): {error}. Or give "
                "metric.weights=path (metric.weights=random for a smoke run)"
            ) from error


WEIGHT_FILES: tuple[WeightFile, ...] = (
    WeightFile(
        "clipiqa_plus",
        "RN50.pt",
        256,
        "MIT",
        "https://github.com/openai/CLIP",
        f"{CLIP_HUB}/{RN50}/RN50.pt",
        RN50,
    ),
    WeightFile(
        "clipiqa_plus",
        "CLIP-IQA+_learned_prompts-603f3273.pth",
        0.1,
        "not stated with the file; see https://github.com/IceClear/CLIP-IQA",
        "https://huggingface.co/chaofengc/IQA-PyTorch-Weights",
        f"{HUB}/CLIP-IQA+_learned_prompts-603f3273.pth",
        "603f3273",
    ),
    WeightFile(
        "dbcnn",
        "DBCNN_KonIQ10k-2de81c0a.pth",
        61,
        "not stated with the file; see https://github.com/zwx8981/DBCNN-PyTorch",
        "https://huggingface.co/chaofengc/IQA-PyTorch-Weights",
        f"{HUB}/DBCNN_KonIQ10k-2de81c0a.pth",
        "2de81c0a",
    ),
    WeightFile(
        "metaiqa",
        "Metaiqa_livec.pth",
        53,
        "not stated with the file; see https://github.com/zhuhancheng/MetaIQA",
        "https://huggingface.co/chaofengc/IQA-PyTorch-Weights",
        f"{HUB}/Metaiqa_livec.pth",
    ),
    WeightFile(
        "linearity",
        "p1q2.pth",
        362,
        "MIT, by the badge of its repository",
        "https://pan.baidu.com/s/1MRamimHWX8F-SOQ_QsIrvg (password 4z7z; linked from "
        "https://github.com/lidq92/LinearityIQA)",
    ),
    WeightFile(
        "spaq",
        "BL_release.pt",
        94,
        "research and education only",
        "https://drive.google.com/file/d/1pXjXAIItViTFs7qUBY-b11WY50mzoVM2/view (linked from "
        "https://github.com/h4nwei/SPAQ)",
    ),
)


def files_of(metric: str) -> tuple[WeightFile, ...]:
    """Return the files that a metric needs, in the order its constructor takes them; none if it ships its own."""
    return tuple(file for file in WEIGHT_FILES if file.metric == metric)
