from pathlib import Path

import pytest
import yaml

from jaxlean import config
from jaxlean.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ([], "none"),
        (["model.quantization=int8"], "int8"),
        (["model.load_in_4bit=true"], "nf4"),
        (["model.load_in_8bit=true"], "int8"),
        (["model.load_in_8bit=false", "model.load_in_4bit=true"], "nf4"),
        (["model.load_in_8bit=false"], "none"),
        (["model.load_in_4bit=true", "model.quantization=nf4"], "nf4"),
    ],
)
def test_bits_name_a_format(overrides: list[str], wanted: str, tmp_path: Path) -> None:
    loaded = config.load(None, overrides)
    assert loaded.model.quantization == wanted
    assert config.build(yaml.safe_load(config.dump(loaded))) == loaded


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.load_in_4bit=true", "model.load_in_8bit=true"], "keep one"),
        (["model.load_in_4bit=true", "model.quantization=int8"], "keep one"),
        (["model.load_in_4bit=maybe"], "load_in_4bit is true or false"),
        (["model.load_in_4bits=true"], "unknown key: model.load_in_4bits"),
        (["model.quantization=int4"], "model.quantization"),
        (["model.matmul=float8"], "model.matmul"),
    ],
)
def test_bits_that_cannot_be(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(None, overrides)
    assert says in str(caught.value)
