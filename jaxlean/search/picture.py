"""The search as a picture: how trials went and where they were given up; of several objectives, the Pareto front."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlean.config import SearchSection
from jaxlean.config.search import SMALL

_BEST, _DONE, _PRUNED = "#c1121f", "#1d3557", "#a8b2bd"


def draw(rows: Sequence[Mapping[str, Any]], search: SearchSection, best: Sequence[int], file: Path) -> None:
    """Write it as PNG. Args: rows: as of `report.row_of`; best: their numbers."""
    from matplotlib.figure import Figure  # without pyplot: no display, no state

    objectives = search.objectives
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots(1, 2)
    if len(objectives) == 1:
        _curves(axes[0], rows, objectives[0], best)
        _progress(axes[1], rows, objectives[0])
    else:
        _front(axes[0], rows, objectives[0], objectives[1], best)
        if len(objectives) > 2:
            _front(axes[1], rows, objectives[0], objectives[2], best)
        else:
            _progress(axes[1], rows, objectives[0])
    figure.savefig(file, dpi=120)


def _points(row: Mapping[str, Any], objective: str) -> list[tuple[int, float]]:
    """(step, value) of a trial, its end included."""
    points = [(int(step), value) for step, value in row["rungs"].items()]
    end = row["values"].get(objective)
    return [*points, *([(row["steps"], end)] if end is not None else [])]


def _curves(axes: Any, rows: Sequence[Mapping[str, Any]], objective: str, best: Sequence[int]) -> None:
    """A line a trial, over its steps."""
    for row in sorted(rows, key=lambda row: (row["number"] in best, row["state"] == "complete")):
        points = _points(row, objective)
        if not points:
            continue
        colour = _BEST if row["number"] in best else _DONE if row["state"] == "complete" else _PRUNED
        name = f"best: trial {row['number']}" if row["number"] in best else None
        axes.plot(*zip(*points, strict=True), "o-", color=colour, linewidth=1, markersize=3, label=name)
    axes.set(xlabel="step", ylabel=objective, title="trials (grey: given up)", xscale="log")
    rungs = sorted({step for row in rows for step, _ in _points(row, objective)})
    axes.set_xticks(rungs, [f"{step:,}" for step in rungs])
    axes.set_xticks([], minor=True)
    if objective == "loss":
        axes.set_yscale("log")
    if best:
        axes.legend(frameon=False)


def _progress(axes: Any, rows: Sequence[Mapping[str, Any]], objective: str) -> None:
    """The best so far, over the steps of all trials."""
    sign = 1 if objective in SMALL else -1
    taken, found, best = 0, [], None
    for row in sorted(rows, key=lambda row: row["number"]):
        taken += row["steps"] or 0
        value = row["values"].get(objective)
        if value is not None and (best is None or sign * value < sign * best):
            best = value
        if best is not None:
            found.append((taken, best))
    if found:
        axes.step(*zip(*found, strict=True), where="post", color=_DONE)
    axes.set(xlabel="steps of all trials", ylabel=f"best {objective} so far", title="what it took")


def _front(axes: Any, rows: Sequence[Mapping[str, Any]], first: str, second: str, best: Sequence[int]) -> None:
    """Two objectives; the front is of all that there are."""
    done = [row for row in rows if row["values"]]
    for names, colour, label in ((False, _PRUNED, "beaten"), (True, _BEST, "beaten by none")):
        chosen = [row for row in done if (row["number"] in best) == names]
        axes.scatter(
            [row["values"][second] for row in chosen], [row["values"][first] for row in chosen], color=colour, s=18,
            label=label,
        )  # fmt: skip
    front = sorted((row["values"][second], row["values"][first]) for row in done if row["number"] in best)
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=_BEST, linewidth=0.8)
    axes.set(xlabel=second, ylabel=first, title=f"{first} against {second}")
    axes.legend(frameon=False)
