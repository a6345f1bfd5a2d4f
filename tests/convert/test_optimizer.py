"""Optimizers of other projects."""

import pytest

from jaxlean.config import TrainSection
from jaxlean.convert.optimizer import clipping, optimizer, settings


@pytest.mark.parametrize(
    ("name", "kind", "ours"),
    [
        ("adamw_torch", "carried", "adamw"),
        ("adamw_torch_fused", "carried", "adamw"),
        ("OptimizerNames.ADAMW_HF", "carried", "adamw"),
        ("adamw_bnb_8bit", "carried", "adamw_8bit"),
        ("paged_adamw_8bit", "carried", "adamw_8bit"),
        ("paged_adamw_32bit", "carried", "adamw"),
        ("lion_8bit", "carried", "lion"),
        ("adafactor", "carried", "adafactor"),
        ("muon", "carried", "muon"),
        ("ao_adamw_4bit", "missing", "adamw_8bit"),
        ("galore_adamw", "missing", "adamw"),
        ("came_pytorch", "missing", "adafactor"),
        ("of_mine_8bit", "missing", "adamw_8bit"),
    ],
)
def test_each_becomes_one_that_there_is(source, name, kind, ours) -> None:
    outcome = optimizer(name, source())
    assert outcome.kind == kind
    assert TrainSection(optim=outcome.settings["train.optim"]).optim == ours
    assert (kind == "carried") or "nearest" in outcome.note


@pytest.mark.parametrize(
    ("given", "momentum"), [({}, 0.0), ("momentum=0.8", 0.8), ({"momentum": 0.7}, 0.7), ("momentum=x", 0.0)]
)
def test_the_momentum_of_sgd_is_torchs(source, given, momentum) -> None:
    outcome = optimizer("sgd", source(optim="sgd", optim_args=given))
    assert outcome.settings == {"train.optim": "sgd", "train.momentum": momentum}


def test_settings_of_other_optimizers_are_told(source) -> None:
    assert settings("momentum=0.8", source(optim="sgd")).kind == "carried"
    assert settings("rank=8", source(optim="galore_adamw")).kind == "missing"


def test_no_clipping(source) -> None:
    assert clipping(0, source()).settings == {"train.max_grad_norm": None}
    assert clipping(0.3, source()).settings == {"train.max_grad_norm": 0.3}
