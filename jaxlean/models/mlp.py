"""A layer's MLP, gated or not."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean.models.activation import ACTIVATION_FUNCTIONS
from jaxlean.models.config import LayersConfig
from jaxlean.models.cpu import keep
from jaxlean.models.layout import ALONE, Layout
from jaxlean.models.linear import Dropout, Linear
from jaxlean.models.projection import project


class MLP(nnx.Module):
    """`down(act(gate(x)) * up(x))` (arXiv 2002.05202), or `down(act(up(x)))`.

    Args:
        config: its shape.
        width: of the inner values; default: the config's.
        dtype: what matrices are multiplied in.
        rngs: draws the kernels.
    """

    def __init__(self, config: LayersConfig, *, width: int | None = None, dtype: jnp.dtype, rngs: nnx.Rngs):
        hidden, inner = config.hidden_size, width or config.intermediate_size
        linear = partial(Linear, bias=config.mlp_bias, std=config.initializer_range, dtype=dtype, rngs=rngs)
        if config.gated and config.fused_gate_up:
            self.gate_up = linear(hidden, 2 * inner)
        else:
            if config.gated:
                self.gate = linear(hidden, inner)
            self.up = linear(hidden, inner)
        self.down = linear(inner, hidden)
        self.activation = ACTIVATION_FUNCTIONS[config.activation]
        self.config = config
        self.layout: Layout = ALONE

    def __call__(self, x: jax.Array, dropout: Dropout | None) -> jax.Array:
        """[batch, length, hidden] -> the same; `dropout` of the adapters."""
        drop = [dropout.fold(i) if dropout is not None else None for i in range(4, 7)]
        if not self.config.gated:
            (up,) = project(x, (self.up,), drop[1:2])
            up = keep(self.layout.constrain(up, "up"), "up")
            inner = self.activation(up.astype(jnp.float32)).astype(up.dtype)
        else:
            if self.config.fused_gate_up:
                gate, up = jnp.split(project(x, (self.gate_up,), drop[:1])[0], 2, axis=-1)
            else:
                gate, up = project(x, (self.gate, self.up), drop[:2])
            gate, up = keep(self.layout.constrain(gate, "gate"), "gate"), keep(self.layout.constrain(up, "up"), "up")
            inner = (self.activation(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)
        return keep(self.layout.constrain(project(inner, (self.down,), drop[2:])[0], "mlp_out"), "mlp_out")
