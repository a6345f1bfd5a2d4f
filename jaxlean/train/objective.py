"""A decoder as what training minimises: parameters and a batch in, one summed loss out."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jaxlean import tree
from jaxlean.models.decoder import DecoderConfig, Scan
from jaxlean.models.layout import ALONE, FOLDED, Layout
from jaxlean.models.linear import Dropout
from jaxlean.models.new_tokens import own_ids
from jaxlean.train.loss import CROSS_ENTROPY, Criterion, chunk_length, chunked_loss, shifted
from jaxlean.train.match import Match, collect, match_loss, widths
from jaxlean.xla.mesh import place

Batch = Mapping[str, jax.Array]
# (all parameters, one microbatch, dropout key) -> float32 [], the loss summed over the tokens that carry it
Loss = Callable[[tree.Tree, Batch, jax.Array], jax.Array]


def num_targets(batch: Batch) -> jax.Array:
    """int32 []: over how many the loss of a batch is summed. `labels` mark them, or else the tokens to be predicted."""
    if "labels" in batch:
        return (batch["labels"] >= 0).sum(dtype=jnp.int32)
    # the first token of a row has no logit before it
    return batch["loss_mask"][..., 1:].sum(dtype=jnp.int32)


def num_seen(batch: Batch) -> jax.Array:
    """int32 []: the tokens of a batch that are no padding; of images, the images."""
    return (batch["segments"] > 0).sum(dtype=jnp.int32) if "segments" in batch else num_targets(batch)


def objective(
    graph: nnx.GraphDef,
    config: DecoderConfig,
    *,
    logits_bytes: int | None,
    criterion: Criterion = CROSS_ENTROPY,
    beside: Sequence[str] = (),
    dropout_rate: float | jax.Array = 0.0,
    scan: Scan = jax.lax.scan,
    layout: Layout = ALONE,
    balance: float = 0.0,
    match: Match | None = None,
) -> Loss:
    """The summed loss of a decoder's predictions, as `make_step` and `make_eval_step` take it.

    Args:
        graph: of a `Decoder`, adapters attached.
        config: its shape.
        logits_bytes: the most that float32 logits may take at a time, over all devices (`loss.chunk_budget`); None
            holds those of the whole batch.
        criterion: what a position costs: a cross entropy with its terms, or what `train.distill` asks for. The
            evaluation leaves it out, so that its loss is a cross entropy.
        beside: what of a batch is wanted of a position besides the token that it is to predict, [batch, length, ...]
            each: the criterion is then given a dict of these and `targets`.
        dropout_rate: of the adapters. The mask of an adapted head depends on the mesh and on `logits_bytes`, as no
            other does: its tokens are cut into chunks first.
        scan: runs the layers (a remat policy).
        layout: over several devices, whose axes must divide the batch.
        balance: weight of the loss that balances the load of a mixture's experts, of each token that carries loss.
        match: what of a teacher's inside is learned as well (`train.match`); not of a mixture.
    """
    part = "embed" if config.tie_embeddings else "head"
    # what of the parameters the logits are made of
    read = (part, "new_tokens")

    def loss(params: tree.Tree, batch: Batch, key: jax.Array) -> jax.Array:
        dropout = Dropout.of(dropout_rate, key)
        model = nnx.merge(graph, params).lay_out(layout)
        tokens, mask = batch["tokens"], batch["loss_mask"]
        how: dict[str, Any] = {
            "positions": batch["positions"], "segments": batch["segments"], "dropout": dropout, "scan": scan
        }  # fmt: skip
        if match is not None:
            layers = [student for student, _ in match.layers]
            asked = {"hidden": match.hidden > 0, "attention": match.attention > 0}
            hidden, kept = collect(model, batch, layers, **asked, dropout=dropout, scan=scan)
            far = match_loss(kept, batch, match, widths(config), causal=config.causal)
            own = of_tokens(params, model, hidden, batch, dropout, key)
            return own + far * mask[:, 1:].sum(dtype=jnp.float32)
        if not balance:
            return of_tokens(params, model, model.hidden(tokens, **how), batch, dropout, key)
        hidden, uneven = model.hidden_and_balance(tokens, **how)
        own = of_tokens(params, model, hidden, batch, dropout, key)
        return own + balance * uneven * mask[:, 1:].sum(dtype=jnp.float32)

    def of_tokens(
        params: tree.Tree, model: Any, hidden: jax.Array, batch: Batch, dropout: Dropout | None, key: jax.Array
    ) -> jax.Array:
        tokens, mask = batch["tokens"], batch["loss_mask"]
        # of whole sequences; the parts of them are then rows of their own
        targets, counts = map(layout.whole, shifted(layout.whole(tokens), layout.whole(mask)))
        wanted = {name: layout.whole(batch[name]) for name in beside} | {"targets": targets} if beside else targets
        if logits_bytes is None:
            return jnp.where(counts, criterion.losses(model.logits(hidden, dropout), wanted), 0.0).sum()

        parts = [name for name in read if name in params]

        def head(own: Any, x: jax.Array, number: jax.Array) -> jax.Array:
            # its own place among the layers' (0, 1 ... num_layers - 1), then one for each chunk
            drop = Dropout(own.get("rate", dropout_rate), own["key"]) if dropout is not None else None
            drop = drop.fold(config.num_layers).fold(number) if drop is not None else None
            return nnx.merge(graph, {**params, **{name: own[name] for name in parts}}).logits(x, drop)

        hidden, wanted, counts = jax.tree.map(layout.fold, (hidden, wanted, counts))
        hidden = layout.constrain(hidden, "layer_in")
        rows, length = counts.shape
        chunk = chunk_length(length, row_bytes=4 * rows * config.vocab_size, budget=logits_bytes)
        run = partial(chunked_loss, head, chunk=chunk, criterion=criterion)
        own = {name: params[name] for name in parts} | {"key": key}
        if isinstance(dropout_rate, jax.Array):  # an argument of the program, which `head` may not close over
            own["rate"] = dropout_rate
        drops = dropout is not None and any(".lora_" in path for path in tree.flatten({part: params[part]}))
        if layout.mesh is None or drops:  # one mask for all rows, whatever devices they lie on
            return run(own, hidden, wanted, counts)
        return _on_each_device(layout, run, own, hidden, wanted, counts)

    return loss


def _on_each_device(
    layout: Layout, run: Callable[..., jax.Array], own: dict[str, Any], hidden: jax.Array, *rest: Any
) -> jax.Array:
    """The loss of each device's rows, by itself: its loop over chunks waits for no other with other rows.

    The head is put together before it, and its gradient summed after it and cut up again: once, not in each chunk.
    """
    assert layout.mesh is not None
    mesh, where = layout.mesh, place(layout.mesh)
    specs = tree.map_with_path(lambda path, x: where(path, x.shape).spec, own)
    leaves = tree.flatten(specs)
    parted = any("tensor" in spec for spec in leaves.values()) and mesh.shape["tensor"] > 1
    # beside an adapter, which is whole everywhere, the kernel must be so too
    split = parted and not any(".lora_" in path for path in leaves)
    together = {axis for axis in ((*FOLDED,) if split else (*FOLDED, "tensor")) if mesh.shape[axis] > 1}

    def local(own: dict[str, Any], hidden: jax.Array, *rest: Any) -> jax.Array:
        whole = tree.map_with_path(lambda path, x: _gathered(x, leaves[path], together), own)
        if split and "new_tokens" in own:
            part = _rows_of(whole)
            here = jax.lax.axis_index("tensor") * part
            ids = own_ids(whole["new_tokens"]["ids"], here, part)
            whole = {**whole, "new_tokens": {**whole["new_tokens"], "ids": ids}}
        return run(whole, hidden, *rest, axis="tensor" if split else None)[None]

    rows = PartitionSpec(FOLDED)
    return layout.on_each_device(local, (specs, rows, *(rows for _ in rest)), rows)(own, hidden, *rest).sum()


def _rows_of(own: Mapping[str, Any]) -> int:
    """How many of the vocabulary a head gives the logits of."""
    return own["head"]["kernel"].shape[1] if "head" in own else own["embed"]["embedding"].shape[0]


def _gathered(x: jax.Array, spec: PartitionSpec, axes: set[str]) -> jax.Array:
    for dim, axis in enumerate(spec):
        if axis in axes:
            x = jax.lax.all_gather(x, axis, axis=dim, tiled=True)
    return x
