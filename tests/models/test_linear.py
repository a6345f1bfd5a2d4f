"""The linear layer, its adapter and its product's gradient, against numpy and jax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean import codec
from jaxlean.errors import ModelError
from jaxlean.models.linear import LORA_LEAVES, Dropout, Linear, dot, dot_wide, product

IN, OUT, R = 12, 10, 3


def array(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def layer(*, bias=True, dtype=jnp.float32, **leaves):
    """A layer over random parameters and the adapter leaves given."""
    graph_of = Linear(IN, OUT, bias=bias, dtype=dtype, rngs=nnx.Rngs(0))
    graph_of.attach(leaves)
    graph, shapes = nnx.split(graph_of)
    params = {"kernel": array(1, IN, OUT), **({"bias": array(2, OUT)} if bias else {}), **leaves}
    assert sorted(nnx.to_pure_dict(shapes)) == sorted(params)
    return lambda x, dropout=None, **changed: nnx.merge(graph, params | changed)(x, dropout), params


def lora(dora=False, seed=3):
    leaves = {"lora_a": array(seed, IN, R), "lora_b": array(seed + 1, R, OUT), "lora_scale": jnp.float32(1.7)}
    return leaves | ({"lora_magnitude": jnp.abs(array(seed + 2, OUT))} if dora else {})


@pytest.mark.parametrize("leading", [(), (5,), (2, 1, 3)])
def test_dot_has_the_value_and_the_gradient_of_a_plain_product(leading):
    x, kernel, weight = array(0, *leading, IN), array(1, IN, OUT), array(2, *leading, OUT)
    ours = jax.value_and_grad(lambda x, k: (dot(x, k) * weight).sum(), argnums=(0, 1))(x, kernel)
    plain = jax.value_and_grad(lambda x, k: (jnp.dot(x, k) * weight).sum(), argnums=(0, 1))(x, kernel)
    for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_dot_of_bfloat16_adds_up_in_float32_both_ways():
    # 4096 ones: a bfloat16 sum would stop at 256
    x, kernel = jnp.ones((2, 4096), jnp.bfloat16), jnp.ones((4096, 8), jnp.bfloat16)
    value, pull = jax.vjp(dot, x, kernel)
    assert value.dtype == jnp.bfloat16
    np.testing.assert_array_equal(value.astype(jnp.float32), 4096)
    for got, want in zip(pull(jnp.ones_like(value)), (8, 2), strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(got.astype(jnp.float32), want)


def test_dot_multiplies_in_bfloat16_backward_too(equations):
    x, kernel, grad = (jnp.ones(shape, jnp.bfloat16) for shape in ((2, 4), (4, 8), (2, 8)))
    products = [
        e for e in equations(lambda x, k, g: jax.vjp(dot, x, k)[1](g), x, kernel, grad) if "dot_" in str(e.primitive)
    ]
    assert len(products) >= 2
    assert {str(v.aval.dtype) for e in products for v in e.invars} == {"bfloat16"}
    assert {str(v.aval.dtype) for e in products for v in e.outvars} == {"float32"}


@pytest.mark.parametrize("transposed", [False, True])
def test_a_wide_product_is_not_rounded_and_its_gradient_is_that_of_dot(transposed, equations):
    x, kernel, weight = (array(i, *s, dtype=jnp.bfloat16) for i, s in enumerate([(4, 3, IN), (IN, OUT), (4, 3, OUT)]))

    def wide(x, kernel):
        return dot_wide(x, kernel.T if transposed else kernel, transposed)

    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    value, pull = jax.vjp(wide, x, kernel)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-5)
    grads = pull(weight.astype(jnp.float32))
    for got, want in zip(grads, jax.vjp(dot, x, kernel)[1](weight), strict=True):
        np.testing.assert_array_equal(got, want)
    found = equations(lambda x, k, g: jax.vjp(wide, x, k)[1](g), x, kernel, weight.astype(jnp.float32))
    products = [e for e in found if "dot_" in str(e.primitive)]
    assert products
    assert all(v.aval.dtype == jnp.bfloat16 for e in products for v in e.invars)


def test_a_layer_is_bare_that_has_nothing_beside_its_kernel():
    def built(*, bias=False, **leaves):
        linear = Linear(IN, OUT, bias=bias, dtype=jnp.float32, rngs=nnx.Rngs(0))
        linear.attach(leaves)
        return linear

    assert built().bare
    assert not built(bias=True).bare
    assert not built(**lora()).bare
    assert not built(**codec.encode(array(0, IN, OUT), "int8")).bare


def test_without_an_adapter():
    f, params = layer()
    x = array(9, 2, 5, IN)
    np.testing.assert_allclose(f(x), np.asarray(x) @ params["kernel"] + params["bias"], rtol=1e-5, atol=1e-5)
    f, params = layer(bias=False)
    np.testing.assert_allclose(f(x), np.asarray(x) @ params["kernel"], rtol=1e-5, atol=1e-5)


def test_an_adapter_adds_its_scaled_product():
    f, p = layer(**lora())
    x = np.asarray(array(9, 2, 5, IN), np.float64)
    want = x @ p["kernel"] + 1.7 * (x @ p["lora_a"]) @ p["lora_b"] + p["bias"]
    np.testing.assert_allclose(f(jnp.asarray(x, jnp.float32)), want, rtol=1e-5, atol=1e-5)


def test_dora_scales_columns_but_not_the_bias():
    f, p = layer(**lora(dora=True))
    x = np.asarray(array(9, 2, 5, IN), np.float64)
    whole = np.asarray(p["kernel"], np.float64) + 1.7 * np.asarray(p["lora_a"], np.float64) @ p["lora_b"]
    want = x @ (whole / np.linalg.norm(whole, axis=0) * p["lora_magnitude"]) + p["bias"]
    np.testing.assert_allclose(f(jnp.asarray(x, jnp.float32)), want, rtol=1e-5, atol=1e-5)


def test_the_gradient_takes_doras_norm_for_a_constant():
    f, p = layer(**lora(dora=True))
    x = array(9, 5, IN)
    norm = jnp.linalg.norm(p["kernel"] + 1.7 * p["lora_a"] @ p["lora_b"], axis=0)

    def held(a):
        return ((x @ (p["kernel"] + 1.7 * a @ p["lora_b"])) * (p["lora_magnitude"] / norm) + p["bias"]) ** 2

    got = jax.grad(lambda a: (f(x, lora_a=a) ** 2).sum())(p["lora_a"])
    np.testing.assert_allclose(got, jax.grad(lambda a: held(a).sum())(p["lora_a"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dora", [False, True])
def test_bfloat16_is_close_and_parameters_stay_float32(dora):
    # The test runs under strict promotion: a float32 that slipped into the product would be an error.
    wide, _ = layer(**lora(dora))
    narrow, _ = layer(dtype=jnp.bfloat16, **lora(dora))
    x = array(9, 7, IN)
    got = narrow(x.astype(jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    want = np.asarray(wide(x))
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.03 * np.abs(want).max())


def test_the_scale_is_not_rounded_to_bfloat16():
    # 1 + 2^-9 is 1 in bfloat16; x picks one entry of lora_a, so that the only rounding left is of products
    leaves = {"lora_a": jnp.full((IN, R), 3.0), "lora_b": jnp.ones((R, OUT)), "lora_scale": jnp.float32(1.5 + 2**-8)}
    f, _ = layer(bias=False, dtype=jnp.bfloat16, **leaves)
    x = jnp.zeros((1, IN), jnp.bfloat16).at[0, 0].set(85.0)
    got = float(f(x, kernel=jnp.zeros((IN, OUT)))[0, 0])
    exact = 3 * float(jnp.bfloat16(85.0 * 3.0 * (1.5 + 2**-8)))
    assert got == float(jnp.bfloat16(exact))
    assert got != float(jnp.bfloat16(3 * float(jnp.bfloat16(85.0 * 3.0 * 1.5))))


def test_dropout_is_keyed_keeps_the_mean_and_acts_on_the_adapter_alone():
    f, _ = layer(**lora())
    plain, _ = layer()
    x = array(9, 4, IN)
    one, two = (Dropout(0.5, jax.random.key(seed)) for seed in (1, 2))
    np.testing.assert_array_equal(f(x, one), f(x, one))
    assert not np.array_equal(f(x, one), f(x, two))
    assert not np.array_equal(f(x, one), f(x, one.fold(3)))
    assert one.fold(3).key == one.fold(jnp.uint32(3)).key
    np.testing.assert_array_equal(plain(x, one), plain(x))

    ones = jnp.ones((400, 400), jnp.float32)
    dropped = np.asarray(Dropout(0.2, jax.random.key(0))(ones))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.8)}
    assert dropped.mean() == pytest.approx(1.0, abs=0.01)
    assert Dropout(0.2, jax.random.key(0))(ones.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_leaves_are_attached_by_name_and_shape_alone():
    linear = Linear(IN, OUT, bias=False, dtype=jnp.float32, rngs=nnx.Rngs(0))
    linear.attach({"kernel": array(0, IN, OUT), "lora_a": array(1, 7, IN, 2)})
    shapes = nnx.to_pure_dict(nnx.split(linear)[1])
    assert sorted(shapes) == ["kernel", "lora_a"]
    assert shapes["lora_a"].shape == (7, IN, 2)
    assert set(lora(dora=True)) == LORA_LEAVES


# ---- a kernel in fewer bits


@pytest.mark.parametrize("form", ["int8", "nf4"])
@pytest.mark.parametrize("adapter", [{}, lora(), lora(dora=True)])
def test_a_quantized_kernel_computes_what_the_decoded_one_does(form, adapter):
    held = codec.encode(array(1, IN, OUT), form)
    linear = Linear(IN, OUT, bias=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
    linear.attach(held | adapter)
    graph, shapes = nnx.split(linear)
    params = held | {"bias": array(2, OUT)} | adapter
    assert sorted(nnx.to_pure_dict(shapes)) == sorted(params)
    f, _ = layer(**adapter)
    x = array(9, 2, 5, IN)
    want = f(x, kernel=codec.decode(held, jnp.float32))
    np.testing.assert_allclose(nnx.merge(graph, params)(x), want, rtol=1e-4, atol=1e-4)


def test_a_quantized_kernel_of_another_shape_is_refused():
    def attach(**leaves):
        Linear(IN, OUT, bias=False, dtype=jnp.float32, rngs=nnx.Rngs(0)).attach(leaves, where="layers.mlp.up")

    with pytest.raises(ModelError) as caught:
        attach(**codec.encode(array(0, IN, OUT + 1), "int8"))
    for words in ("layers.mlp.up.kernel_int8", str((IN, OUT + 1)), str((IN, OUT))):
        assert words in str(caught.value)
    with pytest.raises(ModelError, match="kernel_scale"):
        attach(kernel_int8=jnp.zeros((IN, OUT), jnp.int8))


@pytest.mark.parametrize("matmul", ["default", "int8", "fp8"])
def test_the_layer_multiplies_as_it_is_told(matmul):
    linear = Linear(IN, OUT, bias=False, dtype=jnp.float32, rngs=nnx.Rngs(0))
    linear.matmul = matmul
    linear.attach(lora())
    graph, _ = nnx.split(linear)
    x, kernel, adapter = array(9, 5, IN), array(1, IN, OUT), lora()
    got = nnx.merge(graph, {"kernel": kernel, **adapter})(x)
    low = 1.7 * (x @ adapter["lora_a"]) @ adapter["lora_b"]  # as ever
    np.testing.assert_allclose(got, product(x, {"kernel": kernel}, matmul) + low, rtol=1e-5, atol=1e-4)
    exact = np.asarray(x @ kernel)
    assert (np.abs(product(x, {"kernel": kernel}, matmul) - exact).max() > 1e-3) == (matmul != "default")


def test_who_observes_a_layer_sees_its_inputs():
    module = Linear(IN, OUT, bias=False, dtype=jnp.float32, rngs=nnx.Rngs(0))
    seen = []
    module.observe = seen.append
    x = array(5, 2, IN)
    module(x)
    module(2 * x)
    np.testing.assert_array_equal(jnp.stack(seen), jnp.stack([x, 2 * x]))
