"""Fetching from a real server on this machine that does all that servers do wrong."""

import errno
import hashlib
import http.server
import json
import logging
import multiprocessing
import random
import re
import threading
import time

import pytest
import requests

from certiqa.errors import UserError
from certiqa.storage import fetch as fetching
from certiqa.storage import files, transfer
from certiqa.storage.fetch import fetch
from certiqa.storage.parts import Part

CONTENT = random.Random(3).randbytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content``; each request takes the next of ``plan``, a dict of what to do otherwise, or none."""

    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.headers, self.ranges, self.plan, self.seen = CONTENT, {"ETag": '"1"'}, True, [], []
        self.release = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/weights.pth"

    @property
    def asked(self):
        return [request.get("Range") for request in self.seen]


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        plan = server.plan.pop(0) if server.plan else {}
        server.seen.append({**self.headers, "path": self.path})
        if "status" in plan:
            self.send_response(plan["status"])
            for name, value in plan.get("headers", {}).items():
                self.send_header(name, value)
            self.end_headers()
            return
        content, start = server.content, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        version = server.headers.get("ETag") or server.headers.get("Last-Modified")
        same = self.headers.get("If-Range") == version or plan.get("ignore_if_range")
        if asked and server.ranges and same and not plan.get("ignore_range"):
            start = int(asked[1])
            if start >= len(content):
                self.send_response(416)
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        for name, value in {**server.headers, **plan.get("headers", {})}.items():
            self.send_header(name, value)
        if not plan.get("no_length"):
            self.send_header("Content-Length", str(plan.get("length", len(body))))
        self.end_headers()
        self.wfile.write(body[: plan.get("cut", len(body))])
        self.wfile.flush()
        if "stall" in plan:
            server.release.wait(plan["stall"])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(fetching, "BACKOFF", 0.01)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


def left(folder):
    """What lies in a folder beside locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_file_comes_whole_and_is_not_asked_for_again(server, tmp_path):
    target = tmp_path / "new" / "folder" / "weights.pth"
    assert fetch(server.url, target, sha256=DIGEST, size=len(CONTENT)) == target
    assert target.read_bytes() == CONTENT
    assert left(target.parent) == ["weights.pth"]
    assert fetch(server.url, str(target), sha256=DIGEST[:8].upper()) == target
    assert server.asked == [None]
    assert server.seen[0]["Accept-Encoding"] == "identity"


def test_a_cut_connection_is_continued_to_the_byte(server, tmp_path):
    server.plan = [{"cut": 1000}, {"cut": 50_000}]
    target = fetch(server.url, tmp_path / "weights.pth", sha256=DIGEST)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=51000-"]
    assert [request.get("If-Range") for request in server.seen] == [None, '"1"', '"1"']


def test_a_stall_is_waited_for_no_longer_than_asked_and_then_continued(server, tmp_path):
    server.plan = [{"cut": 1000, "stall": 20}]
    begun = time.monotonic()
    assert fetch(server.url, tmp_path / "weights.pth", timeout=0.3).read_bytes() == CONTENT
    assert time.monotonic() - begun < 5
    assert server.asked == [None, "bytes=1000-"]


def test_the_next_run_goes_on_where_the_last_gave_up(server, tmp_path):
    target = tmp_path / "weights.pth"
    server.plan = [{"cut": 100_000}, {"cut": 23_456}]
    with pytest.raises(UserError, match=r"cannot fetch 'http.*' to '.*weights.pth'.*it continues at 123 kB"):
        fetch(server.url, target, retries=1)
    assert left(tmp_path) == ["weights.pth.part", "weights.pth.part.json"]
    assert (tmp_path / "weights.pth.part").read_bytes() == CONTENT[:123_456]
    server.plan = []
    assert fetch(server.url, target, sha256=DIGEST).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=123456-"
    assert left(tmp_path) == ["weights.pth"]


