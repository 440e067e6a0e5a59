"""``records/identity.json``: everything that decided a run's numbers, by which any other run is refused."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from certiqa.errors import UserError
from certiqa.storage.files import DamagedFileError, read_json, write_json


class OtherRunError(UserError):
    """A folder holds the results of another run: nothing in it may be changed."""


def identity_file(folder: str | Path) -> Path:
    """Return where a run's folder says how its records were made."""
    return Path(folder) / "records" / "identity.json"


def write_identity(folder: str | Path, identity: Mapping[str, Any]) -> None:
    """Note how the records of a folder are made."""
    write_json(identity_file(folder), dict(identity), default=str)


def check_identity(folder: str | Path, identity: Mapping[str, Any], unknown: Collection[str] = ()) -> bool:
    """Return whether a folder's records say that they were made just so; False where they say nothing.

    Args:
        folder: the run's.
        identity: everything that decides the numbers, by name.
        unknown: names in it that cannot be told yet, and are passed over.

    Raises:
        OtherRunError: they were made otherwise, or what they say of it is damaged.
    """
    path = identity_file(folder)
    try:
        then = read_json(path, dict)
    except DamagedFileError as error:
        raise OtherRunError(
            f"'{path}' cannot be read ({error.reason}), and only it says how the records beside it were made; put it "
            "back from a copy, or set fresh=true to start over (the old records are kept aside)"
        ) from error
    if then is None:
        return False
    if changes := differences(then, identity, unknown):
        raise OtherRunError(
            f"the records in '{path.parent}' were made otherwise: {changes}. Undo the change, give this run another "
            "folder, or set fresh=true to start over (the old records are kept aside)"
        )
    return True


def differences(then: Mapping[str, Any], now: Mapping[str, Any], unknown: Collection[str] = (), most: int = 5) -> str:
    """Return what differs between two flat configs, at most ``most`` settings of it; empty where nothing does.

    >>> differences({"seed": 0, "sigma": 0.1}, {"seed": 1, "sigma": 0.1})
    'seed was 0, is 1'
    """
    then, now = ({key: json.dumps(value, default=str) for key, value in facts.items()} for facts in (then, now))
    names = sorted({*then, *now} - {*unknown})
    changed = [name for name in names if then.get(name) != now.get(name)]
    # of settings that follow one another (sigma, defense.sigma) the shortest says it
    changed.sort(key=lambda name: (name.count("."), name))

    def shown(text: str | None) -> Any:
        return None if text is None else json.loads(text)

    listed = "; ".join(f"{name} was {shown(then.get(name))}, is {shown(now.get(name))}" for name in changed[:most])
    return listed + (f" and {len(changed) - most} more" if len(changed) > most else "")
