"""Token id, position or type -> vector."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean.models.layout import ALONE, Layout
from jaxlean.models.linear import normal


class Embedding(nnx.Module):
    """A table of vectors; read backwards, the output head of models that tie the two."""

    def __init__(self, vocab_size: int, hidden_size: int, *, std: float = 0.02, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.embedding = nnx.Param(normal(rngs, (vocab_size, hidden_size), std))
        self.dtype = dtype
        self.layout: Layout = ALONE

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """int32 [batch, length] -> [batch, length, hidden] in the compute dtype."""
        return self.layout.lookup(self.embedding[...], tokens).astype(self.dtype)
