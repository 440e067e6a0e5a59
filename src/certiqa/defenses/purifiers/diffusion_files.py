"""Where DiffPure's models come from: folders and hub names of diffusers, shipped ones, or an untrained U-Net."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from certiqa.errors import UserError, first_line
from certiqa.metrics.weights import SHIPPED

log = logging.getLogger(__name__)

Part = TypeVar("Part")
UNTRAINED = "untrained"
LAYOUTS = "with unet/ and scheduler/ in it, or with config.json, weights and scheduler_config.json at its root"
SMALL_UNET: dict[str, Any] = {
    "sample_size": 224,
    "block_out_channels": [16, 32, 64],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ["DownBlock2D"] * 3,
    "up_block_types": ["UpBlock2D"] * 3,
    "add_attention": False,
}
"""The U-Net that ``train.py experiment=mini_diffusion`` trains: no attention, so any size and cheap on a CPU."""


def load_diffusion(weights: str | Path, architecture: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """Return (U-Net, DDPM scheduler) of a folder, a hub name, a shipped name, or untrained.

    Raises:
        UserError: diffusers is not installed, nothing to load, or weights that do not fit the folder's own config.
    """
    diffusers = _diffusers()
    if str(weights) == UNTRAINED:
        return diffusers.UNet2DModel(**(SMALL_UNET | dict(architecture or {}))), diffusers.DDPMScheduler()
    if architecture:
        raise UserError("architecture is for an untrained model; weights bring their own")
    place = SHIPPED / str(weights) if str(weights) in shipped_diffusions() else Path(weights).expanduser()
    if place.is_file():
        raise UserError(f"'{weights}' is a file; DiffPure takes the folder of a diffusers model, {LAYOUTS}")
    source, local = (str(place), True) if place.is_dir() else (str(weights), False)
    unet, loaded = _network(diffusers, source, local)
    wrong = {key: loaded.get(f"{key}_keys") for key in ("missing", "unexpected", "mismatched")}
    if any(wrong.values()):
        said = "; ".join(f"{len(keys)} {label}, first: {list(keys)[:3]}" for label, keys in wrong.items() if keys)
        raise UserError(f"the weights in '{weights}' do not fit the U-Net of its config.json: {said}")
    if unet.config.in_channels != 3 or unet.config.out_channels not in (3, 6):
        raise UserError(
            f"the U-Net in '{weights}' takes {unet.config.in_channels} and gives {unet.config.out_channels} channels; "
            "DiffPure needs one that works on RGB pixels (3 in, 3 out, or 6 with a learned variance)"
        )
    return unet, _scheduler(diffusers, source, local, learned=unet.config.out_channels == 6)


def _network(diffusers: Any, source: str, local: bool) -> tuple[Any, dict[str, Any]]:
    """Return the U-Net in ``unet/`` or else at the root, where google/ddpm-church-256 has it, and how it loaded."""
    search = _Search(source, local, "config.json")

    def load(subfolder: str | None, here: bool) -> tuple[Any, dict[str, Any]]:
        unet, loaded = diffusers.UNet2DModel.from_pretrained(
            source, subfolder=subfolder, output_loading_info=True, low_cpu_mem_usage=False, local_files_only=here
        )
        return unet, loaded

    found = search.first("unet", load)
    if found is None:
        raise search.failure("an unconditional diffusers U-Net") from search.error
    return found


def _scheduler(diffusers: Any, source: str, local: bool, *, learned: bool) -> Any:
    """Return the DDPM scheduler in ``scheduler/`` or else at the root; a U-Net alone gets the usual linear one."""
    search = _Search(source, local, "scheduler_config.json")
    options = {"variance_type": "learned_range"} if learned else {}

    def load(subfolder: str | None, here: bool) -> Any:
        config = diffusers.DDPMScheduler.load_config(source, subfolder=subfolder, local_files_only=here)
        says_learned = str(config.get("variance_type", "")).startswith("learned")
        return diffusers.DDPMScheduler.from_config(config, **({} if says_learned else options))

    found = search.first("scheduler", load)
    if found is not None:
        return found
    if not search.all_absent:  # a schedule that is there and cannot be had must not be replaced by another
        raise search.failure("the scheduler of a diffusers model") from search.error
    log.warning(
        "'%s' has no scheduler_config.json, in scheduler/ or at its root: the usual schedule is taken (1000 steps, "
        "linear from 1e-4 to 2e-2), which is wrong for a model trained with another",
        source,
    )
    return diffusers.DDPMScheduler(**options)


class _Search:
    """Looks for a part of a model, and keeps in mind why it was not had from where.

    Args:
        source: folder or hub name.
        local: whether it is a folder.
        file: what the part's config is called.

    Attributes:
        all_absent: whether the file is known to be in none of the places, rather than broken or out of reach.
        here: whether only what is on this machine is asked for: a folder's, or the cache's of a hub out of reach.
        error: the last one.
    """

    def __init__(self, source: str, local: bool, file: str) -> None:
        self.source, self.local, self.file = source, local, file
        self.all_absent = True
        self.here = local
        self.error: Exception | None = None
        self._said: list[str] = []

    def first(self, subfolder: str, load: Callable[[str | None, bool], Part]) -> Part | None:
        """Return what ``load(place, here)`` gives of the subfolder or else of the root, None where both fail."""
        for place in (subfolder, None):
            file = f"{place}/{self.file}" if place else self.file
            try:
                # in a folder diffusers itself would take the root's file for the subfolder's
                if self.local and not Path(self.source, file).is_file():
                    raise FileNotFoundError("no such file")
                return load(place, self.here)
            except Exception as error:  # diffusers raises OSError, ValueError, RuntimeError, and the hub's own
                self.error = error
                absent, unreached = (isinstance(error, FileNotFoundError), False) if self.local else _of_hub(error)
                self.all_absent &= absent
                self.here |= unreached  # it has been tried often enough
                reason = f"{type(error).__name__}: {first_line(error)[:300].rstrip('.')}"
                self._said.append(f"{file}: {'the hub is out of reach, and no copy is here' if unreached else reason}")
        return None

    def failure(self, what: str) -> UserError:
        """Return the error that says what was tried."""
        hint = (
            f"give the folder of a diffusers model, {LAYOUTS}"
            if self.local
            else "if it is a folder, there is none of that name; if it is a model on the Hugging Face hub and this "
            f"machine does not reach it, run `hf download {self.source} --local-dir FOLDER` on one that does and give "
            "that folder"
        )
        return UserError(f"cannot load {what} from '{self.source}', tried {'; '.join(self._said)}. What to do: {hint}")


def _of_hub(error: BaseException | None) -> tuple[bool, bool]:
    """Say of an error whether the hub answered that it has no such file, and whether it gave no answer."""
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    while error is not None and not isinstance(error, EntryNotFoundError | LocalEntryNotFoundError):
        error = error.__cause__ or error.__context__  # diffusers wraps what the hub raises
    unreached = isinstance(error, LocalEntryNotFoundError)
    return error is not None and not unreached, unreached


def shipped_diffusions() -> list[str]:
    """Return the names of the diffusion models shipped with the package."""
    return sorted(path.name for path in SHIPPED.glob("*_diffusion") if path.is_dir())


def _diffusers() -> Any:
    # its and bitsandbytes' advice about packages that are not needed here
    for name in ("diffusers", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            diffusers = importlib.import_module("diffusers")
            diffusers.UNet2DModel, diffusers.DDPMScheduler  # noqa: B018  imported at first use
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"diffusion models are loaded by diffusers, which cannot be imported ({error}); "
            "pip install certiqa[diffusion]"
        ) from error
    return diffusers
