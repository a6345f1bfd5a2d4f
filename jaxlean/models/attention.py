"""Self-attention, causal or not, grouped heads, segments, windows, soft caps, sinks: one function, many back ends.

The back ends:

    plain    every score at once, in plain XLA: the reference, and what generation with a cache uses
    block    blocks of queries against the keys they see, in plain XLA: for CPUs, and where a kernel lacks a feature
    cudnn    NVIDIA's fused kernel, through `jax.nn.dot_product_attention`
    splash   the Pallas kernel for TPUs that comes with jax
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxlean.errors import ConfigError
from jaxlean.models.block_attention import Settings, block_attention, within
from jaxlean.models.cpu import keep
from jaxlean.models.kernel_attention import cudnn_attention, splash_attention
from jaxlean.models.layout import ALONE, ROWS, Layout

Backend = Literal["plain", "block", "cudnn", "splash"]
Window = int | None

# Large enough to vanish in a softmax, small enough that a row with nothing to attend stays finite.
_MASKED = -1e30


class Slots(NamedTuple):
    """Where the queries and keys of a batch stand.

    A token sees those of its own segment that stand no later than itself (where attention is causal) and less than
    `window` slots away. Padding is segment 0 and sees only padding, itself at least, so that its row stays finite.
    """

    query_index: jax.Array  # int32 [query_length]
    key_index: jax.Array  # int32 [key_length]
    query_segments: jax.Array  # int32 [batch, query_length]
    key_segments: jax.Array  # int32 [batch, key_length]

    def visible(self, window: Window, causal: bool = True) -> jax.Array:
        """bool [batch, query_length, key_length]: who may see whom."""
        distance = self.query_index[:, None] - self.key_index[None, :]
        near = within(distance, window, causal)
        return near & (self.query_segments[:, :, None] == self.key_segments[:, None, :])


def choose(
    wanted: str,
    *,
    platform: str,
    dtype: jnp.dtype,
    head_dim: int,
    softcap: float | None = None,
    sinks: bool = False,
    causal: bool = True,
) -> Backend:
    """The back end to use.

    Args:
        wanted: one of them, or `auto`: the fastest that runs on the platform with this head.
        platform: `cpu`, `gpu` or `tpu`.
        dtype: compute dtype.
        softcap, sinks, causal: as of `attention`.

    Raises:
        ConfigError: the one asked for does not run there; says why.
    """
    lacking = {
        "cudnn": _first_true(
            (platform != "gpu", f"needs an NVIDIA GPU, this is {platform}"),
            (dtype == jnp.float32, "multiplies in bfloat16, not in float32"),
            (head_dim % 8 != 0 or head_dim > 128, f"needs a head_dim up to 128 that 8 divides, this is {head_dim}"),
            (softcap is not None, "has no soft cap"),
            (sinks, "has no attention sinks"),
        ),
        "splash": _first_true(
            (platform != "tpu", f"needs a TPU, this is {platform}"),
            (head_dim % 128 != 0, f"needs a head_dim that 128 divides, this is {head_dim}"),
            (sinks, "has no attention sinks"),
            (not causal, "is causal here, and this model is not"),
        ),
    }
    if wanted == "auto":
        return next((name for name in ("cudnn", "splash") if lacking[name] is None), "block")
    if lacking.get(wanted) is not None:
        raise ConfigError(f"model.attention: {wanted} {lacking[wanted]}", fix="model.attention=auto")
    return wanted  # type: ignore[return-value]


def _first_true(*reasons: tuple[bool, str]) -> str | None:
    return next((text for holds, text in reasons if holds), None)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    slots: Slots,
    *,
    window: Window = None,
    causal: bool = True,
    softcap: float | None = None,
    scale: float | None = None,
    sinks: jax.Array | None = None,
    backend: Backend = "plain",
    layout: Layout = ALONE,
) -> jax.Array:
    """Softmax attention; scores, softmax and sums in float32.

    Args:
        query: [batch, query_length, heads, head_dim].
        key, value: [batch, key_length, kv_heads, head_dim]; heads is a multiple of kv_heads.
        slots: where they stand: the queries at slots that follow each other, the keys at 0, 1, 2 ... (`plain`: both
            anywhere).
        window: how far a token sees, itself included; None for everything.
        causal: whether it sees only what stands before it.
        softcap: scores become `softcap * tanh(scores / softcap)` (Gemma 2, arXiv 2408.00118).
        scale: of the scores; default 1 / sqrt(head_dim).
        sinks: float32 [heads], a further score of each row whose weight goes to no token (gpt-oss, arXiv 2309.17453).
        backend: see the module. Where the length is none that a kernel can have (splash: 128 divides it; cudnn: even),
            or, for splash, the sequence is split, block takes its place.
        layout: over several devices: each runs the back end on its own rows and heads, which have nothing to do with
            those of others. Where the sequence is split, it attends from its part to all keys, which it gathers.

    Returns:
        [batch, query_length, heads, head_dim] in the dtype of `query`, named `context` for the remat policies (block
        and splash name it themselves, among what else their backward pass needs).
    """
    if layout.mesh is not None:
        how = partial(attention, window=window, causal=causal, softcap=softcap, scale=scale, backend=backend)
        return _on_each_device(layout, how, query, key, value, slots, sinks)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    length, part = query.shape[1], query.shape[1] < key.shape[1]
    if backend == "splash" and (length % 128 or part):
        backend = "block"
    if backend == "cudnn" and length % 2:
        backend = "block"
    match backend:
        case "plain":
            return keep(_plain(query, key, value, slots.visible(window, causal), softcap, scale, sinks), "context")
        case "block":
            first = slots.query_index[0] if part else None
            segments = (slots.query_segments, slots.key_segments)
            settings = Settings(window, softcap, scale, causal=causal)
            return block_attention(settings, query, key, value, segments, sinks, first)
        case "cudnn":
            return keep(cudnn_attention(query, key, value, slots.visible(window, causal), scale), "context")
        case "splash":
            return splash_attention(query, key, value, slots.key_segments, window, softcap, scale)


def _on_each_device(
    layout: Layout,
    attend: Callable[..., jax.Array],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    slots: Slots,
    sinks: jax.Array | None,
) -> jax.Array:
    def local(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, *sinks: jax.Array) -> jax.Array:
        index, every = jnp.arange(query.shape[1], dtype=jnp.int32), segments
        if layout.parts > 1:
            index += jax.lax.axis_index("context") * query.shape[1]
            key, value, every = (jax.lax.all_gather(x, "context", axis=1, tiled=True) for x in (key, value, segments))
        at = Slots(index, jnp.arange(key.shape[1], dtype=jnp.int32), segments, every)
        return attend(query, key, value, at, sinks=sinks[0] if sinks else None)

    heads, tokens = PartitionSpec(ROWS, "context", "tensor", None), PartitionSpec(ROWS, "context")
    more = () if sinks is None else (sinks,)
    specs = (heads, heads, heads, tokens, *(PartitionSpec("tensor") for _ in more))
    return layout.on_each_device(local, specs, heads)(query, key, value, slots.key_segments, *more)


def _plain(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: jax.Array,
    softcap: float | None,
    scale: float,
    sinks: jax.Array | None,
) -> jax.Array:
    batch, query_length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(batch, query_length, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, key, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(visible[:, None, None], scores, _MASKED)
    if sinks is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        own = sinks.astype(jnp.float32).reshape(kv_heads, heads // kv_heads, 1, 1)
        own = jnp.broadcast_to(own, (*scores.shape[:-1], 1))
        weights = jax.nn.softmax(jnp.concatenate([scores, own], axis=-1), axis=-1)[..., :-1]
    # the heads first, as both sides have them: in another order XLA multiplies transposed values, slow on CPUs
    context = jnp.einsum("bkgts,bskd->bkgtd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return context.transpose(0, 3, 1, 2, 4).reshape(batch, query_length, heads, -1).astype(query.dtype)
