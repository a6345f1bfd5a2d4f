"""What generation keeps of the tokens so far: keys and values of each layer, in the compute dtype or in 8 bits.

In 8 bits each head of each token has a scale of its own, found when it is written: half of bfloat16's memory, and half
of what each further token reads.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlean import codec


class Kept(NamedTuple):
    """Keys, or values, of all slots of a layer (or of a stack of layers)."""

    values: jax.Array  # [..., batch, slots, heads, features]
    scale: jax.Array | None  # float32 [..., batch, slots, heads] of int8 values


KeyValue = tuple[Kept, Kept]


def empty(shape: tuple[int, ...], dtype: Any) -> Kept:
    """Room for so many, none there yet. With int8 for a dtype they are rounded to it."""
    scale = jnp.zeros(shape[:-1], jnp.float32) if jnp.dtype(dtype) == jnp.int8 else None
    return Kept(jnp.zeros(shape, dtype), scale)


def put(kept: Kept, new: jax.Array, slot: jax.Array) -> Kept:
    """With those of new tokens written in.

    Args:
        kept: of one layer, [batch, slots, heads, features].
        new: [batch, length, heads, features].
        slot: int32 [], of the first of them.
    """
    if kept.scale is None:
        return Kept(jax.lax.dynamic_update_slice(kept.values, new.astype(kept.values.dtype), (0, slot, 0, 0)), None)
    values, scale = codec.narrow(new, jnp.int8, axis=-1)
    return Kept(
        jax.lax.dynamic_update_slice(kept.values, values, (0, slot, 0, 0)),
        jax.lax.dynamic_update_slice(kept.scale, scale, (0, slot, 0)),
    )


def get(kept: Kept, dtype: Any) -> jax.Array:
    """[batch, slots, heads, features] in a dtype."""
    if kept.scale is None:
        return kept.values.astype(dtype)
    return (kept.values.astype(jnp.float32) * kept.scale[..., None]).astype(dtype)
