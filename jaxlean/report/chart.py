"""A chart as the page draws it: places on two axes, paths of an SVG, what is said where the pointer is, and a table.

The SVG holds lines alone and is stretched to whatever width there is; texts are of the page, so they stay as large as
texts are. A chart needs no script to be seen.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxlean.report.axis import Axis, axis
from jaxlean.report.series import thin
from jaxlean.run.units import show_count, show_percent, show_seconds, show_usd

# The SVG's own units, along either axis.
SIZE = 10_000
# Points that are drawn of all lines of a chart together, and of one at least.
_POINTS, _LEAST = 1600, 120
# Rows of the table behind a chart.
_ROWS = 12
# Of a mark, where there are many.
_MEANING = {"best": "best step", "stopped": "stopped early", "broken": "not a number any more"}
# Digits of numbers that the pointer shows.
_DIGITS = 5


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        run: its place among the runs, which decides its colour.
        x, y: float64 [points], x ascending; NaN in y is a gap.
        dotted: its points are shown too: there are few.
        faint: it stands behind another of the same run, which says it in short.
        ended: its last point is shown too: it may end on another line.
    """

    run: int
    x: np.ndarray
    y: np.ndarray
    dotted: bool = False
    faint: bool = False
    ended: bool = False


@dataclass(frozen=True)
class Mark:
    """A step that something happened at.

    Attributes:
        run: whose.
        kind: best, stopped or broken.
        x, y: where.
        text: what happened.
    """

    run: int
    kind: str
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Attributes:
        key: its name in the page.
        title: what is shown.
        label: of the horizontal axis.
        kinds: (of x, of y): how their numbers are written, as of `axis.axis`.
        lines: at least one point is a number.
        runs: names of all runs.
        note: what a reader must know of how it is drawn.
        y_axis, x_axis: default: as the numbers ask for.
        unit: of y, where its ticks do not say it.
    """

    key: str
    title: str
    label: str
    kinds: tuple[str, str]
    lines: Sequence[Line]
    runs: Sequence[str]
    note: str = ""
    marks: Sequence[Mark] = ()
    y_axis: Axis | None = None
    unit: str = ""
    x_axis: Axis | None = None
    x: Axis = field(init=False)
    y: Axis = field(init=False)

    def __post_init__(self) -> None:
        x, y = self._all("x"), self._all("y")
        object.__setattr__(self, "x", self.x_axis or axis(x, kind=self.kinds[0], tight=True, log=False))
        object.__setattr__(self, "y", self.y_axis or axis(y, kind=self.kinds[1]))

    def _all(self, name: str) -> np.ndarray:
        return np.concatenate([getattr(line, name)[np.isfinite(line.y)] for line in self.lines])

    @property
    def axis_title(self) -> str:
        """What the horizontal axis shows."""
        return f"{self.label}, {self.x.unit}" if self.x.unit else self.label

    @property
    def scale(self) -> str:
        """What the vertical axis is in."""
        return ", ".join(filter(None, (self.unit, "log scale" if self.y.log else "")))

    @property
    def gutter(self) -> int:
        """Characters that the longest text beside the vertical axis has."""
        return max((len(text) for _, text in self.y.ticks), default=1)

    def drawn(self) -> list[dict[str, Any]]:
        """`run`, `path` and how it is drawn, of each line; under the others those that are faint, then the longer."""
        return [
            {"run": line.run, "path": self._path(line), "dots": self._dots(line), "faint": line.faint}
            for line in sorted(self.lines, key=lambda line: (not line.faint, -float(line.x[-1])))
        ]  # fmt: skip

    def keys(self) -> list[tuple[str, str]]:
        """(kind, words) that explain the marks: of one run what happened at each, of several what they mean."""
        if len(self.runs) == 1:
            return [(mark.kind, mark.text) for mark in self.marks]
        return list(dict.fromkeys((mark.kind, _MEANING[mark.kind]) for mark in self.marks))

    def placed(self) -> list[dict[str, Any]]:
        """The marks, with `left` and `top` in per cent."""
        found = []
        for mark in self.marks:
            left, top = self._place(np.array([mark.x]), np.array([mark.y]))
            if np.isfinite(top[0]):
                found.append({"mark": mark, "left": 100 * float(left[0]), "top": 100 * float(top[0])})
        return found

    def grid(self) -> str:
        """The path of the lines at the vertical axis' ticks."""
        return "".join(f"M0 {round(SIZE * (1 - place))}H{SIZE}" for place, _ in self.y.ticks)

    def pointed(self) -> dict[str, Any]:
        """What the pointer shows, for the page's script."""
        found = []
        for run, line in self._chief().items():
            chosen = self._chosen(line)
            chosen = chosen[np.isfinite(line.y[chosen])]
            points = [[_short(x), _short(y)] for x, y in zip(line.x[chosen], line.y[chosen], strict=True)]
            found.append({"run": run, "points": points})
        return {
            "x": [self.x.low, self.x.high], "y": [self.y.low, self.y.high], "log": self.y.log, "kinds": self.kinds,
            "label": self.label, "series": found,
        }  # fmt: skip

    def table(self) -> tuple[list[str], list[list[str]]]:
        """(heads, rows): the numbers at up to twelve places, of every run that has one near there."""
        chief = self._chief()
        grid = max(chief.values(), key=lambda line: len(line.x)).x
        grid = grid[np.unique(np.linspace(0, len(grid) - 1, _ROWS).round().astype(int))]
        near = float(np.diff(grid).max()) / 2 if len(grid) > 1 else np.inf
        show_x, show_y = SHOWN[self.kinds[0]], SHOWN[self.kinds[1]]
        rows = []
        for x in grid:
            row = [show_x(float(x))]
            for line in chief.values():
                at = int(np.argmin(np.abs(line.x - x)))
                value = float(line.y[at])
                row.append(show_y(value) if abs(line.x[at] - x) <= near and np.isfinite(value) else "-")
            rows.append(row)
        return [self.label, *(self.runs[run] for run in chief)], rows

    def said(self) -> list[str]:
        """The chart in words: of each run where it starts, its lowest and highest, where it ends."""
        show_x, show_y = SHOWN[self.kinds[0]], SHOWN[self.kinds[1]]
        found = []
        for run, line in self._chief().items():
            there = np.isfinite(line.y)
            x, y = line.x[there], line.y[there]
            if not len(y):
                continue
            low, high = int(np.argmin(y)), int(np.argmax(y))
            at = {name: f"{show_y(float(y[i]))} at {self.label} {show_x(float(x[i]))}"
                  for name, i in (("first", 0), ("lowest", low), ("highest", high), ("last", len(y) - 1))}  # fmt: skip
            found.append(f"{self.runs[run]}: " + ", ".join(f"{name} {words}" for name, words in at.items()))
        return found

    def _chief(self) -> dict[int, Line]:
        """Of each run the line that is nearest to what was logged."""
        return {line.run: line for line in sorted(self.lines, key=lambda line: (line.run, line.faint))}

    def _chosen(self, line: Line) -> np.ndarray:
        return thin(line.y, max(_POINTS // max(len(self.lines), 1), _LEAST))

    def _place(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From the left and from the top, 0 to 1."""
        return self.x.places(x), 1 - self.y.places(y)

    def _path(self, line: Line) -> str:
        chosen = self._chosen(line)
        left, top = self._place(line.x[chosen], line.y[chosen])
        return path(left, top)

    def _dots(self, line: Line) -> str:
        """A stroke without length at each point: round caps make a dot of it, however the SVG is stretched."""
        there = np.flatnonzero(np.isfinite(line.y))
        if not line.dotted:
            there = there[-1:] if line.ended else there[:0]
        return "".join(f"M{x} {y}h0.1" for x, y in _rounded(*self._place(line.x[there], line.y[there])))


def path(left: np.ndarray, top: np.ndarray) -> str:
    """An SVG path through places from 0 to 1; NaN ends one stretch, and the next number begins another.

    >>> path(np.array([0, 0.5, 0.75, 1]), np.array([1, 0.5, np.nan, 0]))
    'M0 10000L5000 5000M10000 0h0.1'
    """
    found = []
    ends = np.flatnonzero(~np.isfinite(top))
    for stretch in np.split(np.arange(len(top)), ends):
        points = [f"{x} {y}" for x, y in _rounded(left[stretch], top[stretch])]
        if points:
            found.append("M" + "L".join(points) + ("h0.1" if len(points) == 1 else ""))
    return "".join(found)


def _rounded(left: np.ndarray, top: np.ndarray) -> Iterable[tuple[int, int]]:
    there = np.isfinite(top)
    return ((round(SIZE * x), round(SIZE * y)) for x, y in zip(left[there].tolist(), top[there].tolist(), strict=True))


def _short(value: float) -> float | int:
    short = float(f"{value:.{_DIGITS}g}") if abs(value) < 10**_DIGITS else round(value)
    return int(short) if short == int(short) else short


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3e}"


# How a number of each kind is written where there is room for it.
SHOWN: Mapping[str, Any] = {
    "count": show_count, "number": _number, "share": show_percent, "usd": show_usd, "seconds": show_seconds,
}  # fmt: skip
