"""The rows of a batch that this process lays out: those that its own devices hold, and no others."""

import jax
import numpy as np

from jaxlean.data.epochs import Batch
from jaxlean.xla.mesh import batch_sharding


class OwnRows:
    """The part of each batch of [microbatches, rows / microbatches, length] that lies on this process's devices.

    Args:
        mesh: of the run.
        rows: sequences of a batch, over all devices and microbatches.
        microbatches: of a step; None: a batch of [rows, length] without that dim.
    """

    def __init__(self, mesh: jax.sharding.Mesh, rows: int, microbatches: int | None = None):
        self._lead = () if microbatches is None else (microbatches,)
        self._sharding = batch_sharding(mesh, leading=len(self._lead))
        num = microbatches or 1
        self._rows = rows // num
        placed = batch_sharding(mesh).addressable_devices_indices_map((self._rows,))
        self._own = sorted({row for part in placed.values() for row in self._range(part)})
        # all: None, so that a process alone does nothing for it
        whole = len(self._own) == self._rows
        self.held = None if whole else [m * self._rows + row for m in range(num) for row in self._own]

    def on_devices(self, batch: Batch) -> dict[str, jax.Array]:
        """The rows held, [len(held), length, ...] on the host -> the batch on devices: each process puts its part."""
        return {name: self._put(value.reshape(*self._lead, -1, *value.shape[1:])) for name, value in batch.items()}

    def whole_on_devices(self, batch: Batch) -> dict[str, jax.Array]:
        """As `on_devices`, of a batch of [rows, length] that every process has laid out whole."""
        return self.on_devices(batch if self.held is None else {name: x[self.held] for name, x in batch.items()})

    def _range(self, index: tuple[slice, ...] | None) -> range:
        assert index is not None, "only a scalar has no index"
        return range(*index[len(self._lead) if len(index) > 1 else 0].indices(self._rows))

    def _put(self, value: np.ndarray) -> jax.Array:
        if self.held is None and self._sharding.is_fully_addressable:
            return jax.device_put(value, self._sharding)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            wanted = self._range(index)
            at = int(np.searchsorted(self._own, wanted.start))
            return value[(*[slice(None)] * len(self._lead), slice(at, at + len(wanted)))]

        shape = (*self._lead, self._rows, *value.shape[len(self._lead) + 1 :])
        return jax.make_array_from_callback(shape, self._sharding, part)
