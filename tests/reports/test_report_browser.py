"""The report in headless Chromium: no overflow on phone or desktop, nothing loaded, nothing on the console."""

from types import SimpleNamespace
from typing import Any

import pytest

from certiqa.reports import write_report

pytestmark = pytest.mark.full

TOO_WIDE = """
[...document.querySelectorAll("main *")].filter((node) => {
  if (node.closest(".table, pre, svg")?.contains(node) && !node.matches(".table, pre, svg")) return false;
  return node.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map((node) => node.tagName + "." + node.getAttribute("class"))
"""


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
