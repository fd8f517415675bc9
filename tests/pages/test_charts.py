"""Charts: places of values, ticks, and what a curve keeps of many points."""

import json
import math
import re
from html import unescape

import pytest

from ssl_asr.pages.charts import MOST_POINTS, Axis, Point, Series, choices, curves, interval_cell


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3.0, 47.0, [10, 20, 30, 40]), (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1])],
)
def test_ticks_are_round_and_inside(low, high, ticks):
    assert Axis(low, high, 0, 1).ticks == pytest.approx(ticks)


def test_axes_place_values():
    assert [Axis(0, 10, 100, 0).at(value) for value in (0, 5, 10)] == [100, 50, 0]
    log = Axis(1e-3, 10, 0, 4, log=True)
    assert [log.at(10.0**power) for power in range(-3, 2)] == pytest.approx([0, 1, 2, 3, 4])
    assert log.ticks == pytest.approx([0.001, 0.01, 0.1, 1, 10])
    # One value alone is in the middle.
    assert Axis(5, 5, 0, 100).at(5) == pytest.approx(50)


def _data(chart):
    return json.loads(unescape(re.search(r'data-series="([^"]*)"', chart).group(1)))


def test_many_points_become_means_and_values_that_are_not_finite_are_left_out():
    x = list(range(1, 10 * MOST_POINTS + 1))
    y = [math.nan if n == 5 else n / 10 for n in x]
    [found] = _data(curves("Loss", [Series(name="a", x=x, y=y)], x="update"))
    assert len(found["x"]) == MOST_POINTS
    assert found["y"][0] == f"{sum([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1]) / 10:.4g}"
    assert curves("Loss", [Series(name="a", x=[1], y=[math.nan])], x="update") == ""


def test_a_wide_range_is_logarithmic():
    steep = curves("Loss", [Series(name="a", x=[1, 2], y=[100, 0.1])], x="update")
    assert "(logarithmic)" in steep
    assert "(logarithmic)" not in curves("Loss", [Series(name="a", x=[1, 2], y=[100, 10])], x="update")


def test_names_are_escaped():
    chart = curves("<b>", [Series(name="</svg><script>", x=[1], y=[1])], x="<i>")
    chart += choices("<b>", ["<u>"], [Point("<u>", 1.0, "<s>", "")], x="<i>")
    assert not set(re.findall(r"<(\w+)", chart)) & {"b", "script", "i", "u", "s"}


def test_an_interval_is_on_the_axis_of_its_column():
    cell = interval_cell(0.2, 0.1, 0.4, largest=0.4, mean=0.2)
    assert re.findall(r'cx="([\d.]+)"', cell) == ["85.0"]
    assert re.search(r'class="whisker" x1="45.0" x2="165.0"', cell)
    assert interval_cell(math.nan, 0, 0, largest=1, mean=None) == ""


def test_runs_that_differ_in_one_choice_are_joined():
    points = [Point("a", 3.0, "0", "g"), Point("b", 5.0, "1", "g"), Point("a", 4.0, "2", "h")]
    chart = choices("WER", ["a", "b"], points, x="head")
    lines = [len(points.split()) for points in re.findall(r'<polyline points="([^"]*)"', chart)]
    assert lines == [2, 1]
    assert chart.count("<circle") == 3
