"""Products with kernels in every form, forward and backward, against float64; what is kept for the backward pass."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean import codec
from jaxlean.models.quantized import dot, folded, round_tokens, rounded

IN, OUT = 96, 80
FORMS = ["wide", "int8", "nf4"]


def array(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def held(form, dtype=jnp.float32, seed=1):
    kernel = 0.05 * array(seed, IN, OUT)
    return {"kernel": kernel.astype(dtype)} if form == "wide" else codec.encode(kernel, form)


def exact(leaves):
    return np.asarray(codec.decode(leaves, jnp.float32), np.float64)


def error(got, want):
    return np.linalg.norm(np.asarray(got.astype(jnp.float32), np.float64) - want) / np.linalg.norm(want)


def both_ways(x, leaves, grad, matmul):
    value, pull = jax.vjp(lambda x: dot(x, leaves, matmul), x)
    return value, pull(grad)[0]


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
@pytest.mark.parametrize("form", FORMS)
def test_the_product_is_that_with_the_decoded_kernel(form, leading):
    leaves, x, grad = held(form), array(0, *leading, IN), array(2, *leading, OUT)
    value, back = both_ways(x, leaves, grad, "default")
    np.testing.assert_allclose(value, np.asarray(x, np.float64) @ exact(leaves), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(back, np.asarray(grad, np.float64) @ exact(leaves).T, rtol=1e-5, atol=1e-5)


# Root mean square of what rounding does: bfloat16 has 8 bits of precision, e4m3 has 4, e5m2 has 3.
@pytest.mark.parametrize(
    ("matmul", "dtype", "forward", "backward"),
    [
        ("default", "bfloat16", 0.004, 0.004),
        ("int8", "float32", 0.015, 0.015),
        ("int8", "bfloat16", 0.016, 0.016),
        ("fp8", "float32", 0.045, 0.07),
        ("fp8", "bfloat16", 0.045, 0.07),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_fewer_bits_are_close(form, matmul, dtype, forward, backward):
    leaves, x, grad = held(form, dtype), array(0, 4, 7, IN, dtype=dtype), array(2, 4, 7, OUT, dtype=dtype)
    value, back = both_ways(x, leaves, grad, matmul)
    assert value.dtype == back.dtype == dtype
    found = error(value, np.asarray(x, np.float64) @ exact(leaves))
    assert forward / 10 < found < forward
    assert backward / 10 < error(back, np.asarray(grad, np.float64) @ exact(leaves).T) < backward


def test_int8_is_a_product_of_whole_numbers():
    """By hand, in whole numbers: what is rounded is x, by its row's absmax, and the kernel, by its column's."""
    x, leaves = array(0, 6, IN), held("int8")
    step = np.abs(np.asarray(x)).max(axis=1) * np.float32(1 / 127)
    tokens = np.rint(np.asarray(x) / step[:, None]).astype(np.int64)
    want = (tokens @ np.asarray(leaves["kernel_int8"], np.int64)) * step[:, None].astype(np.float64)
    np.testing.assert_allclose(dot(x, leaves, "int8"), want * np.asarray(leaves["kernel_scale"]), rtol=1e-5, atol=1e-6)


def test_the_columns_scales_are_folded_in_before_the_gradient_is_rounded():
    """A column a thousand times another must not drown it: rounding g and scaling after would."""
    kernel = array(1, IN, OUT).at[:, 0].mul(1000.0)
    leaves, grad = codec.encode(kernel, "int8"), array(2, 6, OUT).at[:, 0].mul(1e-4)
    _, back = both_ways(array(0, 6, IN), leaves, grad, "int8")
    assert error(back, np.asarray(grad, np.float64) @ exact(leaves).T) < 0.015


@pytest.mark.parametrize(("matmul", "dtypes"), [("int8", {"int8"}), ("fp8", {"float8_e4m3fn", "float8_e5m2"})])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_multiplied_is_narrow_both_ways(equations, form, matmul, dtypes):
    leaves, x, grad = (
        held(form, jnp.bfloat16),
        array(0, 5, IN, dtype=jnp.bfloat16),
        array(2, 5, OUT, dtype=jnp.bfloat16),
    )
    products = [
        e for e in equations(lambda x, g: both_ways(x, leaves, g, matmul), x, grad) if e.primitive.name == "dot_general"
    ]
    narrow = [e for e in products if str(e.invars[0].aval.dtype) in dtypes]
    assert len(narrow) == 2
    assert {str(v.aval.dtype) for e in narrow for v in e.invars} == dtypes
    wide = {"int8": "int32", "fp8": "float32"}[matmul]
    assert {str(v.aval.dtype) for e in narrow for v in e.outvars} == {wide}
    assert len(products) == (3 if form == "wide" else 2)  # the gradient of a kernel that may train


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_default_multiplies_in_bfloat16_and_adds_up_in_float32(equations, form):
    leaves, x, grad = held(form), array(0, 5, IN, dtype=jnp.bfloat16), array(2, 5, OUT, dtype=jnp.bfloat16)
    products = [
        e
        for e in equations(lambda x, g: both_ways(x, leaves, g, "default"), x, grad)
        if e.primitive.name == "dot_general"
    ]
    assert len(products) == 2
    assert {str(v.aval.dtype) for e in products for v in e.invars} == {"bfloat16"}
    assert {str(v.aval.dtype) for e in products for v in e.outvars} == {"float32"}


@pytest.mark.parametrize("matmul", ["default", "int8", "fp8"])
@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_only_the_kernel_as_it_is_held_is_kept_for_the_backward_pass(form, matmul):
    leaves, x = held(form), array(0, 5, IN)
    pull = jax.eval_shape(lambda x, leaves: jax.vjp(lambda x: dot(x, leaves, matmul), x)[1], x, leaves)
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))
    assert kept <= sum(leaf.nbytes for leaf in leaves.values())


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_in_a_scan_nothing_wide_is_kept(form):
    """Memory of the compiled gradient: 16 layers take little more than 2, whose wide kernels would be 30 KB each."""

    def temp(layers):
        kernel = 0.05 * array(1, layers, 128, 128)
        stack = codec.encode(kernel, form)

        def loss(x, stack):
            return jax.lax.scan(lambda x, leaves: (dot(x, leaves), None), x, stack)[0].sum()

        compiled = jax.jit(jax.grad(loss)).lower(array(0, 1, 128), stack).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temp(16) - temp(2) < 14 * 128 * 128 * 4 / 4


@pytest.mark.parametrize("matmul", ["default", "int8", "fp8"])
def test_a_wide_kernel_may_train(matmul):
    x, kernel, weight = array(0, 2, 5, IN), 0.05 * array(1, IN, OUT), array(2, 2, 5, OUT)
    got = jax.grad(lambda k: (dot(x, {"kernel": k}, matmul) * weight).sum())(kernel)
    want = np.einsum("bni,bno->io", np.asarray(x, np.float64), np.asarray(weight, np.float64))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    assert got.dtype == kernel.dtype


@pytest.mark.parametrize("matmul", ["default", "int8", "fp8"])
@pytest.mark.parametrize("form", FORMS)
def test_nothing_in_nothing_out(form, matmul):
    value, back = both_ways(jnp.zeros((3, IN)), held(form), jnp.zeros((3, OUT)), matmul)
    assert not np.asarray(value).any()
    assert not np.asarray(back).any()
    kernel = jnp.zeros((IN, OUT))
    leaves = {"kernel": kernel} if form == "wide" else codec.encode(kernel, form)
    value, back = both_ways(array(0, 3, IN), leaves, array(1, 3, OUT), matmul)
    assert not np.asarray(value).any()
    assert not np.asarray(back).any()


@pytest.mark.parametrize("matmul", ["default", "int8", "fp8"])
def test_under_remat_and_jit_the_gradient_is_the_same(matmul):
    leaves, x = held("nf4"), array(0, 3, IN)
    loss = partial(lambda f, x: jnp.square(f(x)).sum(), lambda x: dot(x, leaves, matmul))
    want = jax.grad(loss)(x)
    np.testing.assert_allclose(jax.jit(jax.grad(jax.checkpoint(loss)))(x), want, rtol=1e-5, atol=1e-5)


# ---- as quantized models are multiplied elsewhere


def tokens_by_hand(x):
    """Each token's absmax is 127.5 steps; IEEE divisions, halves to even, as torch does it."""
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127.5)
    return np.clip(np.round(x / np.where(scale == 0, 1, scale)), -128, 127), scale[..., 0]


