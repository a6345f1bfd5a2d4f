"""Knowledge distillation: a student learns what a teacher expects at each place, not only what stood there.

The teacher is another program, which says of each place the k likeliest tokens and their log-probabilities; all other
tokens are one more class, "others", so that what is compared are distributions over k + 1 classes. For teacher p and
student q, both at temperature T, a place costs

    (1 - alpha) * (the task's cross entropy)  +  alpha * T^2 * D(p, q)

    forward_kl   D = KL(p || q)                                        arXiv 1503.02531 (where T^2 is from, section 2)
    reverse_kl   D = KL(q || p)                                        arXiv 2306.08543
    jsd          D = beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q          arXiv 2306.13649

With k the whole vocabulary that is exact; with fewer it is a lower bound (merging classes never raises one of these
divergences), and the class of others keeps the student from putting its mass where the teacher has none. Everything is
float32; a probability of the teacher below e^-80 counts as that.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean import tree
from jaxlean.models.decoder import DecoderConfig
from jaxlean.models.layout import ALONE, Layout
from jaxlean.train.classify import encode
from jaxlean.train.loss import CROSS_ENTROPY, Terms, Wanted, chunk_length, chunked_tokens, first_of, shifted
from jaxlean.train.match import Match, collect
from jaxlean.train.objective import Batch

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
# What a batch has of a teacher: int32 [..., k] tokens, and float [..., k + 1] log-probabilities, the last of others.
# Of labels there are the second alone, one for each label in their order.
IDS, LOGS = "teacher_ids", "teacher_logs"
# (all parameters, one batch) -> what the teacher says of it, by the names above
Teach = Callable[[tree.Tree, Batch], dict[str, jax.Array]]
INSIDE = jnp.bfloat16  # what a batch holds hidden states and the like in
LEAST = -80.0
_TINY = 1e-37


def divergence(log_p: jax.Array, log_q: jax.Array, name: Divergence, beta: float = 0.5) -> tuple[jax.Array, jax.Array]:
    """How far a student's distribution is from a teacher's.

    Args:
        log_p: float32 [..., classes], the teacher's log-probabilities, finite.
        log_q: float32 [..., classes], the student's.
        name: which divergence.
        beta: of `jsd`, between 0 and 1.

    Returns:
        (float32 [...] in nats, float32 [..., classes] its slope along each log q, up to what cancels because
        probabilities add up to 1).
    """
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    if name == "forward_kl":
        return (p * (log_p - log_q)).sum(-1), -p
    if name == "reverse_kl":
        slope = _times(q, log_q - log_p)
        return slope.sum(-1), slope
    log_m = jnp.logaddexp(jnp.log(beta) + log_p, jnp.log1p(-beta) + log_q)
    ours = _times(q, log_q - log_m)
    return (beta * _times(p, log_p - log_m) + (1.0 - beta) * ours).sum(-1), (1.0 - beta) * ours


def _times(probability: jax.Array, surprise: jax.Array) -> jax.Array:
    """Their product; 0 where the probability is 0, however large the other."""
    return jnp.where(probability > 0, probability * jnp.where(probability > 0, surprise, 0.0), 0.0)


class Classes(NamedTuple):
    """A student's distribution over the teacher's classes, and what its gradient is made of."""

    log_q: jax.Array  # [..., classes]
    rest: jax.Array  # [..., vocab], exp(logit / T - top) of the tokens that are not among the k, 0 of those
    rest_sum: jax.Array  # [...]
    total: jax.Array  # [...], of all tokens
    log_total: jax.Array  # [..., 1], of exp(logit / T)
    places: jax.Array | None  # int32 [..., k], of the k in this device's part of the vocabulary; beyond it: not here


class Distilled(NamedTuple):
    """The criterion (`train.loss.Criterion`). Wanted are `targets` and, from the teacher, `IDS` and `LOGS`.

    Attributes:
        divergence: which.
        alpha: share of the divergence in the loss, above 0 and at most 1.
        temperature: that logits are divided by; the teacher's log-probabilities are at the same one.
        beta: of `jsd`.
        terms: of the task's own loss.
    """

    divergence: Divergence = "forward_kl"
    alpha: float = 0.5
    temperature: float = 1.0
    beta: float = 0.5
    terms: Terms = CROSS_ENTROPY

    def losses(self, logits: jax.Array, wanted: Wanted, axis: str | None = None) -> jax.Array:
        """As of `Criterion`; may be differentiated."""
        found = classes(logits / self.temperature, wanted.get(IDS), axis)
        losses, _ = self._far(found, wanted[LOGS])
        losses = self._weight * losses
        if self.alpha < 1:
            losses = losses + (1.0 - self.alpha) * self.terms.losses(logits, wanted["targets"], axis)
        return losses

    def losses_and_gradient(
        self, logits: jax.Array, wanted: Wanted, axis: str | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """As of `Criterion`."""
        found = classes(logits / self.temperature, wanted.get(IDS), axis)
        losses, slope = self._far(found, wanted[LOGS])
        share = 1.0 - self.alpha
        if share and self.temperature == 1 and self.terms == CROSS_ENTROPY and axis is None:
            # both from the same softmax: two gradients of all logits, one after the other, take half as long again
            target = wanted["targets"][..., None]
            task = (found.log_total - jnp.take_along_axis(logits, target, axis=-1, mode="clip"))[..., 0]
            return self._weight * losses + share * task, _gradient(found, self._weight * slope, share, target)
        gradient = _gradient(found, slope) * (self._weight / self.temperature)
        losses = self._weight * losses
        if self.alpha < 1:
            own, of_own = self.terms.losses_and_gradient(logits, wanted["targets"], axis)
            losses, gradient = losses + (1.0 - self.alpha) * own, gradient + (1.0 - self.alpha) * of_own
        return losses, gradient

    @property
    def _weight(self) -> float:
        return self.alpha * self.temperature**2

    def _far(self, found: Classes, logs: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_p = jnp.maximum(logs.astype(jnp.float32), LEAST)[..., : found.log_q.shape[-1]]
        # held in 16 bits they add up to 1 no longer, and then what is compared would be no distributions
        log_p = jnp.maximum(log_p - jax.nn.logsumexp(log_p, axis=-1, keepdims=True), LEAST)
        return divergence(log_p, found.log_q, self.divergence, self.beta)


def classes(logits: jax.Array, ids: jax.Array | None, axis: str | None = None) -> Classes:
    """What a student says of a teacher's classes.

    Args:
        logits: float32 [..., vocab], at the temperature; of which each device of `axis` may hold a part.
        ids: int32 [..., k], no token twice; None: each token is a class.
        axis: as of `Criterion`.
    """

    def over_all(part: jax.Array) -> jax.Array:
        return part if axis is None else jax.lax.psum(part, axis)

    top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    if axis is not None:
        top = jax.lax.pmax(top, axis)
    powers = jnp.exp(logits - top)
    total = over_all(powers.sum(axis=-1))
    log_total = jnp.log(total)[..., None] + top
    if ids is None:
        return Classes(logits - log_total, powers, total, total, log_total, None)
    part = logits.shape[-1]
    own = ids - first_of(part, axis)
    here = (own >= 0) & (own < part)
    chosen = jnp.take_along_axis(logits, own, axis=-1, mode="clip")
    log_q = over_all(jnp.where(here, chosen, 0.0)) - log_total
    places = jnp.where(here, own, part)
    if axis is None and ids.shape[-1] == part:  # there are no others
        return Classes(log_q, jnp.zeros_like(powers), jnp.zeros_like(total), total, log_total, places)
    # not 1 minus the mass of the k, of which nothing would be left where they have nearly all
    rest = _set(powers, places, jnp.zeros_like(log_q))
    rest_sum = over_all(rest.sum(axis=-1))
    others = jnp.log(jnp.maximum(rest_sum, _TINY))[..., None] + top - log_total
    return Classes(jnp.concatenate([log_q, others], axis=-1), rest, rest_sum, total, log_total, places)


def _gradient(found: Classes, slope: jax.Array, task: float = 0.0, target: jax.Array | None = None) -> jax.Array:
    """[..., vocab], with respect to the logits at the temperature, of a loss with that slope along each log q.

    Args:
        task: so much of the gradient of the cross entropy of `target`, int32 [..., 1], is added.
    """
    all_slopes = slope.sum(axis=-1) - task

    def less_target(x: jax.Array, tokens: jax.Array) -> jax.Array:
        return x if target is None else x - jnp.where(tokens == target, task, 0.0)

    vocab = jax.lax.broadcasted_iota(jnp.int32, found.rest.shape, found.rest.ndim - 1)
    if found.places is None:
        return less_target(slope - found.rest * (all_slopes / found.total)[..., None], vocab)
    k = found.places.shape[-1]
    of_k = slope[..., :k] - all_slopes[..., None] * jnp.exp(found.log_q[..., :k])
    of_k = less_target(of_k, found.places)
    if slope.shape[-1] == k:
        return _set(found.rest, found.places, of_k)
    share = slope[..., k] / jnp.maximum(found.rest_sum, _TINY) - all_slopes / found.total
    return _set(less_target(found.rest * share[..., None], vocab), found.places, of_k)


def _set(x: jax.Array, places: jax.Array, values: jax.Array) -> jax.Array:
    """x [..., vocab] with values [..., k] at these places; those beyond its end are left out."""
    flat, k = x.reshape(-1, x.shape[-1]), places.shape[-1]
    rows = jnp.arange(flat.shape[0], dtype=places.dtype)[:, None]
    changed = flat.at[rows, places.reshape(-1, k)].set(values.reshape(-1, k), mode="drop")
    return changed.reshape(x.shape)


# ---- the teacher's side


class Teaching(NamedTuple):
    """What a teacher is asked for at each place.

    Attributes:
        k: tokens.
        temperature: that its logits are divided by.
        vocab_size: tokens that the student knows; what a table has beyond them is padding.
        dtype: of the log-probabilities.
    """

    k: int
    temperature: float
    vocab_size: int
    dtype: Any


def likeliest(logits: jax.Array, teaching: Teaching) -> dict[str, jax.Array]:
    """`IDS` int32 [..., k] and `LOGS` [..., k + 1] of float32 logits [..., vocab]."""
    scaled = logits[..., : teaching.vocab_size] / teaching.temperature
    # where its result is cut further, XLA's CPU back end sorts the whole vocabulary instead, forty times as long
    values, ids = jax.lax.optimization_barrier(jax.lax.top_k(scaled, teaching.k))
    top = values[..., :1]
    powers = jnp.exp(scaled - top)
    rest = _set(powers, ids, jnp.zeros_like(values)).sum(axis=-1, keepdims=True)
    log_total = jnp.log(powers.sum(axis=-1, keepdims=True))
    logs = jnp.concatenate([values - top, jnp.log(jnp.maximum(rest, _TINY))], axis=-1) - log_total
    return {IDS: ids.astype(jnp.int32), LOGS: jnp.maximum(logs, LEAST).astype(teaching.dtype)}


def make_teach(
    graph: nnx.GraphDef,
    config: DecoderConfig,
    teaching: Teaching,
    *,
    logits_bytes: int | None,
    layout: Layout = ALONE,
    match: Match | None = None,
) -> Teach:
    """(parameters, batch) -> what a decoder says of each place that predicts a token with loss; zeros elsewhere.

    Args:
        graph: of a `Decoder`, adapters attached.
        config: its shape.
        teaching: what it is asked for.
        logits_bytes: the most that float32 logits may take at a time; None: those of the whole batch.
        layout: over several devices, whose axes must divide the batch.
        match: what of its inside is wanted as well.

    Returns:
        a function that gives `IDS` int32 [rows, length, k] and `LOGS` [rows, length, k + 1], and what `match` asks for.
    """

    def teach(params: tree.Tree, batch: Batch) -> dict[str, jax.Array]:
        model = nnx.merge(graph, params).lay_out(layout)
        hidden, inside = _inside(model, batch, match)
        targets, counts = shifted(layout.whole(batch["tokens"]), layout.whole(batch["loss_mask"]))
        hidden, targets, mask = map(layout.fold, (hidden, targets, counts))
        rows, length = targets.shape
        row_bytes = 4 * rows * config.vocab_size
        chunk = chunk_length(length, row_bytes=row_bytes, budget=logits_bytes or row_bytes * length)

        def head(_: None, x: jax.Array, number: jax.Array) -> jax.Array:
            return model.logits(x)

        def measure(logits: jax.Array, _: jax.Array) -> dict[str, jax.Array]:
            return likeliest(logits, teaching)

        found = chunked_tokens(head, None, hidden, targets, mask, measure, chunk=chunk)
        return {name: layout.unfold(x) for name, x in found.items()} | inside

    return teach


def _inside(model: Any, batch: Batch, match: Match | None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(the hidden states, what is wanted of the teacher's inside, in bfloat16: they may be large)."""
    if match is None:
        return encode(model, batch, None, jax.lax.scan), {}
    layers = [teacher for _, teacher in match.layers]
    hidden, kept = collect(model, batch, layers, hidden=match.hidden > 0, attention=match.attention > 0)
    return hidden, {name: x.astype(INSIDE) for name, x in kept.items()}


def make_teach_labels(
    graph: nnx.GraphDef, task: str, teaching: Teaching, *, layout: Layout = ALONE, match: Match | None = None
) -> Teach:
    """(parameters, batch) -> `LOGS` [rows, length, labels] of an encoder with a head, and what `match` asks for.

    Args:
        graph, task, layout: as of `classify.label_logits`.
        teaching: its `k` is the number of labels.
        match: what of its inside is wanted as well.
    """

    def teach(params: tree.Tree, batch: Batch) -> dict[str, jax.Array]:
        model = nnx.merge(graph, params).lay_out(layout)
        hidden, inside = _inside(model, batch, match)
        logits = model.classify(hidden, batch["segments"]) if task == "classify" else model.tag(hidden)
        logs = jax.nn.log_softmax(logits / teaching.temperature, axis=-1)
        there = (batch["labels"] >= 0)[..., None]
        return {LOGS: jnp.where(there, jnp.maximum(logs, LEAST), 0.0).astype(teaching.dtype)} | inside

    return teach
