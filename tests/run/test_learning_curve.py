"""Extrapolated curves against curves that are known."""

import numpy as np
import pytest

from jaxlean.run.learning_curve import MIN_POINTS, ending


def curve(steps: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
    return a + b * (steps / 50.0) ** -c


def seen(rng: np.random.Generator, noise: float, upto: float) -> tuple[list[tuple[int, float]], float]:
    """(points of a run of 1,000 steps up to a share of it, what a measurement at its end gives)."""
    a, b, c = rng.uniform(0.3, 2), rng.uniform(0.5, 3), rng.uniform(0.2, 1.2)
    steps = np.arange(50, int(1000 * upto) + 1, 50)
    losses = curve(steps, a, b, c) + noise * rng.standard_normal(len(steps))
    end = float(curve(np.asarray(1000.0), a, b, c)) + noise * float(rng.standard_normal())
    return list(zip(steps.tolist(), losses.tolist(), strict=True)), end


@pytest.mark.parametrize("noise", [0.0, 0.002, 0.01, 0.05])
@pytest.mark.parametrize("upto", [0.3, 0.5, 0.7])
def test_a_bound_of_95_percent_is_wrong_in_no_more_than_that(noise, upto):
    rng, runs = np.random.default_rng(1), 200
    wrong = 0
    for _ in range(runs):
        points, end = seen(rng, noise, upto)
        wrong += end < np.quantile(ending(points, 1000), 0.05)
    # a bound that is wrong in 5 % is so in 10 of 200, and in more than 18 once in 100 times
    assert wrong <= 18


def test_a_clean_curve_is_continued():
    steps = np.arange(50, 501, 50)
    points = list(zip(steps.tolist(), curve(steps, 1.0, 2.0, 0.5).tolist(), strict=True))
    ends = ending(points, 2000)
    want = float(curve(np.asarray(2000.0), 1.0, 2.0, 0.5))
    assert np.median(ends) == pytest.approx(want, abs=0.01)
    assert np.quantile(ends, 0.05) < want < np.quantile(ends, 0.95)
    assert (np.diff(ends) >= 0).all()


def test_doubt_grows_with_noise_and_with_what_lies_ahead():
    rng = np.random.default_rng(0)
    steps = np.arange(50, 501, 50)
    error = rng.standard_normal(len(steps))

    def width(noise: float, last: int) -> float:
        losses = curve(steps, 1.0, 2.0, 0.5) + noise * error
        ends = ending(list(zip(steps.tolist(), losses.tolist(), strict=True)), last)
        return float(np.quantile(ends, 0.95) - np.quantile(ends, 0.05))

    assert width(0.001, 1000) < width(0.01, 1000) < width(0.05, 1000)
    assert width(0.01, 600) < width(0.01, 5000)


def test_a_curve_that_rises_is_not_said_to_fall_to_nothing():
    points = [(step, 2.0 + step / 1000) for step in range(50, 501, 50)]
    assert np.quantile(ending(points, 1000), 0.05) > 1.5


def test_nothing_is_said_of_too_little():
    points = [(10 * n, 3.0 - 0.1 * n) for n in range(1, MIN_POINTS)]
    assert ending(points, 100) is None
    assert ending([*points, (0, 5.0), (90, float("nan"))], 100) is None
    assert ending([(10 * n, 3.0 - 0.1 * n) for n in range(1, 9)], 80) is None  # it is there already
    assert ending([*points, (60, 2.4)], 100) is not None


def test_the_same_points_say_the_same():
    points = [(50 * n, 1 + 2 * n**-0.5) for n in range(1, 9)]
    np.testing.assert_array_equal(ending(points, 1000), ending(list(reversed(points)), 1000))
