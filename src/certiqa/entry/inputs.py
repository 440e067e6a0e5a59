"""What a run is made of beside its config: given files, images, opinion scores, and sources of one's own classes.

Their digests are kept in the run's folder when it begins. Where they are others later, the run is refused: its results
are not those that its command would give now, and what it still lacks would be mixed with what it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from certiqa.data.datamodule import QualityDataModule
from certiqa.entry.checks import targets_of
from certiqa.entry.given import GIVEN_FILES, given_files
from certiqa.entry.identity import config_hash, flat_identity, semantic_config
from certiqa.errors import UserError
from certiqa.storage.files import write_aside
from certiqa.storage.sealed import seal, unseal
from certiqa.storage.sources import sources_of

INPUTS = "records/inputs.json"
Inputs = dict[str, Any]


def inputs_of(config: DictConfig, data: QualityDataModule | None, parts: Iterable[str] = ()) -> Inputs:
    """Return the digests of what a run is made of.

    Args:
        config: the run's.
        data: its images; None where they are not to be looked at.
        parts: of the data that it uses: "train", "validation", "test".
    """
    sets = {} if data is None else {part: getattr(data, f"{part}_set") for part in parts}
    return {
        "config_hash": config_hash(config),
        GIVEN_FILES: given_files(config),
        "sources": sources_of(targets_of(semantic_config(config, environment=True))),
        "data": {part: images.fingerprint for part, images in sets.items()},
        "images": {part: images.digests() for part, images in sets.items()},
    }


def keep_inputs(folder: Path, inputs: Inputs) -> None:
    """Write down what a run is made of, where that is not written yet, the file is damaged, or of another config."""
    if (read_inputs(folder) or {}).get("config_hash") != inputs["config_hash"]:
        (folder / INPUTS).parent.mkdir(exist_ok=True)
        with write_aside(folder / INPUTS) as partial:
            partial.write_bytes(seal(inputs) + b"\n")


def read_inputs(folder: Path) -> Inputs | None:
    """Return what a run was made of; None where that is not known, as of older runs, or the file is damaged."""
    try:
        found = unseal((folder / INPUTS).read_bytes())
    except (OSError, ValueError):
        return None
    return dict(found)


def refuse_changes(folder: Path, config: DictConfig, then: Inputs | None, now: Inputs) -> None:
    """Raise UserError where what a run was made of has changed, naming it.

    What is gone, or was not looked at, cannot be compared and is passed over. A run of another config is left to what
    compares configs.
    """
    if then is None or then.get("config_hash", now["config_hash"]) != now["config_hash"]:
        return
    values, said = flat_identity(config), []
    if names := _changed(then.get(GIVEN_FILES), now[GIVEN_FILES]):
        said.append(f"what {' and '.join(f'{key}={values[key]}' for key in names)} names has changed since")
    if names := _changed(then.get("sources"), now["sources"]):
        said.append(f"the source of {' and '.join(names)} has changed since")
    for part, images in now["images"].items():
        if names := _changed((then.get("images") or {}).get(part), images):
            more = f" and {len(names) - 1} more of the {part} images" if len(names) > 1 else ""
            said.append(f"the image '{names[0]}'{more} changed since")
    for part in _changed(then.get("data"), now["data"]):
        said.append(f"the list or the opinion scores of the {part} images changed since")
    if said:
        raise UserError(
            f"the results in '{folder}' were made otherwise: {'; '.join(said)}. Undo the change, "
            "or set fresh=true to start over (the old results are kept aside)"
        )


def _changed(then: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    return sorted(key for key, digest in (then or {}).items() if now.get(key, digest) != digest)
