"""Configs of other projects, made small and in our own words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxlean.convert.source import Source

EXAMPLES = Path(__file__).parent / "examples"


@pytest.fixture(scope="session")
def examples() -> Path:
    """Their folder."""
    return EXAMPLES


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Source]:
    """`source(optim="sgd")`: a file with these keys; `__` in a name is a dot."""

    def make(**values: Any) -> Source:
        return Source(tmp_path / "theirs.yaml", {key.replace("__", "."): value for key, value in values.items()})

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(text)`: a file with it."""

    def make(text: str, name: str = "theirs.yaml") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    return make
