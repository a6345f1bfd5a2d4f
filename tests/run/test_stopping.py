"""Each rule on curves made for it, and on those that it must leave alone."""

import math

import pytest

from jaxlean.config import StoppingSection
from jaxlean.run.stopping import Stop, best_of, stop_of

FALLING = [(10 * n, 1.0 + 2.0 * n**-0.7) for n in range(1, 21)]


def first(section: StoppingSection, points, num_steps: int = 1000, **how) -> Stop | None:
    """As a run would be stopped: after which evaluation, if any."""
    for end in range(1, len(points) + 1):
        metric = how.get("metric")
        found = stop_of(
            section, points[:end], num_steps=num_steps, **how | ({"metric": metric[:end]} if metric else {})
        )
        if found is not None:
            assert found.step == points[end - 1][0]
            return found
    return None


@pytest.mark.parametrize(
    "rules",
    [{"patience": 1}, {"plateau": 0.001}, {"divergence": 1.01}, {"target": 1.3}],
    ids=lambda rules: next(iter(rules)),
)
def test_a_run_that_learns_goes_on(rules):
    assert first(StoppingSection(**rules), FALLING, num_steps=200) is None
    assert stop_of(StoppingSection(**rules), [], num_steps=200) is None


def test_patience_counts_evaluations_that_are_not_better():
    points = [(10, 2.0), (20, 1.5), (30, 1.6), (40, 1.45), (50, 1.5), (60, 1.46), (70, 1.47), (80, 1.0)]
    stop = first(StoppingSection(patience=3), points)
    assert (stop.step, stop.rule) == (70, "patience")
    assert stop.message == "3 evaluations after step 40, whose 1.4500 is the best, not better"
    assert first(StoppingSection(patience=4), points) is None
    stop = first(StoppingSection(patience=3, min_delta=0.1), points)
    assert stop.step == 50
    assert stop.message.endswith("after step 20, whose 1.5000 is the best, not better by more than 0.1")


def test_patience_counts_what_is_not_a_number():
    points = [(10, 1.0), (20, math.nan), (30, math.inf), (40, math.nan), (50, 0.5)]
    stop = first(StoppingSection(patience=3), points)
    assert (stop.step, stop.rule) == (40, "patience")
    assert stop.message == "3 evaluations after step 10, whose 1.0000 is the best, not better"
    assert first(StoppingSection(patience=4), points) is None
    assert first(StoppingSection(patience=2), [(10, math.nan), (20, 1.0), (30, math.nan), (40, 0.5)]) is None
    stop = first(StoppingSection(patience=2), [(10, math.nan), (20, math.nan)])
    assert stop == Stop(20, "patience", "none of 2 evaluations came to a number")
    losses = [(10 * n, 1.0 / n) for n in range(1, 4)]
    scores = [(10, 0.5), (20, math.nan), (30, -math.inf)]
    assert first(StoppingSection(patience=2), losses, metric=scores, more=True).step == 30


def test_patience_by_a_score_of_which_more_is_better():
    losses = [(10 * n, 2.0 - 0.1 * n) for n in range(1, 6)]
    scores = list(zip([10, 20, 30, 40, 50], [0.5, 0.6, 0.6, 0.55, 0.6], strict=True))
    stop = first(StoppingSection(patience=2), losses, metric=scores, more=True)
    assert stop.step == 40
    assert stop.message == "2 evaluations after step 20, whose 0.6000 is the best, not better"


def test_plateau_is_a_line_that_hardly_falls():
    flat = [*FALLING[:6], *((60 + 10 * n, 1.57 + 0.002 * (-1) ** n) for n in range(1, 8))]
    stop = first(StoppingSection(plateau=0.01, plateau_window=6), flat)
    assert stop.rule == "plateau"
    assert stop.step == 110
    assert "the last 6 evaluations falls by 0.00" in stop.message
    assert first(StoppingSection(plateau=0.01, plateau_window=20), flat) is None


def test_divergence():
    points = [(10, 2.0), (20, 1.0), (30, 1.4), (40, 1.6)]
    stop = first(StoppingSection(divergence=1.5, min_steps=1000), points)
    assert (stop.step, stop.rule) == (40, "divergence")
    assert stop.message == "the held-out loss 1.6000 of step 40 is above 1.5 x 1.0000, the best, of step 20"
    assert first(StoppingSection(divergence=2.0), points) is None
    stop = first(StoppingSection(divergence=2.0), [(10, 2.0), (20, math.nan)])
    assert stop.message == "the held-out loss of step 20 is not a number"
    assert first(StoppingSection(patience=5), [(10, 2.0), (20, math.nan)]) is None


def test_a_run_that_will_not_beat_another_is_told_early():
    stop = first(StoppingSection(target=0.9), FALLING, num_steps=200)  # its offset is 1
    assert stop.rule == "target"
    assert stop.step <= 100
    assert stop.message.startswith("this run will not beat 0.9: its curve ends at 1.2")
    assert "95% sure not below 1.2" in stop.message
    assert first(StoppingSection(target=1.4), FALLING, num_steps=200) is None


def test_nothing_but_divergence_is_said_before_min_steps():
    points = [(10, 1.0), (20, 1.0), (30, 1.0), (40, 1.0)]
    assert first(StoppingSection(patience=1), points).step == 20
    assert first(StoppingSection(patience=1, min_steps=35), points).step == 40
    gone = [*points[:3], (40, 0.5), (50, 0.4)]
    assert first(StoppingSection(patience=1, min_steps=35), gone) is None  # what it lacked once, it has had since


def test_the_best_is_the_first_of_equals():
    assert best_of([]) is None
    assert best_of([(10, math.nan)]) is None
    assert best_of([(10, 0.5), (20, 0.7), (30, 0.7)], more=True) == (20, 0.7)
