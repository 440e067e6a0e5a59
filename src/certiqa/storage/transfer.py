"""One attempt to get the rest of a file over HTTP, and what is kept of it between attempts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3.exceptions

from certiqa.errors import UserError
from certiqa.storage.files import check_space, in_bytes
from certiqa.storage.parts import Part, content_range, linked_digest, validator

BLOCK = 1 << 20
# servers that compress on the way would give other bytes than the file's, and ranges of them
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "certiqa"}
HINTS = {
    401: "it wants a login",
    403: "it wants a login or terms to be accepted",
    404: "the address is wrong or the file is gone",
    410: "the file is gone",
    429: "too many requests came from here: wait some minutes and run the same command again",
}


class BrokenOffError(Exception):
    """The transfer broke off in a way that may not happen again: worth another attempt."""


class Session(requests.Session):
    """A session that does not let a redirect take encryption away."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return where a response redirects to, None if it does not; raises UserError from https to http."""
        location = super().get_redirect_target(resp)
        if location is not None and urlsplit(resp.url).scheme == "https":
            goal = urljoin(resp.url, location)
            if urlsplit(goal).scheme != "https":
                raise UserError(
                    f"'{resp.url}' redirects from https to '{goal}', where anybody on the way could change the file; "
                    "it is not followed: find an https address of the file"
                )
        return location


@dataclass
class Transfer:
    """The way of one file from ``url`` to ``part``.

    Args:
        url: where it is.
        target: where it goes in the end; says what to expect and is named in messages.
        size: its size in bytes, if known beforehand.
        timeout: seconds of silence that count as a stall.
        report: told (bytes so far, all bytes or None) as they arrive.
    """

    url: str
    target: Path
    size: int | None
    timeout: float
    report: Callable[[int, int | None], None]

    def __post_init__(self) -> None:
        self.part = Part(self.target, self.url)
        self.session = Session()
        self.answered = False

    def attempt(self) -> None:
        """Get what is lacking; raises BrokenOffError if another attempt may help, UserError if none can."""
        have, facts = self.part.have, self.part.facts
        if have and have == facts.get("total"):
            return  # all had arrived when it was stopped
        headers = dict(HEADERS)
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": facts["validator"]}
        try:
            with self.session.get(self.url, headers=headers, stream=True, timeout=self.timeout) as response:
                self.answered = True
                self._receive(response, self._start(response, have, facts))
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise self._judged(error) from error

    def _start(self, response: requests.Response, have: int, facts: Mapping[str, Any]) -> int:
        """Return the byte at which the response starts; refuses what is not (the rest of) the file."""
        status = response.status_code
        if status >= 500:
            raise BrokenOffError(f"the server answered {status} {response.reason}")
        if status == 416:  # the part reaches beyond the file: it is of another version
            self.part.drop()
            raise BrokenOffError("the file changed on the server")
        if status not in (200, 206):
            hint = f": {HINTS[status]}" if status in HINTS else ""
            raise UserError(
                f"cannot fetch '{self.url}': the server answered {status} {response.reason}{hint}; "
                f"check the address in a browser, or put the file yourself at '{self.target}'"
            )
        kind = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
        if kind == "text/html" and self.target.suffix.lower() not in (".html", ".htm"):
            raise UserError(
                f"'{self.url}' gave a web page instead of the file '{self.target.name}': often a login, terms to "
                f"accept or a notice that it moved; open it in a browser and put the file yourself at '{self.target}'"
            )
        if status == 200:
            return 0
        start, total = content_range(response.headers)
        # a server may ignore If-Range: what it continues must be the version that was begun
        same = validator(response.headers) in (None, facts.get("validator"))
        same = same and (None in (total, facts.get("total")) or total == facts["total"])
        if not have or start != have or not same:
            self.part.drop()
            raise BrokenOffError("the file changed on the server")
        return have

    def _receive(self, response: requests.Response, start: int) -> None:
        """Append the body to the part from byte ``start`` on."""
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else self.size
        if self.size is not None and total != self.size:
            self.part.drop()
            raise UserError(
                f"'{self.url}' has {total} bytes where {self.size} are expected: it is another file or another "
                f"version; put the right file yourself at '{self.target}'"
            )
        have = start
        try:
            if start == 0:
                self.part.drop()
            if total is not None:
                check_space(self.target.parent, total - start, f"{'the rest of ' if start else ''}'{self.url}'")
            if start == 0:
                self.part.begin(validator=validator(response.headers), total=total, sha256=linked_digest(response))
            with open(self.part.path, "ab") as file:
                self.report(have, total)
                # read1 hands over what has come; read waits for a whole block and loses it when the line is cut
                while block := response.raw.read1(BLOCK, decode_content=False):
                    file.write(block)
                    have += len(block)
                    self.report(have, total)
        except OSError as error:
            raise UserError(
                f"cannot write '{self.part.path}': {error.strerror or error}; free space, then run the same command "
                f"again: {self.outlook()}"
            ) from error
        if total is not None and have != total:
            raise BrokenOffError("the connection was cut")

    def outlook(self) -> str:
        """Return what running the same command again will do."""
        return f"it continues at {in_bytes(self.part.have)}" if self.part.have else "it starts from the beginning"

    def _judged(self, error: Exception) -> Exception:
        """Return BrokenOffError for what may pass, UserError for what will not."""
        reason = getattr(error.args[0] if error.args else None, "reason", None)
        unreached = isinstance(reason, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError)
        instead = f"or put the file yourself at '{self.target}'"
        if isinstance(error, requests.exceptions.SSLError):
            advice = "behind a proxy that opens TLS set REQUESTS_CA_BUNDLE to its certificate"
            return UserError(f"cannot trust the server of '{self.url}': {reason or error}; {advice}, {instead}")
        if isinstance(error, requests.exceptions.ProxyError) or (unreached and not self.answered):
            advice = "check the network and the proxy (HTTPS_PROXY), then run the same command again"
            return UserError(
                f"no network to fetch '{self.url}': {reason or error}; {advice}: {self.outlook()}, {instead}"
            )
        if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
            return BrokenOffError(f"nothing came for {self.timeout:g} s")
        cut = requests.ConnectionError | requests.exceptions.ChunkedEncodingError | urllib3.exceptions.HTTPError
        if isinstance(error, cut):
            return BrokenOffError("the connection was cut")
        return UserError(f"cannot fetch '{self.url}': {str(error).rstrip('.')}; check the address, {instead}")
