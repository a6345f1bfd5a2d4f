"""The one decoder behind every decoder family: pre-norm, rotary positions, gated MLP, layers stacked and scanned.

A family (Llama, Mistral, Qwen ...) is a `DecoderConfig` and a table of names in `jaxlean.hub.families`, never a
copy of this file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean import tree
from jaxlean.models.attention import Backend, Slots, attention
from jaxlean.models.cpu import from_bits, frozen_bits, keep
from jaxlean.models.layout import ALONE, KernelPlace, Layout
from jaxlean.models.linear import Dropout, Linear, dot_wide, normal
from jaxlean.models.norm import RMSNorm
from jaxlean.models.projection import LORA_LOW, project
from jaxlean.models.quantized import Matmul
from jaxlean.models.rope import Rope, rotate

# Every activation a remat policy can name, in the order they arise in a layer: `attention_lse` beside `context` is what
# the backward pass of attention needs; `lora_low` are all adapters' inner products.
ACTIVATIONS = (
    "attention_in", "query", "key", "value", "context", "attention_lse", "attention_out", "mlp_in", "gate", "up",
    "mlp_out", LORA_LOW,
)  # fmt: skip
# A layer's input, which every policy keeps.
LAYER_INPUT = "layer_in"

Scan = Callable[[Callable[..., Any], Any, Any], tuple[Any, Any]]  # (body, carry, xs) -> (carry, ys)
Angles = tuple[jax.Array, jax.Array]  # cosines and sines, each [batch, length, head_dim / 2]
KeyValue = tuple[jax.Array, jax.Array]  # one layer's cache, each [batch, slots, kv_heads, head_dim]
Window = int | jax.Array | None

# A window that nothing reaches beyond, for the full layers of a model that has both kinds.
_EVERYTHING = 2**30


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder. `windows` holds one entry a layer: how far back it sees, None for everything."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope = Rope()
    norm_eps: float = 1e-6
    activation: str = "silu"
    tie_embeddings: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02


class Cache(NamedTuple):
    """Keys and values of the tokens so far, for generation."""

    key: jax.Array  # [layers, batch, slots, kv_heads, head_dim]
    value: jax.Array
    segments: jax.Array  # int32 [batch, slots], 0 where there is nothing to see
    filled: jax.Array  # int32 [], slots in use

    @staticmethod
    def empty(config: DecoderConfig, batch: int, slots: int, dtype: jnp.dtype) -> "Cache":
        """A cache with room for `slots` tokens a row, none there yet."""
        shape = (config.num_layers, batch, slots, config.num_kv_heads, config.head_dim)
        zeros = jnp.zeros(shape, dtype)
        return Cache(zeros, jnp.zeros_like(zeros), jnp.zeros((batch, slots), jnp.int32), jnp.zeros((), jnp.int32))


class Embedding(nnx.Module):
    """Token id -> vector; read backwards, the output head of models that tie the two."""

    def __init__(self, vocab_size: int, hidden_size: int, *, std: float = 0.02, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.embedding = nnx.Param(normal(rngs, (vocab_size, hidden_size), std))
        self.dtype = dtype
        self.layout: Layout = ALONE

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.layout.lookup(self.embedding[...], tokens).astype(self.dtype)


class Attention(nnx.Module):
    """Projections, rotary positions, attention, output projection."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        wide, narrow = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        std = config.initializer_range
        self.query = Linear(config.hidden_size, wide, bias=config.qkv_bias, std=std, dtype=dtype, rngs=rngs)
        self.key = Linear(config.hidden_size, narrow, bias=config.qkv_bias, std=std, dtype=dtype, rngs=rngs)
        self.value = Linear(config.hidden_size, narrow, bias=config.qkv_bias, std=std, dtype=dtype, rngs=rngs)
        self.out = Linear(wide, config.hidden_size, bias=config.out_bias, std=std, dtype=dtype, rngs=rngs)
        self.query_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.key_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.head_dim = config.head_dim
        self.backend: Backend = "plain"
        self.layout: Layout = ALONE

    def __call__(
        self,
        x: jax.Array,
        angles: Angles,
        slots: Slots,
        window: Window,
        cache: KeyValue | None,
        dropout: Dropout | None,
    ) -> tuple[jax.Array, KeyValue | None]:
        """x [batch, length, hidden] -> (the same shape, the layer's cache with x's keys and values written in)."""
        heads = (*x.shape[:2], -1, self.head_dim)
        drop = [dropout.fold(i) if dropout is not None else None for i in range(4)]
        query, key, value = project(x, (self.query, self.key, self.value), drop[:3])
        layout = self.layout
        query, key, value = (
            layout.constrain(y.reshape(heads), name)
            for name, y in zip(("query", "key", "value"), (query, key, value), strict=True)
        )
        value = keep(value, "value")
        # kept where the backward pass wants them: that of a norm reads what was normed, that of a rotation nothing
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(keep(query, "query")), self.key_norm(keep(key, "key"))
            query, key = rotate(query, *angles), rotate(key, *angles)
        else:
            query, key = keep(rotate(query, *angles), "query"), keep(rotate(key, *angles), "key")
        if cache is not None:
            start = (0, slots.query_index[0], 0, 0)
            cache = (
                jax.lax.dynamic_update_slice(cache[0], key.astype(cache[0].dtype), start),
                jax.lax.dynamic_update_slice(cache[1], value.astype(cache[1].dtype), start),
            )
            key, value = cache[0].astype(query.dtype), cache[1].astype(query.dtype)
        # generation, whose queries stand at other slots than its keys, has few queries: no kernel is needed for it
        backend = self.backend if cache is None else "plain"
        query, key, value = map(layout.unfold, (query, key, value))
        context = layout.fold(attention(query, key, value, slots, window=window, backend=backend, layout=layout))
        context = layout.constrain(context, "context").reshape(*x.shape[:2], -1)
        mixed = layout.constrain(project(context, (self.out,), drop[3:])[0], "attention_out")
        return keep(mixed, "attention_out"), cache


