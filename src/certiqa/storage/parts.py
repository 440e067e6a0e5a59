"""What has arrived of a file that is being fetched, and how to tell whether the server still has the same one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from certiqa.storage.files import DamagedFileError, read_json, write_json


class Part:
    """What has arrived of a file, ``<target>.part``, and of which version it is, ``<target>.part.json``."""

    def __init__(self, target: Path, url: str) -> None:
        self.url = url
        self.path = target.with_name(f"{target.name}.part")
        self.sidecar = target.with_name(f"{target.name}.part.json")

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of the version that has arrived: url, validator, total, sha256; empty if nothing is."""
        try:
            facts = read_json(self.sidecar, dict) or {}
        except DamagedFileError:
            return {}
        return facts if facts.get("url") == self.url else {}

    @property
    def have(self) -> int:
        """How many bytes have arrived that can be continued; 0 where the server gives no version to hold them to."""
        return self.path.stat().st_size if self.path.is_file() and self.facts.get("validator") else 0

    def begin(self, **facts: Any) -> None:
        """Forget what has arrived and note what is coming, in an order that a kill at any point does no harm to."""
        self.drop()
        write_json(self.sidecar, {"url": self.url, **facts})

    def drop(self) -> None:
        """Remove what has arrived."""
        self.path.unlink(missing_ok=True)
        self.sidecar.unlink(missing_ok=True)


def validator(headers: Mapping[str, str]) -> str | None:
    """Return what tells one version of the file from another: a strong ETag, else the date of the last change."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def linked_digest(response: requests.Response) -> str | None:
    """Return the SHA-256 that Hugging Face gives for a large file, on the answer or on the redirect to it."""
    for answer in (*response.history, response):
        digest = answer.headers.get("X-Linked-Etag", "").strip('"').lower()
        if re.fullmatch(r"[0-9a-f]{64}", digest):
            return digest
    return None


def content_range(headers: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Return (first byte, total) of a Content-Range header, None for what it does not say."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
    if not found:
        return None, None
    return int(found[1]), int(found[2]) if found[2] != "*" else None
