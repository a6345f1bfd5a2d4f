"""Whole channels taken out of a convolutional network: a trained tree in, a smaller one out. Nothing here trains.

The inverted residuals of a `models.convnet.ConvNet` are wide inside and narrow outside, and what is taken out inside is
seen by nobody else. So `shrink` gives a smaller dense network with a `ConvNetConfig` of its own, which computes what
the network with those channels at zero (`silence`) computes. Hugging Face's configs have one ratio for all blocks and
cannot say it: the widths go into config.json as `hub.convnets.EXPANDED`, and only jaxlean loads such a file.

Channels are ranked by how far they can move their block's output: the product of the L1 norms of the channel's filters
(arXiv 1608.08710) on its way through the block, each times what its normalisation multiplies with (arXiv 1708.06519).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlean import tree
from jaxlean.errors import ConfigError, ModelError
from jaxlean.models.convnet import ConvNetConfig

Kept = dict[int, np.ndarray]  # block -> the channels inside of it that stay, ascending

# Leaves of a block whose last dim is its inner channels, and those where the dim before is.
_ALONG = (
    *("expand.kernel", "depthwise.filters", "squeeze.expand.kernel", "squeeze.expand.bias"),
    *(f"{norm}.{leaf}" for norm in ("expand_norm", "depthwise_norm") for leaf in ("scale", "bias", "mean", "var")),
)
_ACROSS = ("squeeze.reduce.kernel", "project.kernel")


def channels(params: Mapping[str, Any], config: ConvNetConfig, share: float, *, multiple: int = 8) -> Kept:
    """The inner channels that stay in each block that expands.

    Args:
        params: of a `ConvNet`, its kernels not quantized.
        config: its shape.
        share: of each block's inner channels that goes, 0 up to but not 1.
        multiple: what stays is rounded up to such a number, which hardware likes; never above what was there.

    Raises:
        ConfigError: a share that is none.
        ModelError: a block that has an adapter or is quantized.
    """
    if not 0 <= share < 1:
        raise ConfigError("a share of channels to prune", got=share, wanted="at least 0 and less than 1")
    kept: Kept = {}
    for i, block in enumerate(config.blocks):
        if block.expanded is None:
            continue
        wanted = min(-(-math.ceil(block.expanded * (1 - share)) // multiple) * multiple, block.expanded)
        scores = _scores(_block(params, config, i), config.norm_eps)
        kept[i] = np.sort(np.argsort(-scores, kind="stable")[:wanted])
    return kept


def silence(params: Mapping[str, Any], config: ConvNetConfig, kept: Kept) -> tree.Tree:
    """The same tree with zeros in all that belongs to inner channels which do not stay: no shape changes."""

    def zeros(leaf: Any, axis: int, stays: np.ndarray) -> Any:
        there = np.isin(np.arange(leaf.shape[axis]), stays)
        return jnp.where(there if axis == -1 else there[:, None], leaf, jnp.zeros((), leaf.dtype))

    return _each(params, config, kept, zeros)


def shrink(params: Mapping[str, Any], config: ConvNetConfig, kept: Kept) -> tuple[tree.Tree, ConvNetConfig]:
    """The network without the inner channels that do not stay: (its parameters, its shape)."""
    widths = [len(kept[i]) if i in kept else block.expanded for i, block in enumerate(config.blocks)]
    small = _each(params, config, kept, lambda leaf, axis, stays: jnp.take(leaf, stays, axis=axis))
    return small, config.narrowed(widths)


def _each(
    params: Mapping[str, Any], config: ConvNetConfig, kept: Kept, change: Callable[[Any, int, np.ndarray], Any]
) -> tree.Tree:
    leaves = tree.flatten(params)
    for i, stays in kept.items():
        for name, leaf in _block(params, config, i).items():
            axis = -1 if name in _ALONG else -2 if name in _ACROSS else None
            if axis is not None:
                leaves[f"blocks.{config.name(i)}.{name}"] = change(leaf, axis, stays)
    return tree.unflatten(leaves)


def _block(params: Mapping[str, Any], config: ConvNetConfig, i: int) -> dict[str, Any]:
    prefix = f"blocks.{config.name(i)}."
    found = {path.removeprefix(prefix): x for path, x in tree.flatten(params).items() if path.startswith(prefix)}
    for name in found:
        if ".lora_" in name or ".kernel_" in name:
            fix = "merge the adapter first" if ".lora_" in name else "prune, then quantize"
            raise ModelError("channels are taken out of plain kernels", where=prefix + name, fix=fix)
    return found


def _scores(block: Mapping[str, Any], eps: float) -> np.ndarray:
    """float64 [inner channels]: how far each can move the block's output."""
    wide = {name: np.asarray(leaf, np.float64) for name, leaf in block.items()}
    score = np.abs(wide["project.kernel"]).sum(axis=1)
    for module, leaf, axes in (("expand", "kernel", (0,)), ("depthwise", "filters", (0, 1, 2))):
        factor = wide[f"{module}_norm.scale"] / np.sqrt(wide[f"{module}_norm.var"] + eps)
        score = score * np.abs(factor) * np.abs(wide[f"{module}.{leaf}"]).sum(axis=axes)
    return score