class MLP(nnx.Module):
    """`down(act(gate(x)) * up(x))` (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        std = config.initializer_range
        self.gate = Linear(
            config.hidden_size, config.intermediate_size, bias=config.mlp_bias, std=std, dtype=dtype, rngs=rngs
        )
        self.up = Linear(
            config.hidden_size, config.intermediate_size, bias=config.mlp_bias, std=std, dtype=dtype, rngs=rngs
        )
        self.down = Linear(
            config.intermediate_size, config.hidden_size, bias=config.mlp_bias, std=std, dtype=dtype, rngs=rngs
        )
        self.activation = getattr(jax.nn, config.activation)
        self.layout: Layout = ALONE

    def __call__(self, x: jax.Array, dropout: Dropout | None) -> jax.Array:
        drop = [dropout.fold(i) if dropout is not None else None for i in range(4, 7)]
        gate, up = project(x, (self.gate, self.up), drop[:2])
        gate, up = keep(self.layout.constrain(gate, "gate"), "gate"), keep(self.layout.constrain(up, "up"), "up")
        inner = (self.activation(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)
        return keep(self.layout.constrain(project(inner, (self.down,), drop[2:])[0], "mlp_out"), "mlp_out")


class Layer(nnx.Module):
    """Attention and MLP, each normalised before and added after."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.mlp_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)
        self.layout: Layout = ALONE

    def __call__(
        self,
        x: jax.Array,
        angles: Angles,
        slots: Slots,
        window: Window,
        cache: KeyValue | None,
        dropout: Dropout | None,
    ) -> tuple[jax.Array, KeyValue | None]:
        """As `Attention.__call__`."""
        normed = keep(self.layout.constrain(self.attention_norm(x), "attention_in"), "attention_in")
        mixed, cache = self.attention(normed, angles, slots, window, cache, dropout)
        x = x + mixed
        normed = keep(self.layout.constrain(self.mlp_norm(x), "mlp_in"), "mlp_in")
        return x + self.mlp(normed, dropout), cache


