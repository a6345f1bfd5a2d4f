"""What generation keeps of the tokens so far: keys and values of each layer, in the compute dtype or in 8 bits.

In 8 bits each head of each token has a scale of its own, found when it is written: half of bfloat16's memory, and half
of what each further token reads.

All layers of a stack are one array that is handed from layer to layer, and each writes its own tokens into it: as the
slices that a scan gives back, every token would copy the whole. A head's slots lie side by side, as the products with
them want it.
"""

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from jaxlean import codec
from jaxlean.models.cpu import from_bits, on_cpu, to_bits


class Kept(NamedTuple):
    """Keys, or values, of all slots of a stack of layers."""

    values: jax.Array  # [layers, batch, heads, slots, features]; on CPU bfloat16 as its bits
    scale: jax.Array | None  # float32 [layers, batch, heads, slots] of int8 values

    def put(self, new: jax.Array, layer: jax.Array, slot: jax.Array) -> "Kept":
        """With new tokens [batch, length, heads, features] of a layer written in; int32 [], the first one's slot."""
        new = new.swapaxes(1, 2)[None]
        if self.scale is None:
            bits = to_bits(new.astype(from_bits(self.values).dtype))
            return Kept(jax.lax.dynamic_update_slice(self.values, bits, (layer, 0, 0, slot, 0)), None)
        values, scale = codec.narrow(new, jnp.int8, axis=-1)
        return Kept(
            jax.lax.dynamic_update_slice(self.values, values, (layer, 0, 0, slot, 0)),
            jax.lax.dynamic_update_slice(self.scale, scale, (layer, 0, 0, slot)),
        )

    def get(self, layer: jax.Array, dtype: Any) -> jax.Array:
        """[batch, slots, heads, features] of a layer, in a dtype."""
        values = from_bits(jax.lax.dynamic_index_in_dim(self.values, layer, keepdims=False))
        if self.scale is not None:
            scale = jax.lax.dynamic_index_in_dim(self.scale, layer, keepdims=False)
            values = values.astype(jnp.float32) * scale[..., None]
        return values.astype(dtype).swapaxes(1, 2)


def empty(shape: tuple[int, int, int, int, int], dtype: Any) -> Kept:
    """Room for so many, none there yet. With int8 for a dtype they are rounded to it."""
    scale = jnp.zeros(shape[:-1], jnp.float32) if jnp.dtype(dtype) == jnp.int8 else None
    return Kept(to_bits(jnp.zeros(shape, dtype)), scale)


class KeyValue(NamedTuple):
    """The keys and values of a stack of layers, and which layer of it is meant."""

    keys: Kept
    values: Kept
    layer: jax.Array  # int32 []

    def put(self, keys: jax.Array, values: jax.Array, slot: jax.Array) -> Self:
        """With those of new tokens [batch, length, heads, features] written in; int32 [], the first one's slot."""
        return self._replace(
            keys=self.keys.put(keys, self.layer, slot), values=self.values.put(values, self.layer, slot)
        )

    def get(self, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """Keys and values [batch, slots, heads, features] of all tokens, in a dtype; on CPU in float32.

        There products of one query with many keys are as fast in float32, or not to be had in bfloat16 at all.
        """
        dtype = jnp.float32 if on_cpu() else dtype
        return self.keys.get(self.layer, dtype), self.values.get(self.layer, dtype)
