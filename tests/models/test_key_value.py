"""What generation keeps: in the compute dtype it is what was written, in 8 bits it is near it and smaller."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean.models.decoder import Cache, DecoderConfig
from jaxlean.models.key_value import empty

SHAPE = DecoderConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16,
    initializer_range=0.3,
)  # fmt: skip


def array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("dtype", "near"), [("float32", 0.0), ("bfloat16", 2**-8), ("int8", 1 / 250)])
def test_what_is_put_is_got(dtype, near):
    layer = jnp.int32(1)
    kept = empty((2, 2, 3, 9, 16), jnp.dtype(dtype))
    first, more = array(0, 2, 4, 3, 16), array(1, 2, 2, 3, 16)
    kept = kept.put(first, layer, jnp.int32(0)).put(more, layer, jnp.int32(4))
    found = np.asarray(kept.get(layer, jnp.float32))
    wanted = np.concatenate([first, more], axis=1)
    # int8: half a step of the head's own largest number
    largest = np.abs(wanted).max(axis=-1, keepdims=True)
    assert (np.abs(found[:, :6] - wanted) <= near * largest).all()
    assert not found[:, 6:].any()
    assert kept.get(layer, jnp.bfloat16).dtype == jnp.bfloat16
    assert not kept.get(jnp.int32(0), jnp.float32).any()  # the other layer's


def test_eight_bits_are_a_quarter_of_float32_and_decode_nearly_the_same():
    module = SHAPE.build(dtype=jnp.float32, rngs=nnx.Rngs(0))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 10)), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(10, dtype=jnp.int32), (2, 10))
    found, sizes = {}, {}
    for dtype in ("float32", "int8"):
        cache = Cache.empty(SHAPE, 2, 12, jnp.dtype(dtype))
        sizes[dtype] = sum(x.nbytes for kept in cache.layers for part in kept for x in part if x is not None)
        _, cache = module.decode(tokens[:, :8], positions[:, :8], jnp.ones((2, 8), jnp.int32), cache)
        found[dtype], _ = module.decode(tokens[:, 8:], positions[:, 8:], jnp.ones((2, 2), jnp.int32), cache)
    assert sizes["int8"] / sizes["float32"] == (16 + 4) / (4 * 16)
    whole = module(tokens)[:, 8:]
    np.testing.assert_allclose(found["float32"], whole, rtol=1e-4, atol=1e-4)
    away = jnp.linalg.norm(found["int8"] - whole) / jnp.linalg.norm(whole)
    assert 0 < away < 0.02
