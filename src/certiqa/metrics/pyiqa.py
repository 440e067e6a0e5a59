"""Any other NR metric of pyiqa (Chen and Mo, "IQA-PyTorch"), by its name there.

pyiqa's own wrapper blocks gradients, averages the batch or refuses noise outside [0, 1]; its inner network does not, so
that is what is taken.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from certiqa.errors import UserError, suggest
from certiqa.metrics.base import FrozenMetric, Range
from certiqa.metrics.published import RANDOM, Device, random_label, seeded
from certiqa.metrics.weights import load_strictly, read_weights
from certiqa.options import PositiveInt
from certiqa.storage.fetch import fetch

OF_SETS = ("fid", "fid_dinov2", "sfid", "inception_score", "clipscore")
"""What pyiqa lists among its NR metrics but does not score one image by itself."""
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def pyiqa_metrics() -> dict[str, Mapping[str, Any]]:
    """Return pyiqa's NR metrics of single images by name, with its settings of each."""
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    return {
        name: settings
        for name, settings in DEFAULT_CONFIGS.items()
        if settings.get("metric_mode") == "NR" and name not in OF_SETS
    }


def nominal_range(text: str | None) -> Range | None:
    """Read pyiqa's ``"~0, ~100"``; None where an end is open or not stated."""
    ends = [NUMBER.search(part) for part in (text or "").split(",")]
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return None
    return float(ends[0].group()), float(ends[1].group())


@contextmanager
def loading(download: Callable[..., Any], *, trust_pickle: bool) -> Iterator[None]:
    """Let pyiqa build and load a network safely.

    Files come through ``download``; nothing but tensors is unpickled; a state dict that fits nowhere is an error
    even where pyiqa asks for no strictness; and the script's name decides nothing.
    """
    from pyiqa.utils import download_util

    load_state_dict = nn.Module.load_state_dict

    def checked(module: nn.Module, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        result = load_state_dict(module, state, *args, **kwargs)
        if result.missing_keys and len(result.missing_keys) == len(module.state_dict()):
            raise UserError(
                f"none of the weights' keys fits {type(module).__name__}: it expects e.g. {result.missing_keys[0]}, "
                f"the file has e.g. {next(iter(state), 'nothing')}; remove the file, or give metric.weights=path"
            )
        return result

    with ExitStack() as patches:
        patches.enter_context(redirect_stdout(io.StringIO()))  # it prints what it loads and from where
        patches.enter_context(mock.patch.object(download_util, "download_url_to_file", download))
        patches.enter_context(mock.patch.object(nn.Module, "load_state_dict", checked))
        patches.enter_context(mock.patch.object(sys, "argv", ["certiqa", *sys.argv[1:]]))
        if not trust_pickle:
            patches.enter_context(mock.patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}))
        yield


@contextmanager
def without_weights() -> Iterator[None]:
    """Let pyiqa build a network whose files are all empty and whose loading does nothing."""
    import timm.models
    import torchvision
    from pyiqa.utils import download_util

    def empty(_url: str, path: str, *_: Any, **__: Any) -> None:
        torch.save({"params": {}, "state_dict": {}}, path)

    def nothing(*_: Any, **__: Any) -> Any:
        return nn.modules.module._IncompatibleKeys([], [])

    with ExitStack() as patches:
        patches.enter_context(redirect_stdout(io.StringIO()))  # it prints what it loads and from where
        folder = patches.enter_context(tempfile.TemporaryDirectory())
        patches.enter_context(mock.patch.object(download_util, "DEFAULT_CACHE_DIR", folder))
        patches.enter_context(mock.patch.object(download_util, "download_url_to_file", empty))
        patches.enter_context(mock.patch.object(nn.Module, "load_state_dict", nothing))
        patches.enter_context(mock.patch.object(torchvision.models._api.WeightsEnum, "get_state_dict", return_value={}))
        patches.enter_context(mock.patch.object(torch.hub, "load_state_dict_from_url", return_value={}))
        patches.enter_context(mock.patch.object(timm.models._builder, "load_pretrained", nothing))
        patches.enter_context(mock.patch.object(sys, "argv", ["certiqa", *sys.argv[1:]]))
        yield


def download(url: str, path: str, *_: Any, **__: Any) -> None:
    """Download a file for pyiqa, checked by the digits that its name may end with (``name-2de81c0a.pth``)."""
    digits = re.search(r"-([0-9a-f]{8,64})\.\w+$", Path(path).name)
    fetch(url, Path(path), sha256=digits.group(1) if digits else None)


