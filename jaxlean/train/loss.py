"""Next-token cross entropy, summed over the tokens that carry loss, without ever holding [batch, length, vocab].

`chunked_loss` is what training and evaluation run: the sequence in chunks, and with each chunk's logits, while they are
there, its gradient too. `next_token_loss` is the same sum from all logits at once, the reference. What a position costs
is a `Criterion`: `Terms` is the cross entropy with what may stand beside it, `train/distill.py` has another.

For logits z [vocab], L = logsumexp(z), target t, label smoothing e and z-loss weight w, a token costs

    L - (1 - e) * z[t] - e * mean(z)  +  w * L^2

Label smoothing is Hugging Face's (`label_smoothing_factor`: the uniform part counts the target too; arXiv 1512.00567,
section 7), the z-loss that of PaLM (arXiv 2204.02311, section 5) and ST-MoE (arXiv 2202.08906): it keeps L near 0.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxlean.platform import platform

# (parameters, hidden states [tokens, hidden], int32 number of the chunk, on which a dropout may depend)
# -> float32 logits [tokens, vocab]
Head = Callable[[Any, jax.Array, jax.Array], jax.Array]


# What positions are to be: a tree of arrays [..., *] whose first dims are those of the positions.
Wanted = Any


class Criterion(Protocol):
    """What a position costs, of its logits and what is wanted of it. Hashable: it is a part of the program.

    Logits are float32 [..., vocab], of whose last dim each device of the mesh axis `axis` may hold a part.
    """

    def losses(self, logits: jax.Array, wanted: Wanted, axis: str | None = None) -> jax.Array:
        """float32 [...]: of each position."""
        ...

    def losses_and_gradient(
        self, logits: jax.Array, wanted: Wanted, axis: str | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """(`losses`, each one's gradient with respect to its logits [..., vocab])."""
        ...


class Terms(NamedTuple):
    """Cross entropy, and what a token's loss has beside it. Wanted is int32 [...]: the target."""

    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def losses(self, logits: jax.Array, wanted: Wanted, axis: str | None = None) -> jax.Array:
        """As of `Criterion`."""
        return _losses(logits, wanted, self, axis)[0]

    def losses_and_gradient(
        self, logits: jax.Array, wanted: Wanted, axis: str | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """As of `Criterion`."""
        losses, total, softmax = _losses(logits, wanted, self, axis)
        return losses, _gradient(softmax, total, wanted, self, axis)


CROSS_ENTROPY = Terms()
# the head, positions of a chunk, the criterion, the axis of the vocabulary
How = tuple[Head, int, Criterion, str | None]


def next_token_loss(
    logits: jax.Array, tokens: jax.Array, loss_mask: jax.Array, terms: Terms = CROSS_ENTROPY
) -> jax.Array:
    """Sum of the losses of the tokens to be predicted.

    A sum, not a mean: microbatches differ in tokens, and only sums over them add up to what one big batch gives.

    Args:
        logits: float32 [batch, length, vocab]; those at position t - 1 predict token t.
        tokens: int32 [batch, length].
        loss_mask: bool [batch, length], True where the token is to be predicted.
        terms: z-loss and label smoothing.

    Returns:
        float32 [].
    """
    targets, mask = shifted(tokens, loss_mask)
    return jnp.where(mask, terms.losses(logits, targets), 0.0).sum()


def shifted(tokens: jax.Array, loss_mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(what each position is to predict, whether that counts) of int32 and bool [batch, length]."""
    # position t predicts token t + 1; the last one has nothing to predict
    return jnp.roll(tokens, -1, axis=1), jnp.roll(loss_mask, -1, axis=1).at[:, -1].set(False)


def chunked_loss(
    head: Head,
    params: Any,
    hidden: jax.Array,
    wanted: Wanted,
    mask: jax.Array,
    *,
    chunk: int,
    criterion: Criterion = CROSS_ENTROPY,
    axis: str | None = None,
) -> jax.Array:
    """The sum of what positions cost by `head(params, hidden, 0)`, the logits of `chunk` positions a row at a time.

    Differentiated, each chunk's gradient is taken in the forward pass, while its logits are there, and the backward
    pass only scales it: the head costs two products a chunk, three where it trains, and is never computed again. In
    each row the positions that carry loss come first, and chunks without any are left out, so a batch of short
    completions after long prompts costs only the completions. The batch dim stays as it is, and as it is sharded.

    Args:
        head: hidden states -> logits. It must read arrays from `params` alone (no closures over traced arrays).
        params: any tree of arrays. Those with respect to which nothing is differentiated get no gradient, not even an
            unused one.
        hidden: [batch, length, hidden], in the compute dtype.
        wanted: what `criterion` takes, each array [batch, length, ...]; of the cross entropy the targets, int32, as
            `shifted` gives them. No gradient is taken with respect to it.
        mask: bool [batch, length], the positions that count.
        chunk: positions, 1 or more; see `chunk_length`.
        criterion: what a position costs.
        axis: inside of a `jax.shard_map`, the mesh axis that the vocabulary is split over: `head` gives the logits of
            this device's part of it.

    Returns:
        float32 []. It can be differentiated once, in reverse.
    """
    return _chunked((head, min(chunk, mask.shape[1]), criterion, axis), params, hidden, wanted, mask)


def chunked_tokens(
    head: Head,
    params: Any,
    hidden: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    measure: Callable[[jax.Array, jax.Array], Any],
    *,
    chunk: int,
) -> Any:
    """What is measured at each position by itself, a tree of [batch, length, k]; 0 outside of `mask`. Forward only.

    Args: as of `chunked_loss`, and
        measure: (float32 logits [..., vocab], int32 targets [...]) -> a tree of arrays [..., k].
    """
    chunk = min(chunk, targets.shape[1])
    order, num = _lossfirst_of(mask, chunk)

    def of_chunk(number: jax.Array) -> Any:
        x, wanted, counts = _take(order, number, chunk, hidden, targets, mask)
        measured = measure(head(params, x, number), wanted)
        return jax.tree.map(lambda each: jnp.where(counts[..., None], each, jnp.zeros((), each.dtype)), measured)

    def note(number: jax.Array, found: Any) -> Any:
        def put(found: jax.Array, measured: jax.Array) -> jax.Array:
            measured = measured.reshape(len(found), chunk, -1)
            return jax.lax.dynamic_update_slice_in_dim(found, measured, number * chunk, axis=1)

        return jax.tree.map(put, found, of_chunk(number))

    shapes = jax.eval_shape(of_chunk, jnp.int32(0))
    empty = jax.tree.map(lambda each: jnp.zeros((*order.shape, each.shape[-1]), each.dtype), shapes)
    found = jax.lax.fori_loop(0, num, note, empty)
    back = jnp.argsort(order[:, : targets.shape[1]], axis=1)
    return jax.tree.map(lambda each: jnp.take_along_axis(each, back[..., None], axis=1), found)


def chunk_budget(setting: int | Literal["auto"] | None, num_devices: int, vocab_size: int) -> int | None:
    """Bytes that logits may take over all devices, from `train.loss_chunk_bytes`, which is those of one.

    auto: on CPU 32 MiB, and no more than 256 positions, from which on a product gains nothing from being larger, while
    more and smaller chunks leave out more positions without loss; 256 MiB on GPU and TPU, whose products need some
    hundreds of rows (512 of a vocabulary of 131,072) to be worth the reading of the head.
    """
    if setting is None:
        return None
    if setting == "auto":
        setting = min(32 << 20, 256 * 4 * vocab_size) if platform() == "cpu" else 256 << 20
    return setting * num_devices


def chunk_length(length: int, *, row_bytes: int, budget: int) -> int:
    """The positions of a chunk whose logits take at most `budget` bytes (but at least one position).

    Args:
        length: of the sequence; it is cut into chunks of almost one size, so that little of the last is padding.
        row_bytes: of one position's logits in all rows: `4 * rows * vocab`.
        budget: bytes.

    >>> chunk_length(512, row_bytes=4 * 4 * 49152, budget=64 << 20)
    74
    """
    longest = min(max(budget // row_bytes, 1), length)
    return -(-length // -(-length // longest))


def _losses(
    logits: jax.Array, targets: jax.Array, terms: Terms, axis: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """([...] loss of each token, [...] logsumexp, [..., vocab] softmax) of [..., vocab], of which `axis` has parts."""

    def over_all(part: jax.Array) -> jax.Array:
        return part if axis is None else jax.lax.psum(part, axis)

    # by hand, since the exponentials are needed twice: for their sum and, in the gradient, for themselves
    top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    if axis is not None:
        top = jax.lax.pmax(top, axis)
    powers = jnp.exp(logits - top)
    sums = over_all(powers.sum(axis=-1, keepdims=True))
    total = (top + jnp.log(sums))[..., 0]
    smoothing, part = terms.label_smoothing, logits.shape[-1]
    losses = total - (1.0 - smoothing) * over_all(_of_target(logits, targets, axis))
    if smoothing:
        losses = losses - smoothing * over_all(logits.sum(axis=-1)) / _whole(part, axis)
    if terms.z_loss:
        losses = losses + terms.z_loss * jnp.square(total)
    return losses, total, powers / sums


def first_of(part: int, axis: str | None) -> jax.Array | int:
    """The first id of this device's part of the vocabulary."""
    return 0 if axis is None else jax.lax.axis_index(axis) * part


def _whole(part: int, axis: str | None) -> int:
    """The size of the vocabulary."""
    return part if axis is None else part * jax.lax.axis_size(axis)


def _of_target(logits: jax.Array, targets: jax.Array, axis: str | None) -> jax.Array:
    """[..., vocab] -> [...], each token's number of its target; 0 where another device of the axis has it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.manual_axes and any(mesh.shape[name] > 1 for name in mesh.auto_axes):
        # inside of a shard_map over another axis XLA's partitioner (jaxlib 0.10 to 0.12) aborts over the gather
        return jnp.where(_is_target(logits, targets, axis), logits, 0.0).sum(axis=-1)
    own = targets - first_of(logits.shape[-1], axis)
    found = jnp.take_along_axis(logits, own[..., None], axis=-1, mode="clip")[..., 0]
    return found if axis is None else jnp.where((own >= 0) & (own < logits.shape[-1]), found, 0.0)


def _is_target(x: jax.Array, targets: jax.Array, axis: str | None) -> jax.Array:
    """bool, the shape of x [..., vocab]: where each token's target is."""
    place = jax.lax.broadcasted_iota(targets.dtype, x.shape, x.ndim - 1)
    return place == (targets - first_of(x.shape[-1], axis))[..., None]


def _gradient(
    softmax: jax.Array, total: jax.Array, targets: jax.Array, terms: Terms, axis: str | None = None
) -> jax.Array:
    """Of the losses with respect to the logits [..., vocab]."""
    smoothing = terms.label_smoothing
    gradient = softmax
    if terms.z_loss:
        gradient = gradient * (1.0 + 2.0 * terms.z_loss * total[..., None])
    # a comparison and no scatter: it is one loop with the rest, and each device can do its part of the vocabulary
    gradient = gradient - jnp.where(_is_target(softmax, targets, axis), 1.0 - smoothing, 0.0)
    if smoothing:
        gradient = gradient - smoothing / _whole(softmax.shape[-1], axis)
    return gradient


# ---- the chunked loss and its gradient


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(how: How, params: Any, hidden: jax.Array, wanted: Wanted, mask: jax.Array) -> jax.Array:
    head, chunk, criterion, axis = how
    order, num = _lossfirst_of(mask, chunk)

    def add(number: jax.Array, loss: jax.Array) -> jax.Array:
        x, here, counts = _take(order, number, chunk, hidden, wanted, mask)
        losses = criterion.losses(head(params, x, number), here, axis)
        return loss + jnp.where(counts, losses, 0.0).reshape(loss.shape[0], -1).sum(axis=1)

    # a sum a row: devices with different rows need not speak of it in each chunk
    return jax.lax.fori_loop(0, num, add, jnp.zeros(mask.shape[:1], jnp.float32)).sum()


def _chunked_forward(how: How, params: Any, hidden: Any, wanted: Any, mask: Any) -> Any:
    head, chunk, criterion, axis = how
    leaves, treedef = jax.tree.flatten(params)
    moves = [leaf.perturbed for leaf in leaves]
    values = [leaf.value for leaf in leaves]
    hidden, mask = hidden.value, mask.value
    wanted = jax.tree.map(lambda leaf: leaf.value, wanted)
    order, num = _lossfirst_of(mask, chunk)
    slot = (hidden.shape[0], chunk, hidden.shape[-1])

    def add(number: jax.Array, found: Any) -> Any:
        loss, grad_hidden, grad_params = found
        x, here, counts = _take(order, number, chunk, hidden, wanted, mask)

        def logits_of(moving: list[jax.Array], x: jax.Array) -> jax.Array:
            rest = iter(moving)
            whole = [next(rest) if move else value for move, value in zip(moves, values, strict=True)]
            return head(jax.tree.unflatten(treedef, whole), x, number)

        moving = [value for move, value in zip(moves, values, strict=True) if move]
        logits, pull = jax.vjp(logits_of, moving, x)
        losses, gradient = criterion.losses_and_gradient(logits, here, axis)
        more, grad_x = pull(jnp.where(counts[..., None], gradient, 0.0).astype(logits.dtype))
        return (
            loss + jnp.where(counts, losses, 0.0).reshape(loss.shape[0], -1).sum(axis=1),
            jax.lax.dynamic_update_slice_in_dim(grad_hidden, grad_x.reshape(slot), number * chunk, axis=1),
            [old + new.astype(old.dtype) for old, new in zip(grad_params, more, strict=True)],
        )

    zero = (
        jnp.zeros(mask.shape[:1], jnp.float32),
        jnp.zeros((*order.shape, hidden.shape[-1]), hidden.dtype),
        # float32, whatever the parameters are held in: a sum of many small parts
        [jnp.zeros(value.shape, jnp.float32) for move, value in zip(moves, values, strict=True) if move],
    )
    loss, grad_hidden, grad_params = jax.lax.fori_loop(0, num, add, zero)
    back = jnp.argsort(order[:, : hidden.shape[1]], axis=1)
    grad_hidden = jnp.take_along_axis(grad_hidden, back[..., None], axis=1)
    rest = iter(grad_params)
    grads = [next(rest).astype(value.dtype) if move else None for move, value in zip(moves, values, strict=True)]
    return loss.sum(), (jax.tree.unflatten(treedef, grads), grad_hidden)


def _chunked_backward(how: How, found: Any, share: Any) -> tuple[Any, ...]:
    if isinstance(share, jax.custom_derivatives.SymbolicZero):
        return None, None, None, None
    *_, axis = how
    if axis is not None:
        # Each device of the axis gave the whole loss, and is asked for its share of the gradient: the loss being a sum
        # over all parts of the vocabulary, each part takes all shares. What hidden states get from each part is added
        # up where the shard_map ends.
        share = jax.lax.psum(share, axis)
    params, hidden = jax.tree.map(lambda grad: (grad.astype(jnp.float32) * share).astype(grad.dtype), found)
    return params, hidden, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward, symbolic_zeros=True)


def _lossfirst_of(mask: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """(int32 [batch, padded length], the positions of each row with those that carry loss first; chunks they fill)."""
    order = jnp.argsort(~mask, axis=1, stable=True).astype(jnp.int32)
    # the padding points at a position without loss, or at one already counted; `_take` lets it count for nothing
    order = jnp.pad(order, ((0, 0), (0, -order.shape[1] % chunk)))
    longest = mask.sum(axis=1, dtype=jnp.int32).max()
    return order, (longest + chunk - 1) // chunk


def _take(
    order: jax.Array, number: jax.Array, chunk: int, hidden: jax.Array, wanted: Wanted, mask: jax.Array
) -> tuple[jax.Array, Wanted, jax.Array]:
    """The hidden states [batch * chunk, hidden], what is wanted and the mask [batch * chunk] of one chunk."""
    at = jax.lax.dynamic_slice_in_dim(order, number * chunk, chunk, axis=1)
    places = number * chunk + jnp.arange(chunk, dtype=jnp.int32)
    counts = jnp.take_along_axis(mask, at, axis=1) & (places < mask.shape[1])

    # The rows end to end: with logits in two dims, as a product gives them, XLA writes their gradient over them. A
    # batch that is split over devices stays so.
    def take(x: jax.Array) -> jax.Array:
        more = x.shape[2:]
        return jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * len(more)), axis=1).reshape(-1, *more)

    return take(hidden), jax.tree.map(take, wanted), counts.reshape(-1)
