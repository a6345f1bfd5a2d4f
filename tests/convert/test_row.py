"""Rows: which keys they know, and what they make of values."""

import pytest

from jaxlean.convert.row import Outcome, carried, idle, is_off, missing, refused


def test_a_row_knows_its_names_and_those_that_begin_so() -> None:
    row = idle("a liger_*", "why")
    assert row.knows("a")
    assert row.knows("liger_rope")
    assert not row.knows("b")
    assert not row.knows("not_liger_rope")


def test_each_kind_has_its_outcome(source) -> None:
    assert carried("a", "train.x").outcome(3, source()) == Outcome("carried", {"train.x": 3})
    made = carried("a", "train.x", "a half", becomes=lambda value, source: value / 2)
    assert made.outcome(3, source()) == Outcome("carried", {"train.x": 1.5}, "a half")
    assert idle("a", "why").outcome(3, source()) == Outcome("idle", note="why")
    assert missing("a", "does", "b").outcome(3, source()) == Outcome("missing", note="does; nearest: b")
    assert missing("a", "does").outcome(3, source()).note == "does"


@pytest.mark.parametrize("value", [False, 0, "none", "no", [], {}, None])
def test_what_is_off_loses_nothing(source, value) -> None:
    assert is_off(value)
    assert missing("a", "does").outcome(value, source()).kind == "idle"
    assert refused("a", "what").outcome(value, source()).kind == "idle"


def test_a_job_is_refused_where_its_key_is_on(source) -> None:
    assert refused("a", "what").outcome("dpo", source()) == Outcome("refused", note="what")
    row = refused("a", "what", lambda value: value is not None)
    assert row.outcome(0, source()).kind == "refused"
