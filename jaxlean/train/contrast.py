"""Texts that belong together as what training minimises: each anchor is to find its positive among all of the batch.

For unit vectors a of anchors and p of positives, and scale s, pair i costs

    -log( exp(s * a[i] @ p[i]) / sum_j exp(s * a[i] @ p[j]) )

which is InfoNCE (arXiv 1807.03748) with the batch's other positives as negatives (arXiv 1705.00652, section 4.4);
sentence-transformers calls it MultipleNegativesRankingLoss. `symmetric` takes the mean with the same cost of finding
the anchors (CLIP, arXiv 2103.00020). What lies in one microbatch is told apart, over all devices: unlike other losses
this one is not the same when a batch is cut into more microbatches, and of replicas by themselves each sees its own.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean import tree
from jaxlean.models.decoder import Scan
from jaxlean.models.layout import ALONE, Layout
from jaxlean.models.linear import Dropout
from jaxlean.train.classify import Judge, encode
from jaxlean.train.objective import Batch, Loss

# (all parameters, one batch, dropout of adapters) -> float32 [batch, hidden]
Vectors = Callable[[tree.Tree, Batch, Dropout | None], jax.Array]


def text_vectors(graph: nnx.GraphDef, *, scan: Scan = jax.lax.scan, layout: Layout = ALONE) -> Vectors:
    """The vector of each row's one text. Args as of `label_logits`."""

    def vectors(params: tree.Tree, batch: Batch, dropout: Dropout | None) -> jax.Array:
        model = nnx.merge(graph, params).lay_out(layout)
        pooled = model.pool(encode(model, batch, dropout, scan), batch["segments"])[:, 0]
        return jnp.where(batch["segments"][:, :1] > 0, pooled, 0.0)  # a row of padding has no text to take a mean of

    return vectors


def contrast_objective(
    vectors: Vectors, *, scale: float = 20.0, symmetric: bool = False, dropout_rate: float | jax.Array = 0.0
) -> Loss:
    """The summed loss of pairs, as `make_step` and `make_eval_step` take it: rows 2i and 2i + 1 are pair i.

    Args:
        vectors: as `text_vectors` makes them.
        scale, symmetric: as of `contrastive_loss`.
        dropout_rate: of the adapters.
    """

    def loss(params: tree.Tree, batch: Batch, key: jax.Array) -> jax.Array:
        dropout = Dropout.of(dropout_rate, key)
        return _of_rows(vectors(params, batch, dropout), batch, scale, symmetric)

    return loss


def judge_vectors(vectors: Vectors, *, scale: float = 20.0, symmetric: bool = False) -> Judge:
    """(parameters, batch) -> (the summed loss, float32 [batch, hidden] vectors as the model gives them)."""

    def judge(params: tree.Tree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        found = vectors(params, batch, None)
        return _of_rows(found, batch, scale, symmetric), found

    return judge


def _of_rows(vectors: jax.Array, batch: Batch, scale: float, symmetric: bool) -> jax.Array:
    if vectors.shape[0] == 1:  # what one sequence costs is asked (`plan`): it is its own pair
        vectors = jnp.repeat(vectors, 2, axis=0)
    there = batch["labels"][0::2, 0] >= 0
    return contrastive_loss(vectors[0::2], vectors[1::2], there, scale=scale, symmetric=symmetric)


def contrastive_loss(
    anchors: jax.Array, positives: jax.Array, there: jax.Array, *, scale: float, symmetric: bool = False
) -> jax.Array:
    """Sum of what the pairs cost.

    Args:
        anchors, positives: float32 [pairs, hidden], of any length.
        there: bool [pairs], False for padding, which is nobody's negative.
        scale: of the cosine similarities.
        symmetric: the mean of both directions.

    Returns:
        float32 [].
    """
    anchors, positives = unit(anchors), unit(positives)
    similar = scale * jnp.einsum("ah,ph->ap", anchors, positives, precision=jax.lax.Precision.HIGHEST)
    own = jnp.diagonal(similar)

    def cost(rows: jax.Array) -> jax.Array:
        # padding is a pair of equal vectors: large enough to be finite, small enough to be nothing
        every = jax.nn.logsumexp(jnp.where(there, rows, -1e30), axis=-1)
        return jnp.where(there, every - own, 0.0).sum()

    return 0.5 * (cost(similar) + cost(similar.T)) if symmetric else cost(similar)


def unit(x: jax.Array) -> jax.Array:
    """float32 [..., hidden], each of length 1; a vector of zeros stays one."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))
