"""The report in headless Chromium: no overflow on phone or desktop, nothing loaded, nothing on the console.

Chromium is driven over its own debugging pipe (file descriptors 3 and 4, messages ended by a zero byte).
"""

import fcntl
import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from certiqa.reports import write_report

pytestmark = pytest.mark.full

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--remote-debugging-pipe",
    ),
)
START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
TOO_WIDE = """
[...document.querySelectorAll("main *")].filter((node) => {
  if (node.closest(".table, pre, svg")?.contains(node) && !node.matches(".table, pre, svg")) return false;
  return node.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map((node) => node.tagName + "." + node.getAttribute("class"))
"""


class Browser:
    """One headless Chromium with one page; ``events`` holds everything the page reported."""

    def __init__(self, binary: str, profile: Path) -> None:
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (*os.pipe(), *os.pipe())]
        its_input, self._write, self._read, its_output = ends
        arguments = [
            str(its_input),
            str(its_output),
            binary,
            *FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, *arguments],
            pass_fds=(its_input, its_output),
            stderr=subprocess.DEVNULL,
        )
        os.close(its_input)
        os.close(its_output)
        self._buffer, self._number, self._session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come first are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, event: str) -> None:
        """Read until the page reports ``event``."""
        while not any(message.get("method") == event for message in self.events):
            self.events.append(self._next())

    def _next(self, seconds: float = 60) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
            assert ready, "Chromium did not answer"
            chunk = os.read(self._read, 1 << 20)
            assert chunk, "Chromium ended"
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def open(self, path: Path, width: int, dark: bool = False) -> None:
        """Load a file at a given width in CSS pixels, as a phone where it is narrow."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.as_uri())
        self.wait_for("Page.loadEventFired")

    def run(self, script: str) -> Any:
        """Evaluate JavaScript in the page and return its value."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def close(self) -> None:
        """End the browser."""
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        self._process.wait(30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed; apt-get install chromium")
        pytest.skip("chromium is not installed")
    opened = Browser(binary, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def make_run() -> Any:
    spec = importlib.util.spec_from_file_location("report_runs", Path(__file__).with_name("test_report.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_run


LONG = "a_name_without_any_break_" * 8
CASES = {
    "finished": {},
    "undefended": {"radii": (), "defense": None, "gallery": 0, "training": False},
    "interrupted": {"num_images": 3, "status": "interrupted"},
    "attacked": {"attacks": True, "abstain_at": 0.06},
    "long names": {
        "name": LONG,
        "metric": LONG,
        "defense": LONG,
        "data": LONG,
        "command": LONG,
        "config_hash": LONG,
    },
}


@pytest.fixture(scope="module", params=CASES)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_run: Any) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("run")
    make_run(folder, **CASES[request.param])
    return SimpleNamespace(path=write_report(folder), case=request.param)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_page_fits_and_is_silent(browser, report, width, dark):
    browser.open(report.path, width, dark)
    browser.run("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    assert browser.run("innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(TOO_WIDE) == []
    said = [event for event in browser.events if event.get("method") in (
        "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")]  # fmt: skip
    assert said == []
    loaded = [event["params"]["request"]["url"] for event in browser.events
              if event.get("method") == "Network.requestWillBeSent"]  # fmt: skip
    assert {url for url in loaded if not url.startswith("data:")} == {report.path.as_uri()}


def test_pictures_decode_and_figures_have_size(browser, report):
    browser.open(report.path, 390)
    assert browser.run("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    sizes = browser.run("[...document.querySelectorAll('.plot svg')].map((svg) => svg.getBoundingClientRect().width)")
    assert sizes
    assert min(sizes) > 280


def test_dark_page_leaves_no_black_text_in_figures(browser, report):
    browser.open(report.path, 1280, dark=True)
    colors = browser.run("[...document.querySelectorAll('.plot svg text')].map((node) => getComputedStyle(node).fill)")
    assert colors
    assert "rgb(0, 0, 0)" not in colors
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(15, 18, 24)"


def test_a_click_enlarges_a_picture_and_another_closes_it(browser, report):
    if report.case == "undefended":
        pytest.skip("a run without a gallery")
    browser.open(report.path, 1280)
    browser.run("document.querySelector('button.zoom').click()")
    assert browser.run("document.querySelector('dialog').open")
    assert browser.run("document.querySelector('dialog img').getBoundingClientRect().width") > 400
    assert "clean, score 3.40" in browser.run("document.querySelector('dialog p').textContent")
    browser.run("document.querySelector('dialog img').click()")
    assert not browser.run("document.querySelector('dialog').open")
