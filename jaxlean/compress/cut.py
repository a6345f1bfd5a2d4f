"""A layer without some of its neurons, heads or features: which dims of which leaves they are."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlean import tree
from jaxlean.errors import ModelError

# What each dim of a leaf counts.
_HIDDEN_IN = ("hidden", None)
_OF_LINEAR = {
    "attention.query": ("hidden", "queries"),
    "attention.key": ("hidden", "keys"),
    "attention.value": ("hidden", "keys"),
    "attention.qkv": ("hidden", "qkv"),
    "attention.out": ("queries", "hidden"),
    "mlp.gate": ("hidden", "neurons"),
    "mlp.up": ("hidden", "neurons"),
    "mlp.gate_up": ("hidden", "gate_up"),
    "mlp.down": ("neurons", "hidden"),
    "head": _HIDDEN_IN,
    "classifier.dense": ("hidden", "hidden"),
    "classifier.scores": _HIDDEN_IN,
}
_TABLES = ("embed", "positions", "token_types")


def best(scores: np.ndarray, num: int) -> np.ndarray:
    """The numbers of the highest scores, ascending; of equal ones the first stay."""
    return np.sort(np.argsort(-scores, kind="stable")[:num])


def heads_that_stay(energy: np.ndarray, was: Any, config: Any) -> dict[str, np.ndarray]:
    """What stays of queries, keys and heads: of the groups that do most, the heads that do most."""
    per_group, stay = was.num_heads // was.num_kv_heads, config.num_heads // config.num_kv_heads
    by_group = energy.reshape(was.num_kv_heads, per_group)
    groups = best(by_group.sum(1), config.num_kv_heads)
    heads = np.concatenate([group * per_group + best(by_group[group], stay) for group in groups])
    queries, keys = _features(heads, was.head_dim), _features(groups, was.head_dim)
    found = {"heads": heads, "groups": groups, "queries": queries, "keys": keys}
    if was.fused_qkv == "heads":  # of each head its query, key and value
        found["qkv"] = _features(heads, 3 * was.head_dim)
    wide, narrow = was.num_heads * was.head_dim, was.num_kv_heads * was.head_dim
    if was.fused_qkv == "parts":
        found["qkv"] = np.concatenate([queries, wide + keys, wide + narrow + keys])
    return found


def _features(numbers: np.ndarray, each: int) -> np.ndarray:
    return (numbers[:, None] * each + np.arange(each)).reshape(-1)


def cut(params: tree.Tree, kept: Mapping[str, np.ndarray | None], config: Any) -> tree.Tree:
    """The leaves of a layer, or of what stands around the layers, without what does not stay.

    Args:
        kept: by what is counted, the indices that stay; what is not there stays whole.
        config: of the model as it was.
    """
    kept = dict(kept)
    neurons = kept.get("neurons")
    if neurons is not None:
        kept["gate_up"] = np.concatenate([neurons, config.intermediate_size + neurons])

    def smaller(path: str, leaf: Any) -> Any:
        for axis, what in enumerate(_counts(path, leaf, config)):
            stays = kept.get(what) if what is not None else None
            if stays is not None:
                leaf = jnp.take(leaf, stays, axis=axis)
        return leaf

    return tree.map_with_path(smaller, params)


def _counts(path: str, leaf: Any, config: Any) -> tuple[str | None, ...]:
    """What each dim of a leaf counts; None: what stays as it is."""
    module, _, name = path.rpartition(".")
    if module in _OF_LINEAR:
        return _OF_LINEAR[module] if name == "kernel" else _OF_LINEAR[module][1:]
    if module in _TABLES:
        return (None, "hidden")
    if module in ("attention.query_norm", "attention.key_norm"):
        return (None,) if leaf.ndim == 1 else ("heads" if "query" in module else "groups", None)
    if path == "attention.sinks":
        return ("heads",)
    if module.endswith("norm") and leaf.shape == (config.hidden_size,):
        return ("hidden",)
    raise ModelError("a parameter that is not made narrower", where=path, got=tuple(leaf.shape))
