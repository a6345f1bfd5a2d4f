"""DiLoCo: replicas that train on their own and exchange once in many steps (Douillard et al., arXiv 2311.08105).

For links that are too slow for a gradient in every step. A replica is one index of the mesh axis `data`; within it the
other axes do what they always do.

    inner step   each replica by itself: its own rows, its own optimizer, its own count of steps. Nothing crosses
                 `data`.
    outer step   after every H inner steps: what a replica moved by (outer parameters less its own) is its outer
                 gradient; their mean moves the outer parameters by SGD with Nesterov momentum. Every replica starts the
                 next round from these, and keeps its inner optimizer's state.

In int8 the mean is taken as an all-reduce over a ring would take it, in two exchanges of about one byte a parameter:
each replica receives its share of all outer gradients (all-to-all), adds them up in float32, and sends the mean of its
share to all (all-gather). A block of 256 numbers travels as 256 codes and the four bytes of its largest magnitude, all
in one array: a round of 50 steps sends a 200th of what 50 float32 gradients would (2 x 260 / 256 bytes a parameter
against 50 x 2 x 4).
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlean import tree
from jaxlean.train.objective import Batch, Loss
from jaxlean.train.step import StepMetrics, TrainState, make_update

AXIS = "data"
BLOCK = 256
Compression = Literal["int8", "none"]


class DilocoState(NamedTuple):
    """A `TrainState` for each replica, in a leading dim over `data`, and what they have in common."""

    trainable: tree.Tree  # [replicas, ...]
    optimizer: Any  # [replicas, ...]
    step: jax.Array  # int32 [replicas]
    broken_at: jax.Array  # int32 [replicas]
    outer: tree.Tree  # where the replicas started this round
    momentum: Any  # of the outer optimizer

    @property
    def inner(self) -> TrainState:
        """Of the replicas."""
        return TrainState(self.trainable, self.optimizer, self.step, self.broken_at)

    @property
    def result(self) -> tree.Tree:
        """What is evaluated and written: the outer parameters, as of the last outer step."""
        return self.outer


def outer_optimizer(learning_rate: float, momentum: float) -> optax.GradientTransformation:
    """SGD with Nesterov momentum, the paper's choice (its section 3.3: 0.7 and 0.9)."""
    return optax.sgd(learning_rate, momentum=momentum, nesterov=True)


def init_replicas(state: TrainState, outer: optax.GradientTransformation, num: int) -> DilocoState:
    """The first state of `num` replicas, from that of one."""
    stacked = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), state)
    # one array each: a donated buffer must not be given away twice
    common = {"outer": jax.tree.map(jnp.copy, state.trainable), "momentum": outer.init(state.trainable)}
    return DilocoState(**stacked._asdict(), **common)


def replica_shardings(one: TrainState, outer: DilocoState) -> DilocoState:
    """Where the leaves of a state lie.

    Args:
        one: where those of a single replica's state do.
        outer: a state of which `outer` and `momentum` are already shardings.
    """

    def over_data(where: NamedSharding) -> NamedSharding:
        return NamedSharding(where.mesh, PartitionSpec(AXIS, *where.spec))

    return outer._replace(**jax.tree.map(over_data, one)._asdict())


def make_inner_step(
    loss: Loss,
    transform: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int = 0,
    shardings: DilocoState | None = None,
) -> jax.stages.Wrapped:
    """`train.step.make_step` for replicas: `step(state, frozen, batch) -> (DilocoState, StepMetrics)`.

    Args:
        loss: of the model, laid out within a replica (`models.layout.layout_within`).
        transform: the inner optimizer.
        mesh: its axis `data` counts the replicas.
        seed: of dropout; each replica, step and microbatch has a key of its own.
        shardings: where the state lies.

    Returns:
        the jitted step, `state` donated. Of `batch` [microbatches, rows, length] replica i takes rows as it would in
        one common step: the i-th of equal parts of each microbatch. Metrics have a dim of replicas (`over_replicas`).

    A replica whose loss or gradient is not a number stays as it was from then on; the others learn of it in the next
    outer step, and whoever reads the metrics at once.
    """
    update = make_update(loss, transform)

    def of_one(state: TrainState, frozen: tree.Tree, batch: Batch, number: jax.Array) -> Any:
        key = jax.random.fold_in(jax.random.key(seed), number[0])
        found = update(jax.tree.map(lambda x: x[0], state), frozen, batch, key)
        return jax.tree.map(lambda x: x[None], found)

    each, all_alike = PartitionSpec(AXIS), PartitionSpec()
    # jax's check of what differs between devices does not know the gradient rules of the back ends
    of_each = jax.shard_map(
        of_one, mesh=mesh, in_specs=(each, all_alike, PartitionSpec(None, AXIS), each), out_specs=each,
        axis_names={AXIS}, check_vma=False,
    )  # fmt: skip

    def step(state: DilocoState, frozen: tree.Tree, batch: Batch) -> tuple[DilocoState, StepMetrics]:
        numbers = jnp.arange(mesh.shape[AXIS], dtype=jnp.uint32)
        inner, says = of_each(state.inner, frozen, dict(batch), numbers)
        return state._replace(**inner._asdict()), says

    return jax.jit(step, donate_argnums=0, out_shardings=None if shardings is None else (shardings, None))


