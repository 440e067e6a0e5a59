"""Reading weights: safetensors or weights_only, never an unpickled class, never a silent mismatch."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from certiqa.errors import UserError
from certiqa.storage.files import write_aside

SHIPPED = Path(__file__).parent.parent / "assets" / "weights"
WRAPPERS = ("state_dict", "params", "params_ema", "model", "net")
"""Under which name upstream checkpoints hold their state dict."""
SIGNATURES = {
    "dbcnn": ("features1.", "features2."),
    "metaiqa": ("resnet_layer.",),
    "linearity": ("dr6.", "dr7."),
    "spaq": ("backbone.layer4.", "backbone.fc."),
    "CLIP": ("visual.", "token_embedding."),
    "a DnCNN denoiser": ("dncnn.",),
    "mini": ("backbone.features.", "head."),
    "a torchvision ResNet (e.g. ImageNet weights)": ("layer4.", "conv1.weight"),
    "a torchvision VGG (e.g. ImageNet weights)": ("features.28.", "classifier."),
}
"""What a checkpoint looks like, by prefixes that it must all have."""


def read_content(path: str | Path, *, device: str | torch.device = "cpu") -> tuple[Any, dict[str, str]]:
    """Read ``(content, metadata)`` of a safetensors file, or of a checkpoint of tensors and plain values.

    Args:
        path: the file.
        device: where its tensors are read to.

    Raises:
        UserError: the file is missing, cut short, a web page, or would need a foreign class to be unpickled.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"no weights at '{path}'; give an existing .safetensors, .pt or .ckpt file")
    with open(path, "rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(
            f"'{path}' is a web page, not weights: a download was answered with a page (a login, a confirmation, an "
            "error). Open it in a browser to see which, and download the file itself"
        )
    if path.suffix == ".safetensors":
        try:
            with safe_open(str(path), framework="pt", device=str(device)) as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"'{path}' is not a whole safetensors file ({error}); copy or make it again") from error
    if is_torchscript(path):
        raise UserError(
            f"'{path}' is a TorchScript archive, which holds code besides weights, so it is not opened; where it comes "
            "from somebody you trust, save torch.jit.load(path).state_dict() as safetensors and give that file"
        )
    try:
        return torch.load(path, map_location=device, weights_only=True), {}
    except Exception as error:  # on a cut or foreign file the unpickler also raises KeyError, IndexError, struct.error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"'{path}' cannot be read as plain tensors: {reason}. A file cut short must be copied or downloaded again; "
            "one that holds foreign classes is not unpickled, because that runs code of its author's choice: where it "
            "comes from somebody you trust, load it once yourself, save its state_dict alone, as safetensors if "
            "possible, and give that file"
        ) from error


def is_torchscript(path: Path) -> bool:
    """Say whether a file is an archive of ``torch.jit.save``."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_weights(path: str | Path, *, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read ``(state dict, metadata)`` from a file; see ``read_content``.

    A state dict that upstream wrapped (``state_dict``, ``params``, ``model`` ...) is unwrapped, and the prefix of
    DataParallel removed.
    """
    content, metadata = read_content(path, device=device)
    return unwrap(content, path), metadata


def unwrap(content: Any, source: str | Path) -> dict[str, Tensor]:
    """Return the state dict inside a checkpoint's content, without the prefix of DataParallel."""
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"'{source}' holds no state dict of tensors; save module.state_dict() and give that file")
    return {key.removeprefix("module."): value for key, value in content.items()}


def save_weights(module: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write the state dict of a module as safetensors, whole or not at all.

    A tensor that several layers share is written under each of its names: a copy each, since safetensors refuses
    tensors that share memory.
    """
    state = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in module.state_dict().items()
    }
    with write_aside(path) as partial:
        save_file(state, partial, metadata=dict(metadata))


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], source: str | Path, *, constants: Iterable[str] = ()
) -> None:
    """Load ``state`` into ``module``; raise UserError with the first missing, unexpected and misshapen keys.

    Of a tensor that several layers of the module share one name is enough: ``safetensors.torch.save_model`` keeps one.

    A module that was built on the meta device takes the tensors themselves, so that there is one copy of them.

    Args:
        module: where to.
        state: the weights.
        source: what the error calls them.
        constants: buffers that the module fills itself and upstream files need not have.
    """
    own = module.state_dict()
    state = dict(state)
    for key, value in own.items():
        # counters of batches, which evaluation never reads, are not in every old file
        if key not in state and (key in set(constants) or key.endswith("num_batches_tracked")):
            state[key] = torch.zeros((), dtype=value.dtype) if value.is_meta else value
    for names in shared_names(own):
        given = [key for key in names if key in state]
        state |= {key: state[given[0]] for key in names if given and key not in state}
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    misshapen = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or unexpected or misshapen:
        problems = [
            f"{len(keys)} {label}, first: {', '.join(keys[:3])}"
            for label, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
            if keys
        ]
        seen = looks_like(state)
        raise UserError(
            f"the weights in '{source}' do not fit {type(module).__name__}: {'; '.join(problems)}."
            f"{f' They look like {seen}.' if seen else ''} "
            "Give weights of this architecture, or change the architecture's options to match"
        )
    if any(value.is_meta for value in own.values()):
        state = {key: value.to(own[key].dtype) for key, value in state.items()}
        module.load_state_dict(state, strict=True, assign=True)
    else:
        module.load_state_dict(state, strict=True)


def shared_names(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the groups of names under which a state dict has one and the same tensor."""
    groups: dict[tuple[int, torch.Size, tuple[int, ...]], list[str]] = {}
    for key, value in state.items():
        if value.numel() and not value.is_meta:
            groups.setdefault((value.data_ptr(), value.shape, value.stride()), []).append(key)
    return [names for names in groups.values() if len(names) > 1]


def looks_like(state: Iterable[str]) -> str | None:
    """Say which architecture the keys of a state dict belong to, None where they are not known."""
    keys = list(state)
    for name, prefixes in SIGNATURES.items():
        if all(any(key.startswith(prefix) for key in keys) for prefix in prefixes):
            return name
    return None


def fingerprint(module: nn.Module) -> str:
    """Return 16 hexadecimal digits that change when any parameter or buffer of ``module`` changes."""
    digest = hashlib.blake2b(digest_size=8)
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