@pytest.mark.parametrize("rounds", [round_tokens, jax.jit(round_tokens)], ids=["eager", "jit"])
def test_tokens_are_rounded_as_others_round_them(rounds):
    x = np.random.default_rng(0).normal(size=(2000, 96)).astype(np.float32)
    x[7] = 0
    values, scale = rounds(jnp.asarray(x))
    wanted, steps = tokens_by_hand(x)
    np.testing.assert_array_equal(scale, steps)
    # XLA makes a product of the division of all others, which may fall to the other side of a half
    assert (np.asarray(values) != wanted).sum() <= 10
    negative = x == -np.abs(x).max(-1, keepdims=True)
    np.testing.assert_array_equal(np.asarray(values)[negative], wanted[negative])
    assert {-127, -128} <= set(wanted[negative].tolist())


def test_w8a8_is_the_product_of_whole_numbers():
    x, leaves, grad = array(0, 5, IN), held("int8"), array(2, 5, OUT)
    value, back = both_ways(x, leaves, grad, "w8a8")
    values, scale = tokens_by_hand(np.asarray(x))
    np.testing.assert_allclose(value, (values * scale[:, None]) @ exact(leaves), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(back, np.asarray(grad, np.float64) @ exact(leaves).T, rtol=1e-5, atol=1e-5)


GRIDS = {"int8": {}, "int4": {"group_size": 16}, "int8_grouped": {"group_size": 32}}


@pytest.mark.parametrize("form", GRIDS)
def test_what_is_folded_is_what_is_merged(form):
    leaves = codec.encode(0.05 * array(1, IN, OUT), form, **GRIDS[form])
    delta = 0.01 * array(3, IN, OUT)
    merged = codec.moved(leaves, delta)
    assert {name: x.shape for name, x in merged.items()} == {name: x.shape for name, x in leaves.items()}
    np.testing.assert_allclose(folded(leaves, delta), codec.decode(merged, jnp.float32), rtol=1e-6, atol=1e-9)
    values, scales, bits = codec.grid(leaves)
    by_hand = np.round(np.asarray(values, np.float64) + np.asarray(delta, np.float64) / np.asarray(scales))
    by_hand = np.clip(by_hand, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert (np.asarray(codec.grid(merged)[0]) != by_hand).mean() < 0.001
    np.testing.assert_array_equal(codec.moved(leaves, jnp.zeros((IN, OUT)))[f"kernel_{form}"], leaves[f"kernel_{form}"])
    weight = array(4, IN, OUT)
    np.testing.assert_array_equal(jax.grad(lambda d: (folded(leaves, d) * weight).sum())(delta) / weight > 0.99, True)


def test_rounded_inputs_have_the_gradient_of_plain_ones():
    x, weight = array(0, 4, IN), array(1, 4, IN)
    values, scale = round_tokens(x)
    np.testing.assert_allclose(rounded(x), np.asarray(values) * np.asarray(scale)[:, None], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda x: (rounded(x) * weight).sum())(x), weight)
