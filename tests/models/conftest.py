"""What tests of jaxprs need, and what tests of attention's back ends need: inputs, gradients, and how near they are."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean.models.attention import Slots


def walk(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, also inside scans, checkpoints and calls; but no call whose results nobody reads."""

    def is_jaxpr(value: Any) -> bool:
        return hasattr(value, "eqns")

    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if not equation.outvars and not equation.effects:
            continue
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(value):
                yield from walk(value)


@pytest.fixture(scope="session")
def equations() -> Callable[..., list[Any]]:
    """(function, *args) -> the equations it traces to."""
    return lambda function, *args: list(walk(jax.make_jaxpr(function)(*args)))


@pytest.fixture(scope="session")
def names(equations: Callable[..., list[Any]]) -> Callable[..., list[str]]:
    """(function, *args) -> the names of activations in it, in order."""
    return lambda *args: [e.params["name"] for e in equations(*args) if str(e.primitive) == "name"]


@pytest.fixture(scope="session")
def products(equations: Callable[..., list[Any]]) -> Callable[..., int]:
    """(function, *args) -> how many matrix products are in it."""
    return lambda *args: sum(str(e.primitive) == "dot_general" for e in equations(*args))


@pytest.fixture
def saved(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """(function, *args) -> the types of what its gradient keeps, but for arguments and constants: `["f32[2,3]"]`."""

    def types(function: Callable[..., Any], *args: Any) -> list[str]:
        capsys.readouterr()
        jax.ad_checkpoint.print_saved_residuals(function, *args)
        lines = capsys.readouterr().out.splitlines()
        return sorted(x.split()[0] for x in lines if not any(word in x for word in ("argument", "constant", "literal")))

    return types


class Case(NamedTuple):
    """Inputs of attention; `weight` makes one number of its output."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    weight: jax.Array
    segments: jax.Array

    @property
    def slots(self) -> Slots:
        index = jnp.arange(self.segments.shape[1], dtype=jnp.int32)
        return Slots(index, index, self.segments, self.segments)


@pytest.fixture(scope="session")
def case() -> Callable[..., Case]:
    """(seed, length, ...) -> random inputs: up to three segments a row, and padding at the end of all but the first."""

    def draw(
        seed: int,
        length: int,
        heads: int = 4,
        kv_heads: int = 2,
        *,
        dim: int = 8,
        batch: int = 2,
        dtype: Any = jnp.float32,
    ) -> Case:
        rng = np.random.default_rng(seed)
        arrays = [
            jnp.asarray(rng.normal(size=(batch, length, h, dim)), dtype) for h in (heads, kv_heads, kv_heads, heads)
        ]
        segments = np.sort(rng.integers(1, 4, size=(batch, length)), axis=1)
        for row, padding in zip(segments[1:], rng.integers(1, max(length // 2, 2), size=batch - 1), strict=True):
            row[length - padding :] = 0
        return Case(*arrays, jnp.asarray(segments, jnp.int32))

    return draw


# Half the time of compilation, which is most of that of the tests.
_UNOPTIMISED = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="session")
def evaluate() -> Callable[..., dict[str, np.ndarray]]:
    """(attend, case, *args) -> `attend(query, key, value, *args)` and the gradients of all three, in float32."""

    def run(attend: Callable[..., jax.Array], case: Case, *args: Any) -> dict[str, np.ndarray]:
        def weighed(q: jax.Array, k: jax.Array, v: jax.Array, *args: Any) -> tuple[jax.Array, jax.Array]:
            out = attend(q, k, v, *args)
            return (out.astype(jnp.float32) * case.weight.astype(jnp.float32)).sum(), out

        gradient = jax.jit(jax.value_and_grad(weighed, argnums=(0, 1, 2), has_aux=True))
        inputs = (*case[:3], *args)
        (_, out), grads = gradient.lower(*inputs).compile(_UNOPTIMISED)(*inputs)
        assert {x.dtype for x in (out, *grads)} == {case.query.dtype}
        found = dict(zip(("context", "query", "key", "value"), (out, *grads), strict=True))
        return {name: np.asarray(x.astype(jnp.float32)) for name, x in found.items()}

    return run


@pytest.fixture(scope="session")
def assert_near() -> Callable[..., None]:
    """(got, want, tolerance): each number to `tolerance` of the largest, or of 1, where all are smaller."""

    def check(got: dict[str, np.ndarray], want: dict[str, np.ndarray], tolerance: float) -> None:
        assert got.keys() == want.keys()
        for name in want:
            assert np.isfinite(got[name]).all(), name
            scale = max(np.abs(want[name]).max(), 1.0)
            np.testing.assert_allclose(got[name], want[name], rtol=0, atol=tolerance * scale, err_msg=name)

    return check


@pytest.fixture(scope="session")
def error() -> Callable[..., dict[str, float]]:
    """(got, want) -> the norm of each difference, relative to that of what is wanted."""
    return lambda got, want: {n: float(np.linalg.norm(got[n] - want[n]) / np.linalg.norm(want[n])) for n in want}
