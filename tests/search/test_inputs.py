"""What trials may differ in and share a program all the same."""

import numpy as np
import pytest

from jaxlean.config import build, with_values
from jaxlean.search.inputs import constants, is_argument, learning_rates, program_key
from jaxlean.train.optimizer import schedule


def config(**more):
    return build({"data": {"train": [{"path": "a.jsonl", "weight": 1.0}, {"path": "b.jsonl", "weight": 1.0}]}, **more})


ARGUMENTS = {
    "train.learning_rate": 0.5, "train.weight_decay": 0.5, "train.adam_beta1": 0.5, "train.adam_beta2": 0.5,
    "train.max_grad_norm": 0.5, "train.warmup_ratio": 0.5, "train.lr_scheduler_type": "linear", "lora.lora_alpha": 5,
    "lora.lora_dropout": 0.5, "lora.r": 5, "lora.use_rslora": True, "lora.loraplus_lr_ratio": 5.0, "seed": 5,
    "data.train.0.weight": 0.5, "data.train.1.weight": 0.5, "data.shuffle": False, "data.curriculum": "length",
    "train.max_steps": 5, "train.num_train_epochs": 5.0,
}  # fmt: skip
SHAPES = {
    "train.per_device_train_batch_size": 5, "train.gradient_accumulation_steps": 5, "train.optim": "lion",
    "lora.target_modules": ["q_proj"], "lora.use_dora": True, "train.remat": "full", "data.max_length": 50,
    "model.dtype": "float32", "train.z_loss": 0.5, "train.label_smoothing_factor": 0.5, "model.quantization": "int8",
}  # fmt: skip


@pytest.mark.parametrize("path", ARGUMENTS)
def test_these_are_arguments(path):
    assert is_argument(path, config())
    assert program_key(config(), [path]) == program_key(with_values(config(), {path: ARGUMENTS[path]}), [path])


@pytest.mark.parametrize("path", SHAPES)
def test_these_make_a_program_of_their_own(path):
    assert not is_argument(path, config())
    assert program_key(config(), [path]) != program_key(with_values(config(), {path: SHAPES[path]}), [path])


def test_what_is_not_searched_is_a_part_of_the_program():
    other = with_values(config(), {"train.learning_rate": 0.5})
    assert program_key(config(), ["lora.r"]) != program_key(other, ["lora.r"])


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("lora.r", {"train.optim": "adafactor"}),  # takes means over an adapter's columns
        ("lora.r", {"lora.init_lora_weights": "pissa"}),
        ("lora.r", {"search.pad_ranks": False}),
        ("seed", {"task": "classify"}),  # draws the head
        ("train.max_grad_norm", {"train.max_grad_norm": None}),  # there is no clipping in that program
    ],
)
def test_some_are_not_always(path, values):
    assert is_argument(path, config())
    assert not is_argument(path, with_values(config(), values))


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "warmup_stable_decay", "cosine_with_restarts"])
def test_learning_rates_are_those_of_the_schedule(kind):
    own = with_values(config(), {"train.lr_scheduler_type": kind, "train.warmup_ratio": 0.1})
    of_step = schedule(own.train, 40)
    found = learning_rates(own, 40)
    assert (found.dtype, found.shape) == (np.float32, (40,))
    # each of its numbers was rounded by another sequence of operations
    np.testing.assert_allclose(found, [of_step(step) for step in range(40)], rtol=2e-6, atol=1e-10)


def test_constants_are_those_that_are_searched():
    own = with_values(config(), {"lora.r": 4, "lora.lora_alpha": 8, "train.weight_decay": 0.1, "seed": 7})
    assert constants(own, ["train.learning_rate"]) == {"seed": 7, "lora_scale": 2.0}
    found = constants(own, ["train.weight_decay", "lora.lora_dropout", "lora.loraplus_lr_ratio"])
    assert found == {
        "seed": 7, "lora_scale": 2.0, "weight_decay": np.float32(0.1), "lora_dropout": 0.0, "loraplus_lr_ratio": 1.0
    }  # fmt: skip
    assert {value.dtype.name for name, value in found.items() if name != "seed"} == {"float32"}
    assert "lora_scale" not in constants(with_values(own, {"lora": None}), ["train.learning_rate"])
