"""The one decoder behind every decoder family: tokens in, layers, logits out.

A family (Llama, Gemma, GPT-2 ...) is a `DecoderConfig` and a table of names in `jaxlean.hub.families`, never a copy of
this file.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean.models.attention import Slots
from jaxlean.models.config import ACTIVATIONS, LayersConfig
from jaxlean.models.embedding import Embedding
from jaxlean.models.key_value import Kept, KeyValue, empty
from jaxlean.models.layer import LAYER_INPUT, Layer
from jaxlean.models.layout import ALONE, Layout
from jaxlean.models.linear import Dropout, Linear, dot_wide
from jaxlean.models.mixture import Load, balance_loss
from jaxlean.models.new_tokens import NewTokens
from jaxlean.models.self_attention import make_norm
from jaxlean.models.stack import Scan, Stack, stacked, stacks, through
from jaxlean.models.transformer import Entered, Transformer

__all__ = ["ACTIVATIONS", "LAYER_INPUT", "Cache", "Decoder", "DecoderConfig", "Scan"]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(LayersConfig):
    """The shape of a decoder.

    Args:
        tie_embeddings: the embedding is the output head too.
        embedding_multiplier: of the embedded tokens (Gemma, Granite).
        learned_positions: rows of a table of positions that is added to them (GPT-2); 0: none.
        logits_multiplier: of the logits (Cohere, Granite).
        logits_softcap: they become `cap * tanh(logits / cap)` (Gemma 2).
        max_position_embeddings: the longest sequence that it was made for.
    """

    vocab_size: int
    tie_embeddings: bool = False
    embedding_multiplier: float = 1.0
    learned_positions: int = 0
    logits_multiplier: float = 1.0
    logits_softcap: float | None = None
    max_position_embeddings: int = 2048

    def build(self, *, dtype: Any, rngs: nnx.Rngs) -> "Decoder":
        """The module."""
        return Decoder(self, dtype=dtype, rngs=rngs)


class Cache(NamedTuple):
    """Keys and values of the tokens so far, for generation."""

    layers: tuple[tuple[Kept, Kept], ...]  # of each stack of layers, [layers, batch, kv_heads, slots, head_dim]
    segments: jax.Array  # int32 [batch, slots], 0 where there is nothing to see
    filled: jax.Array  # int32 [], slots in use

    @staticmethod
    def empty(config: DecoderConfig, batch: int, slots: int, dtype: jnp.dtype) -> "Cache":
        """A cache with room for `slots` tokens a row, none there yet; int8 for a dtype: in 8 bits."""

        def zeros(count: int) -> tuple[Kept, Kept]:
            first, second = (empty((count, batch, heads, slots, size), dtype) for heads, size in config.cached)
            return first, second

        layers = tuple(zeros(stack.num) for stack in stacks(config.all_kinds))
        return Cache(layers, jnp.zeros((batch, slots), jnp.int32), jnp.zeros((), jnp.int32))


class Decoder(Transformer):
    """Tokens -> logits.

    Args:
        config: its shape.
        dtype: what matrices are multiplied in; norms, softmax and angles are float32 always.
        rngs: draws the initial parameters.
    """

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        std, hidden = config.initializer_range, config.hidden_size
        self.embed = Embedding(config.vocab_size, hidden, std=std, dtype=dtype, rngs=rngs)
        self.positions = (
            Embedding(config.learned_positions, hidden, std=std, dtype=dtype, rngs=rngs)
            if config.learned_positions
            else None
        )
        self.layers = stacked(lambda kind, rngs: Layer(config, kind, dtype=dtype, rngs=rngs), config.all_kinds, rngs)
        # where sums are normalised, the last layer's is
        self.norm = make_norm(config, hidden) if "sum" not in config.norm_at else None
        self.head = (
            None
            if config.tie_embeddings
            else Linear(hidden, config.vocab_size, bias=False, std=std, dtype=dtype, rngs=rngs)
        )
        # nnx.data: a place for rows of new tokens, also while there are none
        self.new_tokens: NewTokens | None = nnx.data(None)
        self.config: DecoderConfig = config
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

    def hidden_and_balance(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        dropout: Dropout | None = None,
        scan: Scan = jax.lax.scan,
    ) -> tuple[jax.Array, jax.Array]:
        """`hidden`, and the loss that balances the load of the experts (`models.mixture.balance_loss`)."""
        x, _, loads = self._hidden(tokens, positions, segments, None, dropout, scan)
        seen = tokens.size if segments is None else (segments != 0).sum()
        num = sum(kind.sparse for kind in self.config.all_kinds)
        return x, balance_loss([load for load in loads if load is not None], jnp.asarray(seen), num)

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
        x, written, _ = self._hidden(tokens, positions, segments, cache, None, jax.lax.scan)
        assert written is not None
        return self.logits(x), written

    def logits(self, x: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        """Normalised hidden states [..., hidden] -> float32 [..., vocab]."""
        config = self.config
        if self.head is None:
            found = dot_wide(x, self.embed.embedding[...].astype(x.dtype), True)
        elif self.head.bare and self.head.kernel is not None:
            found = dot_wide(x, self.head.kernel[...].astype(x.dtype))
        else:
            # the layers fold in 0, 1 ... num_layers - 1
            drop = dropout.fold(config.num_layers) if dropout is not None else None
            found = self.head(x, drop).astype(jnp.float32)
        if self.new_tokens is not None:
            found = self.new_tokens.scored(x, found)
        if config.logits_multiplier != 1.0:
            found = found * config.logits_multiplier
        if config.logits_softcap is not None:
            found = config.logits_softcap * jnp.tanh(found / config.logits_softcap)
        return found

    def enter(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        cache: Cache | None = None,
        dropout: Dropout | None = None,
    ) -> Entered:
        """What goes into the first layer, and how a layer is run: for those who go through them in their own way.

        Args as in `__call__` and `decode`.
        """
        config, fold = self.config, self.layout.fold
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
        angles, places = config.angles(fold(positions)), stacks(config.all_kinds)

        def apply(layer: Layer, carry: Any, number: jax.Array, stack: Stack) -> tuple[Any, Load | None]:
            drop = dropout.fold(number) if dropout is not None else None
            if cache is None:
                x, (_, load) = layer(carry, angles, slots, None, drop, number)
                return x, load
            x, kept = carry
            place = places.index(stack)
            keys, values = kept[place]
            x, (own, load) = layer(x, angles, slots, KeyValue(keys, values, stack.place(number)), drop, number)
            assert own is not None
            return (x, (*kept[:place], (own.keys, own.values), *kept[place + 1 :])), load

        x = self.layout.constrain(self._embedded(fold(tokens), fold(positions)), LAYER_INPUT)
        return Entered(x if cache is None else (x, cache.layers), apply, slots)

    def leave(self, x: jax.Array) -> jax.Array:
        """The normalised hidden states of what the last layer gave."""
        return self.layout.unfold(self.norm(x) if self.norm is not None else x)

    def _hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array | None,
        segments: jax.Array | None,
        cache: Cache | None,
        dropout: Dropout | None,
        scan: Scan,
    ) -> tuple[jax.Array, Cache | None, list[Load | None]]:
        config = self.config
        x, apply, slots = self.enter(tokens, positions=positions, segments=segments, cache=cache, dropout=dropout)
        x, loads = through(self.layers, config.all_kinds, apply, x, scan)
        if cache is not None:
            x, layers = x
            cache = Cache(layers, slots.key_segments, cache.filled + tokens.shape[1])
        return self.leave(x), cache, loads

    def _embedded(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        if self.new_tokens is not None:
            x = self.new_tokens.embedded(tokens, x)
        if self.config.embedding_multiplier != 1.0:
            x = x * jnp.asarray(self.config.embedding_multiplier, x.dtype)
        if self.positions is not None:
            x = x + self.positions(positions)
        return x
