"""What stands inside of a teacher as something to learn: hidden states, and how its attention relates tokens.

Of layers that are mapped onto each other, a token's hidden states s and t cost

    cosine   1 - cos(s, t)                                     DistilBERT, arXiv 1910.01108, section 3
    mse      |s - t|^2 / |t|^2                                 TinyBERT, arXiv 1909.10351, here relative to their size
    cka      1 - |S^T T|^2 / (|S^T S| |T^T T|)                 linear CKA, arXiv 1905.00414, section 3

where S and T hold a batch' tokens, centred: cka asks only that tokens lie to each other alike, in any two widths,

and its relations cost KL(R_t || R_s), the mean over queries, keys and values and over relation heads, where
R = softmax(x x^T / sqrt(features of a relation head)) over the tokens that it sees, x being all heads' queries (keys,
values) end to end, cut into relation heads (MiniLMv2, arXiv 2012.15828). Relations compare models of any width.

The sum over a microbatch's tokens is weighed so that a token that carries loss counts one, whatever else there is: it
is a mean times a number, so that for it several microbatches are not quite one larger one.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean import tree
from jaxlean.models.decoder import Scan
from jaxlean.models.layout import ALONE, Layout
from jaxlean.models.linear import Dropout
from jaxlean.models.stack import stacks, through
from jaxlean.train.loss import CROSS_ENTROPY, Criterion

# What a batch has of the teacher's inside: [rows, length, layers, features].
HIDDEN, RELATED = "teacher_hidden", "teacher_related"
_LEAST = 1e-12


class Match(NamedTuple):
    """What is matched.

    Attributes:
        layers: (student's, teacher's) numbers.
        hidden: weight of the hidden states' loss; 0: none.
        attention: weight of the relations' loss; 0: none.
        loss: of hidden states.
        heads: relation heads.
        teacher: widths of the teacher's queries, keys and values.
    """

    layers: tuple[tuple[int, int], ...]
    hidden: float
    attention: float
    loss: Literal["cosine", "mse", "cka"]
    heads: int
    teacher: tuple[int, int, int]


def widths(config: Any) -> tuple[int, int, int]:
    """Features of a token's queries, keys and values, all heads together."""
    narrow = config.num_kv_heads * config.head_dim
    return config.num_heads * config.head_dim, narrow, narrow


