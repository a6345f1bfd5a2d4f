"""The mean over each text of a row that holds several, without a matrix of who belongs to whom.

A sum from each token to the end of its text, by a scan in log(length) steps; at a text's first token that is its sum.
The gradient is written out: jax's own would keep every step of the scan.
"""

from typing import Any

import jax
import jax.numpy as jnp


def first_tokens(segments: jax.Array) -> jax.Array:
    """The place of the first token of each token's segment.

    >>> first_tokens(jnp.array([[1, 1, 2, 2, 2, 0]])).tolist()
    [[0, 0, 2, 2, 2, 5]]
    """
    starts = segments[:, 1:] != segments[:, :-1]
    places = jnp.arange(1, segments.shape[1], dtype=jnp.int32)
    begun = jax.lax.cummax(jnp.where(starts, places, 0), axis=1)
    return jnp.pad(begun, ((0, 0), (1, 0)))


@jax.custom_vjp
def segment_mean(x: jax.Array, segments: jax.Array) -> jax.Array:
    """The mean of each segment, at its first token; zeros elsewhere.

    Args:
        x: [batch, length, hidden].
        segments: int32 [batch, length]; equal numbers that follow each other are a segment.

    Returns:
        float32 [batch, length, hidden].
    """
    return _forward(x, segments)[0]


def _forward(x: jax.Array, segments: jax.Array) -> tuple[jax.Array, Any]:
    last = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (0, 1)), constant_values=True)
    first = first_tokens(segments)
    begins = first == jnp.arange(segments.shape[1])

    def add(later: Any, earlier: Any) -> Any:
        (ended, sums, counts), (ends, own, one) = later, earlier
        return (
            ended | ends,
            jnp.where(ends[..., None], own, sums + own),
            jnp.where(ends, one, counts + one),
        )

    parts = (last, x.astype(jnp.float32), jnp.ones(segments.shape, jnp.float32))
    _, sums, counts = jax.lax.associative_scan(add, parts, reverse=True, axis=1)
    mean = jnp.where(begins[..., None], sums / counts[..., None], 0.0)
    return mean, (first, jnp.take_along_axis(counts, first, axis=1), jnp.zeros((), x.dtype))


def _backward(saved: Any, grad: jax.Array) -> tuple[jax.Array, None]:
    first, counts, like = saved
    own = jnp.take_along_axis(grad, first[..., None], axis=1) / counts[..., None]
    return own.astype(like.dtype), None


segment_mean.defvjp(_forward, _backward)
