"""The one jitted step: microbatches in, gradient of what trains, update.

The gradient is taken with respect to the trainable tree alone, and only that tree has optimizer state, so a frozen
base costs neither. The state is donated: the new one takes the old one's memory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlean import tree
from jaxlean.train.objective import Batch, Loss, num_seen, num_targets

# The name scope of what is done once a step, whatever the batch: each device does it to all parameters that it holds.
UPDATE = "update_parameters"


class TrainState(NamedTuple):
    """Everything that changes from step to step, but the place in the data."""

    trainable: tree.Tree
    optimizer: Any
    step: jax.Array  # int32 [], steps taken
    broken_at: jax.Array  # int32 [], the first step whose loss or gradient was not a number; 0 while there is none

    @property
    def result(self) -> tree.Tree:
        """What is evaluated and written."""
        return self.trainable


class StepMetrics(NamedTuple):
    """What a step says of itself; arrays on the device, so that reading them is the caller's choice.

    Scalars; of replicas that step by themselves (`train/diloco.py`) each has a dim of replicas: see `over_replicas`.
    """

    loss: jax.Array  # what is minimised (with z-loss and label smoothing, if any): mean over tokens that carry loss
    grad_norm: jax.Array  # before clipping
    tokens: jax.Array
    total_tokens: jax.Array
    broken_at: jax.Array


def over_replicas(measured: StepMetrics) -> StepMetrics:
    """One step's metrics on the host, as of one step of all replicas: scalars.

    The loss is the mean over all tokens that carry it, the norm the root of the mean square.
    """
    if np.ndim(measured.loss) == 0:
        return measured
    loss, norm, tokens, total_tokens, broken_at = map(np.asarray, measured)
    whole: Any = (
        (loss * tokens).sum(dtype=np.float64) / max(tokens.sum(), 1),
        np.sqrt(np.square(norm).mean(dtype=np.float64)),
        tokens.sum(),
        total_tokens.sum(),
        min((at for at in broken_at if at), default=0),
    )
    return StepMetrics(*whole)


# (state, frozen, batch, dropout key) -> (the new state, what it says)
Update = Callable[[TrainState, tree.Tree, Batch, jax.Array], tuple[TrainState, StepMetrics]]


def init_state(trainable: tree.Tree, transform: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    # one array each: a donated buffer must not be given away twice
    return TrainState(trainable, transform.init(trainable), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def make_step(
    loss: Loss, transform: optax.GradientTransformation, *, seed: int = 0, shardings: TrainState | None = None
) -> jax.stages.Wrapped:
    """The jitted step.

    Args:
        loss: of the model, summed over the tokens that carry it.
        transform: the optimizer.
        seed: of dropout; each step and microbatch has a key of its own.
        shardings: where the state lies, pinned so that step 2 finds what step 1 compiled for.

    Returns:
        `step(state, frozen, batch) -> (TrainState, StepMetrics)`, jitted, `state` donated. `batch` holds int32
        [microbatches, rows, length] arrays `tokens`, `segments`, `positions` and the bool `loss_mask`, or `labels`
        instead of that (`train/classify.py`).

    One update equals that of a single batch of all rows: losses are summed over microbatches and divided by the tokens
    of all of them. Where the loss or the gradient is not a number the state stays as it was, `broken_at` says which
    step it was, and no later step changes anything.
    """
    update = make_update(loss, transform)

    def step(state: TrainState, frozen: tree.Tree, batch: Batch) -> tuple[TrainState, StepMetrics]:
        return update(state, frozen, batch, jax.random.key(seed))

    out_shardings = None if shardings is None else (shardings, None)
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def make_update(loss: Loss, transform: optax.GradientTransformation) -> Update:
    """What `make_step` jits: one update of one state, its key folded with the step's number and the microbatch's."""

    def summed_loss(trainable: tree.Tree, frozen: tree.Tree, rows: Batch, key: jax.Array) -> jax.Array:
        return loss(tree.merge(trainable, frozen), rows, key)

    def update(state: TrainState, frozen: tree.Tree, batch: Batch, key: jax.Array) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(key, state.step)
        gradient = jax.value_and_grad(summed_loss)

        def microbatch(sums: Any, numbered: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            number, rows = numbered
            found = gradient(state.trainable, frozen, rows, jax.random.fold_in(key, number))
            return jax.tree.map(jnp.add, sums, found), None

        num = next(iter(batch.values())).shape[0]
        if num == 1:  # no second gradient tree
            rows = {name: value[0] for name, value in batch.items()}
            total, grads = gradient(state.trainable, frozen, rows, jax.random.fold_in(key, 0))
        else:
            zero = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, state.trainable))
            (total, grads), _ = jax.lax.scan(microbatch, zero, (jnp.arange(num, dtype=jnp.uint32), dict(batch)))
        tokens = num_targets(batch)
        share = 1.0 / jnp.maximum(tokens, 1).astype(jnp.float32)
        mean, grads = total * share, jax.tree.map(lambda g: g * share, grads)
        norm = optax.tree.norm(grads)

        number = state.step + 1
        finite = jnp.isfinite(mean) & jnp.isfinite(norm)
        broken_at = jnp.where((state.broken_at == 0) & ~finite, number, state.broken_at)

        def moved(state: TrainState, grads: tree.Tree) -> TrainState:
            with jax.named_scope(UPDATE):
                updates, optimizer = transform.update(grads, state.optimizer, state.trainable)
                return TrainState(optax.apply_updates(state.trainable, updates), optimizer, number, broken_at)

        def kept(state: TrainState, grads: tree.Tree) -> TrainState:
            return state._replace(broken_at=broken_at)

        # a branch, not a choice between old and new numbers, which would have to stand in memory side by side
        new = jax.lax.cond(broken_at == 0, moved, kept, state, grads)
        total_tokens = num_seen(batch)
        return new, StepMetrics(mean, norm, tokens, total_tokens, broken_at)

    return update


def make_eval_step(loss: Loss) -> jax.stages.Wrapped:
    """The jitted `(trainable, frozen, batch of [rows, length]) -> (summed loss, tokens that carry it)`."""

    @jax.jit
    def step(trainable: tree.Tree, frozen: tree.Tree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        total = loss(tree.merge(trainable, frozen), batch, jax.random.key(0))
        return total, num_targets(batch)

    return step
