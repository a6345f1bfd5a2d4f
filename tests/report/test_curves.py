"""Which line charts there are of runs, and what they show."""

import numpy as np
import pytest

from jaxlean.report import curves
from jaxlean.report.read import read


def charts(found):
    return {chart.key: chart for chart in found}


def evaluated(steps, **values):
    return [{"step": step, "eval_loss": 1 / (step + 1), **values} for step in steps]


def test_losses_of_training_and_held_out_rows_are_on_one_scale(made):
    found = charts(curves.learning(read([made("a", steps=100)])))
    assert list(found) == ["loss", "held_out"]
    assert (found["loss"].y.low, found["loss"].y.high) == (found["held_out"].y.low, found["held_out"].y.high)
    assert found["loss"].scale == "nats per token, log scale"
    assert found["held_out"].lines[0].x.tolist() == [0, 20, 40, 60, 80, 100]
    assert found["held_out"].lines[0].dotted


def test_what_a_student_learns_is_another_loss_than_what_it_is_measured_by(made):
    found = charts(curves.learning(read([made("a", steps=100, config={"distill": {"teacher": {"path": "t"}}})])))
    assert found["held_out"].note == ""


def test_each_logged_loss_stands_behind_its_mean(made):
    (loss, _) = curves.learning(read([made("a", steps=400)]))
    thin, thick = loss.lines
    assert (thin.faint, thick.faint) == (True, False)
    assert loss.note == "Thick: the mean of 9 logged values; thin: each of them."
    np.testing.assert_allclose(thick.y[4], thin.y[:9].mean())


def test_of_many_runs_only_the_means_are_drawn(made):
    runs = read([made(str(place), steps=400) for place in range(5)])
    loss = charts(curves.learning(runs))["loss"]
    assert [line.faint for line in loss.lines] == [False] * 5
    assert loss.note == "Each point is the mean of 9 logged values."


def test_two_evaluations_are_no_curve(made, line):
    runs = read([made("a", lines=[line(1), line(2), *evaluated([0, 2])])])
    assert list(charts(curves.learning(runs))) == ["loss"]


def test_qualities_measured_on_the_way_are_shares(made, line):
    runs = read([made("a", lines=[line(1), *evaluated(range(5), eval_accuracy=0.5, eval_macro_f1=0.4, eval_mrr=0.1)])])
    found = charts(curves.learning(runs))
    assert list(found)[2:] == ["accuracy", "macro_f1"], "the first two"
    assert found["accuracy"].y.ticks[-1][1].endswith(" %")


def test_best_step_and_early_stop_are_marked_where_the_evaluations_are(made):
    stopped = {"step": 40, "rule": "patience", "message": "no better"}
    found = charts(curves.learning(read([made("a", summary={"best_step": 20, "stopped_early": stopped})])))
    assert found["loss"].marks == []
    assert [(mark.kind, mark.x) for mark in found["held_out"].marks] == [("best", 20.0), ("stopped", 40.0)]


def test_where_a_loss_was_no_number_is_marked(made, line):
    lines = [line(1), line(2, loss=4.0), line(3, loss=None)]
    found = charts(curves.learning(read([made("a", lines=lines, summary={"status": "diverged", "steps": 2})])))
    (mark,) = found["loss"].marks
    assert (mark.kind, mark.x, mark.y, mark.text) == ("broken", 2.0, 4.0, "not a number any more: step 3")


def test_cost_is_over_time_and_of_several_runs_so_is_the_loss(made):
    (alone,) = curves.cost(read([made("a")]))
    assert (alone.key, alone.axis_title) == ("usd", "time, s")
    assert alone.lines[0].y[-1] == pytest.approx(18 / 3600)
    several = charts(curves.cost(read([made("b"), made("c")])))
    assert [line.ended for line in several["usd"].lines] == [True, True], "one may lie on the other"
    assert several["loss_by"].axis_title == "cost"


def test_where_no_price_is_known_the_loss_is_over_time(made, line):
    free = [line(step, usd=None) for step in range(1, 10)]
    found = charts(curves.cost(read([made("a", lines=free), made("b", lines=free)])))
    assert list(found) == ["loss_by"]
    assert found["loss_by"].axis_title == "time, s"


def test_the_course_of_training(made):
    found = charts(curves.course(read([made("a")])))
    assert list(found) == ["learning_rate", "grad_norm", "tokens_per_second"]
    assert not found["learning_rate"].y.log
    np.testing.assert_allclose(found["tokens_per_second"].lines[0].y, 1000.0)


def test_charts_over_steps_begin_and_end_at_the_same(made):
    runs = read([made("a", steps=30)])
    ends = {(chart.x.low, chart.x.high) for chart in (*curves.learning(runs), *curves.course(runs))}
    assert ends == {(0.0, 30.0)}, "of which the last evaluation is at 20"
    assert curves.course(runs)[0].y.low == 0.0


def test_losses_in_different_units_say_none(made):
    runs = read([made("a"), made("b", config={"task": "classify"})])
    assert charts(curves.learning(runs))["loss"].unit == ""


@pytest.mark.parametrize("lines", [[], [{"step": 1, "loss": None}], [{"step": 0, "eval_loss": 1.0}]])
def test_a_run_that_has_logged_nothing_has_no_charts(made, lines):
    runs = read([made("a", lines=lines, summary=None)])
    assert [curves.learning(runs), curves.course(runs), curves.cost(runs)] == [[], [], []]
