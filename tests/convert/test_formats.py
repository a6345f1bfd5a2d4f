"""Tables as a whole: each key of theirs once, each of ours there, and what is told of keys that nobody knows."""

import pytest

from jaxlean.config.keys import every
from jaxlean.convert.detect import FORMATS
from jaxlean.convert.row import UNSET
from jaxlean.convert.source import Source
from jaxlean.errors import ConfigError

OURS = {key.path.replace("[]", "").replace("{}", "") for key in every()}


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_what_a_row_is_carried_to_is_a_key_of_ours(form) -> None:
    for row in form.rows:
        if row.kind == "carried" and row.to:
            assert row.to in OURS, f"{row.keys[0]} -> {row.to}"


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_no_key_stands_in_two_rows(form) -> None:
    keys = [key for row in form.rows for key in row.keys]
    assert sorted({key for key in keys if keys.count(key) > 1}) == []


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_every_row_says_why(form) -> None:
    for row in form.rows:
        if row.kind in ("idle", "missing", "refused"):
            assert len(row.note) > 8, row.keys


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_whatever_a_value_is_there_is_an_outcome(form, tmp_path) -> None:
    strange = (True, False, 0, -1, 3, 0.5, "a", "none", [], ["a", 1], {"a": {"b": None}}, [{}], [None])
    for row in form.rows:
        key = row.keys[0].replace("*", "x")
        for value in strange:
            made = row.outcome(value, Source(tmp_path / "theirs.yaml", {key: value}))
            assert made.kind in ("carried", "idle", "missing", "refused")
            assert made.note or made.settings, f"nothing is said of {key}: {value}"


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_defaults_have_outcomes_too(form, tmp_path) -> None:
    source = Source(tmp_path / "theirs.yaml", {})
    for row in form.rows:
        value = row.default(source) if callable(row.default) else row.default
        if value is not UNSET:
            assert row.outcome(value, source).kind in ("carried", "idle", "missing")


def test_a_job_that_is_refused_is_named_with_its_place(tmp_path) -> None:
    form = next(each for each in FORMATS if each.name == "axolotl")
    with pytest.raises(ConfigError, match="preferences or rewards") as told:
        form.lines(form.read(tmp_path / "theirs.yaml", {"rl": "dpo"}))
    assert "theirs.yaml" in str(told.value)


def test_a_key_itself_goes_before_one_that_stands_for_many() -> None:
    form = next(each for each in FORMATS if each.name == "axolotl")
    found = form.row("special_tokens.pad_token")
    assert found is not None
    assert found.kind == "idle"
    other = form.row("special_tokens.bos_token")
    assert other is not None
    assert other.kind == "missing"
    assert form.row("no_such_key") is None
    assert "did you mean 'sequence_len'?" in form.unknown("sequnce_len")
