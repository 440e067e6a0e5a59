"""The comparison in headless Chromium: sort, filter, open a run, a phone, a silent console, 200 runs in seconds."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from certiqa.evaluation import read_summary
from certiqa.reports import write_comparison

pytestmark = pytest.mark.full
ROOT = Path(__file__).parents[2]

SHOWN = "[...document.querySelectorAll('table.sortable')[{}].tBodies[0].rows].filter((row) => !row.hidden)"
NAMES = SHOWN.format(0) + ".map((row) => row.cells[0].textContent.trim())"
COLUMN = SHOWN.format(0) + ".map((row) => row.querySelectorAll('td')[{}].dataset.sort)"
TOO_WIDE = """
[...document.querySelectorAll("main *")].filter((node) =>
  !node.closest(".table, svg")?.contains(node.parentNode) &&
  node.getBoundingClientRect().right > document.documentElement.clientWidth + 1
).map((node) => node.tagName + "." + node.className)
"""
SAID = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
LONG = "a_name_without_any_break_" * 8


@pytest.fixture(scope="module")
def site(tmp_path_factory, write_run):
    root = tmp_path_factory.mktemp("outputs")
    write_run(root / "none", defense="none", radii=(), attacks={"ifgsm": 1.2})
    write_run(root / "dms", defense="dms", error=0.1, attacks={"ifgsm": 0.3, "square": 0.1})
    write_run(root / "ms", defense="ms", error=1.2, width=5.0, seed=1)
    write_run(root / "jpeg", defense="jpeg", radii=(), attacks={"square": 0.6})
    write_run(root / "cut", defense="ms", status="interrupted", num_images=5, seed=10)
    write_run(root / "random", defense="dms_iqa", weights="random (seed 0)")
    write_run(root / LONG, defense=LONG, metric=LONG, data=LONG, score_range=(0.0, 100.0))
    return write_comparison([root], resamples=50).index


@pytest.fixture
def page(browser, site):
    browser.open(site, 1280)
    return browser


def silent(browser):
    return [event for event in browser.events if event.get("method") in SAID]


def choose(browser, facet, value):
    browser.run(
        f"(() => {{ const select = document.querySelector('select[data-facet={facet}]'); select.value = '{value}';"
        "select.dispatchEvent(new Event('change')); })()"
    )


def click_heading(browser, key, table=0):
    browser.run(
        f"document.querySelectorAll('table.sortable')[{table}].querySelector('th[data-key={key}] button').click()"
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_page_fits_and_is_silent(browser, site, width, dark):
    browser.open(site, width, dark)
    browser.run("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    assert browser.run("innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(TOO_WIDE) == []
    assert silent(browser) == []
    loaded = {
        event["params"]["request"]["url"]
        for event in browser.events
        if event.get("method") == "Network.requestWillBeSent"
    }
    assert {url for url in loaded if not url.startswith("data:")} == {site.as_uri()}
    assert browser.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(15, 18, 24)" if dark else "rgb(246, 247, 249)"
    )


def test_a_heading_sorts_by_number_and_back_with_missing_last(page):
    click_heading(page, "srocc")
    place = page.run("[...document.querySelectorAll('th[data-key]')].findIndex((th) => th.dataset.key === 'srocc') - 1")
    values = page.run(COLUMN.format(place))
    numbers = [float(value) for value in values]
    assert numbers == sorted(numbers, reverse=True)
    assert len(set(numbers)) > 3
    assert page.run("document.querySelector('th[data-key=srocc]').getAttribute('aria-sort')") == "descending"
    click_heading(page, "srocc")
    assert [float(value) for value in page.run(COLUMN.format(place))] == numbers[::-1]
    click_heading(page, "delta_range")
    place = page.run(
        "[...document.querySelectorAll('th[data-key]')].findIndex((th) => th.dataset.key === 'delta_range')"
    )
    for _ in range(2):
        values = page.run(COLUMN.format(place - 1))
        assert values[-2:] == ["", ""]  # no defense and jpeg certify nothing
        assert "" not in values[:-2]
        click_heading(page, "delta_range")
    click_heading(page, "run")
    assert page.run(NAMES) == sorted(page.run(NAMES))
    assert page.run("document.querySelectorAll('table.sortable')[0].querySelectorAll('th[aria-sort]').length") == 1
    assert silent(page) == []


def test_seeds_sort_as_numbers(page):
    click_heading(page, "seed")
    place = page.run("[...document.querySelectorAll('th[data-key]')].findIndex((th) => th.dataset.key === 'seed') - 1")
    assert page.run(COLUMN.format(place)) == ["0", "0", "0", "0", "0", "1", "10"]


def test_words_and_choices_filter_both_tables(page):
    assert page.run("document.querySelector('#shown-runs').textContent") == "all 7"
    page.run("(() => { const q = document.querySelector('#query'); q.value = 'MS mini';"
             "q.dispatchEvent(new Event('input')); })()")  # fmt: skip
    assert set(page.run(NAMES)) == {"dms", "ms", "cut", "random"}
    assert page.run("document.querySelector('#shown-runs').textContent") == "4 of 7"
    choose(page, "status", "interrupted")
    assert page.run(NAMES) == ["cut"]
    assert page.run(SHOWN.format(1) + ".length") == 0  # the interrupted run was not attacked
    page.run("document.querySelector('#clear').click()")
    assert len(page.run(NAMES)) == 7
    choose(page, "attack", "square")
    assert page.run(NAMES) == ["dms", "jpeg"]
    attacks = SHOWN.format(1) + ".map((row) => row.querySelector('td:nth-child(4)').textContent)"
    assert page.run(attacks) == ["square", "worst", "square"]
    choose(page, "defense", "none")
    assert page.run(NAMES) == []
    choose(page, "attack", "-")
    choose(page, "defense", "ms")
    assert page.run(NAMES) == ["cut", "ms"]
    assert silent(page) == []


def test_groups_of_columns_are_shown_and_hidden(page):
    visible = "[...document.querySelectorAll('th[data-key=certified_srocc]')].some((th) => th.offsetWidth > 0)"
    assert page.run(visible)
    page.run("[...document.querySelectorAll('input[data-group]')].find((box) =>"
             " box.parentNode.textContent.includes('Certified')).click()")  # fmt: skip
    assert not page.run(visible)
    assert page.run("document.querySelector('th[data-key=srocc]').offsetWidth") > 0


def test_a_click_opens_a_run_and_a_point_of_a_figure_does_too(page, site):
    page.run("[...document.querySelectorAll('th.name a')].find((a) => a.textContent === 'dms').click()")
    page.wait(f"location.href !== '{site.as_uri()}' && document.readyState === 'complete'")
    assert page.run("location.href").endswith("/comparison/runs/dms.html")
    assert page.run("document.querySelector('h1').textContent") == "dms"
    page.open(site, 1280)
    links = page.run("[...document.querySelectorAll('.plot a')].map((a) => a.getAttribute('href'))")
    assert "runs/dms.html" in links
    assert "runs/random.html" not in links


def test_a_phone_hides_settings_and_scrolls_the_table_alone(browser, site):
    browser.open(site, 390)
    assert browser.run("document.querySelector('th[data-key=seed]').offsetWidth") == 0
    assert browser.run("document.querySelector('th[data-key=srocc]').offsetWidth") > 0
    box = "document.querySelector('.table')"
    assert browser.run(f"{box}.scrollWidth > {box}.clientWidth")
    browser.run(f"{box}.scrollLeft = 300")
    assert browser.run("document.querySelector('tbody th.name').getBoundingClientRect().left") < 20
    assert browser.run("document.querySelector('tbody th.name').getBoundingClientRect().width") < 0.5 * 390
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert silent(browser) == []


def test_two_hundred_runs_open_within_seconds(browser, tmp_path_factory, write_run):
    root = tmp_path_factory.mktemp("many")
    write_run(root / "first", num_images=12, attacks={"ifgsm": 0.3, "square": 0.1})
    summary = read_summary(root / "first")
    (root / "first" / "report.html").write_text("<h1>one of many</h1>")
    for number in range(1, 200):
        folder = shutil.copytree(root / "first", root / f"run-{number:03d}")
        changed = {"seed": number, "defense": ("ms", "dms", "dms_iqa", "jpeg")[number % 4], "srocc": number / 250}
        (folder / "summary.json").write_text(json.dumps(summary | changed))
        (folder / "report.html").write_text(f"<h1>{number}</h1>")
    index = write_comparison([root], resamples=50).index
    started = time.monotonic()
    browser.open(index, 1280)
    assert browser.run(NAMES + ".length") == 200
    click_heading(browser, "srocc")
    assert browser.run(NAMES)[:2] == ["first", "run-199"]
    assert time.monotonic() - started < 5
    choose(browser, "defense", "dms_iqa")
    assert browser.run("document.querySelector('#shown-runs').textContent") == "50 of 200"
    assert silent(browser) == []


SWEEP = ["defense=none,ms,jpeg,flip", "attack=fgsm,ifgsm", "seed=0,1,2", "data.limit_test=4", "data.resize=96"]
SWEEP += ["num_samples=30", "callbacks.gallery.num_images=1", "certification.joint_confidence=null"]
SWEEP += ["certification.radii=[0.03]", "certification.radius=0.03"]


def test_a_sweep_of_24_runs_becomes_a_site_with_one_command(browser, tmp_path, mini_cache):
    for words in (
        [sys.executable, ROOT / "evaluate.py", "-m", *SWEEP, f"data.cache={mini_cache}"],
        [Path(sys.executable).with_name("certiqa-report"), "outputs/evaluate"],
    ):
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "outputs" / "evaluate" / "comparison" / "index.html"
    browser.open(site, 1280)
    assert browser.run("document.querySelector('#shown-runs').textContent") == "all 24"
    assert browser.run("document.querySelector('#shown-means').textContent") == "all 8", "three seeds each"
    means = browser.run(SHOWN.format(1) + ".map((row) => row.textContent)")
    assert sum("0, 1, 2" in text for text in means) == 8
    place = browser.run("[...document.querySelectorAll('th[data-key]')].findIndex((th) => th.dataset.key === 'srocc')")
    click_heading(browser, "srocc")
    values = [float(value) for value in browser.run(COLUMN.format(place - 1))]
    assert len(values) == 24
    assert values == sorted(values, reverse=True)
    choose(browser, "defense", "ms")
    choose(browser, "attack", "ifgsm")
    assert browser.run("document.querySelector('#shown-runs').textContent") == "3 of 24"
    assert browser.run("document.querySelector('#shown-means').textContent") == "1 of 8"
    browser.run(f"({SHOWN.format(0)})[0].querySelector('th.name a').click()")
    browser.wait(f"location.href !== '{site.as_uri()}' && document.readyState === 'complete'")
    assert browser.run("document.querySelector('h1').textContent").startswith("mini-mini-ms-ifgsm")
    browser.open(site, 390)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert silent(browser) == []
