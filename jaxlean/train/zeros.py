"""Zeros in training: those of a pruned model stay, and with a schedule they become more (arXiv 1710.01878).

What is zero stays zero: that is all there is to a mask, so none is stored. It lies where the parameter lies, on every
mesh, and a resumed run has it. (A weight that an update makes exactly zero stays so too; of float32 numbers that is as
good as never.) Gradients are masked before the optimizer sees them, so that what is gone counts neither in the clipped
norm nor in a moment, and updates after it, since momentum, weight decay and orthogonalised updates (muon) would fill
the zeros again.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlean import tree
from jaxlean.config.pruning import GradualSection
from jaxlean.errors import ConfigError
from jaxlean.ranks import kth_smallest

# As of `compress.prune`: matrices of layers.
_MATRICES = re.compile(r"^(?!(head|classifier)\.).*\.kernel$")


class Gradual(NamedTuple):
    """From `initial` to `final` sparsity, every `frequency` steps from `begin` to `end`; steps count from 1."""

    initial: float
    final: float
    begin: int
    end: int
    frequency: int

    def sparsity(self, step: Any) -> Any:
        """After a step: quickly at first, when much can go, slower and slower towards the end (equation 1 there)."""
        left = 1.0 - (step - self.begin) / (self.end - self.begin)
        return self.final + (self.initial - self.final) * left**3

    def is_due(self, step: Any) -> Any:
        """Whether zeros become more after a step."""
        inside = (step >= self.begin) & (step <= self.end)
        return inside & (((step - self.begin) % self.frequency == 0) | (step == self.end))


class GradualState(NamedTuple):
    """How many steps were taken, and what the optimizer holds."""

    steps: jax.Array  # int32 []
    inner: Any


def gradual(section: GradualSection | None, num_steps: int) -> Gradual | None:
    """The schedule of a run.

    Raises:
        ConfigError: it ends after the run, or has no step between its first and its last.
    """
    if section is None:
        return None
    begin = section.begin_step
    end = section.end_step if section.end_step is not None else max(round(0.75 * num_steps), begin + 1)
    if end > num_steps:
        raise ConfigError(
            "train.pruning ends after the run", got=f"end_step {end:,}, {num_steps:,} steps in all",
            fix="a smaller train.pruning.end_step (and begin_step), or more steps",
        )  # fmt: skip
    frequency = section.frequency if section.frequency is not None else max(round((end - begin) / 20), 1)
    if frequency > end - begin:
        raise ConfigError(
            "train.pruning would make all zeros at once, at its last step", where="train.pruning.frequency",
            got=f"every {frequency:,} steps, from step {begin:,} to {end:,}", wanted=f"at most {end - begin:,}",
            fix="leave it out, or more steps",
        )  # fmt: skip
    return Gradual(section.initial_sparsity, section.final_sparsity, begin, end, frequency)


def with_zeros(rule: optax.GradientTransformation, schedule: Gradual | None = None) -> optax.GradientTransformation:
    """An optimizer under which the zeros of matrices stay zeros.

    Args:
        rule: the optimizer, complete: its updates are what is added to the parameters.
        schedule: after which steps of each matrix (of each layer of a stack) more of the smallest weights become zero.
    """

    def init(params: optax.Params) -> Any:
        return rule.init(params) if schedule is None else GradualState(jnp.zeros((), jnp.int32), rule.init(params))

    def update(grads: optax.Updates, state: Any, params: optax.Params | None = None) -> tuple[optax.Updates, Any]:
        assert params is not None, "what is zero is seen in the parameters"
        inner = state if schedule is None else state.inner
        updates, inner = rule.update(_masked(grads, params), inner, params)
        updates = _masked(updates, params)
        if schedule is None:
            return updates, inner
        steps = state.steps + 1
        updates = jax.lax.cond(
            schedule.is_due(steps),
            lambda updates: _fewer(updates, params, schedule.sparsity(steps.astype(jnp.float32))),
            lambda updates: updates,
            updates,
        )
        return updates, GradualState(steps, inner)

    return optax.GradientTransformation(init, update)


def share_of_zeros(params: Mapping[str, Any]) -> float:
    """Of the matrices that keep them; 0 where there are none."""
    matrices = {path: leaf for path, leaf in tree.flatten(params).items() if _MATRICES.search(path)}
    if not matrices:
        return 0.0
    zeros = jax.jit(lambda leaves: [(leaf == 0).mean(dtype=jnp.float32) for leaf in leaves])(list(matrices.values()))
    sizes = [leaf.size for leaf in matrices.values()]
    return sum(float(zero) * size for zero, size in zip(zeros, sizes, strict=True)) / sum(sizes)


def zeros_to_keep(params: Mapping[str, Any]) -> float:
    """The share of zeros of what `train.keep_zeros` is to keep.

    Raises:
        ConfigError: there is none.
    """
    share = share_of_zeros(params)
    if share == 0:
        raise ConfigError(
            "train.keep_zeros: the matrices have no zeros",
            fix="model.path=<a model that `jaxlean prune` wrote>",
        )
    return share


def _masked(changes: Any, params: Any) -> Any:
    def masked(path: str, change: Any) -> Any:
        return jnp.where(leaves[path] == 0, jnp.zeros((), change.dtype), change) if _MATRICES.search(path) else change

    leaves = tree.flatten(params)
    return tree.map_with_path(masked, changes)


def _fewer(updates: Any, params: Any, sparsity: jax.Array) -> Any:
    """Updates that make the smallest of what results exactly zero."""

    def fewer(path: str, update: Any) -> Any:
        own = leaves[path]
        if not _MATRICES.search(path):
            return update
        sizes = jnp.abs((own + update).astype(jnp.float32))
        num = jnp.round(sparsity * (own.shape[-1] * own.shape[-2])).astype(jnp.int32)
        goes = sizes <= kth_smallest(sizes, num, dims=2)[..., None, None]
        return jnp.where(goes & (num > 0), -own.astype(update.dtype), update)

    leaves = tree.flatten(params)
    return tree.map_with_path(fewer, updates)
