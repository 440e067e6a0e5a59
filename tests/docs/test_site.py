"""docs/ as a site: every link leads somewhere, the reference is whole, and a browser shows it without complaint."""

import importlib
import os
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.full
ROOT = Path(__file__).parents[2]
FLOORS = sorted(path.stem for path in (ROOT / "docs" / "reference").glob("*.md") if path.stem != "index")
PAGES = ("", "quickstart/", "attacks/", "purifiers/", "comparison/", "reference/", "reference/certification/")
SAID = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as ``make docs`` builds it: a broken link or a parameter that a docstring misnames ends the build."""
    target = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", target],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def address(site):
    """The site on a port of this machine, as a web server gives it out."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("floor", FLOORS)
def test_every_public_name_stands_in_the_reference_with_what_it_does(site, floor):
    module = importlib.import_module(f"certiqa.{floor}")
    text = (site / "reference" / floor / "index.html").read_text()
    parts = re.split(r'<h2 id="([^"]+)" class="doc doc-heading">', text)
    shown = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert set(shown) == {f"certiqa.{floor}.{name}" for name in module.__all__}
    without = [name for name, body in shown.items() if "<p>" not in body]
    assert without == []
    assert not re.search(r":(func|class|meth|mod):", text), "a role of another generator, shown as it is written"


def test_every_floor_has_a_page():
    public = {path.parent.name for path in ROOT.glob("src/certiqa/*/__init__.py") if "__all__" in path.read_text()}
    assert set(FLOORS) == public


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_is_silent_and_loads_nothing_from_elsewhere(browser, address, page, width):
    browser.open(address + page, width)
    assert browser.run("document.querySelector('article h1') !== null")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert [event for event in browser.events if event.get("method") in SAID] == []
    requests = [event["params"]["request"]["url"] for event in browser.events if "request" in event.get("params", {})]
    assert requests
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []


def test_the_search_finds_a_function(browser, address):
    browser.open(address, 1280)
    found = browser.wait(
        "(() => { const box = document.querySelector('input.md-search__input'); box.focus();"
        "box.value = 'certified_srocc'; box.dispatchEvent(new Event('keyup'));"
        "box.dispatchEvent(new Event('input'));"
        "return [...document.querySelectorAll('.md-search-result__link')].map((link) => link.href); })()"
    )
    assert any("reference/certification" in link for link in found)
