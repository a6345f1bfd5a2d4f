"""Thinning keeps peaks and gaps; means are those of the neighbours."""

import numpy as np
import pytest

from jaxlean.report.series import rate, smooth, thin, window_of


def test_few_points_are_all_drawn():
    assert thin(np.arange(10.0), 10).tolist() == list(range(10))


@pytest.mark.parametrize("most", [4, 40, 400])
def test_of_many_points_no_peak_is_lost(most):
    values = np.sin(np.arange(100_000) / 1000)
    values[71_234], values[3] = 50.0, -50.0
    chosen = thin(values, most)
    assert len(chosen) <= most
    assert {3, 71_234, 0, len(values) - 1} <= set(chosen.tolist())
    assert (np.diff(chosen) > 0).all()


def test_a_gap_stays_a_gap():
    values = np.ones(1000)
    values[500] = np.nan
    assert 500 in thin(values, 40)


def test_a_mean_goes_over_the_neighbours_and_at_the_ends_over_those_there_are():
    assert smooth(np.array([1.0, 2, 6, 4]), 3).tolist() == [1.5, 3.0, 4.0, 5.0]
    found = smooth(np.array([1.0, np.nan, 3.0, 5.0]), 3)
    assert found[[0, 2, 3]].tolist() == [1.0, 4.0, 4.0]
    assert np.isnan(found[1])
    assert smooth(np.array([1.0, 2.0]), 41).tolist() == [1.5, 1.5]
    assert np.isnan(smooth(np.array([np.nan, np.nan]), 3)).all()


def test_a_window_is_odd_and_a_share_of_the_points():
    assert {window_of(n) % 2 for n in range(2000)} == {1}
    assert window_of(50, 0.1) == 5


def test_a_rate_is_amounts_over_time_and_no_mean_of_rates():
    # 100 tokens in 1 s, then 100 in 0.01 s since two lines were written at once
    found = rate(np.array([100.0, 100.0, 100.0]), np.array([100.0, 10_000.0, np.nan]), 3)
    assert found[0] == pytest.approx(200 / 1.01)
    assert np.isnan(found[2])
