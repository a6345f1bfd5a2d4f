"""What a test of jaxprs needs."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest


def walk(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, those inside scans, checkpoints and calls included."""

    def is_jaxpr(value: Any) -> bool:
        return hasattr(value, "eqns")

    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(value):
                yield from walk(value)


@pytest.fixture
def equations() -> Callable[..., list[Any]]:
    """(function, *args) -> the equations it traces to."""
    return lambda function, *args: list(walk(jax.make_jaxpr(function)(*args)))
