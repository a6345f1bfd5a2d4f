"""The search section: what a setting may be drawn from, and what is refused."""

import pytest

from jaxlean.config import DistributionSection, RunConfig, SearchSection, build, load, with_values
from jaxlean.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "kind", "found"),
    [
        ([1, 2, "x", None], "choices", [1, 2, "x", None]),
        (["1e-4", "1e-3"], "choices", [1e-4, 1e-3]),  # what YAML 1.1 makes of them
        ({"log": ["1e-5", 0.1]}, "log", (1e-5, 0.1)),
        ({"uniform": [0, 0.5], "step": 0.1}, "uniform", (0.0, 0.5)),
        ({"int": [2, 9]}, "int_", (2, 9)),
        ({"log_int": [1, 64]}, "log_int", (1, 64)),
    ],
)
def test_a_setting_is_drawn_from(values, kind, found):
    section = DistributionSection.model_validate(values)
    assert getattr(section, kind) == found
    assert [name for name in DistributionSection.model_fields if getattr(section, name) is not None] == [
        kind, *(["step"] if isinstance(values, dict) and "step" in values else [])
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "got none of them"),
        ({"log": [1, 2], "int": [1, 2]}, "got log and int"),
        ({"uniform": [2, 1]}, "low below high, not \\[2, 1\\]"),
        ({"log": [0, 1]}, "a logarithm needs a low above 0"),
        ([1], "a choice between different values"),
        ([1, 1], "a choice between different values"),
        ({"log": [1, 2], "step": 1}, "step is for uniform and int"),
        ({"int": [1, 5], "step": 0.5}, "the step of a whole number is one"),
        ({"lgo": [1, 2]}, "did you mean 'log'|lgo"),
        ({"uniform": [0, float("inf")]}, "low below high"),
    ],
)
def test_what_is_none_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        DistributionSection.model_validate(values)


def test_sections_of_the_space_may_be_nested_and_set_one_by_one(tmp_path):
    file = tmp_path / "search.yaml"
    file.write_text("search:\n  space:\n    lora:\n      r: [4, 8]\n    train.learning_rate: {log: [1e-5, 1e-2]}\n")
    config = load(file, ["search.space.train.weight_decay={uniform: [0, 0.1]}", "search.n_trials=3"])
    assert list(config.search.space) == ["lora.r", "train.learning_rate", "train.weight_decay"]
    assert config.search.space["train.learning_rate"].log == (1e-5, 1e-2)
    assert config.search.num_trials == 3


def test_objectives_have_directions_and_stand_once():
    section = SearchSection(objectives=["accuracy", "usd"])
    assert section.directions == ["maximize", "minimize"]
    with pytest.raises(ValueError, match="each once"):
        SearchSection(objectives=["loss", "loss"])
    with pytest.raises(ValueError, match="each once"):
        SearchSection(objectives=[])


def test_a_config_with_other_values_is_checked_as_a_whole():
    config = build({"data": {"train": "a.jsonl"}})
    changed = with_values(config, {"train.lr": 1e-3, "data.train.0.weight": 0.5, "train.max_grad_norm": None})
    assert (changed.train.learning_rate, changed.train.max_grad_norm) == (1e-3, None)
    assert changed.data.train[0].weight == 0.5
    assert config == build({"data": {"train": "a.jsonl"}}), "the other stays as it is"
    with pytest.raises(ConfigError, match=r"unknown key: train\.learning_rat\n"):
        with_values(config, {"train.learning_rat": 1e-3})
    with pytest.raises(ConfigError, match=r"lora\.r"):
        with_values(config, {"lora.r": "many"})
    with pytest.raises(ConfigError, match="exclude each other"):
        with_values(config, {"lora.use_dora": True, "lora.init_lora_weights": "pissa"})
    assert with_values(RunConfig(), {}) == RunConfig()
