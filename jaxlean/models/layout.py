"""Where activations lie on a mesh of devices: one table over the names that they have for remat.

A batch is split by its rows, a matrix product by the axis `tensor`. What is split by `context` is the sequence: each
row of the batch then counts as several shorter rows, one a device, to everything that treats tokens alike; only
attention and the choice of the next token see whole sequences.
"""

from dataclasses import dataclass

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# The axes that rows are split over, and those of rows whose sequences are split too.
ROWS = ("data", "fsdp", "expert")
FOLDED = (*ROWS, "context")
_HEADS = PartitionSpec(FOLDED, None, "tensor", None)
_WIDE = PartitionSpec(FOLDED, None, "tensor")
_NARROW = PartitionSpec(FOLDED, None, None)
SPECS: dict[str, PartitionSpec] = {
    "layer_in": _NARROW,
    "attention_in": _NARROW,
    "query": _HEADS,
    "key": _HEADS,
    "value": _HEADS,
    "context": _HEADS,
    "attention_out": _NARROW,
    "mlp_in": _NARROW,
    "gate": _WIDE,
    "up": _WIDE,
    "mlp_out": _NARROW,
    # of a chunk of the loss, [tokens, ...]
    "loss_in": PartitionSpec(FOLDED, None),
    "logits": PartitionSpec(FOLDED, "tensor"),
}


@dataclass(frozen=True)
class Layout:
    """How a model lies on a mesh; without one, on a single device, every method gives back what it is given."""

    mesh: Mesh | None = None

    @property
    def parts(self) -> int:
        """Into how many a sequence is split."""
        return self.mesh.shape["context"] if self.mesh is not None else 1

    def constrain(self, x: jax.Array, name: str) -> jax.Array:
        """The activation, told where it lies."""
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, SPECS[name]))

    def fold(self, x: jax.Array) -> jax.Array:
        """[batch, length, ...] -> [batch * parts, length / parts, ...]: nothing moves between devices."""
        if self.parts == 1:
            return x
        batch, length, *rest = x.shape
        return x.reshape(batch * self.parts, length // self.parts, *rest)

    def unfold(self, x: jax.Array) -> jax.Array:
        """The inverse of `fold`."""
        if self.parts == 1:
            return x
        batch, length, *rest = x.shape
        return x.reshape(batch // self.parts, length * self.parts, *rest)


ALONE = Layout()


def layout_on(mesh: Mesh) -> Layout:
    """The layout of training on a mesh: the rows of a batch must divide by `ROWS`."""
    return Layout(mesh) if mesh.size > 1 else ALONE
