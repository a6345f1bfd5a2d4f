"""What a program is written for."""

import os

import jax
import pytest

from jaxlean.config import DistributedSection
from jaxlean.plan.target import parse
from jaxlean.platform import claim_gpu_memory, platform, written_for
from jaxlean.run.peers import join

NAMES = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"


def test_here_unless_said_otherwise():
    assert platform() == jax.default_backend()
    with written_for("tpu"):
        assert platform() == "tpu"
        with written_for("gpu"):
            assert platform() == "gpu"
        assert platform() == "tpu"
    assert platform() == jax.default_backend()


def test_a_run_takes_of_a_card_what_a_plan_reckons_with(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    join(DistributedSection())
    card = parse("h100-80gb:1")
    assert int(card.device.memory_bytes * float(os.environ[NAMES[0]])) == card.capacity
    monkeypatch.delenv(NAMES[0])


@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_says_of_a_card_stays(monkeypatch, name):
    for each in NAMES:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "0.5")
    claim_gpu_memory()
    assert {each: os.environ[each] for each in NAMES if each in os.environ} == {name: "0.5"}
