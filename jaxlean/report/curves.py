"""The line charts that there are of runs: what they learned, how they went, what that cost."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from jaxlean.report import facts
from jaxlean.report.axis import Axis, axis
from jaxlean.report.chart import Chart, Line, Mark
from jaxlean.report.read import Run, number
from jaxlean.report.series import rate, smooth, window_of

# Of more runs the single lines would hide each other: their means alone are drawn.
_MOST_WITH_EACH_LINE = 4
# Of the lines, those that the speed at one of them is a mean of: as many as lie between two checkpoints.
_OF_SPEED = 1 / 10
# Measured at fewer steps it is no curve: the table of figures has them.
_LEAST_EVALUATIONS = 3
# What an evaluation measures beside its loss, most telling first.
_QUALITY = ("exact_match", "accuracy", "f1", "macro_f1", "mrr")
_STEP = "step"
Points = tuple[np.ndarray, np.ndarray]


def learning(runs: Sequence[Run]) -> list[Chart]:
    """Loss of training and on held-out rows, on one scale, and the first two qualities measured on the way."""
    trained = _smoothed(runs, _STEP, "loss")
    held = _measured(runs, "loss")
    both = _values([*trained, *held])
    # what a student learns from its teacher is another loss than the one it is measured by
    alike = len(both) and held and trained and not any(run.setting("distill") for run in runs)
    shared = axis(both) if alike else None
    unit = _loss_unit(runs)
    found = []
    if trained:
        note = _means(trained)
        marks = _broken(runs, trained) if held else [*_broken(runs, trained), *_chosen(runs, trained)]
        found.append(_over_steps(runs, "loss", "Training loss", trained, note=note, marks=marks, y_axis=shared,
                                 unit=unit))  # fmt: skip
    if held:
        note = "On the same scale as the training loss." if alike else ""
        marks = _chosen(runs, held)
        found.append(
            _over_steps(runs, "held_out", "Held-out loss", held, note=note, marks=marks, y_axis=shared, unit=unit)
        )
    qualities = [(name, lines) for name in _QUALITY if (lines := _measured(runs, name))]
    for name, lines in qualities[:2]:
        title = f"Held-out {name.replace('_', ' ')}"
        found.append(_over_steps(runs, name, title, lines, kind="share", marks=_chosen(runs, lines)))
    return found


def course(runs: Sequence[Run]) -> list[Chart]:
    """Learning rate, norm of the gradient and speed, over steps."""
    found = []
    rates, norms = _lines(runs, _STEP, "learning_rate"), _smoothed(runs, _STEP, "grad_norm")
    if rates:
        scale = axis(np.append(_values(rates), 0.0), log=False)
        found.append(_over_steps(runs, "learning_rate", "Learning rate", rates, y_axis=scale))
    if norms:
        found.append(_over_steps(runs, "grad_norm", "Gradient norm", norms, note=_means(norms)))
    speeds = [_speed(place, run) for place, run in enumerate(runs)]
    lines = [line for line in speeds if np.isfinite(line.y).any()]
    if lines:
        note = _each_point(window_of(len(line.x), _OF_SPEED) for line in lines)
        found.append(_over_steps(runs, "tokens_per_second", "Tokens per second", lines, kind="count", note=note))
    return found


def cost(runs: Sequence[Run]) -> list[Chart]:
    """Dollars over time; of several runs also the loss that so many dollars, or so much time, came to."""
    found = []
    spent = _lines(runs, "seconds", "usd")
    if spent:
        spent = [replace(line, ended=len(runs) > 1) for line in spent]
        note = "From the first step that was logged; before it the run loads, evaluates and compiles."
        found.append(Chart("usd", "Cost", "time", ("seconds", "usd"), spent, _names(runs), note))
    if len(runs) > 1:
        by, label, kind = ("usd", "cost", "usd") if len(spent) == len(runs) else ("seconds", "time", "seconds")
        lines = [line for line in _smoothed(runs, by, "loss") if not line.faint]
        if lines:
            found.append(Chart("loss_by", f"Training loss by {label}", label, (kind, "number"), lines, _names(runs),
                               _means(lines), unit=_loss_unit(runs)))  # fmt: skip
    return found


def _over_steps(
    runs: Sequence[Run],
    key: str,
    title: str,
    lines: Sequence[Line],
    *,
    kind: str = "number",
    note: str = "",
    marks: Sequence[Mark] = (),
    y_axis: Axis | None = None,
    unit: str = "",
) -> Chart:
    return Chart(key, title, _STEP, ("count", kind), lines, _names(runs), note, marks, y_axis, unit, _steps(runs))


def _steps(runs: Sequence[Run]) -> Axis:
    """One for all charts, however far each of them goes."""
    steps = [line["step"] for run in runs for line in (*run.lines, *run.evaluations)]
    return axis(np.array(steps, np.float64), kind="count", tight=True, log=False)


def points(run: Run, x: str, y: str) -> Points:
    """Two numbers of a run's training lines; a line without the first is left out, one without the second is a gap."""
    found = [(at, number(line.get(y))) for line in run.lines if (at := number(line.get(x))) is not None]
    return (
        np.array([at for at, _ in found], np.float64),
        np.array([np.nan if value is None else value for _, value in found], np.float64),
    )


