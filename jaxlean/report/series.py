"""Many points as few that look the same, and the means of neighbours. Missing numbers are gaps."""

import numpy as np

# Of a line's points, those that its mean goes over.
_SHARE = 1 / 25


def thin(values: np.ndarray, most: int) -> np.ndarray:
    """Which points to draw: int64 [at most `most`, or a few more for the gaps], ascending.

    Of each span of points the first and last, the lowest and highest; so no peak is lost, however many there are.

    Args:
        values: float64 [points]; NaN where there is none.
        most: points to draw, 4 or more.

    >>> thin(np.array([1.0, 2, 9, 2, 1, 0, 1, 2]), 4).tolist()
    [0, 2, 5, 7]
    """
    if len(values) <= most:
        return np.arange(len(values))
    chosen: set[int] = set()
    for span in np.array_split(np.arange(len(values)), most // 4):
        found = values[span]
        missing = np.isnan(found)
        if missing.any():
            chosen.add(int(span[np.argmax(missing)]))
        if not missing.all():
            there = span[~missing]
            chosen |= {int(there[0]), int(there[np.argmin(values[there])]), int(there[np.argmax(values[there])]),
                       int(there[-1])}  # fmt: skip
    return np.array(sorted(chosen))


def window_of(num_points: int, share: float = _SHARE) -> int:
    """Points that a mean goes over: an odd number; 1 where there are too few for one.

    >>> window_of(30), window_of(100), window_of(1000)
    (1, 5, 41)
    """
    return 2 * int(num_points * share / 2) + 1


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the `window` points around each, of fewer at the ends; float64 [points], NaN where there was none."""
    missing = np.isnan(values)
    if window <= 1 or missing.all():
        return values
    width = min(window, 2 * len(values) - 1)
    kernel, half = np.ones(width), width // 2
    sums = np.convolve(np.where(missing, 0.0, values), kernel)[half : half + len(values)]
    counts = np.convolve((~missing).astype(float), kernel)[half : half + len(values)]
    return np.where(missing, np.nan, sums / np.maximum(counts, 1))


def rate(amounts: np.ndarray, rates: np.ndarray, window: int) -> np.ndarray:
    """How fast it went around each point: the amounts of `window` points over the time that these took.

    A mean of the rates would be that of the shortest moments: two values that came at once say little of either.

    Args:
        amounts: float64 [points], of each.
        rates: float64 [points], amounts by time; NaN where it is not known.
        window: odd.
    """
    known = np.isfinite(rates) & (rates > 0) & (amounts > 0)
    taken = np.where(known, amounts / np.where(known, rates, 1.0), np.nan)
    return smooth(np.where(known, amounts, np.nan), window) / smooth(taken, window)
