"""Which layers are to be alike, and what cannot be."""

from dataclasses import replace

import pytest

from jaxlean.config import build
from jaxlean.errors import ConfigError
from jaxlean.hub.load import load
from jaxlean.run.match import match_of


def test_hidden_states_of_other_widths_have_no_cosine(tiny_base):
    teacher = load(tiny_base, "float32")
    student = replace(teacher, config=replace(teacher.config, hidden_size=8))
    config = {"distill": {"teacher": str(tiny_base), "match": {"hidden": 0.5}}, "model": {"path": "any"}}
    with pytest.raises(ConfigError, match=r"have no cosine(?s:.)*got: +8 of the student's(?s:.)*hidden_loss=cka"):
        match_of(build(config), student)
    config["distill"]["match"]["hidden_loss"] = "cka"
    found = match_of(build(config), student)
    assert (found.loss, found.layers) == ("cka", tuple((n, n) for n in range(teacher.config.num_layers)))
