"""The one encoder behind every family of text encoders: tokens in, layers that see to both sides, a head over them.

A row may hold several texts as segments, each seeing only itself: its positions start anew, and so does what is said of
the whole text. What stands at a text's first token is the text's.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean.models.activation import ACTIVATION_FUNCTIONS
from jaxlean.models.attention import Slots
from jaxlean.models.config import LayersConfig
from jaxlean.models.embedding import Embedding
from jaxlean.models.layer import LAYER_INPUT, Layer
from jaxlean.models.layout import ALONE, Layout
from jaxlean.models.linear import Dropout, Linear
from jaxlean.models.new_tokens import NewTokens
from jaxlean.models.pooling import first_tokens, segment_mean
from jaxlean.models.self_attention import make_norm
from jaxlean.models.stack import Scan, stacked, through
from jaxlean.models.transformer import Entered, Transformer

Head = Literal["none", "classify", "tag", "embed"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(LayersConfig):
    """The shape of an encoder of text.

    A layer's window counts to both sides: a token sees those less than `window` places away.

    Args:
        learned_positions: rows of a table of positions that is added to the embedded tokens; 0: none.
        first_position: the row of a text's first token (RoBERTa begins behind the number of its padding token).
        token_types: rows of a table of types (first or second text of a pair) that is added as well; 0: none.
        max_position_embeddings: the longest text that it was made for.
        head: what stands over the hidden states: nothing, labels of a text, labels of each token, a vector of a text.
        num_labels: of the classifier.
        dense_of: the heads whose classifier has a layer before its scores.
        dense_activation: of that layer.
        dense_bias: whether it has one.
        dense_norm: whether what it gives is normalised (ModernBERT).
        pooling: a text's vector is that of its first token (`cls`), or the mean of all.
        normalize: `pool` gives vectors of length 1.
    """

    causal: bool = False
    vocab_size: int
    learned_positions: int = 0
    first_position: int = 0
    token_types: int = 0
    max_position_embeddings: int = 512
    head: Head = "none"
    num_labels: int = 0
    dense_of: tuple[Head, ...] = ()
    dense_activation: str = "tanh"
    dense_bias: bool = True
    dense_norm: bool = False
    pooling: Literal["cls", "mean"] = "cls"
    normalize: bool = False

    def build(self, *, dtype: Any, rngs: nnx.Rngs) -> "Encoder":
        """The module."""
        return Encoder(self, dtype=dtype, rngs=rngs)


class Classifier(nnx.Module):
    """A vector -> one score a label, perhaps through one more layer.

    Args:
        config: its shape.
        dtype: what matrices are multiplied in; the scores are float32 always.
        rngs: draws the kernels.
    """

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        std, hidden, deep = config.initializer_range, config.hidden_size, config.head in config.dense_of
        self.dense = Linear(hidden, hidden, bias=config.dense_bias, std=std, dtype=dtype, rngs=rngs) if deep else None
        self.norm = make_norm(config, hidden) if deep and config.dense_norm else None
        self.scores = Linear(hidden, config.num_labels, bias=True, std=std, dtype=jnp.dtype(jnp.float32), rngs=rngs)
        self.activation = ACTIVATION_FUNCTIONS[config.dense_activation]

    def __call__(self, x: jax.Array, dropout: Dropout | None) -> jax.Array:
        """[..., hidden] -> float32 [..., labels]; `dropout` of adapters."""
        drop = [dropout.fold(i) if dropout is not None else None for i in range(2)]
        if self.dense is not None:
            x = self.activation(self.dense(x, drop[0]).astype(jnp.float32))
        return self.scores(self.norm(x) if self.norm is not None else x, drop[1])


class Encoder(Transformer):
    """Tokens -> hidden states, and what its head makes of them.

    Args:
        config: its shape.
        dtype: what matrices are multiplied in; norms, softmax and angles are float32 always.
        rngs: draws the initial parameters.
    """

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        def table(rows: int) -> Embedding | None:
            std = config.initializer_range
            return Embedding(rows, config.hidden_size, std=std, dtype=dtype, rngs=rngs) if rows else None

        self.embed = Embedding(
            config.vocab_size, config.hidden_size, std=config.initializer_range, dtype=dtype, rngs=rngs
        )
        self.positions = table(config.learned_positions)
        self.token_types = table(config.token_types)
        self.embed_norm = make_norm(config, config.hidden_size)
        self.layers = stacked(lambda kind, rngs: Layer(config, kind, dtype=dtype, rngs=rngs), config.all_kinds, rngs)
        # where sums are normalised, the last layer's is
        self.norm = make_norm(config, config.hidden_size) if "sum" not in config.norm_at else None
        self.classifier = Classifier(config, dtype=dtype, rngs=rngs) if config.head in ("classify", "tag") else None
        # nnx.data: a place for rows of new tokens, also while there are none
        self.new_tokens: NewTokens | None = nnx.data(None)
        self.config: EncoderConfig = config
        self.layout: Layout = ALONE

    def __call__(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        token_types: jax.Array | None = None,
        dropout: Dropout | None = None,
        scan: Scan = jax.lax.scan,
    ) -> jax.Array:
        """What the head says: of `classify`, `tag` and `pool` its own, or the hidden states. Args as of `hidden`."""
        if segments is None:
            segments = jnp.ones_like(tokens)
        found = self.hidden(
            tokens, positions=positions, segments=segments, token_types=token_types, dropout=dropout, scan=scan
        )
        match self.config.head:
            case "classify":
                return self.classify(found, segments, dropout)
            case "tag":
                return self.tag(found, dropout)
            case "embed":
                return self.pool(found, segments)
            case _:
                return found

    def hidden(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        token_types: jax.Array | None = None,
        dropout: Dropout | None = None,
        scan: Scan = jax.lax.scan,
    ) -> jax.Array:
        """What the layers make of each token.

        Args:
            tokens: int32 [batch, length].
            positions: int32 [batch, length], each token's place in its own text; default: counted from the first one of
                its segment.
            segments: int32 [batch, length]; a token sees only its own segment, 0 is padding. Default: one segment.
            token_types: int32 [batch, length], 1 in the second text of a pair; default: 0.
            dropout: of the adapters, in training.
            scan: runs the body over the layers (`xla.remat.scan_layers` makes one of a policy).

        Returns:
            [batch, length, hidden].
        """
        entered = self.enter(tokens, positions=positions, segments=segments, token_types=token_types, dropout=dropout)
        x, _ = through(self.layers, self.config.all_kinds, entered.apply, entered.x, scan)
        return self.leave(x)

    def enter(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        token_types: jax.Array | None = None,
        dropout: Dropout | None = None,
    ) -> Entered:
        """What goes into the first layer, and how a layer is run: for those who go through them in their own way.

        Args as of `hidden`.
        """
        config, fold = self.config, self.layout.fold
        steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        if segments is None:
            segments = jnp.ones_like(tokens)
        if positions is None:
            positions = steps - first_tokens(self.layout.whole(segments))
        if token_types is None:
            token_types = jnp.zeros_like(tokens)
        # however long the padding is, its positions are in the table
        positions = jnp.where(segments > 0, positions, 0)
        slots, angles = Slots(steps, steps, segments, segments), config.angles(fold(positions))

        def apply(layer: Layer, x: jax.Array, number: jax.Array, stack: Any) -> tuple[jax.Array, None]:
            drop = dropout.fold(number) if dropout is not None else None
            return layer(x, angles, slots, None, drop, number)[0], None

        x = self._embedded(fold(tokens), fold(positions), fold(token_types))
        return Entered(self.layout.constrain(x, LAYER_INPUT), apply, slots)

    def leave(self, x: jax.Array) -> jax.Array:
        """The hidden states of what the last layer gave."""
        return self.layout.unfold(self.norm(x) if self.norm is not None else x)

    def classify(self, hidden: jax.Array, segments: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        """The logits of each text, which stand at its first token; elsewhere stands nothing of use.

        Args:
            hidden: [batch, length, hidden], as `hidden` gives it.
            segments: int32 [batch, length].
            dropout: of adapters.

        Returns:
            float32 [batch, length, num_labels].
        """
        return self._scores(hidden if self.config.pooling == "cls" else segment_mean(hidden, segments), dropout)

    def tag(self, hidden: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        """The logits float32 [batch, length, num_labels] of each token. Args as of `classify`."""
        return self._scores(hidden, dropout)

    def pool(self, hidden: jax.Array, segments: jax.Array) -> jax.Array:
        """The vector of each text, which stands at its first token.

        Args:
            hidden: [batch, length, hidden], as `hidden` gives it.
            segments: int32 [batch, length].

        Returns:
            float32 [batch, length, hidden].
        """
        found = hidden.astype(jnp.float32) if self.config.pooling == "cls" else segment_mean(hidden, segments)
        if self.config.normalize:
            found = found * jax.lax.rsqrt(jnp.maximum(jnp.square(found).sum(-1, keepdims=True), 1e-24))
        return found

    def _scores(self, x: jax.Array, dropout: Dropout | None) -> jax.Array:
        assert self.classifier is not None, "an encoder without labels"
        # the layers fold in 0, 1 ... num_layers - 1
        return self.classifier(x, dropout.fold(self.config.num_layers) if dropout is not None else None)

    def _embedded(self, tokens: jax.Array, positions: jax.Array, token_types: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        if self.new_tokens is not None:
            x = self.new_tokens.embedded(tokens, x)
        if self.token_types is not None:
            x = x + self.token_types(token_types)
        if self.positions is not None:
            x = x + self.positions(positions + self.config.first_position)
        return self.embed_norm(x)
