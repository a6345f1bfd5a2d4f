"""Where activations lie on a mesh of devices: one table over the names that they have for remat.

A batch is split by its rows, a matrix product by the axis `tensor`. What is split by `context` is the sequence: each
row of the batch then counts as several shorter rows, one a device, to everything that treats tokens alike; only
attention and the choice of the next token see whole sequences.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

# The axes that rows are split over, and those of rows whose sequences are split too.
ROWS = ("data", "fsdp", "expert")
# (part by part: the rows of one part lie together, as `Layout.fold` puts them)
FOLDED = ("context", *ROWS)
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
}


@dataclass(frozen=True)
class Layout:
    """How a model lies on a mesh; without one, on a single device, every method gives back what it is given."""

    mesh: Mesh | AbstractMesh | None = None

    @property
    def parts(self) -> int:
        """Into how many a sequence is split."""
        return self.mesh.shape["context"] if self.mesh is not None else 1

    def constrain(self, x: jax.Array, name: str) -> jax.Array:
        """The activation, told where it lies."""
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, self.spec(*SPECS[name])))

    def whole(self, x: jax.Array) -> jax.Array:
        """[batch, length], told that no device of `context` has only a part of it.

        For what shifts along a sequence: XLA of jaxlib 0.10 gets that wrong inside of a loop where it is split.
        """
        if self.mesh is None or self.parts == 1:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, self.spec(ROWS, None)))

    def spec(self, *axes: Any) -> PartitionSpec:
        """A spec of the mesh, without the axes that the code around has taken for itself."""
        assert self.mesh is not None
        taken = self.mesh.manual_axes
        if not taken:
            return PartitionSpec(*axes)
        left = (tuple(a for a in axis if a not in taken) if isinstance(axis, tuple) else axis for axis in axes)
        return PartitionSpec(*left)

    def on_each_device(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """`function` run by each device on its parts; what it wants of others it asks for by an axis' name.

        Args:
            function: of the parts of its arguments.
            in_specs, out_specs: as `jax.shard_map` takes them, of all axes.
        """
        assert self.mesh is not None

        def left(specs: Any) -> Any:
            return jax.tree.map(lambda s: self.spec(*s), specs, is_leaf=lambda x: isinstance(x, PartitionSpec))

        # jax's check of what differs between devices does not know gradient rules written by hand
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=left(in_specs), out_specs=left(out_specs),
            axis_names=set(self.mesh.axis_names) - set(self.mesh.manual_axes), check_vma=False,
        )  # fmt: skip

    def lookup(self, table: jax.Array, tokens: jax.Array) -> jax.Array:
        """Rows of an embedding that lies as `xla.mesh.RULES` say: its columns split by `fsdp`, which splits rows too.

        Left alone, XLA would put the whole table together on each device, or worse. Here each device looks up its
        columns for the rows of all, and gives every other the columns of its rows: what moves are activations, once.

        Args:
            table: [vocab, hidden].
            tokens: int32 [batch, length], split by `FOLDED`.

        Returns:
            [batch, length, hidden], split by `FOLDED`.
        """
        if self.mesh is None or self.mesh.shape["fsdp"] == self.mesh.shape["tensor"] == 1:
            return jnp.take(table, tokens, axis=0)
        columns = "fsdp" if self.mesh.shape["fsdp"] > 1 else None
        # where `tensor` does not divide the vocabulary, each of its devices has all of it
        vocab = "tensor" if self.mesh.shape["tensor"] > 1 and table.shape[0] % self.mesh.shape["tensor"] == 0 else None

        def local(part: jax.Array, tokens: jax.Array) -> jax.Array:
            if columns is not None:
                tokens = jax.lax.all_gather(tokens, columns, axis=0, tiled=True)
            if vocab is None:
                found = jnp.take(part, tokens, axis=0)
            else:
                own = tokens - jax.lax.axis_index(vocab) * part.shape[0]
                here = (own >= 0) & (own < part.shape[0])
                found = jax.lax.psum(jnp.where(here[..., None], jnp.take(part, own, axis=0, mode="clip"), 0), vocab)
            if columns is not None:
                found = jax.lax.all_to_all(found, columns, split_axis=0, concat_axis=2, tiled=True)
            return found

        specs = PartitionSpec(vocab, columns), PartitionSpec(FOLDED, None)
        return self.on_each_device(local, specs, PartitionSpec(FOLDED, None, None))(table, tokens)

    def fold(self, x: jax.Array) -> jax.Array:
        """[batch, length, ...] -> [parts * batch, length / parts, ...], first the first parts of all rows.

        In this order nothing moves between devices, however many rows each has.
        """
        if self.parts == 1:
            return x
        batch, length, *rest = x.shape
        parted = x.reshape(batch, self.parts, length // self.parts, *rest)
        return parted.swapaxes(0, 1).reshape(self.parts * batch, length // self.parts, *rest)

    def unfold(self, x: jax.Array) -> jax.Array:
        """The inverse of `fold`."""
        if self.parts == 1:
            return x
        rows, length, *rest = x.shape
        parted = x.reshape(self.parts, rows // self.parts, length, *rest)
        return parted.swapaxes(0, 1).reshape(rows // self.parts, self.parts * length, *rest)


ALONE = Layout()
# Layers whose rows are split by `tensor`, and columns by `fsdp`; of all others it is the other way round.
_BACK = ("out", "down")


@dataclass(frozen=True)
class KernelPlace:
    """Where a linear layer's kernel lies.

    Args:
        layout: of the model.
        layer: the layer's name: `query`, `down` ...
    """

    layout: Layout = ALONE
    layer: str = ""

    def gathered(self, leaves: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """A kernel [in, out] in fewer bits (`jaxlean.codec`), put together from all of `fsdp` as it is held.

        Left alone, XLA would decode each part first, and send two to four times the bytes.
        """
        mesh = self.layout.mesh
        if mesh is None or mesh.shape["fsdp"] == 1 or "kernel" in leaves:
            return leaves
        rows, columns = ("tensor", None) if self.layer in _BACK else (None, "tensor")
        numbers, of_blocks = PartitionSpec(rows, columns), PartitionSpec(None, columns)
        specs = {
            **dict.fromkeys(("kernel_int8", "kernel_nf4", "kernel_int4", "kernel_int8_grouped"), numbers),
            # as `xla.mesh.RULES` have it: their rows are never split
            **dict.fromkeys(("kernel_absmax", "kernel_scales"), of_blocks),
        }
        return {
            name: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, specs[name])) if name in specs else x
            for name, x in leaves.items()
        }


NOWHERE = KernelPlace()


def layout_on(mesh: Mesh) -> Layout:
    """The layout of training on a mesh: the rows of a batch must divide by `ROWS`."""
    return Layout(mesh) if mesh.size > 1 else ALONE


def layout_within(mesh: Mesh, axis: str) -> Layout:
    """The layout inside of a `jax.shard_map` over one axis: on the others, for the rows that are here."""
    if mesh.size == mesh.shape[axis]:
        return ALONE
    return Layout(mesh.abstract_mesh.update_axis_types({axis: AxisType.Manual}))
