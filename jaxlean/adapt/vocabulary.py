"""Rows of new tokens beside a frozen table, as leaves of the parameter tree: added, told apart, folded in.

`new_tokens.ids` int32 [rows] says which tokens have a row of their own, `new_tokens.embed` [rows, hidden] and, where
the head is a matrix of its own, `new_tokens.head` [rows, hidden] are those rows. The table (`embed.embedding`) and the
head's kernel have room for every id, and what they hold at these counts for nothing (`models/new_tokens.py`). So the
few rows train, with an optimizer's state, as an adapter does, and nothing of the table.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxlean import tree
from jaxlean.errors import ConfigError

TABLE, HEAD = "embed.embedding", "head.kernel"
IDS = "new_tokens.ids"
# Our leaf -> the table that it has rows of, and the dim of its tokens.
TABLES = {"new_tokens.embed": (TABLE, 0), "new_tokens.head": (HEAD, 1)}


def is_row(path: str) -> bool:
    """Whether a parameter holds the rows of new tokens, which train."""
    return path in TABLES


def is_beside(path: str) -> bool:
    """Whether a parameter is of new tokens: their rows, or which they are."""
    return path == IDS or is_row(path)


def has_rows(params: Mapping[str, Any]) -> bool:
    """Whether there are rows of new tokens in a tree."""
    return "new_tokens" in params


def check_apart(params: Mapping[str, Any], modules: Collection[str]) -> None:
    """Refuse LoRA on a matrix that has rows of new tokens: its adapter would say nothing of their logits.

    Args:
        params: the base, perhaps with rows.
        modules: that get an adapter.

    Raises:
        ConfigError: the output head is among them.
    """
    leaves = tree.flatten(params)
    both = sorted(
        table for leaf, (table, _) in TABLES.items() if leaf in leaves and table.rpartition(".")[0] in modules
    )
    if both:
        raise ConfigError(
            "new tokens have rows of their own in the output head, which can have no LoRA adapter beside them",
            where="lora.target_modules", got=", ".join(table.rpartition(".")[0] for table in both),
            fix="leave the head (lm_head) out of lora.target_modules, or leave out model.new_tokens",
        )  # fmt: skip


def resized(params: Mapping[str, Any], size: int) -> tree.Tree:
    """The tree with tables of `size` tokens; those that are added get the mean of the old ones.

    Args:
        params: arrays, or shapes with shardings.
        size: at least what they have.
    """
    leaves = tree.flatten(params)
    for path, dim in TABLES.values():
        if path in leaves and leaves[path].shape[dim] < size:
            leaves[path] = _longer(leaves[path], dim, size)
    return tree.unflatten(leaves)


def _longer(table: Any, dim: int, size: int) -> Any:
    shape = tuple(size if d == dim else n for d, n in enumerate(table.shape))
    if isinstance(table, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, table.dtype, sharding=table.sharding)

    @partial(jax.jit, out_shardings=_divides(table, shape))
    def longer(table: jax.Array) -> jax.Array:
        mean = jnp.mean(table, axis=dim, keepdims=True, dtype=jnp.float32).astype(table.dtype)
        more = jnp.repeat(mean, size - table.shape[dim], axis=dim)
        return jnp.concatenate([table, more], axis=dim)

    return longer(table)


def _divides(table: jax.Array, shape: tuple[int, ...]) -> Any:
    """Where the table lies, but for an axis that does not divide its new size; None where that is one device."""
    where = table.sharding
    if not isinstance(where, NamedSharding):
        return None
    spec = (
        axis if axis is None or n % where.mesh.shape[axis] == 0 else None
        for n, axis in zip(shape, (*where.spec, *[None] * len(shape)), strict=False)
    )  # fmt: skip
    return NamedSharding(where.mesh, PartitionSpec(*spec))


def split_by(params: Mapping[str, Any]) -> dict[str, int]:
    """Axes of several devices that the tables' tokens are split over -> how many devices."""
    leaves, found = tree.flatten(params), {}
    for path, dim in TABLES.values():
        where = getattr(leaves.get(path), "sharding", None)
        if isinstance(where, NamedSharding):
            axis = (*where.spec, None, None)[dim]
            if axis is not None and where.mesh.shape[axis] > 1:
                found[str(axis)] = where.mesh.shape[axis]
    return found


