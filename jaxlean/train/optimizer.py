"""The optimizer: an optax chain of clipping, the rule, decoupled weight decay and the schedule.

What each rule holds beside a parameter, in bytes:

    adamw       8       two moments in float32; 6 with momentum_dtype: bfloat16
    adamw_8bit  2.03    two moments of 8 bits, and two float32 for 256 parameters (train/adam8bit.py); vectors 8
    lion        4       one moment; 2 with momentum_dtype: bfloat16
    sgd         4       one moment; 2 with momentum_dtype: bfloat16
    muon        4       one moment; 2 with momentum_dtype: bfloat16; embedding, head and vectors as adamw
    adafactor   ~0.01   float32 for each row and column of a matrix of 128 x 128 or more; smaller ones and vectors 4
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlean import tree
from jaxlean.adapt import vocabulary
from jaxlean.config import TrainSection
from jaxlean.train.adam8bit import scale_by_adam_8bit
from jaxlean.train.zeros import gradual, with_zeros

# Settings that may be arguments of a step instead of constants of its program.
INPUTS = (
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "momentum", "max_grad_norm"
)  # fmt: skip


def schedule(config: TrainSection, num_steps: int) -> optax.Schedule:
    """The learning rate of each step 0, 1 ... `num_steps` - 1: linear warm-up to `learning_rate`, then its shape."""
    peak, low = config.learning_rate, config.learning_rate * config.min_lr_ratio
    warmup = config.warmup_steps if config.warmup_steps is not None else round(config.warmup_ratio * num_steps)
    warmup = min(warmup, num_steps)
    rest = max(num_steps - warmup, 1)
    after: optax.Schedule
    match config.lr_scheduler_type:
        case "constant":
            after = optax.constant_schedule(peak)
        case "linear":
            after = optax.linear_schedule(peak, low, rest)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, rest, alpha=config.min_lr_ratio)
        case "warmup_stable_decay":
            decay = min(max(round(config.decay_ratio * num_steps), 1), rest)
            after = optax.join_schedules(
                [optax.constant_schedule(peak), optax.linear_schedule(peak, low, decay)], [rest - decay]
            )
        case "cosine_with_restarts":
            cosine = optax.cosine_decay_schedule(peak, rest, alpha=config.min_lr_ratio)

            def after(step: Any) -> Any:
                # in whole numbers, so that a cycle starts at its step and not a rounding error later
                return cosine(step * config.num_cycles % rest)

    if warmup == 0:
        return after
    # The first step learns too: it has 1 / warmup of the peak, not zero.
    return optax.join_schedules([lambda step: peak * (step + 1) / warmup, after], [warmup])


def optimizer(
    config: TrainSection,
    num_steps: int,
    params: Mapping[str, Any],
    *,
    ratio: Callable[[str], float | jax.Array] = lambda path: 1.0,
    inputs: Mapping[str, jax.Array] | None = None,
) -> optax.GradientTransformation:
    """The gradient transformation for a tree of trainable parameters.

    Args:
        config: rule, rates, decay, clipping.
        num_steps: length of the schedule.
        params: the trainable tree (arrays or their shapes).
        ratio: path -> multiple of the learning rate (LoRA+).
        inputs: float32 [], some of `INPUTS`: these take the place of the config's numbers, so that runs which differ in
            them share a program. `learning_rate` is then that of the step at hand, and there is no schedule.

    Returns:
        an optax transformation whose updates are added to the parameters.
    """
    inputs = inputs if inputs is not None else {}
    rate = inputs["learning_rate"] if "learning_rate" in inputs else schedule(config, num_steps)
    own: Any = SimpleNamespace(**dict(config) | dict(inputs))
    ratios = tree.map_with_path(lambda path, leaf: ratio(path), params)
    chain: list[optax.GradientTransformation] = []
    if own.max_grad_norm is not None:
        chain.append(_clip(own.max_grad_norm))
    chain.append(_rule(own, params))
    if "weight_decay" in inputs or config.weight_decay:
        chain.append(optax.add_decayed_weights(own.weight_decay, mask=tree.map_with_path(_decays, params)))
    chain.append(_scale_each(ratios))
    chain.append(optax.scale_by_learning_rate(rate))
    if config.keep_zeros or config.pruning is not None:
        return with_zeros(optax.chain(*chain), gradual(config.pruning, num_steps))
    return optax.chain(*chain)


def _rule(config: Any, params: Mapping[str, Any]) -> optax.GradientTransformation:
    held = jnp.dtype(config.momentum_dtype)
    match config.optim:
        case "adamw":
            return optax.scale_by_adam(config.adam_beta1, config.adam_beta2, config.adam_epsilon, mu_dtype=held)
        case "adamw_8bit":
            return scale_by_adam_8bit(config.adam_beta1, config.adam_beta2, config.adam_epsilon)
        case "lion":
            return optax.scale_by_lion(config.adam_beta1, config.adam_beta2, mu_dtype=held)
        case "sgd":
            return optax.trace(config.momentum, accumulator_dtype=held)
        case "adafactor":
            # As in arXiv 1804.04235: factored second moments, updates clipped by their own root mean square.
            return _each_layer(optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)), params)
        case _:
            return _muon(config, params)


def _clip(limit: float | jax.Array) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` as one factor for all, which XLA puts into what comes next.

    A choice between the clipped and the unclipped gradient would have both in memory.
    """

    def update(grads: optax.Updates, params: Any = None) -> optax.Updates:
        factor = limit / jnp.maximum(optax.tree.norm(grads), limit)
        return jax.tree.map(lambda grad: (grad * factor).astype(grad.dtype), grads)

    return optax.stateless(update)


