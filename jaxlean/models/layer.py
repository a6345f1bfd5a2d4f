"""The one layer behind every decoder and encoder: attention, then an MLP, each a branch that is added to its input."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean.models.attention import Slots
from jaxlean.models.config import Kind, LayersConfig
from jaxlean.models.cpu import keep
from jaxlean.models.key_value import KeyValue
from jaxlean.models.latent_attention import LatentAttention
from jaxlean.models.layout import ALONE, Layout
from jaxlean.models.linear import Dropout
from jaxlean.models.mixture import Load, Mixture
from jaxlean.models.mlp import MLP
from jaxlean.models.self_attention import Angles, Attention, make_norm

# A layer's input, which every policy keeps.
LAYER_INPUT = "layer_in"


class Layer(nnx.Module):
    """Attention and MLP. Where they are normalised, and whether they follow each other, is the config's.

    Args:
        config: its shape.
        kind: what it has of its own.
        dtype: what matrices are multiplied in; norms and softmax are float32 always.
        rngs: draws the kernels.
    """

    def __init__(self, config: LayersConfig, kind: Kind, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        def norm(at: str, there: bool = True) -> nnx.Module | None:
            return make_norm(config, config.hidden_size) if at in config.norm_at and there else None

        self.attention_norm = norm("input", kind.attention_norm)
        self.attention = (Attention if config.latent is None else LatentAttention)(config, kind, dtype=dtype, rngs=rngs)
        self.attention_out_norm = norm("output")
        self.attention_sum_norm = norm("sum")
        self.mlp_norm = norm("input", not config.shared_norm)
        self.mlp = (Mixture if kind.sparse else MLP)(config, dtype=dtype, rngs=rngs)
        self.mlp_out_norm = norm("output")
        self.mlp_sum_norm = norm("sum")
        self.config = config
        self.layout: Layout = ALONE

    def __call__(
        self,
        x: jax.Array,
        angles: Angles,
        slots: Slots,
        cache: KeyValue | None,
        dropout: Dropout | None,
        number: jax.Array,
    ) -> tuple[jax.Array, tuple[KeyValue | None, Load | None]]:
        """As `Attention.__call__`; beside the cache, the load of the experts where there are any."""
        x = keep(self.layout.constrain(x, LAYER_INPUT), LAYER_INPUT)
        normed = self._input(x, self.attention_norm, "attention_in")
        mixed, cache = self.attention(normed, angles, slots, cache, dropout, number)
        mixed = self._output(mixed, self.attention_out_norm)
        if self.config.parallel:
            other = normed if self.config.shared_norm else self._input(x, self.mlp_norm, "mlp_in")
            y, load = self._mlp(other, dropout, slots)
            return x + mixed + self._output(y, self.mlp_out_norm), (cache, load)
        x = self._sum(x + mixed, self.attention_sum_norm)
        normed = self._input(x, self.mlp_norm, "mlp_in")
        y, load = self._mlp(normed, dropout, slots)
        return self._sum(x + self._output(y, self.mlp_out_norm), self.mlp_sum_norm), (cache, load)

    def _mlp(self, x: jax.Array, dropout: Dropout | None, slots: Slots) -> tuple[jax.Array, Load | None]:
        if isinstance(self.mlp, Mixture):
            return self.mlp(x, dropout, self.layout.fold(slots.query_segments))
        return self.mlp(x, dropout), None

    def _input(self, x: jax.Array, norm: nnx.Module | None, name: str) -> jax.Array:
        if norm is None:
            return x
        return keep(self.layout.constrain(norm(x), name), name)

    def _output(self, branch: jax.Array, norm: nnx.Module | None) -> jax.Array:
        branch = norm(branch) if norm is not None else branch
        return branch if self.config.residual_multiplier == 1.0 else branch * self.config.residual_multiplier

    def _sum(self, x: jax.Array, norm: nnx.Module | None) -> jax.Array:
        return norm(x) if norm is not None else x
