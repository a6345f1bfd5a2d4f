"""Layers over one input: what each gives by itself, values and gradients, and what is shared."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean import codec
from jaxlean.models.linear import Dropout, Linear
from jaxlean.models.projection import LORA_LOW, project

IN, OUTS, RANKS, SCALES = 12, (10, 6, 6), (3, 2, 3), (1.7, 0.6, 1.1)
SHAPE = (2, 5, IN)
FORMS = ["wide", "int8", "nf4"]


def array(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def leaves_of(index, form="wide", adapter=True, dora=False, bias=True, dtype=jnp.float32):
    """A layer's parameters; `dtype` is that of a wide kernel."""
    out, rank, seed = OUTS[index], RANKS[index], 10 * index
    kernel = array(seed, IN, out).astype(dtype)
    leaves = {"kernel": kernel} if form == "wide" else dict(codec.encode(kernel, form))
    if adapter:
        leaves |= {"lora_a": array(seed + 1, IN, rank), "lora_b": array(seed + 2, rank, out)}
        leaves["lora_scale"] = jnp.float32(SCALES[index])
    if dora:
        leaves["lora_magnitude"] = 1 + jnp.abs(array(seed + 3, out))
    if bias:
        leaves["bias"] = array(seed + 4, out)
    return leaves


def built(params, dtype=jnp.float32, matmul="default"):
    """A layer over each of `params`."""

    def one(leaves, out):
        linear = Linear(IN, out, bias="bias" in leaves, dtype=dtype, rngs=nnx.Rngs(0))
        linear.attach(leaves)
        linear.matmul = matmul
        return nnx.merge(nnx.split(linear)[0], leaves)

    return [one(leaves, out) for leaves, out in zip(params, OUTS, strict=False)]


def together(x, params, drops=None, **options):
    layers = built(params, **options)
    return project(x, layers, drops or [None] * len(layers))


def apart(x, params, drops=None, **options):
    layers = built(params, **options)
    return [layer(x, drop) for layer, drop in zip(layers, drops or [None] * len(layers), strict=True)]


def differentiated(function, x, params, **options):
    """(outputs, gradients of x and of every float parameter), of outputs weighed at random."""
    # codes have no gradient
    fixed = [{k: v for k, v in leaves.items() if k.startswith("kernel_")} for leaves in params]
    moving = [{k: v for k, v in leaves.items() if not k.startswith("kernel_")} for leaves in params]

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(x, moving):
        outputs = function(x, [a | b for a, b in zip(fixed, moving, strict=True)], **options)
        weights = [array(90 + i, *y.shape) for i, y in enumerate(outputs)]
        return sum((y.astype(jnp.float32) * w).sum() for y, w in zip(outputs, weights, strict=True)), outputs

    # compiled without optimisation, in half the time
    (_, outputs), grads = run.lower(x, moving).compile({"xla_backend_optimization_level": 0})(x, moving)
    return outputs, grads


