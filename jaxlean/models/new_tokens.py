"""Rows of a vocabulary that stand beside its table: those of new tokens, which train while the table is frozen.

The table keeps its shape, its place on a mesh and its dtype; only the few rows here have gradients and an optimizer's
state. What the table holds at their ids counts for nothing: embedded tokens and logits are overwritten, so that neither
pass puts table and rows together.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean.models.linear import dot_wide


class NewTokens(nnx.Module):
    """The vectors of some tokens, in place of the table's.

    Shapes: ids int32 [rows], ascending; embed [rows, hidden]; head [rows, hidden], where the output head is a matrix of
    its own. Where it is not, `embed` is both.

    Args:
        leaves: of these names, anything with a shape and dtype.
    """

    def __init__(self, leaves: Mapping[str, Any]):
        def declared(name: str) -> nnx.Param:
            return nnx.Param(jax.ShapeDtypeStruct(leaves[name].shape, leaves[name].dtype))

        self.ids = declared("ids")
        self.embed = declared("embed")
        self.head: nnx.Param | None = declared("head") if "head" in leaves else nnx.data(None)

    def embedded(self, tokens: jax.Array, x: jax.Array) -> jax.Array:
        """What the table gave for tokens, with the vectors of those that have one here.

        Args:
            tokens: int32 [batch, length].
            x: [batch, length, hidden].
        """
        ids = self.ids[...]
        at = jnp.minimum(jnp.searchsorted(ids, tokens), ids.shape[0] - 1)
        rows = jnp.take(self.embed[...].astype(x.dtype), at, axis=0)
        return jnp.where((ids[at] == tokens)[..., None], rows, x)

    def scored(self, x: jax.Array, logits: jax.Array) -> jax.Array:
        """The logits that the table or the head gave, with those of the tokens that have a vector here.

        Args:
            x: [..., hidden], the hidden states that they were made of.
            logits: float32 [..., vocab], or a part of the vocabulary (see `own_ids`).
        """
        head = self.embed if self.head is None else self.head
        own = dot_wide(x, head[...].astype(x.dtype), True)
        return logits.at[..., self.ids[...]].set(own, mode="drop", unique_indices=True)


def own_ids(ids: jax.Array, first: jax.Array, part: int) -> jax.Array:
    """int32 [rows]: where tokens stand in a part of the vocabulary; beyond its end where it does not have them.

    Args:
        ids: int32 [rows] in the whole vocabulary.
        first: int32 [], the first id of the part.
        part: how many it has.
    """
    own = ids - first
    # a negative one would count from the end, and equal ones beyond it would not be unique
    beyond = part + jnp.arange(ids.shape[0], dtype=ids.dtype)
    return jnp.where((own >= 0) & (own < part), own, beyond)
