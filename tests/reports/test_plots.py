"""The figures of reports: their numbers, and SVG that takes its colours from the page."""

import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from certiqa.reports import plots


@pytest.fixture
def drawn(monkeypatch):
    """Figures by key, caught before they become SVG."""
    figures = {}

    def catch(figure, key):
        figures[key] = figure
        return ""

    monkeypatch.setattr(plots, "svg_of", catch)
    return figures


def test_colours_are_the_pages_and_names_do_not_meet():
    def svg(key):
        figure, (axes,) = plots.new_figure()
        for color in plots.TOKENS:
            axes.plot([0, 1], color=color)
        return plots.svg_of(figure, key)

    one, other = svg("one"), svg("other")
    for color, token in plots.TOKENS.items():
        assert color not in one
        assert f"var(--{token})" in one
    assert not re.search(r"metadata|https?:|<\?xml", one)
    names = [set(re.findall(r'\sid="([^"]*)"', text)) for text in (one, other)]
    assert names[0]
    assert not names[0] & names[1]
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', one)) <= names[0]


def test_the_style_is_left_behind():
    before = {name: mpl.rcParams[name] for name in plots.STYLE}
    with plots.styled():
        assert {name: mpl.rcParams[name] for name in plots.STYLE} == plots.STYLE != before
    assert {name: mpl.rcParams[name] for name in plots.STYLE} == before


def test_the_delta_is_that_of_the_farther_end_median_and_quartiles(drawn):
    score = np.arange(8.0)
    below, above = np.array([1, 2, 3, 4, 5, 6, 7, 8.0]), np.array([8, 7, 6, 5, 1, 1, 1, 1.0])
    rows = [
        {"radius": radius, "score": score, "lower": score - times * below, "upper": score + times * above}
        for radius, times in ((0.03, 1), (0.06, 2))
    ]
    plot = plots.delta_plot(pd.concat([pd.DataFrame(row) for row in rows]), None)
    axes = drawn[plot.key].axes[0]
    delta = np.sort(np.maximum(below, above))
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(0.03, np.median(delta)), (0.06, 2 * np.median(delta))])
    band = axes.collections[0].get_paths()[0].vertices
    at_first = band[band[:, 0] == 0.03, 1]
    assert (at_first.min(), at_first.max()) == (delta[1], delta[6])
    assert "Where the band reaches the top" not in plot.caption


def test_abstentions_count_as_infinitely_far(drawn):
    table = pd.DataFrame({"radius": 0.03, "score": 0.0, "lower": [-1, -2, -3, -np.inf], "upper": [1, 2, 3, np.inf]})
    plot = plots.delta_plot(table, None)
    assert drawn[plot.key].axes[0].lines[0].get_ydata() == [2.5]
    assert "a quarter or more could not be certified" in plot.caption
    assert plots.delta_plot(table.iloc[3:], None) is None


def test_a_long_curve_is_averaged_and_stays_where_it_is(drawn):
    steps = np.arange(2000.0)
    loss = np.where(steps % 2 == 0, 3 * steps + 1, np.nan)  # Lightning leaves cells empty
    (plot,) = plots.training_plots(pd.DataFrame({"step": steps, "train/loss": loss}))
    x, y = drawn[plot.key].axes[0].lines[0].get_data()
    assert len(x) == 300
    np.testing.assert_allclose(y, 3 * x + 1)
    assert x[0] < 10
    assert x[-1] > 1985
