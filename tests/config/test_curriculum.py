from typing import Any

import pytest

from jaxlean.config import CurriculumSection, build
from jaxlean.errors import ConfigError


def test_a_word_is_the_difficulty() -> None:
    assert build({"data": {"curriculum": "rarity"}}).data.curriculum == CurriculumSection(difficulty="rarity")
    assert build({}).data.curriculum is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"data": {"curriculum": "hard"}}, "length.*rarity.*loss.*column"),
        ({"data": {"curriculum": {"pace": "root"}}}, "pac"),
        ({"data": {"curriculum": {"difficulty": "column"}}}, "column: NAME"),
        ({"data": {"curriculum": {"column": "score"}}}, "difficulty: column"),
        ({"data": {"curriculum": {"start": 0, "floor": 0}}}, "nothing would be available"),
        ({"data": {"curriculum": {"start": 2}}}, "start"),
        ({"data": {"curriculum": "length", "shuffle": False}}, "two orders"),
        ({"data": {"curriculum": "length", "streaming": True}, "train": {"max_steps": 3}}, "streaming has not read"),
        ({"data": {"curriculum": "loss"}, "task": "classify"}, "head of task: classify is new"),
        ({"data": {"curriculum": "loss"}, "model": {"architecture": {"model_type": "llama"}}}, "starts from zero"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        build(values)
