"""Numbers as people read them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.run import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1.5 * 2**20, "1.5 MiB"),
        (250 * 2**20, "250 MiB"),
        (80 * 2**30, "80.0 GiB"),
        (5000 * 2**40, "5000 TiB"),
        (None, "-"),
        (math.nan, "-"),
    ],
)
def test_bytes(value, text):
    assert units.show_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0012, "$0.0012"),
        (0.00034567, "$0.00035"),
        (0.0999, "$0.10"),
        (0.996, "$1.00"),
        (12.345, "$12.35"),
        (1e-9, "<$0.000001"),
        (math.inf, "-"),
    ],
)
def test_usd(value, text):
    assert units.show_usd(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(9.996, "10.0 s"), (59.96, "1 min 00 s"), (3599.7, "1 h 00 min"), (86400, "24 h 00 min")]
)
def test_seconds(value, text):
    assert units.show_seconds(value) == text


def test_percent():
    assert units.show_percent(0.0) == "0.0 %"
    assert units.show_percent(1.0) == "100.0 %"
    assert units.show_percent(0.0034) == "0.34 %"


@given(st.floats(min_value=1e-5, max_value=1e7))
def test_dollars_say_the_amount_to_a_tenth(value):
    shown = float(units.show_usd(value).replace("$", "").replace(",", ""))
    assert shown == pytest.approx(value, rel=0.1)


def test_not_known_is_a_dash_everywhere():
    for show in (
        units.show_bytes,
        units.show_usd,
        units.show_seconds,
        units.show_count,
        units.show_number,
        units.show_percent,
    ):
        assert show(None) == "-"