class PyiqaMetric(FrozenMetric):
    """A pyiqa NR metric as a frozen metric; range and direction are those that pyiqa states.

    Args:
        metric_name: its name in pyiqa, e.g. "hyperiqa".
        weights: a checkpoint of the whole network; "random"; None for what pyiqa downloads.
        options: of pyiqa's constructor, in place of its own settings.
        score_range: in place of the one that pyiqa states.
        min_size: smallest side in pixels.
        trust_pickle: unpickle whatever pyiqa's files hold, which runs code of their authors' choice.
        device: where to put it.
        seed: of random weights.

    Raises:
        UserError: unknown name, not an NR metric, or weights that cannot be had or do not fit.
    """

    def __init__(
        self,
        metric_name: str,
        weights: str | Path | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        score_range: Range | None = None,
        min_size: PositiveInt = 32,
        trust_pickle: bool = False,
        device: Device = "cpu",
        seed: int = 0,
    ) -> None:
        known = pyiqa_metrics()
        if metric_name not in known:
            raise UserError(
                f"pyiqa has no NR metric '{metric_name}' of single images; it has: {', '.join(sorted(known))}."
                f"{suggest(metric_name, known)}"
            )
        settings = known[metric_name]
        wanted = {**settings["metric_opts"], **(options or {})}
        if weights is None:
            network, source = published(metric_name, wanted, trust_pickle=trust_pickle), f"pyiqa's {metric_name}"
        else:
            network, source = skeleton(metric_name, wanted, seed), random_label(seed)
            if weights != RANDOM:
                path = Path(weights).expanduser()
                load_strictly(network, read_weights(path, device=device)[0], path, constants=constants_of(network))
                source = path.name
        super().__init__(
            OneScore(network.to(device)),
            name=metric_name,
            score_range=score_range or nominal_range(settings.get("score_range")),
            lower_better=bool(settings.get("lower_better", False)),
            min_size=min_size,
            weights_source=source,
        )


class OneScore(nn.Module):
    """A pyiqa network that answers with scores alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return scores ``(N,)`` or ``(N, 1)``."""
        scores = self.network(images)
        scores = scores[0] if isinstance(scores, tuple) else scores
        # NIQE and others squeeze a batch of one away
        return scores.reshape(1) if images.shape[0] == 1 and scores.ndim == 0 else scores


def build(options: Mapping[str, Any]) -> nn.Module:
    """Build a pyiqa network from its settings."""
    from pyiqa.archs import build_network

    return build_network(dict(options)).eval()


def published(name: str, options: Mapping[str, Any], *, trust_pickle: bool) -> nn.Module:
    """Build a pyiqa network with the weights that pyiqa downloads for it."""
    try:
        with loading(download, trust_pickle=trust_pickle):
            return build(options)
    except UserError:
        raise
    except Exception as error:  # pyiqa and what it calls raise whatever they like
        reason = brief(error)
        hint = (
            "its file holds more than tensors; where you trust it, metric.trust_pickle=true unpickles it"
            if "weights_only" in str(error).lower() or "weights only" in str(error).lower()
            else "give the weights with metric.weights=path, or metric.weights=random for a smoke run"
        )
        raise UserError(f"pyiqa's '{name}' could not be built: {reason}; {hint}") from error


def skeleton(name: str, options: Mapping[str, Any], seed: int) -> nn.Module:
    """Build a pyiqa network with random weights, without any file."""
    try:
        with without_weights():
            return seeded(lambda: build(options), seed)
    except Exception as error:
        reason = brief(error)
        raise UserError(
            f"pyiqa's '{name}' cannot be built without the files it downloads ({type(error).__name__}: {reason}); "
            "leave metric.weights out, so that pyiqa downloads them"
        ) from error


def brief(error: Exception) -> str:
    """Return what an error says in its first lines; torch names the keys that do not fit from the second on."""
    return " ".join(line.strip() for line in str(error).splitlines()[:3]) or type(error).__name__


def constants_of(network: nn.Module) -> list[str]:
    """Return the keys of buffers that are constants of preprocessing, which upstream files may lack."""
    return [key for key, _ in network.named_buffers() if key.rpartition(".")[2] in ("mean", "std")]
