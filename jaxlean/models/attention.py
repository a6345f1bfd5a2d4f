"""Causal self-attention with grouped heads, packed segments, sliding windows and a key/value cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Large enough to vanish in a softmax, small enough that a row with nothing to attend stays finite.
_MASKED = -1e30


class Slots(NamedTuple):
    """Where the queries and keys of a batch stand.

    A token sees those of its own segment that stand no later than itself and less than `window` slots before. Padding
    is segment 0 and sees only padding, itself at least, so that its row stays finite.
    """

    query_index: jax.Array  # int32 [query_length]
    key_index: jax.Array  # int32 [key_length]
    query_segments: jax.Array  # int32 [batch, query_length]
    key_segments: jax.Array  # int32 [batch, key_length]

    def visible(self, window: int | jax.Array | None) -> jax.Array:
        """bool [batch, query_length, key_length]: who may see whom."""
        distance = self.query_index[:, None] - self.key_index[None, :]
        near = distance >= 0
        if window is not None:
            near &= distance < window
        return near & (self.query_segments[:, :, None] == self.key_segments[:, None, :])


def attention(query: jax.Array, key: jax.Array, value: jax.Array, visible: jax.Array) -> jax.Array:
    """Softmax attention; scores, softmax and sums in float32.

    Args:
        query: [batch, query_length, heads, head_dim].
        key, value: [batch, key_length, kv_heads, head_dim]; heads is a multiple of kv_heads.
        visible: bool [batch, query_length, key_length].

    Returns:
        [batch, query_length, heads, head_dim] in the dtype of `query`.
    """
    batch, query_length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(batch, query_length, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, key, preferred_element_type=jnp.float32)
    scores = jnp.where(visible[:, None, None], scores * (head_dim**-0.5), _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    context = jnp.einsum("bkgts,bskd->btkgd", weights, value, preferred_element_type=jnp.float32)
    return context.reshape(batch, query_length, heads, head_dim).astype(query.dtype)
