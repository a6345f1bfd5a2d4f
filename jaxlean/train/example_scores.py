"""What each example of a packed batch is to a model: its loss, and the length of its error vector. No gradients.

For probabilities p and the right token (or label) t, a place costs -log p[t], and its error vector is p - onehot(t):
the gradient of the loss with respect to the logits. The norm of that is EL2N (arXiv 2107.07075, section 2.1), there of
the one label of an image; of a completion it is the mean over its tokens here. Both come from a forward pass alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean import tree
from jaxlean.models.decoder import DecoderConfig
from jaxlean.models.layout import ALONE, Layout
from jaxlean.train.classify import Logits
from jaxlean.train.loss import chunk_length, chunked_tokens, shifted
from jaxlean.train.objective import Batch


class Sums(NamedTuple):
    """Over the tokens (labels) of each example: [rows, 1 + length], example number `segment` of a row at that place.

    Attributes:
        loss: float32, of their cross entropies, in nats.
        error: float32, of the norms of their error vectors, each between 0 and the square root of 2.
        num: int32, how many there are.
    """

    loss: jax.Array
    error: jax.Array
    num: jax.Array


# (all parameters, one batch) -> what each of its examples is to the model
Scores = Callable[[tree.Tree, Batch], Sums]


def completion_scores(
    graph: nnx.GraphDef, config: DecoderConfig, *, logits_bytes: int | None, layout: Layout = ALONE
) -> Scores:
    """Of a decoder: over the tokens of each example that carry loss.

    Args:
        graph: of a `Decoder`, adapters attached.
        config: its shape.
        logits_bytes: the most that float32 logits may take at a time; None: those of the whole batch.
        layout: over several devices, whose axes must divide the batch.
    """

    measured = _measured(graph, config, cost_and_error, logits_bytes=logits_bytes, layout=layout)

    def scores(params: tree.Tree, batch: Batch) -> Sums:
        found, counts, segments = measured(params, batch)
        return _by_segment(found[..., 0], found[..., 1], counts, segments)

    return scores


def continuation_scores(
    graph: nnx.GraphDef, config: DecoderConfig, *, logits_bytes: int | None, layout: Layout = ALONE
) -> Callable[[tree.Tree, Batch], tuple[jax.Array, jax.Array]]:
    """Of a decoder: how likely the tokens that carry loss are, and whether each is the likeliest.

    Args: as of `completion_scores`; a row of the batch holds one example.

    Returns:
        (parameters, batch) -> (float32 [rows], the sum of their log-probabilities in nats; bool [rows], whether greedy
        decoding would give them).
    """
    measured = _measured(graph, config, cost_and_rank, logits_bytes=logits_bytes, layout=layout)

    def scores(params: tree.Tree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        found, counts, _ = measured(params, batch)
        return -jnp.where(counts, found[..., 0], 0.0).sum(axis=1), ((found[..., 1] == 0) | ~counts).all(axis=1)

    return scores


def _measured(
    graph: nnx.GraphDef,
    config: DecoderConfig,
    measure: Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]],
    *,
    logits_bytes: int | None,
    layout: Layout,
) -> Callable[[tree.Tree, Batch], tuple[jax.Array, jax.Array, jax.Array]]:
    """(parameters, batch) -> (float32 [rows, length, k] where a token carries loss, whether it does, its segment).

    Each number stands where the token is predicted, one place before it.
    """

    def of(params: tree.Tree, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        model = nnx.merge(graph, params).lay_out(layout)
        hidden = model.hidden(batch["tokens"], positions=batch["positions"], segments=batch["segments"])
        segments = layout.whole(batch["segments"])
        targets, counts = shifted(layout.whole(batch["tokens"]), layout.whole(batch["loss_mask"]))
        # nothing of an example comes before its first token that could predict it
        counts &= segments == jnp.roll(segments, -1, axis=1)
        hidden, targets, mask = map(layout.fold, (hidden, targets, counts))
        rows, length = targets.shape
        row_bytes = 4 * rows * config.vocab_size
        chunk = chunk_length(length, row_bytes=row_bytes, budget=logits_bytes or row_bytes * length)

        def head(_: None, x: jax.Array, number: jax.Array) -> jax.Array:
            return model.logits(x)

        def stacked(logits: jax.Array, targets: jax.Array) -> jax.Array:
            return jnp.stack(measure(logits, targets), axis=-1)

        found = layout.unfold(chunked_tokens(head, None, hidden, targets, mask, stacked, chunk=chunk))
        return found, counts, segments

    return of


def label_scores(logits: Logits) -> Scores:
    """Of an encoder with a head: over the labels of each example, of which a text has one and words have one each.

    Args:
        logits: as `classify.label_logits` makes them.
    """

    def scores(params: tree.Tree, batch: Batch) -> Sums:
        there = batch["labels"] >= 0
        loss, error = cost_and_error(logits(params, batch, None), jnp.where(there, batch["labels"], 0))
        return _by_segment(loss, error, there, batch["segments"])

    return scores


def cost_and_error(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(cross entropy, norm of the error vector), float32 [...], of float32 logits [..., vocab] and targets [...]."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    place = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]
    loss = -jnp.where(place, log_p, 0.0).sum(axis=-1)
    # expm1: of a token that is nearly certain, 1 - p would be all rounding
    error = jnp.where(place, jnp.expm1(log_p), jnp.exp(log_p))
    return loss, jnp.sqrt(jnp.square(error).sum(axis=-1))


def cost_and_rank(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(cross entropy, 0 where the target is the likeliest and else 1), float32 [...]. Args as of `cost_and_error`."""
    best = jnp.argmax(logits, axis=-1).astype(targets.dtype)
    return cost_and_error(logits, targets)[0], (best != targets).astype(jnp.float32)


def _by_segment(loss: jax.Array, error: jax.Array, counts: jax.Array, segments: jax.Array) -> Sums:
    rows, length = segments.shape
    at = jnp.arange(rows)[:, None]

    def add(x: jax.Array) -> jax.Array:
        return jnp.zeros((rows, 1 + length), x.dtype).at[at, segments].add(jnp.where(counts, x, 0))

    return Sums(add(loss), add(error), add(jnp.ones_like(segments)))
