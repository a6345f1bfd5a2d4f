"""A layer's attention: projections, norms of queries and keys, rotary positions, attention, output projection."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean.models.attention import Backend, Slots, attention
from jaxlean.models.config import Kind, LayersConfig
from jaxlean.models.cpu import keep
from jaxlean.models.key_value import KeyValue
from jaxlean.models.layout import ALONE, Layout
from jaxlean.models.linear import Dropout, Linear
from jaxlean.models.norm import LayerNorm, RMSNorm
from jaxlean.models.projection import project
from jaxlean.models.rope import rotate

Angles = Mapping[str, tuple[jax.Array, jax.Array]]  # by the rope's name: cosines and sines, each [batch, length, dim/2]


def make_norm(config: LayersConfig, *dim: int) -> RMSNorm | LayerNorm:
    """A norm of the config's kind over the last of `dim`."""
    if config.norm == "layer":
        return LayerNorm(dim, eps=config.norm_eps, bias=config.norm_bias)
    return RMSNorm(dim, eps=config.norm_eps, offset=config.norm_offset)


class Attention(nnx.Module):
    """Multi-head attention with grouped keys and values (arXiv 2305.13245).

    Args:
        config: its shape.
        kind: of the layer.
        dtype: what matrices are multiplied in.
        rngs: draws the kernels.
    """

    def __init__(self, config: LayersConfig, kind: Kind, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        std, hidden, bias = config.initializer_range, config.hidden_size, config.qkv_bias
        wide, narrow = heads * head_dim, kv_heads * head_dim
        if config.fused_qkv is not None:
            self.qkv = Linear(hidden, wide + 2 * narrow, bias=bias, std=std, dtype=dtype, rngs=rngs)
        else:
            self.query = Linear(hidden, wide, bias=bias, std=std, dtype=dtype, rngs=rngs)
            self.key = Linear(hidden, narrow, bias=bias, std=std, dtype=dtype, rngs=rngs)
            self.value = Linear(hidden, narrow, bias=bias, std=std, dtype=dtype, rngs=rngs)
        self.out = Linear(wide, hidden, bias=config.out_bias, std=std, dtype=dtype, rngs=rngs)
        self.query_norm = make_norm(config, *_normed(config, heads)) if config.qk_norm is not None else None
        self.key_norm = make_norm(config, *_normed(config, kv_heads)) if config.qk_norm is not None else None
        self.sinks = nnx.Param(jnp.zeros((heads,), jnp.float32)) if config.attention_sinks else None
        self.config = config
        self.kind = kind
        # told queries, keys and values [batch, length, heads, head_dim] before they are multiplied
        self.observe: Callable[[jax.Array, jax.Array, jax.Array], None] | None = None
        self.backend: Backend = "plain"
        self.layout: Layout = ALONE

    def __call__(
        self,
        x: jax.Array,
        angles: Angles,
        slots: Slots,
        cache: KeyValue | None,
        dropout: Dropout | None,
        number: jax.Array,
    ) -> tuple[jax.Array, KeyValue | None]:
        """Attend.

        Args:
            x: [batch, length, hidden].
            angles: of the positions, for each rope of the model.
            slots: where the tokens stand.
            cache: keys and values of the tokens before, with room for these.
            dropout: of the adapters.
            number: of the layer in the model, uint32 [].

        Returns:
            ([batch, length, hidden], the cache with x's keys and values written in).
        """
        config, layout = self.config, self.layout
        drop = [dropout.fold(i) if dropout is not None else None for i in range(4)]
        query, key, value = (
            layout.constrain(y, name)
            for name, y in zip(("query", "key", "value"), self._projected(x, drop[:3]), strict=True)
        )
        value = keep(value, "value")
        # kept where the backward pass wants them: that of a norm reads what was normed, that of a rotation nothing
        if self.query_norm is not None and self.key_norm is not None:
            query, key = keep(query, "query"), keep(key, "key")
            query, key = self._normalised(query, self.query_norm), self._normalised(key, self.key_norm)
            query, key = self._turned(query, angles), self._turned(key, angles)
        else:
            query, key = keep(self._turned(query, angles), "query"), keep(self._turned(key, angles), "key")
        if cache is not None:
            first = slots.query_index[0]
            cache = cache.put(key, value, first)
            key, value = cache.get(query.dtype)
        if config.attention_scale_by_layer:
            query = query / (number + 1).astype(query.dtype)
        query, key, value = map(layout.unfold, (query, key, value))
        if self.observe is not None:
            self.observe(query, key, value)
        context = attention(
            query, key, value, slots, window=self.kind.window, causal=config.causal,
            softcap=config.attention_softcap, scale=config.attention_scale,
            sinks=self.sinks[...] if self.sinks is not None else None,
            # generation, whose queries stand at other slots than its keys, has few queries: no kernel is needed for it
            backend=self.backend if cache is None else "plain", layout=layout,
        )  # fmt: skip
        context = layout.constrain(layout.fold(context), "context").reshape(*x.shape[:2], -1)
        mixed = layout.constrain(project(context, (self.out,), drop[3:])[0], "attention_out")
        return keep(mixed, "attention_out"), cache

    def _projected(self, x: jax.Array, drop: list[Dropout | None]) -> list[jax.Array]:
        """Queries, keys and values, each [batch, length, heads, head_dim]."""
        config = self.config
        if config.fused_qkv is None:
            found = project(x, (self.query, self.key, self.value), drop)
        else:
            (together,) = project(x, (self.qkv,), drop[:1])
            if config.fused_qkv == "heads":
                by_head = together.reshape(*x.shape[:2], config.num_heads, 3 * config.head_dim)
                return jnp.split(by_head, 3, axis=-1)
            wide, narrow = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
            found = jnp.split(together, (wide, wide + narrow), axis=-1)
        return [y.reshape(*x.shape[:2], -1, config.head_dim) for y in found]

    def _normalised(self, x: jax.Array, norm: RMSNorm | LayerNorm) -> jax.Array:
        if self.config.qk_norm == "all":
            return norm(x.reshape(*x.shape[:2], -1)).reshape(x.shape)
        return norm(x)

    def _turned(self, x: jax.Array, angles: Angles) -> jax.Array:
        if self.kind.rope is None:
            return x
        rope = getattr(self.config, self.kind.rope)
        return rotate(x, *angles[self.kind.rope], interleaved=rope.interleaved)


def _normed(config: LayersConfig, heads: int) -> tuple[int, ...]:
    """The shape of the scale that queries (or keys) of so many heads are normalised with."""
    match config.qk_norm:
        case "head":
            return (config.head_dim,)
        case "heads":
            return (heads, config.head_dim)
        case "all":
            return (heads * config.head_dim,)
    raise AssertionError(f"qk_norm={config.qk_norm!r}")
