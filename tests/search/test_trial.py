"""Where a trial stands, and what its next step is given."""

from types import SimpleNamespace

import numpy as np

from jaxlean.config import build
from jaxlean.search.trial import Trial


def test_each_step_is_given_its_own_learning_rate():
    config = build({
        "search": {"space": {"train.learning_rate": {"log": [1e-4, 1e-2]}, "lora.r": [4, 8]}},
        "train": {"learning_rate": 1e-2, "lr_scheduler_type": "linear", "warmup_steps": 0}, "seed": 3,
        "lora": {"r": 8, "lora_alpha": 4},
    })  # fmt: skip
    trial = Trial(SimpleNamespace(number=0), config, SimpleNamespace(num_steps=4), "key")
    assert (trial.num_steps, trial.scale) == (4, 0.5)
    rates = []
    for trial.done in range(4):
        inputs = trial.inputs()
        rates.append(inputs.pop("learning_rate"))
        assert inputs == {"seed": 3, "lora_scale": 0.5}
    np.testing.assert_allclose(rates, [0.01, 0.0075, 0.005, 0.0025], rtol=1e-6)
