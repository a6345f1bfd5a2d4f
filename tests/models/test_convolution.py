"""Convolutions and stored statistics, against sums written out and against XLA's own convolution."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean.models import convolution
from jaxlean.models.convolution import BatchNorm, Convolution, is_statistic, margins

# Half the time of compilation, which is most of that of these tests.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def by_hand(
    x: np.ndarray, filters: np.ndarray, stride: int, dilation: int, around: list[tuple[int, int]]
) -> np.ndarray:
    """A convolution by its definition, in float64: filters [k, k, in / groups, out]."""
    kernel, _, part, dim_out = filters.shape
    padded = np.pad(x.astype(np.float64), [(0, 0), *around, (0, 0)])
    edge = (kernel - 1) * dilation + 1
    height, width = ((size - edge) // stride + 1 for size in padded.shape[1:3])
    out = np.zeros((len(x), height, width, dim_out))
    per_group = dim_out // (x.shape[-1] // part)
    for row, column, o in product(range(height), range(width), range(dim_out)):
        first = o // per_group * part
        top, left = row * stride, column * stride
        seen = padded[:, top : top + edge : dilation, left : left + edge : dilation, first : first + part]
        out[:, row, column, o] = (seen * filters[..., o]).sum(axis=(1, 2, 3))
    return out


@pytest.mark.parametrize("size", [1, 2, 5, 8, 13])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 2), (2, 3)])
def test_same_gives_as_many_pixels_as_tensorflow_does(size, kernel, stride):
    before, after = margins(size, kernel, stride, 1, "same")
    assert after - before in (0, 1)
    assert (size + before + after - kernel) // stride + 1 == -(-size // stride)


def test_margins_of_the_other_kinds():
    assert margins(7, 3, 2, 2, "symmetric") == (2, 2)
    assert margins(7, 3, 1, 4, "same") == (4, 4)
    assert [margins(7, k, 2, 1, "late") for k in (3, 5, 7)] == [(0, 1), (1, 2), (2, 3)]


# kernel, stride, dilation, padding, height, width
SHAPES = [
    (3, 1, 1, "same", 6, 5),
    (3, 2, 1, "same", 6, 5),
    (3, 2, 1, "late", 7, 6),
    (5, 2, 1, "symmetric", 7, 8),
    (3, 1, 2, "same", 5, 6),
    (3, 2, 2, "symmetric", 9, 8),
    (5, 2, 1, "same", 1, 2),  # more zeros than image
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("groups", "cpu"), [(1, True), (2, True), (4, True), (4, False)])
def test_a_convolution_is_its_definition(shape, groups, cpu, monkeypatch):
    kernel, stride, dilation, padding, height, width = shape
    monkeypatch.setattr(convolution, "on_cpu", lambda: cpu)
    layer = Convolution(
        4, 4, kernel, stride=stride, dilation=dilation, groups=groups, padding=padding, dtype=jnp.float32,
        rngs=nnx.Rngs(1),
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(2, height, width, 4)).astype(np.float32)
    filters = np.asarray(layer.filters[...])
    assert filters.shape == (kernel, kernel, 4 // groups, 4)
    around = [margins(size, kernel, stride, dilation, padding) for size in (height, width)]
    got = jit(lambda x: layer(x))(jnp.asarray(x))
    np.testing.assert_allclose(got, by_hand(x, filters, stride, dilation, around), atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_the_gradient_on_cpu_is_that_of_the_plain_convolution(shape, dtype, monkeypatch):
    kernel, stride, dilation, padding, height, width = shape
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(2, height, width, 4)), dtype)
    layer = Convolution(
        4, 4, kernel, stride=stride, dilation=dilation, groups=4, padding=padding, dtype=dtype, rngs=nnx.Rngs(1)
    )
    graph, params = nnx.split(layer)
    weight = jnp.asarray(rng.normal(size=jax.eval_shape(lambda x: layer(x), x).shape), jnp.float32)

    def gradients(cpu: bool) -> tuple[jax.Array, jax.Array]:
        monkeypatch.setattr(convolution, "on_cpu", lambda: cpu)

        def total(filters: jax.Array, x: jax.Array) -> jax.Array:
            return (nnx.merge(graph, {"filters": filters})(x).astype(jnp.float32) * weight).sum()

        return jit(jax.grad(total, argnums=(0, 1)))(params["filters"][...], x)

    for got, want in zip(gradients(True), gradients(False), strict=True):
        assert got.dtype == want.dtype
        got, want = (np.asarray(each.astype(jnp.float32)) for each in (got, want))
        np.testing.assert_allclose(got, want, atol=(1e-6 if dtype == jnp.float32 else 1e-2) * np.abs(want).max())


def test_statistics_normalise_and_have_no_gradient():
    norm = BatchNorm(3, eps=0.5)
    rng = np.random.default_rng(0)
    values = {name: rng.uniform(0.5, 2, 3).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
    graph, _ = nnx.split(norm)
    x = rng.normal(size=(2, 2, 2, 3)).astype(np.float32)
    params = {name: jnp.asarray(value) for name, value in values.items()}
    got = nnx.merge(graph, params)(jnp.asarray(x, jnp.bfloat16))
    assert got.dtype == jnp.float32
    rounded = np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))
    want = (rounded - values["mean"]) / np.sqrt(values["var"] + 0.5) * values["scale"] + values["bias"]
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)
    gradient = jax.grad(lambda params: nnx.merge(graph, params)(jnp.asarray(x)).sum())(params)
    moved = {name for name, leaf in gradient.items() if np.abs(leaf).max() > 0}
    assert moved == {"scale", "bias"}
    assert [is_statistic(f"stem_norm.{name}") for name in sorted(values)] == [False, True, False, True]
