"""The `eval` section: what is accepted, and what is refused."""

import pytest

from jaxlean import config
from jaxlean.errors import ConfigError


def test_few_shot_rows_may_be_none_of_them() -> None:
    assert config.load(None, ["eval.shots=0"]).eval.shots == 0
    with pytest.raises(ConfigError, match=r"eval\.shots: Input should be greater than or equal to 0"):
        config.load(None, ["eval.shots=-1"])
