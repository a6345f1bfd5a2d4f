"""Attention in blocks, in plain XLA: blocks of queries against the keys they can see, never the whole square.

The back end for CPUs, where there is no fused kernel, and wherever one lacks a feature. As in FlashAttention-2
(arXiv 2307.08691) the backward pass has only the output and each row's log-sum-exp and computes the weights of a block
again; unlike there, a block sees all of its keys at once: what limits a CPU is arithmetic, not a small memory.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlean.models.cpu import heads_first, named, transpose
from jaxlean.platform import platform

# Smaller blocks waste less of the square above the diagonal, larger ones multiply faster.
_BLOCK = 64
# The loop over blocks is unrolled: more of them would only make the program longer. An accelerator wants large ones.
_MOST_BLOCKS = {"cpu": 32, "gpu": 8, "tpu": 8}
# Large enough to vanish in a softmax, small enough that nothing overflows.
_MASKED = -1e30

_product = partial(jnp.einsum, preferred_element_type=jnp.float32)


class Settings(NamedTuple):
    """What is known when the program is written."""

    window: int | None
    softcap: float | None
    scale: float
    block: int = _BLOCK
    causal: bool = True


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def block_attention(
    settings: Settings,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: tuple[jax.Array, jax.Array],
    sinks: jax.Array | None,
    first: jax.Array | None = None,
) -> jax.Array:
    """Attention of a sequence, or of a part of it, to the whole.

    Args:
        settings: window, soft cap and scale of the scores, and whether what comes later is seen.
        query: [batch, length, heads, head_dim].
        key, value: [batch, key_length, kv_heads, head_dim].
        segments: int32 [batch, length] of the queries and [batch, key_length] of the keys.
        sinks: float32 [heads], a further score of each row, whose weight goes to no token.
        first: int32 [], the slot of the first query, where they are a part: every block then reads all keys. None:
            queries and keys stand at the same slots.

    Returns:
        [batch, length, heads, head_dim] in the dtype of `query`. For the backward pass it and the log-sum-exp of each
        row are kept, named `context` and `attention_lse`.
    """
    return _forward(settings, query, key, value, segments, sinks, first)[0]


# What one fused kernel would do: the name by which a plan knows it.
SCOPE = "block_attention"


@jax.named_scope(SCOPE)
def _forward(
    settings: Settings, query: jax.Array, key: jax.Array, value: jax.Array, segments: Any, sinks: Any, first: Any
) -> tuple[jax.Array, Any]:
    q, k, v = _split(_scaled(query, settings), key.shape[2]), heads_first(key), heads_first(value)
    contexts, sums = [], []
    for at, end, seen in _blocks(query.shape[1], key.shape[1], settings, first):
        scores = _product("bhmd,bhnd->bhmn", _rows(q, at, end), k[:, :, seen])
        visible = _rows_of(_visible(settings, segments, first, at, end, seen), q.shape[2])
        scores = jnp.where(visible, _capped(scores, settings), _MASKED)
        top = scores.max(-1, keepdims=True)
        if sinks is not None:
            sink = _sink_of_rows(sinks, key.shape[2], end - at)
            top = jnp.maximum(top, sink)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        if sinks is not None:
            total += jnp.exp(sink - top)
        context = _product("bhmn,bhnd->bhmd", weights.astype(v.dtype), v[:, :, seen]) / total
        contexts.append(context.astype(query.dtype).reshape(*q.shape[:3], end - at, -1))
        sums.append((top + jnp.log(total)).reshape(*q.shape[:3], end - at))
    context = named(_join(jnp.concatenate(contexts, -2)), "context")
    log_sum = named(jnp.concatenate(sums, -1), "attention_lse")
    return context, (query, key, value, segments, sinks, first, context, log_sum)


@jax.named_scope(SCOPE)
def _backward(settings: Settings, saved: Any, grad: jax.Array) -> tuple[Any, ...]:
    # Scores stand as [keys, queries]: so the gradients of keys and values are plain products, and of the three that
    # read them only that of the queries has to turn them.
    query, key, value, segments, sinks, first, context, log_sum = saved
    kv_heads, dtype = key.shape[2], query.dtype
    q, k, v = _split(_scaled(query, settings), kv_heads), heads_first(key), heads_first(value)
    back = _split(grad, kv_heads)
    inner = (grad.astype(jnp.float32) * context.astype(jnp.float32)).sum(-1, keepdims=True)
    delta = _split(inner, kv_heads)[..., 0]
    of_q, of_k, of_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for at, end, seen in _blocks(query.shape[1], key.shape[1], settings, first):
        keys, values = k[:, :, seen], v[:, :, seen]
        queries, backs = _rows(q, at, end), _rows(back, at, end)
        apart = (*keys.shape[:3], q.shape[2], end - at)  # keys, group, queries: as bitcasts of keys, rows
        scores = _capped(_product("bhnd,bhmd->bhnm", keys, queries).reshape(apart), settings)
        visible = _visible(settings, segments, first, at, end, seen).swapaxes(-1, -2)[:, None, :, None]
        # the mask inside of the exponential, whose result is written: outside it would be applied wherever that is read
        weights = jnp.exp(jnp.where(visible, scores - log_sum[:, :, None, :, at:end], _MASKED))
        of_weights = _product("bhnd,bhmd->bhnm", values, backs).reshape(apart)
        of_scores = weights * (of_weights - delta[:, :, None, :, at:end])
        if settings.softcap is not None:
            of_scores *= 1.0 - jnp.square(scores / settings.softcap)
        weights, of_scores = (x.astype(dtype).reshape(*keys.shape[:3], -1) for x in (weights, of_scores))
        of_q.append(_product("bhmn,bhnd->bhmd", transpose(of_scores), keys).reshape(*q.shape[:3], end - at, -1))
        of_k = of_k.at[:, :, seen].add(_product("bhnm,bhmd->bhnd", of_scores, queries))
        of_v = of_v.at[:, :, seen].add(_product("bhnm,bhmd->bhnd", weights, backs))
    of_query = _join(jnp.concatenate(of_q, -2)) * settings.scale
    of_sinks = None
    if sinks is not None:
        # the weight that went to no token, times what it would have had to bring
        weight = jnp.exp(sinks.astype(jnp.float32).reshape(1, kv_heads, -1, 1) - log_sum)
        of_sinks = -(weight * delta).sum((0, 3)).reshape(sinks.shape).astype(sinks.dtype)
    return (
        of_query.astype(dtype), of_k.swapaxes(1, 2).astype(key.dtype), of_v.swapaxes(1, 2).astype(value.dtype),
        None, of_sinks, None,
    )  # fmt: skip


block_attention.defvjp(_forward, _backward)


def _blocks(length: int, key_length: int, settings: Settings, first: Any) -> list[tuple[int, int, slice]]:
    """(first query, end of the queries, the keys they may see) of each block of queries."""
    block = max(settings.block, -(-length // _MOST_BLOCKS[platform()]))
    found = []
    for at in range(0, length, block):
        end = min(at + block, length)
        start = 0 if settings.window is None else max(at - settings.window + 1, 0)
        stop = end
        if not settings.causal:
            stop = length if settings.window is None else min(end + settings.window - 1, length)
        found.append((at, end, slice(start, stop) if first is None else slice(0, key_length)))
    return found


def _visible(settings: Settings, segments: Any, first: Any, at: int, end: int, seen: slice) -> jax.Array:
    """bool [batch, end - at, seen]: who may see whom."""
    own, every = segments[0][:, at:end], segments[1][:, seen]
    places = jnp.arange(at, end) + (0 if first is None else first)
    near = within(places[:, None] - jnp.arange(seen.start, seen.stop)[None, :], settings.window, settings.causal)
    return near & (own[:, :, None] == every[:, None, :])


def within(distance: jax.Array, window: int | None, causal: bool) -> jax.Array:
    """bool, whether a token sees another that stands so many slots before it."""
    near = distance >= 0 if causal else jnp.ones_like(distance, bool)
    if window is not None:
        near &= distance < window
        if not causal:
            near &= distance > -window
    return near


def _sink_of_rows(sinks: jax.Array, kv_heads: int, queries: int) -> jax.Array:
    """float32 [heads] -> [1, kv_heads, group * queries, 1], as the rows of scores stand."""
    grouped = sinks.astype(jnp.float32).reshape(1, kv_heads, -1, 1)
    return jnp.repeat(grouped, queries, axis=2)


def _scaled(query: jax.Array, settings: Settings) -> jax.Array:
    return (query.astype(jnp.float32) * settings.scale).astype(query.dtype)


def _capped(scores: jax.Array, settings: Settings) -> jax.Array:
    return scores if settings.softcap is None else settings.softcap * jnp.tanh(scores / settings.softcap)


def _split(x: jax.Array, kv_heads: int) -> jax.Array:
    """[batch, length, heads, dim] -> [batch, kv_heads, group, length, dim]."""
    batch, length, heads, dim = x.shape
    return x.reshape(batch, length, kv_heads, heads // kv_heads, dim).transpose(0, 2, 3, 1, 4)


def _join(x: jax.Array) -> jax.Array:
    """The inverse of `_split`."""
    batch, kv_heads, group, length, dim = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, length, kv_heads * group, dim)


def _rows(x: jax.Array, at: int, end: int) -> jax.Array:
    """The block's part of [batch, kv_heads, group, length, dim], a group's heads one below the other."""
    batch, kv_heads, group, _, dim = x.shape
    return x[:, :, :, at:end].reshape(batch, kv_heads, group * (end - at), dim)


def _rows_of(visible: jax.Array, group: int) -> jax.Array:
    """[batch, queries, keys] -> [batch, 1, group * queries, keys]."""
    batch, rows, columns = visible.shape
    return jnp.broadcast_to(visible[:, None, None], (batch, 1, group, rows, columns)).reshape(batch, 1, -1, columns)
