"""Bars: a step's memory by what takes it, a run's time by phase."""

import pytest

from jaxlean.report import bars
from jaxlean.report.read import read


def table(found):
    return {row.label: [(bar.run, bar.text) for bar in row.bars] for row in found.rows}


def test_memory_is_by_category_and_its_sum_stands_under_it(made):
    found = bars.memory(read([made("a")]))
    assert table(found) == {
        "parameters, frozen": [(0, "7.8 KiB")], "parameters, trained": [(0, "2.0 KiB")],
        "optimizer state": [(0, "3.9 KiB")], "batch": [(0, "1000 B")],
        "activations, gradients and the rest": [(0, "83.0 KiB")],
        "a step, predicted": [(0, "97.7 KiB")], "a step, measured": [(0, "117 KiB")],
    }  # fmt: skip
    assert [row.label for row in found.rows if row.whole] == ["a step, predicted", "a step, measured"]
    assert found.rows[-1].bars[0].share == 1.0
    assert found.rows[0].bars[0].share == pytest.approx(8000 / 120_000)
    assert "add up" in found.note


def test_an_older_run_has_no_categories_but_its_sum(made):
    runs = read([made("a", summary={"memory_by_category": None}), made("b")])
    found = table(bars.memory(runs))
    assert found["optimizer state"] == [(1, "3.9 KiB")]
    assert [run for run, _ in found["a step, predicted"]] == [0, 1]
    alone = bars.memory(runs[:1])
    assert list(table(alone)) == ["a step, predicted", "a step, measured"]
    assert "add up" not in alone.note


def test_a_run_that_ended_before_its_first_step_has_no_bars(made):
    (run,) = read([made("a", summary=None)])
    assert bars.memory([run]) is None
    assert bars.phases([run]) is None


def test_time_is_by_phase_and_what_no_phase_tells_of_is_a_row(made):
    phases = {"load": 2.0, "data_wait": 1.0, "step": 7.0}
    (run,) = read([made("a", summary={"phases": phases, "seconds": 12.0})])
    assert table(bars.phases([run])) == {
        "load": [(0, "2.00 s")], "data wait": [(0, "1.00 s")], "step": [(0, "7.00 s")], "all else": [(0, "2.00 s")],
        "the whole run": [(0, "12.0 s")],
    }  # fmt: skip
    (whole,) = read([made("b", summary={"phases": phases, "seconds": 10.0})])
    assert "all else" not in table(bars.phases([whole]))


def test_what_is_no_number_has_no_bar(made):
    (run,) = read([made("a", summary={"phases": {"load": "long", "step": 3.0}, "memory_by_category": 5})])
    assert table(bars.phases([run]))["step"] == [(0, "3.00 s")]
    assert "load" not in table(bars.phases([run]))
    assert bars.memory([run]) is not None
