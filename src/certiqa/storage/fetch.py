"""Files from the network: resumed, checked, fetched once however many processes want them."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from certiqa.errors import UserError
from certiqa.storage import files
from certiqa.storage.transfer import BrokenOffError, Transfer

BACKOFF = 0.5  # seconds before the first retry; twice as many before each further one
LONGEST_WAIT = 8.0
PROGRESS = 1 << 20  # bytes that an attempt must gain for the retries to be counted anew

log = logging.getLogger(__name__)


def fetch(
    url: str,
    target: str | Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    progress: bool = True,
    timeout: float = 30,
    retries: int = 5,
) -> Path:
    """Return ``target``, fetched from ``url`` if it is not there.

    What has arrived is kept in ``<target>.part`` when the connection is cut or the command is stopped; the next
    attempt or the next run goes on from there, if the file on the server is still the same. Of several processes that
    want the same target one fetches it and the others wait. Without ``sha256`` the digest that Hugging Face sends
    is used; without that and without ``size`` only the server's Content-Length tells a whole file from a cut one.

    Args:
        url: http or https; a redirect from https to http is refused.
        target: where the file goes; what is there already is checked against ``sha256`` and ``size``, not replaced.
        sha256: its digest or the first 8 or more hexadecimal digits of it.
        size: its size in bytes.
        progress: show a bar on stderr if that is a terminal.
        timeout: seconds without a byte that count as a stall.
        retries: attempts after the first that may fail in a row, each a megabyte or less further than the last.

    Raises:
        UserError: if it cannot be fetched or written, or is not what was expected, with what to do next.
    """
    target = Path(target)
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"cannot fetch '{url}': only http:// and https:// addresses can be; give one of those")
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{8,64}", sha256 := sha256.lower()):
        raise UserError(f"'{sha256}' is no SHA-256 for '{target}': give 64 hexadecimal digits or the first 8 or more")
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with _alone(target):
                # whoever held the lock before may have brought it
                if not target.exists():
                    _download(url, target, sha256, size, progress=progress, timeout=timeout, retries=retries)
                    return target
        if found := _fault(target, sha256, size):
            raise UserError(f"'{target}' is there already, but {found}; move it away and run the same command again")
    except OSError as error:
        raise UserError(
            f"cannot put '{url}' at '{target}': {error}; choose a folder that can be written, or free space there"
        ) from error
    return target


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the lock of a target; it falls with its process, so a killed one blocks nobody."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for the process that fetches '%s'", target)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(
    url: str, target: Path, sha256: str | None, size: int | None, *, progress: bool, timeout: float, retries: int
) -> None:
    with files.byte_progress(shown=progress) as bar:
        task = bar.add_task(target.name, total=size)
        transfer = Transfer(
            url, target, size, timeout, lambda have, total: bar.update(task, completed=have, total=total)
        )
        with transfer.session:
            _attempts(transfer, retries)
    part = transfer.part
    if found := _fault(part.path, sha256 or part.facts.get("sha256"), size):
        part.drop()
        raise UserError(
            f"what came from '{url}' for '{target}' is not what was expected: {found}. It was deleted; run the same "
            "command again, and if it comes out the same, the file on the server is another one"
        )
    files.put_in_place(part.path, target)
    part.drop()


def _attempts(transfer: Transfer, retries: int) -> None:
    """Attempt until all has arrived; gives up after ``retries`` failures in a row that brought next to nothing."""
    failures, mark = 0, transfer.part.have
    while True:
        try:
            return transfer.attempt()
        except BrokenOffError as error:
            if transfer.part.have >= mark + PROGRESS:
                failures, mark = 0, transfer.part.have
            failures += 1
            if failures > retries:
                raise UserError(
                    f"cannot fetch '{transfer.url}' to '{transfer.target}': {error}, and {retries} retries did not "
                    f"help; run the same command again: {transfer.outlook()}"
                ) from error
            log.info("%s: %s; trying again", transfer.url, error)
        time.sleep(min(BACKOFF * 2 ** (failures - 1), LONGEST_WAIT))


def _fault(path: Path, sha256: str | None, size: int | None) -> str | None:
    """Return how a file differs from what is expected, None if it does not."""
    if size is not None and path.stat().st_size != size:
        return f"it has {path.stat().st_size} bytes where {size} are expected"
    if sha256 is not None and not (digest := files.sha256(path)).startswith(sha256):
        return f"its SHA-256 is expected to {'be' if len(sha256) == 64 else 'start with'} {sha256}, found {digest}"
    return None
