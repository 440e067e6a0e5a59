"""Reading weights: safetensors or weights_only, never an unpickled class, never a silent mismatch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from certiqa.errors import UserError

SHIPPED = Path(__file__).parent.parent / "assets" / "weights"


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read ``(state dict, metadata)`` from a safetensors file or a checkpoint that holds tensors only.

    A ``state_dict`` entry is unwrapped. Raises UserError if the file is missing, cut short, or
    would need a foreign class to be unpickled.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"no weights at '{path}'; give an existing .safetensors, .pt or .ckpt file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(str(path), framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"'{path}' is not a whole safetensors file ({error}); copy or make it again") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on a cut or foreign file the unpickler also raises KeyError, IndexError, struct.error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"'{path}' cannot be read as plain tensors: {reason}. "
            "Save its state_dict alone, as safetensors if possible, and give that file"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"'{path}' holds no state dict of tensors; save module.state_dict() and give that file")
    return dict(state), {}


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load ``state`` into ``module``; raise UserError with the first missing, unexpected and misshapen keys."""
    own = module.state_dict()
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
        raise UserError(
            f"the weights in '{source}' do not fit {type(module).__name__}: {'; '.join(problems)}. "
            "Give weights of this architecture, or change the architecture's options to match"
        )
    module.load_state_dict(dict(state), strict=True)


def fingerprint(module: nn.Module) -> str:
    """Return 16 hexadecimal digits that change when any parameter or buffer of ``module`` changes."""
    digest = hashlib.blake2b(digest_size=8)
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
