"""The space: Optuna's distributions, the config of a trial, and what is found to be wrong before anything runs."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from jaxlean.config import build
from jaxlean.errors import ConfigError
from jaxlean.search.space import check, configured, distributions

SPACE = {
    "train.learning_rate": {"log": [1e-5, 1e-2]},
    "train.weight_decay": {"uniform": [0.0, 0.2], "step": 0.1},
    "lora.r": {"log_int": [2, 32]},
    "train.warmup_steps": {"int": [0, 10], "step": 5},
    "lora.target_modules": ["all-linear", ["q_proj", "v_proj"], ["q_proj"]],
    "train.max_grad_norm": [None, 1.0],
}


def config(space=None, **more):
    return build({"search": {"space": SPACE if space is None else space}, **more})


def test_the_distributions_are_optunas():
    assert distributions(config().search.space) == {
        "train.learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
        "train.weight_decay": FloatDistribution(0.0, 0.2, step=0.1),
        "lora.r": IntDistribution(2, 32, log=True),
        "train.warmup_steps": IntDistribution(0, 10, step=5),
        "lora.target_modules": CategoricalDistribution(["all-linear", "1: ['q_proj', 'v_proj']", "2: ['q_proj']"]),
        "train.max_grad_norm": CategoricalDistribution([None, 1.0]),
    }


def test_a_trial_is_a_config():
    drawn = {"train.learning_rate": 1e-3, "lora.r": 4, "lora.target_modules": "1: ['q_proj', 'v_proj']"}
    found = configured(config(), drawn | {"train.max_grad_norm": None})
    assert found.train.learning_rate == 1e-3
    assert (found.lora.r, found.lora.target_modules) == (4, ["q_proj", "v_proj"])
    assert found.train.max_grad_norm is None


def test_a_sound_space_is_accepted():
    check(config())


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "nothing is searched"),
        ({"train.learning_rat": [1, 2]}, "unknown key: train.learning_rat\n.*\n.*did you mean 'learning_rate'"),
        ({"train.learning_rate": {"uniform": [-1, 1]}}, "train.learning_rate"),
        ({"train.optim": ["adamw", "adamm"]}, "train.optim.*\n.*\n.*\n.*did you mean 'adamw'"),
        ({"eval.max_examples": [1, 2]}, "search.space: eval is the same for all trials"),
        ({"data.eval_fraction": [0.1, 0.2]}, "data.eval_fraction is the same for all trials"),
        ({"output_dir": ["a", "b"]}, "output_dir is the same for all trials"),
        ({"search.num_trials": [1, 2]}, "search is the same for all trials"),
    ],
)
def test_what_cannot_be_searched_is_said(space, words):
    with pytest.raises(ConfigError, match=words):
        check(config(space))


def test_a_seed_that_splits_the_rows_cannot_be_searched():
    with pytest.raises(ConfigError, match="holds out other rows"):
        check(config({"seed": [1, 2]}, data={"train": "a.jsonl", "eval_fraction": 0.1}))
    check(config({"seed": [1, 2]}, data={"train": "a.jsonl", "eval": "b.jsonl"}))
