"""A chart's lines, marks, table and words say what its numbers are."""

import re

import numpy as np
import pytest

from jaxlean.report.chart import SIZE, Chart, Line, Mark

X = np.array([0.0, 10.0, 20.0])


def chart(*lines, runs=("a", "b"), kinds=("count", "number"), **other):
    return Chart("key", "Title", "step", kinds, lines, runs, **other)


def test_a_line_goes_through_its_points():
    found = chart(Line(0, X, np.array([0.0, 2.0, 4.0])))
    (drawn,) = found.drawn()
    assert drawn["path"] == f"M0 {SIZE}L{SIZE // 2} {SIZE // 2}L{SIZE} 0"
    assert drawn["dots"] == ""


def test_a_missing_number_is_a_gap_and_a_lone_point_is_seen():
    found = chart(Line(0, np.arange(5.0), np.array([1.0, 2.0, np.nan, 3.0, np.nan])))
    path = found.drawn()[0]["path"]
    assert path.count("M") == 2
    assert path.endswith("h0.1")


def test_faint_lines_lie_under_the_others_and_long_ones_under_short_ones():
    ones = np.ones(3)
    lines = [Line(0, X, ones), Line(1, 9 * X, ones), Line(0, X, ones, faint=True)]
    assert [(each["run"], each["faint"]) for each in chart(*lines).drawn()] == [(0, True), (1, False), (0, False)]


@pytest.mark.parametrize(("options", "dots"), [({"dotted": True}, 3), ({"ended": True}, 1), ({}, 0)])
def test_dots_stand_where_they_are_asked_for(options, dots):
    found = chart(Line(0, X, np.array([0.0, 1.0, 4.0]), **options)).drawn()[0]["dots"]
    assert found.count("h0.1") == dots
    assert found.endswith(f"M{SIZE} 0h0.1") or not dots


def test_the_table_has_every_run_at_the_steps_that_it_has_numbers_at():
    found = chart(Line(0, X, np.array([0.5, 1.0, 4.0])), Line(1, X[:2], np.array([3.0, 12_345.6])))
    heads, rows = found.table()
    assert heads == ["step", "a", "b"]
    assert rows == [["0", "0.5", "3"], ["10", "1", "12,346"], ["20", "4", "-"]]


def test_of_many_points_the_table_has_twelve_from_first_to_last():
    x = np.arange(1.0, 1001.0)
    _, rows = chart(Line(0, x, 2 * x)).table()
    assert len(rows) == 12
    assert (rows[0], rows[-1]) == (["1", "2"], ["1,000", "2000"])


def test_the_chart_is_said_in_words():
    (said,) = chart(Line(0, X, np.array([3.0, 1.0, 2.0]))).said()
    assert said == "a: first 3 at step 0, lowest 1 at step 10, highest 3 at step 0, last 2 at step 20"


def test_what_the_pointer_shows_are_the_logged_numbers_and_not_their_means():
    noisy, smooth = Line(0, X, np.array([3.0, 1.0, np.nan]), faint=True), Line(0, X, np.full(3, 2.0))
    found = chart(noisy, smooth).pointed()
    assert found["series"] == [{"run": 0, "points": [[0, 3], [10, 1]]}]


def test_a_mark_stands_at_its_point():
    line = Line(0, X, np.array([0.0, 2.0, 4.0]))
    mark = Mark(0, "best", 10.0, 2.0, "best: step 10")
    (found,) = chart(line, marks=[mark]).placed()
    assert (found["left"], found["top"]) == (50.0, 50.0)
    assert chart(line, marks=[mark], runs=["a"]).keys() == [("best", "best: step 10")]
    assert chart(line, marks=[mark, mark]).keys() == [("best", "best step")]


def test_units_stand_with_the_title_or_with_the_ticks():
    by_time = chart(Line(0, X * 60, X / 10 + 1), kinds=("seconds", "number"), unit="nats per token")
    assert by_time.axis_title == "step, min"
    assert by_time.scale == "nats per token"
    far = chart(Line(0, X, np.array([0.01, 1.0, 100.0])), unit="nats")
    assert far.scale == "nats, log scale"
    assert far.gutter == max(len(text) for _, text in far.y.ticks)


def test_a_rule_goes_across_at_each_tick():
    found = chart(Line(0, X, np.array([0.0, 2.0, 4.0])))
    assert len(re.findall(r"M0 \d+H", found.grid())) == len(found.y.ticks)