def test_an_interrupt_keeps_the_part(server, tmp_path, monkeypatch):
    real, target = transfer.Transfer._receive, tmp_path / "weights.pth"

    def interrupted(self, response, start):
        report = self.report

        def stop(have, total):
            report(have, total)
            if have > 100_000:
                raise KeyboardInterrupt

        self.report = stop
        real(self, response, start)

    with monkeypatch.context() as patch:
        patch.setattr(transfer.Transfer, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(server.url, target)
    have = (tmp_path / "weights.pth.part").stat().st_size
    assert have > 100_000
    if have == len(CONTENT):  # all had come in one block: nothing is asked for again
        server.plan = [{"status": 404}]
    assert fetch(server.url, target, sha256=DIGEST).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={have}-"][: 1 + (have < len(CONTENT))]


def test_all_that_was_lacking_is_the_rename(server, tmp_path):
    target = tmp_path / "weights.pth"
    part = Part(target, server.url)
    part.begin(validator='"1"', total=len(CONTENT), sha256=None)
    part.path.write_bytes(CONTENT)
    assert fetch(server.url, target, sha256=DIGEST).read_bytes() == CONTENT
    assert server.asked == []


@pytest.mark.parametrize("ignores", [False, True])
@pytest.mark.parametrize("header", ["ETag", "Last-Modified"])
def test_a_file_that_changed_on_the_server_starts_over(server, tmp_path, header, ignores):
    target, other = tmp_path / "weights.pth", CONTENT[::-1]
    dates = ["Mon, 02 Mar 2026 10:00:00 GMT", "Tue, 03 Mar 2026 10:00:00 GMT"]
    server.headers, server.plan = {header: dates[0]}, [{"cut": 1000}]
    with pytest.raises(UserError, match="continues at 1.0 kB"):
        fetch(server.url, target, retries=0)
    server.content, server.headers, server.plan = other, {header: dates[1]}, [{"ignore_if_range": ignores}]
    assert fetch(server.url, target).read_bytes() == other
    assert server.seen[1]["If-Range"] == dates[0]
    assert server.asked == ([None, "bytes=1000-", None] if ignores else [None, "bytes=1000-"])


def test_a_file_that_became_shorter_starts_over(server, tmp_path):
    server.plan = [{"cut": 1000}, {"ignore_if_range": True}]
    with pytest.raises(UserError, match="continues"):
        fetch(server.url, tmp_path / "weights.pth", retries=0)
    server.content = CONTENT[:500]
    assert fetch(server.url, tmp_path / "weights.pth").read_bytes() == CONTENT[:500]
    assert server.asked == [None, "bytes=1000-", None]


def test_a_part_from_another_address_is_not_continued(server, tmp_path):
    server.plan = [{"cut": 1000}]
    with pytest.raises(UserError, match="continues"):
        fetch(server.url, tmp_path / "weights.pth", retries=0)
    fetch(server.url + "?mirror", tmp_path / "weights.pth", sha256=DIGEST)
    assert server.asked == [None, None]


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"1"'}])
def test_without_a_version_to_hold_to_it_starts_from_the_beginning(server, tmp_path, headers):
    server.headers, server.plan = headers, [{"cut": 1000}, {"cut": 2000}]
    with pytest.raises(UserError, match="run the same command again: it starts from the beginning"):
        fetch(server.url, tmp_path / "weights.pth", retries=1)
    assert fetch(server.url, tmp_path / "weights.pth", sha256=DIGEST).read_bytes() == CONTENT
    assert server.asked == [None, None, None]


def test_a_server_without_ranges_starts_from_the_beginning(server, tmp_path):
    server.ranges, server.plan = False, [{"cut": 1000}]
    assert fetch(server.url, tmp_path / "weights.pth", sha256=DIGEST).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-"]


def test_a_length_that_is_a_lie_is_no_whole_file(server, tmp_path):
    server.plan = [{"length": len(CONTENT) + 5000}] * 2
    with pytest.raises(UserError, match="the connection was cut.*continues at 300 kB"):
        fetch(server.url, tmp_path / "weights.pth", retries=0)
    assert not (tmp_path / "weights.pth").exists()
    server.plan = [{"length": 5000}]
    with pytest.raises(UserError, match=r"5000 bytes where 300000 are expected"):
        fetch(server.url + "?2", tmp_path / "weights.pth", size=len(CONTENT))
    assert left(tmp_path) == []


def test_without_a_length_the_size_tells_that_it_was_cut(server, tmp_path):
    server.plan = [{"no_length": True, "cut": 1000}]
    assert fetch(server.url, tmp_path / "weights.pth", size=len(CONTENT)).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-"]


@pytest.mark.parametrize("expected", [DIGEST, DIGEST[:8]])
def test_wrong_bytes_are_deleted_with_what_was_expected_and_found(server, tmp_path, expected):
    server.content = b"x" + CONTENT[1:]
    found = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(UserError, match=f"{expected}, found {found}. It was deleted"):
        fetch(server.url, tmp_path / "weights.pth", sha256=expected)
    assert left(tmp_path) == []


def test_hugging_faces_digest_is_held_to(server, tmp_path):
    moved = {"status": 302, "headers": {"Location": "/cdn", "X-Linked-Etag": f'"{DIGEST}"'}}
    server.plan = [moved, {"cut": 1000}, {**moved, "headers": {"Location": "/cdn"}}]
    target = tmp_path / "model.safetensors"
    assert fetch(server.url, target).read_bytes() == CONTENT
    assert [request["path"] for request in server.seen] == ["/weights.pth", "/cdn"] * 2
    assert server.asked[2:] == ["bytes=1000-"] * 2
    for plan in (
        [{**moved, "headers": {"Location": "/cdn", "X-Linked-Etag": f'"{"0" * 64}"'}}],
        [{"headers": {"X-Linked-Etag": "0" * 64}}],
    ):
        server.plan = plan
        with pytest.raises(UserError, match=f"expected to be {'0' * 64}, found {DIGEST}"):
            fetch(server.url, tmp_path / "other.safetensors")
    server.plan = [{"headers": {"X-Linked-Etag": "0" * 64}}]
    fetch(server.url, tmp_path / "other.safetensors", sha256=DIGEST)


def test_a_file_that_is_there_is_checked_and_left_alone(server, tmp_path):
    target = tmp_path / "weights.pth"
    target.write_bytes(b"mine")
    with pytest.raises(UserError, match="is there already, but its SHA-256 .* move it away"):
        fetch(server.url, target, sha256=DIGEST)
    with pytest.raises(UserError, match="is there already, but it has 4 bytes where 5 are expected"):
        fetch(server.url, target, size=5)
    assert fetch(server.url, target, size=4).read_bytes() == b"mine"
    assert server.asked == []


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_in_trouble_is_asked_again(server, tmp_path, status):
    server.plan = [{"status": status}] * 2
    assert fetch(server.url, tmp_path / "weights.pth").read_bytes() == CONTENT
    server.plan = [{"status": status}] * 9
    with pytest.raises(UserError, match=f"the server answered {status} .* and 2 retries did not help"):
        fetch(server.url, tmp_path / "other.pth", retries=2)
    assert len(server.plan) == 6


def test_the_waits_double_up_to_a_limit(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(fetching.time, "sleep", waits.append)
    monkeypatch.setattr(fetching, "BACKOFF", 0.5)
    server.plan = [{"status": 500}] * 6
    fetch(server.url, tmp_path / "weights.pth", retries=6)
    assert waits == [0.5, 1, 2, 4, 8, 8]


def test_attempts_that_get_further_do_not_use_up_the_retries(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "PROGRESS", 50_000)
    server.plan = [{"cut": 60_000}] * 4
    assert fetch(server.url, tmp_path / "weights.pth", sha256=DIGEST, retries=1).read_bytes() == CONTENT
    assert len(server.asked) == 5


@pytest.mark.parametrize(
    ("status", "reason"),
    [(403, "wants a login"), (404, "the file is gone"), (429, "wait some minutes"), (418, "in a browser")],
)
def test_what_will_not_pass_fails_at_once(server, tmp_path, status, reason):
    server.plan = [{"status": status}]
    with pytest.raises(
        UserError, match=f"weights.pth': the server answered {status} .*{reason}.*put the file yourself at"
    ):
        fetch(server.url, tmp_path / "weights.pth")
    assert len(server.seen) == 1


def test_redirects_are_followed_but_not_in_circles(server, tmp_path):
    server.plan = [{"status": 302, "headers": {"Location": "/elsewhere"}}]
    assert fetch(server.url, tmp_path / "weights.pth").read_bytes() == CONTENT
    server.plan = [{"status": 302, "headers": {"Location": "/weights.pth"}}] * 100
    with pytest.raises(UserError, match="Exceeded 30 redirects.*check the address"):
        fetch(server.url, tmp_path / "other.pth")


@pytest.mark.parametrize("location", ["{url}", "//HTTPS-OK"])
def test_a_redirect_must_not_take_encryption_away(server, tmp_path, monkeypatch, location):
    real, asked = requests.adapters.HTTPAdapter.send, []

    def send(self, request, **options):
        asked.append(request.url)
        if not request.url.startswith("https://safe/"):
            return real(self, request, **options)
        response = requests.Response()
        response.status_code, response.url, response.request = 302, request.url, request
        response.headers["Location"], response._content = location.format(url=server.url), b""
        response.raw = type("Raw", (), {"close": lambda self: None, "release_conn": lambda self: None})()
        return response

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    https = location.startswith("//")
    with pytest.raises(UserError, match="no network" if https else "redirects from https to 'http://127.*not followed"):
        fetch("https://safe/weights.pth", tmp_path / "weights.pth", timeout=2)
    assert len(asked) == 1 + https
    assert server.seen == []


def test_a_web_page_is_not_taken_for_weights(server, tmp_path):
    server.headers = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(UserError, match=r"gave a web page instead of the file 'weights.pth'.*put the file yourself at"):
        fetch(server.url, tmp_path / "weights.pth")
    assert left(tmp_path) == []
    assert fetch(server.url, tmp_path / "page.html").read_bytes() == CONTENT


def test_no_network_says_so_at_once_and_what_to_do(server, tmp_path):
    closed = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    closed.server_close()
    url = f"http://127.0.0.1:{closed.server_address[1]}/a.pth"
    with pytest.raises(UserError, match=rf"no network to fetch '{url}'.*put the file yourself at '{tmp_path}/a.pth'"):
        fetch(url, tmp_path / "a.pth", retries=1000)


@pytest.mark.parametrize(
    ("url", "sha256"), [("ftp://a/b", None), ("weights.pth", None), ("http://a", "2de81"), ("http://a", "g" * 8)]
)
def test_what_cannot_be_asked_for_is_refused(tmp_path, url, sha256):
    with pytest.raises(UserError, match="cannot fetch 'ftp|cannot fetch 'weights|is no SHA-256 for"):
        fetch(url, tmp_path / "a", sha256=sha256)


def test_a_disk_too_small_is_noticed_beforehand(server, tmp_path, monkeypatch):
    server.plan = [{"cut": 100_000}]
    with pytest.raises(UserError, match="continues"):
        fetch(server.url, tmp_path / "weights.pth", retries=0)
    monkeypatch.setattr(files, "free_bytes", lambda folder: 150_000)
    with pytest.raises(UserError, match=r"rest of 'http.*' needs 200 kB and .* has 150 kB free: 50 kB missing"):
        fetch(server.url, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth.part").stat().st_size == 100_000  # for when there is room
    with pytest.raises(UserError, match=r"needs 300 kB and .*: 150 kB missing"):
        fetch(server.url, tmp_path / "other.pth")
    assert left(tmp_path) == ["weights.pth.part", "weights.pth.part.json"]


def test_a_disk_that_fills_up_on_the_way_keeps_the_part(server, tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, block):
            self.file.write(block[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "open", lambda path, mode: Full(open(path, mode)), raising=False)  # noqa: SIM115
        with pytest.raises(UserError, match=r"weights.pth.part': No space left .* it continues at 1.0 kB"):
            fetch(server.url, tmp_path / "weights.pth")
    assert fetch(server.url, tmp_path / "weights.pth", sha256=DIGEST).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-"]


def test_a_folder_that_cannot_be_made_is_said(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot put 'http.*' at .*choose a folder"):
        fetch(server.url, tmp_path / "file" / "weights.pth")


def fetch_quietly(url, target):
    fetch(url, target, sha256=DIGEST)


def test_processes_that_want_the_same_file_ask_for_it_once(server, tmp_path):
    server.plan = [{"cut": 1000, "stall": 0.5}]
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=fetch_quietly, args=(server.url, tmp_path / "weights.pth")) for _ in range(3)]
    for process in others:
        process.start()
    for process in others:
        process.join(20)
    assert [process.exitcode for process in others] == [0, 0, 0]
    assert server.asked == [None, "bytes=1000-"]  # one fetched, through a cut; the others waited
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_threads_that_want_the_same_file_ask_for_it_once(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    server.plan = [{"cut": 1000, "stall": 0.3}]
    threads = [threading.Thread(target=fetch_quietly, args=(server.url, tmp_path / "weights.pth")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert server.asked == [None, "bytes=1000-"]
    assert "waiting for the process that fetches" in caplog.text


def test_a_sidecar_that_is_garbage_starts_over(server, tmp_path):
    for text in ("{", "[]", json.dumps({"url": server.url})):
        (tmp_path / "weights.pth.part").write_bytes(b"garbage")
        (tmp_path / "weights.pth.part.json").write_text(text)
        assert fetch(server.url, tmp_path / "weights.pth").read_bytes() == CONTENT
        (tmp_path / "weights.pth").unlink()
    assert server.asked == [None] * 3


def test_nothing_is_printed_to_stdout(server, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the stream for a terminal
    fetch(server.url, tmp_path / "weights.pth")
    out, err = capfd.readouterr()
    assert out == ""
    assert "weights.pth" in err
    fetch(server.url, tmp_path / "other.pth", progress=False)
    assert capfd.readouterr() == ("", "")