def _each_layer(rule: optax.GradientTransformation, params: Mapping[str, Any]) -> optax.GradientTransformation:
    """A rule that looks at whole parameters, given each layer's on its own where they are stacked.

    Otherwise the stack's leading dim would be taken for one of a matrix, and one layer's size would scale another's.
    """
    stacked = optax.GradientTransformation(
        jax.vmap(rule.init), lambda updates, state, params: jax.vmap(rule.update)(updates, state, params)
    )
    kinds = tree.map_with_path(lambda path, leaf: "stacked" if path.startswith("layers.") else "single", params)
    rules = {"stacked": stacked, "single": rule}
    return optax.partition({kind: rules[kind] for kind in set(tree.flatten(kinds).values())}, kinds)


def _muon(config: Any, params: Mapping[str, Any]) -> optax.GradientTransformation:
    """Orthogonalised momentum for matrices (kellerjordan.github.io/posts/muon), Adam for all else."""
    from optax.contrib import MuonDimensionNumbers, scale_by_muon

    held = jnp.dtype(config.momentum_dtype)

    def kind(path: str, leaf: Any) -> str:
        return "matrix" if path.endswith((".kernel", ".lora_a", ".lora_b")) and path != "head.kernel" else "other"

    def dims(updates: optax.Updates) -> Any:
        # the last two dims are the matrix, one before them the stack of layers
        return jax.tree.map(lambda leaf: MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1), updates)

    def widen(update: jax.Array) -> jax.Array:
        # arXiv 2502.16982, eq. 4: the size of AdamW's updates, so that its learning rates and decay do here as well
        return update * 0.2 * max(update.shape[-2:]) ** 0.5

    return optax.partition(
        {
            "matrix": optax.chain(
                scale_by_muon(beta=config.momentum, weight_dimension_numbers=dims, mu_dtype=held),
                optax.stateless_with_tree_map(lambda update, _: widen(update)),
            ),
            "other": optax.scale_by_adam(config.adam_beta1, config.adam_beta2, config.adam_epsilon, mu_dtype=held),
        },
        tree.map_with_path(kind, params),
    )


def _decays(path: str, leaf: Any) -> bool:
    return path.endswith((".kernel", ".embedding", ".lora_a", ".lora_b")) or vocabulary.is_row(path)


def _scale_each(ratios: tree.Tree) -> optax.GradientTransformation:
    """Multiply each update with its own constant."""
    if all(isinstance(value, float) and value == 1.0 for value in tree.flatten(ratios).values()):
        return optax.identity()
    return optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, ratios))