class Decoder(nnx.Module):
    """Tokens -> logits.

    Args:
        config: its shape.
        dtype: what matrices are multiplied in; norms, softmax and angles are float32 always.
        rngs: draws the initial parameters.
    """

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        std = config.initializer_range
        self.embed = Embedding(config.vocab_size, config.hidden_size, std=std, dtype=dtype, rngs=rngs)
        self.layers = _stack(lambda rngs: Layer(config, dtype=dtype, rngs=rngs), config.num_layers, rngs)
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.head = (
            None
            if config.tie_embeddings
            else Linear(config.hidden_size, config.vocab_size, bias=False, std=std, dtype=dtype, rngs=rngs)
        )
        self.config = config
        self.layout: Layout = ALONE

    def __call__(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        dropout: Dropout | None = None,
        scan: Scan = jax.lax.scan,
    ) -> jax.Array:
        """Logits of the next token at every position.

        Args:
            tokens: int32 [batch, length].
            positions: int32 [batch, length], each token's place in its own sequence; default 0, 1, 2 ...
            segments: int32 [batch, length]; a token sees only its own segment, 0 is padding. Default: one segment.
            dropout: of the adapters, in training.
            scan: runs the body over the layers (`xla.remat.scan_layers` makes one of a policy).

        Returns:
            float32 [batch, length, vocab].
        """
        return self.logits(
            self.hidden(tokens, positions=positions, segments=segments, dropout=dropout, scan=scan), dropout
        )

    def lay_out(self, layout: Layout) -> "Decoder":
        """This decoder with its activations laid out over several devices, whose axes must divide its batches."""
        for path, module in nnx.iter_modules(self):
            if hasattr(module, "layout"):
                module.layout = layout
            if isinstance(module, Linear):
                module.place = KernelPlace(layout, str(path[-1]))
        return self

    def without_kernels(self) -> "Decoder":
        """This decoder with attention in plain XLA, which jax can split over devices as it likes."""
        self.layers.attention.backend = "block"
        return self

    def hidden(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        dropout: Dropout | None = None,
        scan: Scan = jax.lax.scan,
    ) -> jax.Array:
        """The normalised hidden states [batch, length, hidden] that `logits` reads. Args as in `__call__`."""
        return self._hidden(tokens, positions, segments, None, dropout, scan)[0]

    def decode(
        self, tokens: jax.Array, positions: jax.Array, segments: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Logits of `tokens`, which follow what `cache` holds; and the cache with them written in.

        With `dynamic` and `longrope` frequencies the cached keys keep the angles that they were written with, as in
        transformers, so beyond the original context decoding is not quite the forward pass over the whole text.

        Args as in `__call__`; `length + cache.filled` must not exceed the cache's slots.

        Returns:
            (float32 [batch, length, vocab], Cache).
        """
        x, written = self._hidden(tokens, positions, segments, cache, None, jax.lax.scan)
        assert written is not None
        return self.logits(x), written

    def logits(self, x: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        """Normalised hidden states [..., hidden] -> float32 [..., vocab]."""
        if self.head is not None and self.head.bare and self.head.kernel is not None:
            return dot_wide(x, self.head.kernel[...].astype(x.dtype))
        if self.head is not None:
            # the layers fold in 0, 1 ... num_layers - 1
            drop = dropout.fold(self.config.num_layers) if dropout is not None else None
            return self.head(x, drop).astype(jnp.float32)
        return dot_wide(x, self.embed.embedding[...].astype(x.dtype), True)

    def _hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array | None,
        segments: jax.Array | None,
        cache: Cache | None,
        dropout: Dropout | None,
        scan: Scan,
    ) -> tuple[jax.Array, Cache | None]:
        steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        if positions is None:
            positions = jnp.broadcast_to(steps, tokens.shape)
        if segments is None:
            segments = jnp.ones_like(tokens)
        if cache is None:
            slots = Slots(steps, steps, segments, segments)
        else:
            seen = jax.lax.dynamic_update_slice(cache.segments, segments, (0, cache.filled))
            slots = Slots(steps + cache.filled, jnp.arange(seen.shape[1], dtype=jnp.int32), segments, seen)
        fold = self.layout.fold
        angles = self.config.rope.cos_sin(fold(positions), self.config.head_dim)
        graph, params = nnx.split(self.layers)
        params = jax.tree.map(frozen_bits, params)
        shared, windows = self._windows()

        def body(x: jax.Array, per_layer: Any) -> tuple[jax.Array, KeyValue | None]:
            params, window, cached, place = per_layer
            drop = dropout.fold(place) if dropout is not None else None
            layer = nnx.merge(graph, jax.tree.map(from_bits, params))
            x = keep(self.layout.constrain(x, LAYER_INPUT), LAYER_INPUT)
            return layer(x, angles, slots, shared if windows is None else window, cached, drop)

        cached = None if cache is None else (cache.key, cache.value)
        places = jnp.arange(self.config.num_layers, dtype=jnp.uint32)
        x = self.layout.constrain(self.embed(fold(tokens)), LAYER_INPUT)
        x, written = scan(body, x, (params, windows, cached, places))
        if cache is not None:
            key, value = written
            cache = Cache(key, value, segments=slots.key_segments, filled=cache.filled + tokens.shape[1])
        return self.layout.unfold(self.norm(x)), cache

    def _windows(self) -> tuple[int | None, jax.Array | None]:
        """(the window that all layers share, None) or, where they differ, (None, int32 [layers])."""
        kinds = set(self.config.windows) or {None}
        if len(kinds) == 1:
            return kinds.pop(), None
        return None, jnp.asarray([_EVERYTHING if w is None else w for w in self.config.windows], jnp.int32)


def _stack(build: Callable[[nnx.Rngs], nnx.Module], num: int, rngs: nnx.Rngs) -> Any:
    """`num` modules as one whose parameters have a leading dim of `num`, each drawn from a key of its own."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    params = jax.vmap(lambda key: nnx.split(build(nnx.Rngs(params=key)))[1])(jax.random.split(rngs.params(), num))
    return nnx.merge(graph, params)


def abstract(
    config: DecoderConfig,
    params: Mapping[str, Any] | None = None,
    *,
    dtype: Any = jnp.float32,
    matmul: Matmul = "default",
    attention: Backend = "plain",
) -> tuple[nnx.GraphDef, tree.Tree]:
    """The decoder's graph and its parameters' shapes, without a byte of memory.

    Args:
        config: the decoder's shape.
        params: a parameter tree; the adapters that stand in it (`lora_a`, ...) and the forms that its kernels have are
            attached to the linear layers at whose place they stand.
        dtype: compute dtype.
        matmul: how the kernels of all linear layers but the head are multiplied (`models.quantized`).
        attention: the back end of attention (`models.attention.choose`).

    Returns:
        (graph for `nnx.merge(graph, params)`, nested dict of `jax.ShapeDtypeStruct`).
    """
    model = nnx.eval_shape(lambda: Decoder(config, dtype=dtype, rngs=nnx.Rngs(0)))
    for path, module in list(nnx.iter_modules(model)):
        if isinstance(module, Attention):
            module.backend = attention
        if isinstance(module, Linear):
            if path != ("head",):
                module.matmul = matmul
            if params is not None:
                node: Any = params
                for key in path:
                    node = node.get(key, {}) if isinstance(node, Mapping) else {}
                module.attach(node, where=".".join(map(str, path)))
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)
