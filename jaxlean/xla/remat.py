"""Gradient checkpointing: which activations of a layer are kept for the backward pass, which are computed again.

A policy is one of the names in `POLICIES`, a list of activations to keep, or `{save: [...], offload: [...]}`; `auto`
(`jaxlean.xla.remat_auto`) chooses a list by itself. It becomes the way in which layers are scanned: `scan_layers`.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax

from jaxlean.errors import ConfigError, did_you_mean
from jaxlean.platform import platform as current_platform

Policy = str | Sequence[str] | Mapping[str, Sequence[str]]
Body = Callable[[Any, Any], tuple[Any, Any]]
Scan = Callable[[Body, Any, Any], tuple[Any, Any]]  # (body, carry, xs) -> (carry, ys), as jax.lax.scan

POLICIES = {
    "none": "keep all that the gradient needs",
    "full": "keep nothing but each layer's input",
    "dots": "keep the results of all matrix products",
    "dots_no_batch": "keep those without batch dims: the linear layers, not attention's scores",
    "attention": "compute scores and context again, keep every other named activation",
    "mlp": "compute gate and up again, keep every other named activation",
    "nested": "keep the inputs of about the square root of the layers, and compute the others' again from them",
    "auto": "the named activations that fit into train.memory_budget with the least time",
}
_SCORES = ("context", "attention_lse")  # what attention leaves for its backward pass, beside its inputs
_INNER = ("gate", "up")
_PLACES = ("save", "offload")
# What every policy keeps. A layer's input: by its name, so that on CPU it is kept as the model holds it
# (`models/cpu.py`) and not once more in float32. And the experts that tokens go to: whole numbers, few, which computed
# again might turn out otherwise where two experts are nearly as good.
_ROUTING = "routing"
_ALWAYS = ("layer_in", _ROUTING)


def scan_layers(policy: Policy, names: Collection[str], *, platform: str | None = None) -> Scan:
    """How to run a layer's body over all layers under a policy.

    Args:
        policy: see the module; not `auto`, which is no policy before it has chosen one.
        names: the activations that the model names.
        platform: what it is compiled for (`cpu`, `gpu`, `tpu`); default: what runs here.

    Returns:
        a function like `jax.lax.scan(body, carry, xs)`.

    Raises:
        ConfigError: an unknown policy or activation (lists those there are), or `offload` where there is no second
            memory to move to.
    """
    check(policy, names, platform=platform)
    assert policy != "auto", "auto is chosen by jaxlean.xla.remat_auto"
    if policy == "none":
        return jax.lax.scan
    if policy == "nested":
        return _scan_nested
    kept = _kept(policy, names)

    def scan(body: Body, carry: Any, xs: Any) -> tuple[Any, Any]:
        return jax.lax.scan(_checkpointed(body, kept, xs), carry, xs)

    return scan


def _checkpointed(body: Body, kept: Callable[..., Any], xs: Any) -> Body:
    """The body under a policy; one of several layers (`models.stack.Group`) layer by layer."""
    # Inside of a loop nothing can be merged across iterations, so the barrier against it would only cost. A loop that
    # runs once is none.
    once = jax.tree.leaves(xs)[0].shape[0] == 1

    def wrap(layer: Body) -> Body:
        return jax.checkpoint(layer, policy=kept, prevent_cse=once)

    return body.each(wrap) if hasattr(body, "each") else wrap(body)


def check(policy: Policy, names: Collection[str], *, platform: str | None = None) -> None:
    """Refuse a policy that does not exist; arguments and errors as `scan_layers`, and `auto` is one."""
    if isinstance(policy, str):
        if policy not in POLICIES:
            hint = did_you_mean(policy, POLICIES)
            raise ConfigError(
                "train.remat: unknown policy", got=policy, wanted=", ".join([*POLICIES, "or a list of activations"]),
                fix=hint if hint.startswith("did") else None,
            )  # fmt: skip
        return
    if isinstance(policy, Mapping):
        for place in policy:
            if place not in _PLACES:
                raise ConfigError("train.remat: no such place", got=place, wanted="save, offload")
    save, offload = _places(policy)
    for name in (*save, *offload):
        if name not in names:
            raise ConfigError("train.remat: no such activation", got=name, wanted=", ".join(names))
        if name in save and name in offload:
            raise ConfigError("train.remat: an activation is either saved or offloaded", got=name)
    platform = platform if platform is not None else current_platform()
    if offload and platform == "cpu":
        raise ConfigError(
            "train.remat: offload needs a device with a memory of its own beside the host's",
            got=f"platform {platform}, whose memory is the host's",
            fix=f"save them instead: train.remat=[{', '.join([*save, *offload])}]",
        )


def kept_names(policy: Policy, names: Collection[str]) -> tuple[str, ...] | None:
    """The activations that a policy keeps on the device; None for a policy that does not go by names."""
    match policy:
        case "full" | "nested":
            return ()
        case "attention":
            return tuple(name for name in names if name not in _SCORES)
        case "mlp":
            return tuple(name for name in names if name not in _INNER)
        case str():
            return None
        case _:
            return _places(policy)[0]


def nested_groups(num_layers: int) -> tuple[int, int]:
    """(groups, layers a group) of `nested`; `num_layers` minus their product is left for a last, smaller group.

    The memory is that of `groups + layers a group` inputs. A divisor is taken unless it needs 1.5 times that of the
    best split: a remainder has to cut the stacked parameters in two, and XLA copies both parts.

    >>> nested_groups(30), nested_groups(32), nested_groups(61)
    ((5, 6), (4, 8), (7, 8))
    """
    divisors = [(num_layers // each, each) for each in range(1, num_layers + 1) if num_layers % each == 0]
    even = min(divisors, key=lambda split: (sum(split), split))
    each = max(round(math.sqrt(num_layers)), 1)
    splits = [(num_layers // n, n) for n in (each, each + 1)]
    best = min(splits, key=lambda split: (sum(split) + (math.prod(split) < num_layers), -split[0]))
    return even if sum(even) <= 1.5 * sum(best) else best


def _places(policy: Policy) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names to save, names to offload) of a list or mapping."""
    assert not isinstance(policy, str)
    if isinstance(policy, Mapping):
        return tuple(policy.get("save") or ()), tuple(policy.get("offload") or ())
    return tuple(policy), ()


