"""Axes: round numbers that stand where they say, and cover what is shown."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.report.axis import axis


def texts(found):
    return [text for _, text in found.ticks]


@pytest.mark.parametrize(
    ("values", "options", "wanted"),
    [
        ([0.0, 0.93], {"kind": "share"}, ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]),
        ([0.0011, 0.0043], {"kind": "usd"}, ["$0", "$0.001", "$0.002", "$0.003", "$0.004", "$0.005"]),
        ([2.0, 516.0], {"kind": "count", "tight": True}, ["0", "200", "400"]),
        ([1.0, 3.0], {"kind": "count", "tight": True}, ["0", "1", "2", "3"]),
        ([40.0, 300.0], {"kind": "seconds", "tight": True}, ["0", "1", "2", "3", "4", "5"]),
        ([0.2, 8.0], {}, ["0.1", "0.2", "0.5", "1", "2", "5", "10"][1:]),
        ([0.003, 400.0], {}, ["0.01", "0.1", "1", "10", "100"]),
        ([0.0, 2_400_000.0], {"kind": "count"}, ["0", "500k", "1M", "1.5M", "2M", "2.5M"]),
        ([5.0, 5.0], {"tight": True}, ["0", "1", "2", "3", "4", "5"]),
        ([-1.0, 1.0], {}, ["-1.0", "-0.5", "0", "0.5", "1.0"]),
    ],
    ids=str,
)
def test_ticks_are_round_numbers(values, options, wanted):
    assert texts(axis(np.array(values), **options)) == wanted


def test_a_time_is_told_in_the_unit_that_it_is_long_in():
    assert [axis(np.array([0, high]), kind="seconds").unit for high in (90.0, 900.0, 40_000.0)] == ["s", "min", "h"]


def test_a_missing_number_stays_one():
    found = axis(np.array([1.0, np.nan, 2.0]))
    assert np.isnan(found.places(np.array([np.nan]))).all()


def test_places_of_a_logarithmic_axis_are_of_factors():
    found = axis(np.array([0.1, 1000.0]))
    assert found.log
    assert found.places(np.array([found.low, found.high])).tolist() == [0.0, 1.0]
    tenfold = np.diff(found.places(np.array([0.1, 1.0, 10.0, 100.0])))
    np.testing.assert_allclose(tenfold, tenfold[0])


@given(
    st.lists(st.floats(-1e9, 1e9).filter(lambda x: x == 0 or abs(x) > 1e-9), min_size=1, max_size=20),
    st.sampled_from(["count", "number", "share", "usd", "seconds"]),
    st.booleans(),
)
def test_whatever_the_numbers_are_they_lie_on_the_axis_and_its_ticks_are_few(values, kind, tight):
    if kind != "number":
        values = [abs(value) for value in values]
    found = axis(np.array(values), kind=kind, tight=tight)
    places = found.places(np.array(values))
    assert ((places >= -1e-6) & (places <= 1 + 1e-6)).all()
    ticks = [place for place, _ in found.ticks]
    assert ticks == sorted(ticks)
    assert 1 <= len(ticks) <= 16
    assert all(-1e-6 <= place <= 1 + 1e-6 for place in ticks)
    assert len(set(texts(found))) == len(ticks), "two ticks that read alike"