def rows_of(params: Mapping[str, Any], leaf: str, ids: np.ndarray) -> jax.Array:
    """float32 [ids, hidden]: what a table holds of some tokens, on each of its devices.

    Args:
        leaf: `new_tokens.embed` or `new_tokens.head`: which table.
        ids: of the tokens.
    """
    path, dim = TABLES[leaf]
    table = tree.flatten(params)[path]
    where = table.sharding
    everywhere = NamedSharding(where.mesh, PartitionSpec()) if isinstance(where, NamedSharding) else None

    @partial(jax.jit, out_shardings=everywhere)
    def take(table: jax.Array, ids: jax.Array) -> jax.Array:
        found = jnp.take(table, ids, axis=dim).astype(jnp.float32)
        return found if dim == 0 else found.T

    return take(table, jnp.asarray(ids, jnp.int32))


def spread_of(params: Mapping[str, Any], leaf: str, num: int) -> tuple[jax.Array, jax.Array]:
    """float32 ([hidden], [hidden]): mean and standard deviation of a table's rows, of the first `num` tokens."""
    path, dim = TABLES[leaf]
    table = tree.flatten(params)[path]
    where = table.sharding
    everywhere = NamedSharding(where.mesh, PartitionSpec()) if isinstance(where, NamedSharding) else None

    @partial(jax.jit, out_shardings=everywhere)
    def moments(table: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = jax.lax.slice_in_dim(table, 0, num, axis=dim).astype(jnp.float32)
        return own.mean(axis=dim), own.std(axis=dim)

    return moments(table)


def add(params: Mapping[str, Any], ids: np.ndarray, rows: Mapping[str, Any]) -> tree.Tree:
    """The tree with rows for some tokens beside its tables.

    Args:
        params: whose tables have room for the ids (`resized`).
        ids: [rows], ascending.
        rows: `new_tokens.embed` and perhaps `new_tokens.head` -> [rows, hidden]; or shapes.
    """
    leaves = tree.flatten(params)
    table = leaves[TABLE]
    assert np.all(np.diff(ids) > 0), "ids ascend"
    assert int(ids[-1]) < table.shape[0], "the table has room for every id"
    where = table.sharding
    beside = NamedSharding(where.mesh, PartitionSpec()) if isinstance(where, NamedSharding) else None
    more: dict[str, Any] = {IDS: np.asarray(ids, np.int32), **rows}
    for path, leaf in more.items():
        dtype = jnp.int32 if path == IDS else jnp.float32
        if isinstance(table, jax.ShapeDtypeStruct):
            leaves[path] = jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=beside)
        elif beside is None:
            leaves[path] = jnp.asarray(leaf, dtype)
        else:
            host = np.asarray(leaf, dtype)
            leaves[path] = jax.make_array_from_callback(host.shape, beside, host.__getitem__)
    return tree.unflatten(leaves)


def merge(params: Mapping[str, Any]) -> tree.Tree:
    """Write the rows into their tables: a tree without them that computes the same. Tables keep their dtype."""
    leaves = tree.flatten(params)
    merged = {path: leaf for path, leaf in leaves.items() if not is_beside(path)}
    for path in leaves.keys() & TABLES.keys():
        table, dim = TABLES[path]
        merged[table] = _written(dim, leaves[table], leaves[IDS], leaves[path])
    return tree.unflatten(merged)


@partial(jax.jit, static_argnums=0)
def _written(dim: int, table: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
    rows = rows.astype(table.dtype)
    return table.at[ids].set(rows) if dim == 0 else table.at[:, ids].set(rows.T)
