"""What of the settings of pruning goes together."""

import pytest
import yaml

from jaxlean.config import build, dump
from jaxlean.errors import ConfigError


def test_patterns():
    assert build({"prune": {"pattern": "2:4"}}).prune.of == (2, 4)
    assert build({"prune": {"pattern": 2 * 60 + 4}}).prune.of == (2, 4)  # as YAML 1.1 reads 2:4
    assert build({}).prune.of is None
    assert build({"prune": {"pattern": "2:4", "rules": {"mlp": 0.5, ".*": 0}}}).prune.rules == {"mlp": 0.5, ".*": 0}


@pytest.mark.parametrize("prune", [{"method": "neurons", "params": 0.5}, {"method": "sparsegpt", "rules": {"up": 0.1}}])
def test_a_config_that_is_written_out_is_read_again(prune):
    config = build({"prune": prune})
    assert build(yaml.safe_load(dump(config))) == config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prune": {"pattern": "4:2"}}, "at least 1 and at most m"),
        ({"prune": {"pattern": "half"}}, "n:m, as 2:4"),
        ({"prune": {"sparsity": 1.5}}, "prune.sparsity"),
        ({"prune": {"ignore": ["("]}}, "not a regular expression"),
        ({"prune": {"method": "wanda", "params": 0.5}}, "prune.params is not for prune.method: wanda"),
        ({"prune": {"method": "neurons", "pattern": "2:4"}}, "prune.pattern is not for prune.method: neurons"),
        ({"prune": {"method": "layers", "intermediate_size": 8}}, "prune.intermediate_size is not for"),
        ({"prune": {"method": "neurons", "params": 0.5, "intermediate_size": 8}}, "the same thing twice"),
        ({"prune": {"method": "layers", "num_hidden_layers": 1, "keep_layers": [0]}}, "the same thing twice"),
        ({"prune": {"pattern": "2:4", "sparsity": 0.0}}, "prune.pattern and prune.sparsity say the same thing twice"),
        ({"prune": {"pattern": "2:4", "rules": {"down": 0.25}}}, "a share is 0.5 .n of m., or 0"),
        ({"prune": {"method": "wanda", "damping": 0.1}}, "prune.damping is for"),
        ({"prune": {"method": "layers", "params": 0.5, "compensate": False}}, "prune.compensate is not for"),
        ({"prune": {"metod": "wanda"}}, "unknown key: prune.metod"),
        ({"train": {"keep_zeros": True}, "lora": {"lora_dropout": 0.1}}, "train.keep_zeros adds the adapter"),
        ({"train": {"keep_zeros": True}, "lora": {"quantization_aware": True}}, "exclude each other"),
        ({"train": {"pruning": {}}}, "train.pruning needs lora: null"),
        ({"lora": None, "train": {"pruning": {"initial_sparsity": 0.9}}}, "zeros only become more"),
        ({"lora": None, "train": {"pruning": {"begin_step": 9, "end_step": 9}}}, "end_step comes after begin_step"),
        (
            {"lora": None, "train": {"pruning": {}, "sync": "diloco"}, "mesh": {"data": 2}},
            "each replica would make other zeros",
        ),
    ],
)
def test_what_does_not_go_together(values, words):
    with pytest.raises(ConfigError, match=words):
        build(values)
