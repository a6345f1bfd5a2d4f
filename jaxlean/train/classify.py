"""An encoder that gives labels as what training minimises: cross entropy over the positions that have one.

Of `task: classify` that is one position a text, its first, where the encoder's head puts the text's logits; of
`task: tag` the first token of each word. A row may hold several texts as segments; nothing here need know of them.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean import tree
from jaxlean.models.decoder import Scan
from jaxlean.models.layout import ALONE, Layout
from jaxlean.models.linear import Dropout
from jaxlean.train.loss import CROSS_ENTROPY, Criterion
from jaxlean.train.objective import Batch, Loss

# (all parameters, one batch, dropout of adapters) -> float32 [batch, length, labels]
Logits = Callable[[tree.Tree, Batch, Dropout | None], jax.Array]
# (all parameters, one batch) -> (the loss, as of `Loss`; what a model says of the batch)
Judge = Callable[[tree.Tree, Batch], tuple[jax.Array, Any]]

_NOTHING: Mapping[str, jax.Array] = MappingProxyType({})


def label_logits(graph: nnx.GraphDef, task: str, *, scan: Scan = jax.lax.scan, layout: Layout = ALONE) -> Logits:
    """The logits of an encoder's head.

    Args:
        graph: of an encoder with a head, adapters attached.
        task: `classify`: the logits at a text's first token are the text's; `tag`: each token has its own.
        scan: runs the layers (a remat policy).
        layout: over several devices, whose axes must divide the batch.
    """

    def logits(params: tree.Tree, batch: Batch, dropout: Dropout | None) -> jax.Array:
        model = nnx.merge(graph, params).lay_out(layout)
        hidden = encode(model, batch, dropout, scan)
        return model.classify(hidden, batch["segments"]) if task == "classify" else model.tag(hidden)

    return logits


def image_logits(
    graph: nnx.GraphDef, shape: tuple[int, int, int], *, scan: Scan = jax.lax.scan, layout: Layout = ALONE
) -> Logits:
    """The logits [batch, 1, labels] of a classifier of images.

    Args:
        graph: of a model of images with a classifier, adapters attached.
        shape: height, width and channels of an image; a batch's `pixels` are [batch, height * width * channels].
        scan, layout: as of `label_logits`.
    """

    def logits(params: tree.Tree, batch: Batch, dropout: Dropout | None) -> jax.Array:
        model = nnx.merge(graph, params).lay_out(layout)
        pixels = batch["pixels"].reshape(-1, *shape)
        return model.classify(model.hidden(pixels, dropout=dropout, scan=scan), dropout)[:, None]

    return logits


def encode(model: Any, batch: Batch, dropout: Dropout | None, scan: Scan) -> jax.Array:
    """The hidden states [batch, length, hidden] of a batch's tokens; `token_types` where the batch has them."""
    types = {"token_types": batch["token_types"]} if "token_types" in batch else {}
    return model.hidden(
        batch["tokens"], positions=batch["positions"], segments=batch["segments"], dropout=dropout, scan=scan, **types
    )


def label_objective(
    logits: Logits,
    *,
    criterion: Criterion = CROSS_ENTROPY,
    beside: Sequence[str] = (),
    dropout_rate: float | jax.Array = 0.0,
) -> Loss:
    """The summed loss of labels, as `make_step` and `make_eval_step` take it.

    Args:
        logits: as `label_logits` makes them.
        criterion, beside: as of `objective`, a label taking the place of a token; the evaluation leaves them out.
        dropout_rate: of the adapters.
    """

    def loss(params: tree.Tree, batch: Batch, key: jax.Array) -> jax.Array:
        dropout = Dropout.of(dropout_rate, key)
        more = {name: batch[name] for name in beside}
        return label_loss(logits(params, batch, dropout), batch["labels"], criterion, more)

    return loss


def label_loss(
    logits: jax.Array,
    labels: jax.Array,
    criterion: Criterion = CROSS_ENTROPY,
    beside: Mapping[str, jax.Array] = _NOTHING,
) -> jax.Array:
    """Sum of the losses of the positions that have a label.

    Args:
        logits: float32 [batch, length, labels].
        labels: int32 [batch, length], negative where there is none.
        criterion: as in `train.loss`, a label taking the place of a token.
        beside: what else is wanted of each position, by name.

    Returns:
        float32 [].
    """
    there = labels >= 0
    targets = jnp.where(there, labels, 0)
    losses = criterion.losses(logits, {**beside, "targets": targets} if beside else targets)
    return jnp.where(there, losses, 0.0).sum()


def judge_labels(logits: Logits) -> Judge:
    """(parameters, batch) -> (the summed cross entropy, `likeliest` of each position)."""

    def judge(params: tree.Tree, batch: Batch) -> tuple[jax.Array, Any]:
        found = logits(params, batch, None)
        return label_loss(found, batch["labels"]), likeliest(found)

    return judge


def likeliest(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(int32, float32) [batch, length]: the likeliest label of each position, and its probability."""
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return best, jnp.exp(logits.max(axis=-1) - jax.nn.logsumexp(logits, axis=-1))