def _lines(runs: Sequence[Run], x: str, y: str) -> list[Line]:
    found = ((place, *points(run, x, y)) for place, run in enumerate(runs))
    return [Line(place, at, value) for place, at, value in found if np.isfinite(value).any()]


def _smoothed(runs: Sequence[Run], x: str, y: str) -> list[Line]:
    """What is noisy: each line of metrics.jsonl, faintly, and the mean around it."""
    found = []
    for line in _lines(runs, x, y):
        window = window_of(len(line.y))
        if window > 1 and len(runs) <= _MOST_WITH_EACH_LINE:
            found.append(Line(line.run, line.x, line.y, faint=True))
        found.append(Line(line.run, line.x, smooth(line.y, window)))
    return found


def _measured(runs: Sequence[Run], name: str) -> list[Line]:
    """What evaluations found; nothing where none of the runs has enough of them for a curve."""
    found = []
    for place, run in enumerate(runs):
        there = [(line["step"], value) for line in run.evaluations if (value := number(line.get(name))) is not None]
        if there:
            steps, values = zip(*there, strict=True)
            found.append(Line(place, np.array(steps, np.float64), np.array(values, np.float64), dotted=True))
    return found if any(len(line.x) >= _LEAST_EVALUATIONS for line in found) else []


def _speed(place: int, run: Run) -> Line:
    """Tokens over the time they took: lines that were written at once, with a checkpoint, are no faster for it."""
    steps, speeds = points(run, _STEP, "tokens_per_second")
    _, totals = points(run, _STEP, "total_tokens")
    return Line(place, steps, rate(np.diff(totals, prepend=0.0), speeds, window_of(len(steps), _OF_SPEED)))


def _means(lines: Sequence[Line]) -> str:
    return _each_point((window_of(len(line.x)) for line in _mains(lines)), any(line.faint for line in lines))


def _each_point(windows: Iterable[int], faint: bool = False) -> str:
    """How lines of means came about."""
    several = sorted(set(windows) - {1})
    if not several:
        return ""
    how_many = str(several[0]) if len(several) == 1 else f"{several[0]} to {several[-1]}"
    words = f"the mean of {how_many} logged values"
    return f"Thick: {words}; thin: each of them." if faint else f"Each point is {words}."


def _chosen(runs: Sequence[Run], lines: Sequence[Line]) -> list[Mark]:
    """The best step, and the one that a run was stopped early after."""
    found = []
    for line in _mains(lines):
        summary = runs[line.run].summary
        best, stopped = number(summary.get("best_step")), summary.get("stopped_early")
        if best is not None:
            found.append(_mark(line, "best", best, f"best: step {best:,.0f}"))
        if isinstance(stopped, dict) and (step := number(stopped.get("step"))) is not None:
            found.append(_mark(line, "stopped", step, f"stopped early: step {step:,.0f}"))
    return found


def _broken(runs: Sequence[Run], lines: Sequence[Line]) -> list[Mark]:
    """Where a loss, or its gradient, was no number any more."""
    found = []
    for line in _mains(lines):
        run = runs[line.run]
        steps = number(run.summary.get("steps"))
        if run.status == "diverged" and steps is not None:
            found.append(_mark(line, "broken", steps, f"not a number any more: step {steps + 1:,.0f}"))
    return found


def _mark(line: Line, kind: str, step: float, text: str) -> Mark:
    """At the step, as high as the line is nearest to it."""
    there = np.flatnonzero(np.isfinite(line.y))
    near = there[np.argmin(np.abs(line.x[there] - step))]
    return Mark(line.run, kind, float(line.x[near]), float(line.y[near]), text)


def _mains(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if not line.faint]


def _values(lines: Sequence[Line]) -> np.ndarray:
    return np.concatenate([line.y[np.isfinite(line.y)] for line in lines] or [np.empty(0)])


def _loss_unit(runs: Sequence[Run]) -> str:
    """Nothing where the runs differ in it."""
    units = {facts.loss_unit(run) for run in runs}
    return units.pop() if len(units) == 1 else ""


def _names(runs: Sequence[Run]) -> list[str]:
    return [run.name for run in runs]
