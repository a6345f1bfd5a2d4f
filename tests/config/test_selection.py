import pytest

from jaxlean.config import build
from jaxlean.config.selection import KeepSection
from jaxlean.errors import ConfigError


def test_a_step_is_a_name_or_a_name_with_settings() -> None:
    steps = ["ifd", {"semantic_duplicates": {"epsilon": 0.1}}, {"keep": {"count": 3, "by": "ifd", "at_most": 1}}]
    found = build({"curate": {"steps": steps}}).curate.steps
    assert [step.name for step in found] == ["ifd", "semantic_duplicates", "keep"]
    assert isinstance(found[2].settings, KeepSection)
    assert found[2].settings.at_most == 1.0


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"keep": {}}, "keep: how many?"),
        ({"keep": {"count": 3, "fraction": 0.5}}, "keep: fraction and count exclude each other"),
        ({"keep": {"count": 3, "order": "draw"}}, "keep: limits and orders are of a score"),
        ({"keep": {"count": 3, "drop_highest": 0.1}}, "keep: limits and orders are of a score"),
        ({"keep": {"mix": {"a": 0.0}}}, "keep.mix: weights are above 0"),
        ({"keep": {"fraction": 0.0}}, "fraction"),
        ({"importance": {}}, "target"),
        ({"el2n": {"by": "prob"}}, "by"),
        ({"learnability": {"run": {"epochs": 1}}}, "unknown key"),
    ],
)
def test_settings_that_cannot_be(step: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build({"curate": {"steps": [step]}})
    assert message in str(error.value)
