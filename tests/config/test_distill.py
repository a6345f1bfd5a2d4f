"""Distillation's settings: what is short for what, and what cannot be."""

import pytest

from jaxlean.config import build
from jaxlean.errors import ConfigError

PART = {"teacher": "t", "student": {"num_layers": 2}}


def test_a_path_is_a_teacher_and_a_student_trains_whole_unless_it_is_said_otherwise():
    config = build({"distill": PART})
    assert config.distill.teacher.path == "t"
    assert config.lora is None
    assert build({}).lora is not None
    healed = build({"distill": {"teacher": {"path": "t", "adapter": "a"}}, "model": {"path": "m"}, "lora": {"r": 4}})
    assert (healed.lora.r, healed.distill.teacher.adapter) == (4, "a")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"distill": {"student": {"num_layers": 2}}}, "distill.teacher: Field required"),
        ({"distill": PART | {"alpha": 0.0}}, "distill.alpha: Input should be greater than 0"),
        ({"distill": PART | {"alpha": 1.2}}, "distill.alpha: Input should be less than or equal to 1"),
        ({"distill": PART | {"beta": 1.0}}, "distill.beta"),
        ({"distill": PART | {"temperature": 0}}, "distill.temperature"),
        ({"distill": PART | {"divergence": "kl"}}, "distill.divergence"),
        ({"distill": {"teacher": "t", "student": {}}}, "num_layers, layers or params"),
        ({"distill": {"teacher": "t", "student": {"layers": [0], "method": "heads"}}}, "method is of params"),
        ({"distill": {"teacher": "t", "student": {"layers": [2, 1]}}}, "ascending order"),
        ({"distill": PART, "lora": {"r": 4}}, "distill.student trains whole"),
        ({"distill": PART, "task": "embed"}, "vectors have no distribution"),
        ({"distill": PART, "model": {"new_tokens": "auto"}}, "would not know the new tokens"),
        ({"distill": PART, "model": {"quantization": "int8"}}, "quantize the student when it is written"),
        ({"distill": PART, "train": {"sync": "diloco"}}, "train.sync: step"),
        ({"distill": PART | {"cache": "c"}, "data": {"streaming": True}, "train": {"max_steps": 1}}, "a stream"),
        ({"distill": PART | {"beta": 0.1}}, "distill.beta is not for distill.divergence: forward_kl"),
        ({"distill": PART | {"on_policy_max_new_tokens": 8}}, "distill.on_policy is 0"),
        ({"distill": PART | {"cache_shard": 8}}, "distill.cache names none"),
        ({"distill": PART | {"alpha": 1}, "train": {"z_loss": 1e-4}}, "distill.alpha: 1 has none"),
        ({"distill": PART | {"devices": 1}, "mesh": "auto"}, "name the axes"),
    ],
)
def test_what_cannot_be_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        build(values)
