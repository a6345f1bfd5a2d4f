import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean import errors
from jaxlean.errors import ConfigError, DataError, ModelError, Preempted, RunError, UserError, did_you_mean


def test_message_says_what_where_got_wanted_and_fix() -> None:
    error = UserError("no such file", where="data.jsonl:3", got="nothing", wanted="JSON", fix="look again")
    assert str(error).splitlines() == [
        "no such file",
        "  where:  data.jsonl:3",
        "  got:    nothing",
        "  wanted: JSON",
        "  fix:    look again",
    ]
    assert (error.what, error.where, error.fix) == ("no such file", "data.jsonl:3", "look again")


def test_message_leaves_out_what_is_not_known_but_keeps_what_is_falsy() -> None:
    assert str(UserError("empty", got=0)) == "empty\n  got:    0"


@pytest.mark.parametrize("kind", [ConfigError, ModelError, DataError, RunError])
def test_each_kind_is_a_user_error(kind: type[UserError]) -> None:
    with pytest.raises(UserError, match="broken") as caught:
        raise kind("broken")
    assert isinstance(caught.value, ValueError)


def test_preemption_is_no_user_error_and_the_exit_codes_differ() -> None:
    assert not issubclass(Preempted, UserError)
    assert errors.EXIT_USER_ERROR == 2
    assert errors.EXIT_PREEMPTED not in (0, 1, errors.EXIT_USER_ERROR)


WORDS = st.lists(st.text("abcdef_", min_size=1, max_size=12), min_size=1, max_size=8)


@given(WORDS)
def test_a_known_name_is_its_own_best_hint(known: list[str]) -> None:
    for name in known:
        assert did_you_mean(name, known) == f"did you mean {name!r}?"


@given(WORDS)
def test_without_a_close_name_all_are_listed_once_in_order(known: list[str]) -> None:
    assert did_you_mean("ZZZZ", known) == "known: " + ", ".join(sorted(set(known)))


def test_hint_takes_any_iterable() -> None:
    assert did_you_mean("lora_r", (name for name in ("lora_alpha", "lora_rr"))) == "did you mean 'lora_rr'?"
