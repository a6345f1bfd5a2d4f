"""Gradient checkpointing: which activations of a layer are kept for the backward pass, which are computed again."""

from collections.abc import Callable, Collection
from typing import Any

import jax

from jaxlean.errors import ConfigError, did_you_mean

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def remat(policy: str | list[str], names: Collection[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]] | None:
    """What to wrap the body of a scan over layers in.

    Args:
        policy: `none` (keep all), `full` (keep none), `dots`, `dots_no_batch` (keep matrix products), or a list of
            the activations to keep.
        names: the activations that the model names.

    Returns:
        a function of functions, or None where nothing is recomputed.

    Raises:
        ConfigError: an unknown policy or activation; lists those there are.
    """
    if policy == "none":
        return None
    if isinstance(policy, str):
        if policy not in _POLICIES:
            raise ConfigError("train.remat: unknown policy", got=policy, fix=did_you_mean(policy, ["none", *_POLICIES]))
        kept: Any = _POLICIES[policy]
    else:
        for name in policy:
            if name not in names:
                raise ConfigError("train.remat: no such activation", got=name, wanted=", ".join(names))
        kept = jax.checkpoint_policies.save_only_these_names(*policy)
    # Inside a scan nothing can be merged across iterations, so the barrier against it would only cost.
    return lambda body: jax.checkpoint(body, policy=kept, prevent_cse=False)