def _kept(policy: Policy, names: Collection[str]) -> Callable[..., Any]:
    """jax's form of the policy: says of each operation whether its result is kept.

    What is saved is named, never what is not: a policy "all but gate" would keep the product that gate is the name of.
    """
    policies = jax.checkpoint_policies
    match policy:
        case "dots":
            return policies.save_from_both_policies(policies.dots_saveable, _kept("full", names))
        case "dots_no_batch":
            return policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, _kept("full", names))
    saved = kept_names(policy, names)
    assert saved is not None
    offloaded = () if isinstance(policy, str) else _places(policy)[1]
    if offloaded:
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[*_ALWAYS, *saved],
            names_which_can_be_offloaded=list(offloaded),
            offload_src="device",
            offload_dst="pinned_host",
        )
    return policies.save_only_these_names(*_ALWAYS, *saved)


def _scan_nested(body: Body, carry: Any, xs: Any) -> tuple[Any, Any]:
    """A scan over groups of layers; the inputs inside a group are computed again when its gradient is due.

    Layers run three times forward instead of two (Chen et al. 2016, arXiv 1604.06174, section 4).
    """
    num_layers = jax.tree.leaves(xs)[0].shape[0]
    groups, each = nested_groups(num_layers)
    layer = _checkpointed(body, _kept("full", ()), xs)

    def group(carry: Any, xs: Any) -> tuple[Any, Any]:
        return jax.lax.scan(layer, carry, xs)

    whole = groups * each
    grouped = jax.tree.map(lambda x: x[:whole].reshape(groups, each, *x.shape[1:]), xs)
    routing = jax.checkpoint_policies.save_only_these_names(_ROUTING)
    carry, ys = jax.lax.scan(jax.checkpoint(group, prevent_cse=False, policy=routing), carry, grouped)
    ys = jax.tree.map(lambda y: y.reshape(whole, *y.shape[2:]), ys)
    if whole < num_layers:
        # outside of the scan over groups, so here the barrier is needed
        carry, rest = jax.checkpoint(group, policy=routing)(carry, jax.tree.map(lambda x: x[whole:], xs))
        ys = jax.tree.map(lambda y, r: jax.numpy.concatenate([y, r]), ys, rest)
    return carry, ys