def assert_near(got, want, tolerance):
    (paths, got), want = zip(*jax.tree.leaves_with_path(got), strict=True), jax.tree.leaves(want)
    for path, one, other in zip(paths, got, want, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        one, other = one.astype(jnp.float32), other.astype(jnp.float32)
        scale = float(jnp.abs(other).max())
        assert scale > 0, path
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_each_layer_by_itself(form, number):
    x, params = array(50, *SHAPE), [leaves_of(i, form, bias=i != 1) for i in range(number)]
    assert_near(differentiated(together, x, params), differentiated(apart, x, params), 1e-5)


def test_without_leading_dims():
    x, params = array(50, IN), [leaves_of(i) for i in range(2)]
    assert_near(differentiated(together, x, params), differentiated(apart, x, params), 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_nearer_to_float32_than_each_layer_by_itself(form):
    """Base and adapter are added before they are rounded."""
    x, params = array(51, 64, IN, dtype=jnp.bfloat16), [leaves_of(i, form, dtype=jnp.bfloat16) for i in range(3)]
    exact = jax.tree.leaves(differentiated(apart, x.astype(jnp.float32), params))

    def errors(function):
        found = jax.tree.leaves(differentiated(function, x, params, dtype=jnp.bfloat16))
        return [
            float(np.linalg.norm(one.astype(jnp.float32) - other) / np.linalg.norm(other.astype(jnp.float32)))
            for one, other in zip(found, [e.astype(jnp.float32) for e in exact], strict=True)
        ]

    ours, theirs = errors(together), errors(apart)
    assert max(ours) < 0.015
    assert sum(ours[:4]) < sum(theirs[:4])  # three outputs and the gradient of x


def test_gradients_have_the_dtypes_of_what_they_are_of():
    x, params = array(52, *SHAPE, dtype=jnp.bfloat16), [leaves_of(i, dtype=jnp.bfloat16) for i in range(3)]
    outputs, (of_x, of_params) = differentiated(together, x, params, dtype=jnp.bfloat16)
    assert {y.dtype for y in outputs} == {of_x.dtype} == {jnp.dtype(jnp.bfloat16)}
    for grad, leaves in zip(of_params, params, strict=True):
        assert {k: g.dtype for k, g in grad.items()} == {k: p.dtype for k, p in leaves.items()}


# ---- what is shared


def test_the_first_products_of_the_adapters_are_one(products, names):
    x, params = array(53, *SHAPE), [leaves_of(i) for i in range(3)]
    assert products(partial(together, params=params), x) == 1 + 2 * 3
    assert products(partial(apart, params=params), x) == 3 * 3
    assert names(partial(together, params=params), x) == [LORA_LOW]


def test_a_frozen_kernel_has_no_product_for_its_gradient():
    x, params = array(53, *SHAPE), [leaves_of(i) for i in range(3)]

    def loss(kernels, adapters):
        moved = [p | k | a for p, k, a in zip(params, kernels, adapters, strict=True)]
        return sum(jnp.square(y).sum() for y in together(x, moved))

    kernels = [{"kernel": p["kernel"]} for p in params]
    adapters = [{"lora_a": p["lora_a"], "lora_b": p["lora_b"]} for p in params]
    all_of_them, without_kernels = (
        jax.jit(jax.grad(loss, argnums=of)).lower(kernels, adapters).compile().as_text().count(" dot(")
        for of in ((0, 1), 1)
    )
    assert all_of_them - without_kernels == 3


@pytest.mark.parametrize(("dtype", "held"), [(jnp.float32, "f32[10,8]"), (jnp.bfloat16, "u16[10,8]")])
def test_a_policy_that_saves_lora_low_does_not_compute_it_again(products, saved, dtype, held):
    x, params = array(54, *SHAPE, dtype=dtype), [leaves_of(i) for i in range(3)]

    def loss(policy, x, adapters):
        def layer(x, adapters):
            moved = [p | a for p, a in zip(params, adapters, strict=True)]
            return sum(jnp.square(y.astype(jnp.float32)).sum() for y in together(x, moved, dtype=dtype))

        return jax.checkpoint(layer, policy=policy)(x, adapters)

    policies = jax.checkpoint_policies
    adapters = [{"lora_a": p["lora_a"], "lora_b": p["lora_b"]} for p in params]
    with_it = partial(loss, policies.save_only_these_names(LORA_LOW))
    without = partial(loss, policies.save_only_these_names("another"))
    assert saved(with_it, x, adapters) == [held]
    assert saved(without, x, adapters) == []
    with_it, without = (products(jax.grad(f, argnums=(0, 1)), x, adapters) for f in (with_it, without))
    assert without - with_it == 1


# ---- what is not


@pytest.mark.parametrize(
    ("changed", "options"),
    [
        ({"dora": True}, {}),
        ({"adapter": False}, {}),
        ({}, {"matmul": "int8"}),
        ({"form": "int8"}, {"matmul": "int8"}),
        ({}, {"drops": [Dropout(0.5, jax.random.key(i)) for i in range(2)]}),
        ({}, {"drops": [None, Dropout(0.5, jax.random.key(1))]}),
    ],
    ids=["dora", "no-adapter", "int8", "int8-held", "dropout", "one-dropout"],
)
def test_what_is_not_plain_goes_layer_by_layer(names, changed, options):
    x = array(55, *SHAPE)
    params = [leaves_of(0), leaves_of(1, **changed)]  # one such layer is enough
    if "matmul" in options:
        params[0] = leaves_of(0, **changed)
    for got, want in zip(together(x, params, **options), apart(x, params, **options), strict=True):
        np.testing.assert_array_equal(got, want)
    assert names(lambda x: together(x, params, **options), x) == []
    plain = together(x, [leaves_of(0), leaves_of(1)])
    assert np.abs(np.asarray(together(x, params, **options)[1] - plain[1])).max() > 1e-3
