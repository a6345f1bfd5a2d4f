"""What decoders and encoders have in common beside their layers: how these are run, where they lie on devices."""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

from flax import nnx

from jaxlean.models.attention import Slots
from jaxlean.models.config import LayersConfig
from jaxlean.models.layout import KernelPlace, Layout
from jaxlean.models.linear import Linear
from jaxlean.models.stack import modules


class Entered(NamedTuple):
    """What goes into the layers, and how one is run.

    `apply(layer, x, number, stack) -> (x, anything)`, as `stack.through` takes it.
    """

    x: Any  # [batch, length, hidden]; of a decoder with a cache (that, the cache's layers)
    apply: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    slots: Slots


class Transformer(nnx.Module):
    """A module with `layers`, as `stacked` makes them of its `config`."""

    config: LayersConfig
    layers: Any
    layout: Layout

    def lay_out(self, layout: Layout) -> Self:
        """This model with its activations laid out over several devices, whose axes must divide its batches."""
        for path, module in nnx.iter_modules(self):
            if hasattr(module, "layout"):
                module.layout = layout
            if isinstance(module, Linear):
                module.place = KernelPlace(layout, str(path[-1]))
        return self

    def without_kernels(self) -> Self:
        """This model with attention in plain XLA, which jax can split over devices as it likes."""
        for stack in modules(self.layers, self.config.all_kinds):
            stack.attention.backend = "block"
        return self
