"""Analytic FLOPs against the products that jax really makes of a small decoder and its gradient."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.cost.flops import (
    Shape,
    causal_context,
    forward_flops_per_token,
    model_flops_utilisation,
    training_flops_per_token,
    training_step_flops,
)
from jaxlean.errors import ConfigError

BASE = Shape(num_layers=2, hidden_size=16, intermediate_size=40, num_heads=4, num_kv_heads=2, head_dim=8, vocab_size=50)
LORA = dataclasses.replace(BASE, lora_ranks={"query": 3, "value": 2, "down": 5})
ROWS, LENGTH = 2, 6


def params_of(shape: Shape):
    """Base matrices and adapters of every layer, and the head."""
    names = shape.layer_matrices()
    layer = {name: jnp.ones(size) for name, size in names.items()}
    adapter = {
        name: (jnp.ones((names[name][0], r)), jnp.ones((r, names[name][1]))) for name, r in shape.lora_ranks.items()
    }
    base = {"layers": [layer] * shape.num_layers, "head": jnp.ones((shape.hidden_size, shape.vocab_size))}
    return base, [adapter] * shape.num_layers


def loss(base, adapters, x, shape: Shape, remat: bool):
    def block(x, layer, adapter):
        def linear(name, x):
            y = x @ layer[name]
            return y + x @ adapter[name][0] @ adapter[name][1] if name in adapter else y

        groups = shape.num_heads // shape.num_kv_heads
        query = linear("query", x).reshape(ROWS, LENGTH, shape.num_heads, shape.head_dim)
        key, value = (
            jnp.repeat(linear(name, x).reshape(ROWS, LENGTH, shape.num_kv_heads, shape.head_dim), groups, axis=2)
            for name in ("key", "value")
        )
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key))
        x = x + linear("out", jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(ROWS, LENGTH, -1))
        return x + linear("down", jnp.sin(linear("gate", x)) * linear("up", x))

    for layer, adapter in zip(base["layers"], adapters, strict=True):
        x = (jax.checkpoint(block) if remat else block)(x, layer, adapter)
    return jnp.sin(x @ base["head"]).sum()


def dots(jaxpr) -> float:
    """FLOPs of every dot_general in a jaxpr."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += dots(inner)
    return total


def measured(shape: Shape, *, trainable: str | None, remat: bool = False) -> float:
    """FLOPs a token, the whole attention square computed; input gradients of every layer, as a scan makes them."""
    base, adapters = params_of(shape)
    x = jnp.ones((ROWS, LENGTH, shape.hidden_size))
    arguments = {"full": (0, 2), "lora": (1, 2)}
    function = loss if trainable is None else jax.grad(loss, argnums=arguments[trainable])
    jaxpr = jax.make_jaxpr(function, static_argnums=(3, 4))(base, adapters, x, shape, remat)
    return dots(jaxpr.jaxpr) / (ROWS * LENGTH)


@pytest.mark.parametrize("shape", [BASE, LORA])
def test_forward_is_what_jax_computes(shape):
    assert forward_flops_per_token(shape, LENGTH) == measured(shape, trainable=None)


@pytest.mark.parametrize(("shape", "trainable"), [(BASE, "full"), (LORA, "lora")])
def test_training_is_what_jax_computes(shape, trainable):
    assert training_flops_per_token(shape, LENGTH) == measured(shape, trainable=trainable)


@pytest.mark.parametrize(("shape", "trainable"), [(BASE, "full"), (LORA, "lora")])
def test_remat_is_what_jax_computes(shape, trainable):
    # jax leaves out of the second forward what only the block's result needs (here: the product with "down", and
    # with LoRA the last one of its adapter), so the full second forward is the upper bound.
    matrices = shape.layer_matrices()
    unneeded = math.prod(matrices["down"]) + shape.lora_ranks.get("down", 0) * matrices["down"][1]
    bound = training_flops_per_token(shape, LENGTH, remat=True)
    assert bound - 2 * shape.num_layers * unneeded == measured(shape, trainable=trainable, remat=True)


def test_palm_appendix_b():
    shape = Shape(num_layers=118, hidden_size=18432, intermediate_size=4 * 18432, num_heads=48, num_kv_heads=1,
                  head_dim=256, vocab_size=256000)  # fmt: skip
    params = shape.layer_params + shape.head_params
    wanted = 6 * params + 12 * shape.num_layers * shape.num_heads * shape.head_dim * 2048
    assert training_flops_per_token(shape, 2048) == wanted


def test_a_frozen_base_costs_two_thirds_without_attention():
    tiny = dataclasses.replace(BASE, lora_ranks={"query": 1})
    assert training_flops_per_token(tiny, 0) / training_flops_per_token(BASE, 0) == pytest.approx(2 / 3, rel=0.05)


def test_trainable_params_override():
    half = BASE.layer_params // 2
    full = training_flops_per_token(BASE, 10)
    some = training_flops_per_token(BASE, 10, trainable_params=half)
    assert full - some == 2 * (BASE.layer_params + BASE.head_params - half)
    assert training_flops_per_token(BASE, 10, trainable_params=0) < some


def test_lora_params():
    assert LORA.lora_params == 2 * (3 * (16 + 32) + 2 * (16 + 16) + 5 * (40 + 16))


@given(length=st.integers(1, 60), window=st.integers(1, 80) | st.none())
def test_causal_context_is_the_mean_over_the_mask(length, window):
    seen = [sum(1 for k in range(q + 1) if window is None or q - k < window) for q in range(length)]
    assert causal_context(length, window) == pytest.approx(sum(seen) / length)


def test_a_step_is_its_tokens():
    square = training_step_flops(BASE, 4, 128, causal=False)
    causal = training_step_flops(BASE, 4, 128)
    assert square == 4 * 128 * training_flops_per_token(BASE, 128)
    assert square - causal == pytest.approx(4 * 128 * 3 * BASE.attention_flops((128 - 1) / 2))
    assert training_step_flops(BASE, 4, 128, window=16) < causal < training_step_flops(BASE, 4, 128, remat=True)


def test_utilisation():
    assert model_flops_utilisation(1e15, 2.0, 1e15, num_devices=5) == pytest.approx(0.1)


def test_a_misspelt_matrix_is_an_error():
    with pytest.raises(ConfigError, match="did you mean 'query'"):
        dataclasses.replace(BASE, lora_ranks={"qery": 4})
