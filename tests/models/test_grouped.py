"""Rows in groups: every split of the rows, forward and backward, against a loop over groups in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean import codec
from jaxlean.models.grouped import grouped_linear
from jaxlean.platform import written_for

GROUPS, IN, OUT, RANK = 5, 6, 4, 2
SIZES = [(20, 20, 20, 20, 20), (100, 0, 0, 0, 0), (0, 0, 0, 0, 100), (1, 33, 0, 65, 1), (17, 16, 15, 49, 3)]


def draw(rows=100):
    rng = np.random.default_rng(0)
    shapes = {
        "kernel": (GROUPS, IN, OUT), "bias": (GROUPS, OUT), "lora_a": (GROUPS, IN, RANK),
        "lora_b": (GROUPS, RANK, OUT), "lora_scale": (GROUPS,),
    }  # fmt: skip
    return rng.normal(size=(rows, IN)), {name: rng.normal(size=shape) for name, shape in shapes.items()}


def by_hand(x, leaves, sizes):
    out, start = np.zeros((len(x), OUT)), 0
    for group, size in enumerate(sizes):
        own = {name: leaf[group] for name, leaf in leaves.items()}
        rows = x[start : start + size]
        out[start : start + size] = (
            rows @ own["kernel"] + own["bias"] + own["lora_scale"] * rows @ own["lora_a"] @ own["lora_b"]
        )
        start += size
    return out


def gradients_by_hand(x, leaves, sizes, grad):
    of_x, of, start = np.zeros_like(x), {name: np.zeros_like(leaf) for name, leaf in leaves.items()}, 0
    for group, size in enumerate(sizes):
        rows, g = x[start : start + size], grad[start : start + size]
        kernel, a, b, scale = (leaves[name][group] for name in ("kernel", "lora_a", "lora_b", "lora_scale"))
        of_x[start : start + size] = g @ kernel.T + scale * g @ b.T @ a.T
        of["kernel"][group], of["bias"][group] = rows.T @ g, g.sum(0)
        of["lora_a"][group], of["lora_b"][group] = scale * rows.T @ g @ b.T, scale * (rows @ a).T @ g
        of["lora_scale"][group] = ((rows @ a) * (g @ b.T)).sum()
        start += size
    return of_x, of


def float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


@pytest.fixture(params=["cpu", "tpu"])
def platform(request):
    """Written for one or the other; both run here."""
    with written_for(request.param):
        yield request.param


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("rest", [0, 37])
@pytest.mark.parametrize("sizes", SIZES)
def test_whatever_the_sizes_it_is_a_loop_over_the_groups(sizes, rest):
    x, leaves = draw(100 + rest)
    grad = np.random.default_rng(1).normal(size=(100 + rest, OUT))
    got, pull = jax.vjp(
        lambda x, leaves: grouped_linear(x, leaves, jnp.asarray(sizes), rest=bool(rest)), *float32((x, leaves))
    )
    np.testing.assert_allclose(got, by_hand(x, leaves, sizes), atol=2e-5)
    of_x, of = pull(jnp.asarray(grad, jnp.float32))
    want_x, want = gradients_by_hand(x, leaves, sizes, grad)
    np.testing.assert_allclose(of_x, want_x, atol=2e-5)
    for name, leaf in want.items():
        np.testing.assert_allclose(of[name], leaf, atol=2e-4, err_msg=name)


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_a_quantized_kernel_is_decoded_group_by_group(form):
    x, leaves = draw()
    plain = float32({"kernel": leaves["kernel"]})
    held = codec.encode(plain["kernel"], form)
    wide = {"kernel": codec.decode(held, jnp.float32)}
    sizes = jnp.asarray(SIZES[3])

    def run(leaves):
        return jax.value_and_grad(lambda x: jnp.sin(grouped_linear(x, leaves, sizes)).sum())(
            jnp.asarray(x, jnp.float32)
        )

    for got, want in zip(run(held), run(wide), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-5)


def test_what_is_frozen_has_no_gradient_to_compute(equations):
    x, leaves = float32(draw())
    kernel = leaves.pop("kernel")

    def loss(leaves):
        return grouped_linear(x, {**leaves, "kernel": kernel}, jnp.asarray(SIZES[0])).sum()

    shapes = {v.aval.shape for e in equations(jax.grad(loss), leaves) if str(e.primitive) == "scan" for v in e.outvars}
    assert leaves["lora_a"].shape in shapes
    assert kernel.shape not in shapes


def test_in_bfloat16_it_adds_up_in_float32(equations):
    x, leaves = jax.tree.map(lambda y: jnp.asarray(y, jnp.bfloat16), draw())
    leaves.pop("lora_scale"), leaves.pop("lora_a"), leaves.pop("lora_b")
    run = jax.grad(lambda x, leaves: grouped_linear(x, leaves, jnp.asarray(SIZES[0])).astype(jnp.float32).sum(), (0, 1))
    products = [e for e in equations(run, x, leaves) if str(e.primitive) == "dot_general"]
    assert products
    assert {e.outvars[0].aval.dtype.name for e in products} == {"float32"}
    assert {v.aval.dtype.name for e in products for v in e.invars} == {"bfloat16"}


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("name", ["lora_b", "lora_a", "bias"])
def test_one_part_alone_may_train(name):
    x, leaves = draw()
    sizes, grad = SIZES[3], np.random.default_rng(1).normal(size=(100, OUT))
    _, want = gradients_by_hand(x, leaves, sizes, grad)
    x, leaves = float32((x, leaves))
    trained = leaves.pop(name)
    _, pull = jax.vjp(lambda leaf: grouped_linear(x, {**leaves, name: leaf}, jnp.asarray(sizes)), trained)
    np.testing.assert_allclose(pull(jnp.asarray(grad, jnp.float32))[0], want[name], atol=2e-4)


def test_in_bfloat16_both_platforms_agree():
    x, leaves = jax.tree.map(lambda y: jnp.asarray(y, jnp.bfloat16), draw(137))
    leaves["lora_scale"] = leaves["lora_scale"].astype(jnp.float32)
    grad = jnp.asarray(np.random.default_rng(1).normal(size=(137, OUT)), jnp.bfloat16)

    def run(name):
        with written_for(name):
            y, pull = jax.vjp(lambda x, leaves: grouped_linear(x, leaves, jnp.asarray(SIZES[3]), rest=True), x, leaves)
            return jax.tree.map(lambda z: np.asarray(z, np.float32), (y, pull(grad)))

    for got, want in zip(jax.tree.leaves(run("tpu")), jax.tree.leaves(run("cpu")), strict=True):
        np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())


def test_what_a_kernel_leaves_in_rows_of_no_group_reaches_nothing(monkeypatch):
    def careless(x, kernels, sizes, **how):
        return jnp.where(jnp.arange(len(x))[:, None] < sizes.sum(), plain(x, kernels, sizes, **how), jnp.nan)

    plain = jax.lax.ragged_dot
    monkeypatch.setattr(jax.lax, "ragged_dot", careless)
    with written_for("tpu"):
        test_whatever_the_sizes_it_is_a_loop_over_the_groups(SIZES[3], 37)