def collect(
    model: Any,
    batch: Any,
    layers: Sequence[int],
    *,
    hidden: bool,
    attention: bool,
    dropout: Dropout | None = None,
    scan: Scan = jax.lax.scan,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A forward pass that keeps what stands inside.

    Args:
        model: a decoder or an encoder of text, laid out.
        batch: `tokens`, `positions`, `segments`, perhaps `token_types`.
        layers: whose insides are kept.
        hidden, attention: what of them.
        dropout: of adapters.
        scan: runs the layers.

    Returns:
        (the normalised hidden states [rows, length, hidden], `HIDDEN` [rows, length, layers, hidden] and `RELATED`
        [rows, length, layers, queries + keys + values]).
    """
    types = {"token_types": batch["token_types"]} if "token_types" in batch else {}
    entered = model.enter(
        batch["tokens"], positions=batch["positions"], segments=batch["segments"], dropout=dropout, **types
    )
    layout: Layout = model.layout

    def apply(layer: Any, x: jax.Array, number: jax.Array, stack: Any) -> tuple[jax.Array, Any]:
        seen: list[jax.Array] = []

        def observe(*parts: jax.Array) -> None:
            seen.append(jnp.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=-1))

        if attention:
            layer.attention.observe = observe
        y, _ = entered.apply(layer, x, number, stack)
        found = ({HIDDEN: layout.unfold(y)} if hidden else {}) | ({RELATED: seen[0]} if attention else {})
        return y, found

    x, found = through(model.layers, model.config.all_kinds, apply, entered.x, scan)
    where = {n: (place, i) for place, s in enumerate(stacks(model.config.all_kinds)) for i, n in enumerate(s.numbers)}
    kept = {
        name: jnp.stack([found[where[n][0]][name][where[n][1]] for n in layers], axis=2) for name in found[0]
    }  # fmt: skip
    return model.leave(x), kept


def match_loss(kept: dict[str, jax.Array], batch: Any, match: Match, own: tuple[int, int, int], causal: bool) -> Any:
    """float32 []: what the student's insides cost, the mean over tokens.

    Args:
        kept: of the student, as `collect` gives it.
        batch: `segments`, and of the teacher `HIDDEN` and `RELATED`.
        match: the weights.
        own: the student's `widths`.
        causal: whether a token sees only what stands before it.
    """
    there = batch["segments"] > 0
    total: Any = 0.0
    if match.hidden:
        s, t = kept[HIDDEN].astype(jnp.float32), batch[HIDDEN].astype(jnp.float32)
        size = jnp.maximum(jnp.square(t).sum(-1), _LEAST)
        if match.loss == "cosine":
            norm = jnp.sqrt(jnp.maximum(jnp.square(s).sum(-1), _LEAST) * size)
            each = 1.0 - (s * t).sum(-1) / norm
        elif match.loss == "mse":
            each = jnp.square(s - t).sum(-1) / size
        else:
            each = _unlike(s, t, there)
        total += match.hidden * jnp.where(there, each.mean(-1), 0.0).sum()
    if match.attention:
        # a row at a time, and again in the backward pass: they are [length, length] for each relation head
        far = jax.checkpoint(partial(_relations_of_row, match, own, causal))
        each = jax.lax.map(lambda row: far(*row), (kept[RELATED], batch[RELATED], batch["segments"]))
        total += match.attention * jnp.where(there, each, 0.0).sum()
    return total / jnp.maximum(there.sum(), 1)


def _unlike(s: jax.Array, t: jax.Array, there: jax.Array) -> jax.Array:
    """float32 [layers]: 1 - linear CKA of the tokens that are there [rows, length, layers, features]."""
    counts = there.reshape(-1, 1, 1)

    def centred(x: jax.Array) -> jax.Array:
        x = jnp.where(counts, x.reshape(-1, *x.shape[2:]), 0.0)
        return jnp.where(counts, x - x.sum(0) / jnp.maximum(counts.sum(), 1), 0.0)

    def size(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.square(jnp.einsum("nla,nlb->lab", x, y, precision="highest")).sum((1, 2))

    s, t = centred(s), centred(t)
    return 1.0 - size(s, t) / jnp.sqrt(jnp.maximum(size(s, s) * size(t, t), _LEAST))


def _relations_of_row(
    match: Match, own: tuple[int, int, int], causal: bool, student: jax.Array, teacher: jax.Array, segments: jax.Array
) -> jax.Array:
    """float32 [length] of [length, layers, features] each."""
    sees = segments[:, None] == segments[None, :]
    if causal:
        sees &= jnp.tril(jnp.ones_like(sees))
    total = jnp.zeros(segments.shape, jnp.float32)
    starts = [[sum(sizes[:i]) for i in range(3)] for sizes in (own, match.teacher)]
    for part in range(3):
        s, t = (
            _log_relations(x[..., at[part] : at[part] + sizes[part]], match.heads, sees)
            for x, at, sizes in ((student, starts[0], own), (teacher, starts[1], match.teacher))
        )
        far = jnp.where(sees, jnp.exp(t) * (t - s), 0.0)
        total += far.sum(-1).mean((0, 1)) / 3.0
    return total


def _log_relations(x: jax.Array, heads: int, sees: jax.Array) -> jax.Array:
    """[length, layers, features] -> float32 [layers, heads, length, length]."""
    length, layers, features = x.shape
    parts = x.astype(jnp.float32).reshape(length, layers, heads, features // heads)
    scores = jnp.einsum("qlhf,klhf->lhqk", parts, parts) / math.sqrt(features // heads)
    return jax.nn.log_softmax(jnp.where(sees, scores, -1e30), axis=-1)


def matched_labels(
    graph: nnx.GraphDef,
    task: str,
    match: Match,
    *,
    criterion: Criterion = CROSS_ENTROPY,
    beside: Sequence[str] = (),
    dropout_rate: float | jax.Array = 0.0,
    scan: Scan = jax.lax.scan,
    layout: Layout = ALONE,
) -> Any:
    """The summed loss of labels and of what stands inside of an encoder. Args as of `classify.label_objective`."""
    from jaxlean.train.classify import label_loss

    def loss(params: tree.Tree, batch: Any, key: jax.Array) -> jax.Array:
        dropout = Dropout.of(dropout_rate, key)
        model = nnx.merge(graph, params).lay_out(layout)
        layers = [student for student, _ in match.layers]
        hidden, kept = collect(
            model, batch, layers, hidden=match.hidden > 0, attention=match.attention > 0, dropout=dropout, scan=scan
        )
        logits = model.classify(hidden, batch["segments"]) if task == "classify" else model.tag(hidden)
        own = label_loss(logits, batch["labels"], criterion, {name: batch[name] for name in beside})
        num = (batch["labels"] >= 0).sum().astype(jnp.float32)
        return own + num * match_loss(kept, batch, match, widths(model.config), causal=False)

    return loss
