"""The settings of new tokens: a list, a file or `auto`, in the section `model`."""

import pytest

from jaxlean.config import build, load
from jaxlean.errors import ConfigError


def test_nothing_is_new_by_default():
    model = build({}).model
    assert (model.new_tokens, model.new_tokens_init, model.num_new_tokens) == (None, "mean", 500)


def test_a_list_a_file_and_auto(tmp_path):
    (tmp_path / "terms.txt").write_text("chargeback\n")
    (tmp_path / "words.vec").write_text("")
    file = tmp_path / "run.yaml"
    file.write_text("model: {new_tokens: terms.txt, new_tokens_vectors: words.vec}\n")
    found = load(file).model
    assert found.new_tokens == str(tmp_path / "terms.txt")
    assert found.new_tokens_vectors == str(tmp_path / "words.vec")
    assert load(file, ["model.new_tokens=auto"]).model.new_tokens == "auto"
    assert load(file, ["model.new_tokens=[chargeback, top up]"]).model.new_tokens == ["chargeback", "top up"]


def test_a_start_that_there_is_not_is_an_error():
    with pytest.raises(ConfigError) as raised:
        build({"model": {"new_tokens_init": "warm"}})
    assert "model.new_tokens_init" in str(raised.value)
