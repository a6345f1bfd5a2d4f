"""Pruning of single weights: a trained tree in, one with zeros out. Pure functions; nothing here trains.

Masks say what stays:

    magnitude   of each matrix the share that is smallest (arXiv 1506.02626)
    n_of_m      of every m inputs in a row of an output the n largest, as sparse tensor cores want it: 2 of 4
                (arXiv 2104.08378)

Zeros save nothing by themselves, but for hardware that knows them; whole channels do (`compress/channels.py`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlean import tree
from jaxlean.errors import ConfigError

Masks = dict[str, jax.Array]  # path -> bool of the leaf's shape, True where a number stays

# Matrices of layers; the embedding and the output head are few and sensitive.
_DEFAULT = r"^(?!(head|classifier)\.).*\.kernel$"


def magnitude(params: Mapping[str, Any], sparsity: float, *, where: str = _DEFAULT) -> Masks:
    """Of each chosen matrix (of each layer of a stack) exactly `round(sparsity * size)` numbers go, the smallest.

    Args:
        params: nested dict of arrays.
        sparsity: share that goes, 0 to 1.
        where: regex of the paths that are pruned.

    Raises:
        ConfigError: a share that is none, or a regex that finds nothing.
    """
    if not 0 <= sparsity <= 1:
        raise ConfigError("a sparsity that is no share", got=sparsity, wanted="0 to 1")

    def mask(leaf: np.ndarray) -> np.ndarray:
        rows = leaf.reshape(-1, math.prod(leaf.shape[-2:]))
        gone = round(sparsity * rows.shape[1])
        out = np.ones(rows.shape, bool)
        np.put_along_axis(out, np.argsort(np.abs(rows), axis=1, kind="stable")[:, :gone], False, axis=1)
        return out.reshape(leaf.shape)

    return _masks(params, where, mask)


def n_of_m(params: Mapping[str, Any], n: int, m: int, *, where: str = _DEFAULT) -> Masks:
    """Of every m inputs that follow each other, those n stay whose weight for an output is largest.

    Args: as `magnitude`; a matrix whose number of inputs m does not divide stays whole.

    Raises:
        ConfigError: n is not within 1 and m, or a regex that finds nothing.
    """
    if not 1 <= n <= m:
        raise ConfigError("n of m: n is at least 1 and at most m", got=f"{n} of {m}")

    def mask(leaf: np.ndarray) -> np.ndarray:
        *stack, rows, columns = leaf.shape
        if rows % m:
            return np.ones(leaf.shape, bool)
        groups = np.abs(leaf).reshape(*stack, rows // m, m, columns)
        out = np.ones(groups.shape, bool)
        np.put_along_axis(out, np.argsort(groups, axis=-2, kind="stable")[..., : m - n, :], False, axis=-2)
        return out.reshape(leaf.shape)

    return _masks(params, where, mask)


def apply(params: Mapping[str, Any], masks: Masks) -> tree.Tree:
    """The tree with zeros where the masks say so. After a step that trained what is masked it is due again."""

    def masked(path: str, leaf: Any) -> Any:
        return jnp.where(masks[path], leaf, jnp.zeros((), leaf.dtype)) if path in masks else leaf

    return tree.map_with_path(masked, params)


def _masks(params: Mapping[str, Any], where: str, mask: Callable[[np.ndarray], np.ndarray]) -> Masks:
    leaves = tree.flatten(params)
    rules: Sequence[tuple[str, bool]] = [(where, True)]
    chosen = tree.match(rules, leaves, what="what is pruned", default=False)
    return {path: jnp.asarray(mask(np.asarray(leaf))) for path, leaf in leaves.items() if chosen[path]}
