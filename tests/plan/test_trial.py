"""A few steps of a candidate, run without weights or data."""

import math

import jax
import pytest

from jaxlean.plan.candidate import Candidate
from jaxlean.plan.trial import trial_seconds

LENGTH = 64


@pytest.mark.parametrize("how", [
    {"lora": {"r": 2}}, {"lora": None}, {"lora": {"r": 2}, "model": {"quantization": "int8"}},
    {"lora": {"r": 2}, "train": {"optim": "adamw_8bit"}},
], ids=["lora", "whole model", "int8", "8-bit Adam"])  # fmt: skip
def test_a_step_is_run_on_the_mesh(job, how):
    form = how.get("model", {}).get("quantization", "none")
    candidate = Candidate((2, 2, 1, 1, 2), 1, 2, "float32", form, ("query", "gate"))
    waited = []
    found = trial_seconds(job(**how), candidate, jax.devices(), length=LENGTH, together=lambda: waited.append(1))
    assert 0 < found < math.inf
    assert waited == [1], "together with the others once, when all have compiled"
