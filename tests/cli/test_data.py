"""Verbs that look at data, from the command line."""

import pytest


@pytest.mark.parametrize(("given", "asked"), [((), 3), (("-n", "7"), 7)])
def test_inspect_shows_as_many_rows_as_it_is_told(cli, tiny_yaml, monkeypatch, given, asked):
    seen = {}
    monkeypatch.setattr("jaxlean.run.inspect.inspect", lambda config, num_examples: seen.update(n=num_examples))
    code, _, err = cli("inspect", tiny_yaml, *given)
    assert (code, err) == (0, "")
    assert seen == {"n": asked}
