"""Axes: from numbers to places on one, and the round numbers that stand beside it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# How much larger than the smallest the largest number is where a logarithmic axis begins to show more.
_LOG_FROM = 20.0
# Of the range, what may lie between it and zero for the axis to start there.
_NEAR_ZERO = 0.5


@dataclass(frozen=True)
class Axis:
    """One direction of a chart.

    Attributes:
        low, high: its ends.
        log: whether equal factors, and not equal differences, are equally long.
        ticks: (place from 0 to 1, text) of the round numbers on it.
        unit: that the texts are in, where they do not say it themselves.
    """

    low: float
    high: float
    log: bool
    ticks: Sequence[tuple[float, str]]
    unit: str = ""

    def places(self, values: np.ndarray) -> np.ndarray:
        """float64 [points]: 0 at the low end, 1 at the high one; NaN stays."""
        if self.log:
            return (np.log10(values) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (values - self.low) / (self.high - self.low)


def axis(values: np.ndarray, *, kind: str = "number", tight: bool = False, log: bool | None = None) -> Axis:
    """The axis that these numbers are shown on.

    Args:
        values: float64 [points], at least one of them a number.
        kind: count, number, share (0 to 1, shown as per cent), usd or seconds.
        tight: it ends where the numbers end, not at round ones (that of steps, say). It starts at 0, and so do amounts.
        log: logarithmic; default: where the numbers are positive and lie further apart than 1 to 20.
    """
    there = values[np.isfinite(values)]
    low, high = float(there.min()), float(there.max())
    if log is None:
        log = not tight and kind == "number" and low > 0 and high / low >= _LOG_FROM
    if log:
        return _logarithmic(low, high)
    unit, one = _time(high) if kind == "seconds" else ("", 1.0)
    if tight or kind in ("usd", "count") or (low > 0 and low <= _NEAR_ZERO * (high - low)):
        low = min(low, 0.0)
    if low == high:  # one number: from 0 to it
        low, high = (min(low, 0.0), max(high, 0.0)) if low else (0.0, 1.0)
    step = _round_step((high - low) / one, whole=kind == "count") * one
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if not tight:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        low, high = first * step, last * step
    show = _shown(kind, step / one, max(abs(low), abs(high)) / one)
    marks = [(at * step - low) / (high - low) for at in range(first, last + 1)]
    return Axis(low, high, False, [(place, show(at * step / one)) for place, at in
                                   zip(marks, range(first, last + 1), strict=True)], unit)  # fmt: skip


def _round_step(length: float, *, whole: bool, most: int = 5) -> float:
    """A difference between ticks: 1, 2, 2.5 or 5 times a power of ten, such that there are `most` at most, about."""
    size = 10.0 ** math.floor(math.log10(length / most))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor * most >= length * (1 - 1e-9))
    return max(math.ceil(step), 1.0) if whole else step


def _logarithmic(low: float, high: float) -> Axis:
    """From a round number below to one above; ticks at powers of ten, of few of them also at 2 and 5 times these."""
    start, end = _round_down(low), _round_up(high)
    if start == end:
        end *= 10
    decades = math.log10(end / start)
    factors = (1, 2, 5) if decades <= 1.7 else (1,)
    every = math.ceil(decades / 6)
    powers = range(math.floor(math.log10(start) + 1e-9), math.ceil(math.log10(end) - 1e-9) + 1)
    ticks = [factor * 10.0**power for power in powers if power % every == 0 for factor in factors]
    there = [tick for tick in ticks if start * (1 - 1e-9) <= tick <= end * (1 + 1e-9)]
    return Axis(start, end, True, [(math.log10(tick / start) / decades, _plain(tick)) for tick in there])


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return next(power * factor for factor in (5, 2, 1) if power * factor <= value * (1 + 1e-9))


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= value * (1 - 1e-9))


def _time(longest: float) -> tuple[str, float]:
    """(the unit, its seconds) that so long a time is told in."""
    return ("s", 1.0) if longest < 180 else ("min", 60.0) if longest < 3 * 3600 else ("h", 3600.0)


def _shown(kind: str, step: float, largest: float) -> Callable[[float], str]:
    """How the ticks of a linear axis are written: all with as many digits as the step between them has."""
    if kind == "share":
        digits = max(_digits(step) - 2, 0)
        return lambda value: f"{100 * value:.{digits}f} %"
    if kind == "usd":
        return lambda value: f"${value:,.{_digits(step)}f}" if value else "$0"
    if largest >= 1e5 or largest < 1e-3:
        return _large if kind == "count" else _plain
    return lambda value: f"{value:,.{_digits(step)}f}" if value else "0"


def _digits(step: float) -> int:
    """Behind the point, that tell multiples of the step apart.

    >>> [_digits(step) for step in (0.25, 0.1, 2.5, 20)]
    [2, 1, 1, 0]
    """
    return next((digits for digits in range(12) if abs(round(step, digits) - step) < step * 1e-6), 12)


def _plain(value: float) -> str:
    """A round number in as few characters as it takes.

    >>> [_plain(value) for value in (0.05, 20.0, 2e-5, 3e8, 0.0)]
    ['0.05', '20', '2e-5', '3e8', '0']
    """
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.10g}"
    mantissa, _, exponent = f"{value:.10e}".partition("e")
    return f"{float(mantissa):.4g}e{int(exponent)}"


def _large(value: float) -> str:
    """A large count.

    >>> _large(250_000), _large(1_500_000)
    ('250k', '1.5M')
    """
    if value == 0:
        return "0"
    return f"{value / 1e6:,.10g}M" if abs(value) >= 1e6 else f"{value / 1e3:,.10g}k"