def make_outer_step(
    outer: optax.GradientTransformation, mesh: Mesh, shardings: DilocoState, compression: Compression = "int8"
) -> jax.stages.Wrapped:
    """The jitted `DilocoState -> DilocoState` that ends a round; its argument is donated.

    Args:
        outer: the outer optimizer.
        mesh: its axis `data` counts the replicas.
        shardings: where the state lies.
        compression: what outer gradients are exchanged in.

    Where any replica is broken all are from here on.
    """

    def on_each_device(trainable: tree.Tree, start: tree.Tree, momentum: Any, broken_at: jax.Array) -> Any:
        moved = jax.tree.map(lambda x, own: x - own[0], start, trainable)
        if compression == "int8":
            mean = _mean_int8(moved, mesh.shape[AXIS])
        else:
            mean = jax.tree.map(partial(jax.lax.pmean, axis_name=AXIS), moved)
        updates, momentum = outer.update(mean, momentum, start)
        new = optax.apply_updates(start, updates)
        return jax.tree.map(lambda x: x[None], new), new, momentum, jax.lax.pmax(broken_at, AXIS)

    def specs(part: Any) -> Any:
        return jax.tree.map(lambda where: where.spec, part)

    after = tuple(specs(x) for x in (shardings.trainable, shardings.outer, shardings.momentum, shardings.broken_at))
    run = jax.shard_map(on_each_device, mesh=mesh, in_specs=after, out_specs=after, check_vma=False)

    def step(state: DilocoState) -> DilocoState:
        trainable, new, momentum, broken_at = run(state.trainable, state.outer, state.momentum, state.broken_at)
        return state._replace(trainable=trainable, broken_at=broken_at, outer=new, momentum=momentum)

    return jax.jit(step, donate_argnums=0, out_shardings=shardings)


def _mean_int8(moved: tree.Tree, num: int) -> tree.Tree:
    """The mean over `data` of float32 arrays, the same on every replica, exchanged in int8."""
    leaves, treedef = jax.tree.flatten(moved)
    shares = [_shares(x, num) for x in leaves]
    received = jax.lax.all_to_all(_encode(jnp.concatenate(shares, 1)), AXIS, 0, 0)
    own = _decode(received).mean(0)
    every = _decode(jax.lax.all_gather(_encode(own), AXIS))
    means, at = [], 0
    for leaf, share in zip(leaves, shares, strict=True):
        part = every[:, at : at + share.shape[1]].reshape(-1)
        means.append(part[: leaf.size].reshape(leaf.shape).astype(leaf.dtype))
        at += share.shape[1]
    return jax.tree.unflatten(treedef, means)


def _shares(x: jax.Array, num: int) -> jax.Array:
    """Any shape -> float32 [num, blocks, 256], padded with zeros: a share for each replica, in whole blocks."""
    flat = x.astype(jnp.float32).reshape(-1)
    return jnp.pad(flat, (0, -flat.size % (num * BLOCK))).reshape(num, -1, BLOCK)


def _encode(blocks: jax.Array) -> jax.Array:
    """float32 [..., blocks, 256] -> int8 [..., blocks * 260]: all codes, then the bytes of each largest magnitude.

    The error of a number is at most 1/254 of its block's largest magnitude.
    """
    largest = jnp.abs(blocks).max(-1, keepdims=True)
    codes = jnp.round(blocks / jnp.where(largest > 0, largest, 1.0) * 127.0).astype(jnp.int8)
    scales = jax.lax.bitcast_convert_type(largest, jnp.int8)
    flat = blocks.shape[:-2]
    return jnp.concatenate([codes.reshape(*flat, -1), scales.reshape(*flat, -1)], -1)


def _decode(encoded: jax.Array) -> jax.Array:
    """The inverse of `_encode`."""
    flat, num = encoded.shape[:-1], encoded.shape[-1] // (BLOCK + 4)
    codes = encoded[..., : num * BLOCK].reshape(*flat, num, BLOCK)
    scales = jax.lax.bitcast_convert_type(encoded[..., num * BLOCK :].reshape(*flat, num, 4), jnp.float32)
    return codes.astype(jnp.float32) * (scales[..., None] / 127.0)
