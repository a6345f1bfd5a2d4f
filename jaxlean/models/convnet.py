"""The one convolutional network behind MobileNet v1, v2 and EfficientNet: a table of blocks, and a classifier.

All three are made of one kind of block, the inverted residual of MobileNetV2 (arXiv 1801.04381): a product that makes
more channels of each pixel, a convolution inside of each channel, a product back to few channels, and the input added.
EfficientNet (arXiv 1905.11946) puts a gate for each channel between (squeeze and excitation, arXiv 1709.01507);
MobileNet v1 (arXiv 1704.04861) does without the first product and the addition. A family is the table of its blocks'
sizes in `jaxlean.hub.families`.

Dropout before the classifier is not in here: `classify(drop(hidden(pixels)))` is how to train with it. What a Hugging
Face config says about it is not to be followed blindly: 0.8 and 0.999 of MobileNets are TensorFlow's shares to keep.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean.models.activation import ACTIVATION_FUNCTIONS
from jaxlean.models.convolution import BatchNorm, Convolution, Padding, he
from jaxlean.models.cpu import keep
from jaxlean.models.layout import Layout
from jaxlean.models.linear import Dropout, Linear
from jaxlean.models.stack import Scan

# Every activation that a remat policy can name, in the order they arise in a block: what is multiplied or convolved, as
# it comes out, before its normalisation. A block's input is kept by every policy.
ACTIVATIONS = ("expand", "depthwise", "squeeze", "project")
LAYER_INPUT = "layer_in"


@dataclass(frozen=True)
class BlockConfig:
    """The shape of a block.

    Attributes:
        channels: that it gives.
        expanded: channels inside of it; None where the convolution reads the block's input as it is.
        kernel, stride, dilation, padding: of the convolution.
        squeeze: the gate's inner channels; None for no gate.
        residual: whether the input is added; it must have as many channels, and stride 1.
        activate: whether the last product is followed by the activation as well.
    """

    channels: int
    expanded: int | None = None
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    padding: Padding = "same"
    squeeze: int | None = None
    residual: bool = False
    activate: bool = False


@dataclass(frozen=True)
class ConvNetConfig:
    """The shape of a network.

    Attributes:
        stem: channels of the first convolution, 3 x 3 with stride 2.
        blocks: what follows.
        top: channels of the last product over pixels; None for none.
        num_labels: classes.
        num_channels: of the images.
        activation: one of `models.activation.ACTIVATION_FUNCTIONS`.
        norm_eps: added to each variance.
        stem_padding: of the first convolution.
        pooling: what a channel's pixels become.
    """

    inputs = ("pixels",)
    activations = ACTIVATIONS
    num_tokens = 1  # of an image: its vector
    num_kv_heads = 1

    stem: int
    blocks: tuple[BlockConfig, ...]
    top: int | None
    num_labels: int
    num_channels: int = 3
    activation: str = "relu6"
    norm_eps: float = 1e-3
    stem_padding: Padding = "same"
    pooling: Literal["mean", "max"] = "mean"

    @property
    def head(self) -> str:
        """What stands over the hidden states (`classify`)."""
        return "classify"

    @property
    def parts(self) -> tuple[()]:
        """There are no layers of attention."""
        return ()

    @property
    def hidden_size(self) -> int:
        """The length of an image's vector."""
        return self.features

    @property
    def block_inputs(self) -> tuple[int, ...]:
        """The channels that each block is given."""
        return (self.stem, *(block.channels for block in self.blocks[:-1]))

    @property
    def features(self) -> int:
        """The channels that the classifier is given."""
        return self.top if self.top is not None else self.blocks[-1].channels

    def name(self, block: int) -> str:
        """What a block is called in a parameter path: its number, with zeros before.

        nnx.merge pairs leaves by their order, and text sorts `10` before `2`.
        """
        return str(block).zfill(len(str(len(self.blocks) - 1)))

    def narrowed(self, expanded: Sequence[int | None]) -> "ConvNetConfig":
        """The same network with other numbers of channels inside of its blocks."""
        blocks = [replace(block, expanded=wide) for block, wide in zip(self.blocks, expanded, strict=True)]
        return replace(self, blocks=tuple(blocks))

    def towers(self) -> dict[str, tuple[Any, ...]]:
        """Blocks are no stacks of layers: each has paths of its own."""
        return {}

    def build(self, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs) -> "ConvNet":
        """The network of this shape, with initial parameters."""
        return ConvNet(self, dtype=dtype, rngs=rngs)


class Squeeze(nnx.Module):
    """Squeeze and excitation: a gate between 0 and 1 for each channel of an image, from all its channels' means."""

    def __init__(self, channels: int, inner: int, *, activation: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.reduce = _pointwise(channels, inner, bias=True, dtype=dtype, rngs=rngs)
        self.expand = _pointwise(inner, channels, bias=True, dtype=dtype, rngs=rngs)
        self.activation = ACTIVATION_FUNCTIONS[activation]

    def __call__(self, x: jax.Array, dropout: Dropout | None) -> jax.Array:
        """[batch, height, width, channels] -> the same shape and dtype."""
        drop = [dropout.fold(i) if dropout is not None else None for i in range(2)]
        means = x.astype(jnp.float32).mean(axis=(1, 2), keepdims=True)
        inner = keep(self.reduce(means, drop[0]), "squeeze")
        gate = jax.nn.sigmoid(self.expand(self.activation(inner.astype(jnp.float32)), drop[1]).astype(jnp.float32))
        return (x.astype(jnp.float32) * gate).astype(x.dtype)


class Block(nnx.Module):
    """Expand, convolve inside each channel, gate, project; the input is added where shapes allow and config says."""

    def __init__(self, config: BlockConfig, dim_in: int, net: ConvNetConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        wide, eps = config.expanded or dim_in, net.norm_eps
        expands = config.expanded is not None
        # nnx.data: a place for a module, also where none stands
        self.expand: Linear | None = _pointwise(dim_in, wide, dtype=dtype, rngs=rngs) if expands else nnx.data(None)
        self.expand_norm: BatchNorm | None = BatchNorm(wide, eps=eps) if expands else nnx.data(None)
        self.depthwise = Convolution(
            wide, wide, config.kernel, stride=config.stride, dilation=config.dilation, groups=wide,
            padding=config.padding, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.depthwise_norm = BatchNorm(wide, eps=eps)
        self.squeeze: Squeeze | None = (
            Squeeze(wide, config.squeeze, activation=net.activation, dtype=dtype, rngs=rngs)
            if config.squeeze is not None
            else nnx.data(None)
        )
        self.project = _pointwise(wide, config.channels, dtype=dtype, rngs=rngs)
        self.project_norm = BatchNorm(config.channels, eps=eps)
        self.activation = ACTIVATION_FUNCTIONS[net.activation]
        self.config = config
        self.dtype = dtype

    def __call__(self, x: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        """[batch, height, width, in] -> [batch, ceil(height / stride), ceil(width / stride), channels]."""
        drop = [dropout.fold(i) if dropout is not None else None for i in range(3)]
        x = y = keep(x, LAYER_INPUT)
        if self.expand is not None and self.expand_norm is not None:
            y = keep(self.expand(y, drop[0]), "expand")
            y = self.activation(self.expand_norm(y)).astype(self.dtype)
        y = keep(self.depthwise(y), "depthwise")
        y = self.activation(self.depthwise_norm(y)).astype(self.dtype)
        if self.squeeze is not None:
            y = self.squeeze(y, drop[1])
        y = self.project_norm(keep(self.project(y, drop[2]), "project"))
        if self.config.activate:
            y = self.activation(y)
        return (y + x.astype(jnp.float32) if self.config.residual else y).astype(self.dtype)


class ConvNet(nnx.Module):
    """Images -> logits.

    Blocks differ in shape, so they are a loop and not a scan; `blocks` holds them by `ConvNetConfig.name`.

    Args:
        config: its shape.
        dtype: what is multiplied and convolved in; normalisation, activations and pooling are float32 always.
        rngs: draws the initial parameters.
    """

    def __init__(self, config: ConvNetConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.stem = Convolution(
            config.num_channels, config.stem, 3, stride=2, padding=config.stem_padding, dtype=dtype, rngs=rngs
        )
        self.stem_norm = BatchNorm(config.stem, eps=config.norm_eps)
        self.blocks = nnx.Dict(
            {
                config.name(i): Block(block, dim_in, config, dtype=dtype, rngs=rngs)
                for i, (block, dim_in) in enumerate(zip(config.blocks, config.block_inputs, strict=True))
            }
        )
        last, has_top = config.blocks[-1].channels, config.top is not None
        self.top: Linear | None = (
            _pointwise(last, config.features, dtype=dtype, rngs=rngs) if has_top else nnx.data(None)
        )
        self.top_norm: BatchNorm | None = BatchNorm(config.features, eps=config.norm_eps) if has_top else nnx.data(None)
        self.classifier = Linear(config.features, config.num_labels, bias=True, dtype=dtype, rngs=rngs)
        self.activation = ACTIVATION_FUNCTIONS[config.activation]
        self.config = config
        self.dtype = dtype

    def __call__(self, pixels: jax.Array, *, dropout: Dropout | None = None, scan: Scan = jax.lax.scan) -> jax.Array:
        """Logits of the classes.

        Args:
            pixels: float [batch, height, width, channels], normalised as the model wants them (`data.images`).
            dropout: of the adapters, in training.
            scan: runs each block, as a scan of one: `xla.remat.scan_layers` makes one of a policy over `ACTIVATIONS`.

        Returns:
            float32 [batch, num_labels].
        """
        return self.classify(self.hidden(pixels, dropout=dropout, scan=scan), dropout)

    def lay_out(self, layout: Layout) -> "ConvNet":
        """This network, whose images XLA splits over devices as they come."""
        return self

    def without_kernels(self) -> "ConvNet":
        """This network, which has none."""
        return self

    def hidden(self, pixels: jax.Array, *, dropout: Dropout | None = None, scan: Scan = jax.lax.scan) -> jax.Array:
        """One vector an image [batch, features], which `classify` reads. Args as in `__call__`."""
        x = self.activation(self.stem_norm(self.stem(pixels))).astype(self.dtype)
        for i, block in enumerate(self.blocks.values()):
            graph, params = nnx.split(block)
            drop = dropout.fold(i) if dropout is not None else None

            def run(none: tuple[()], own: Any, graph: Any = graph, drop: Any = drop) -> tuple[tuple[()], jax.Array]:
                return none, nnx.merge(graph, own[0])(own[1], drop)

            if scan is jax.lax.scan:
                x = run((), (params, x))[1]
            else:  # what goes through changes its shape, as no scan's carry may
                x = scan(run, (), jax.tree.map(lambda leaf: leaf[None], (params, x)))[1][0]
        wide = x.astype(jnp.float32)
        if self.top is not None and self.top_norm is not None:
            drop = dropout.fold(len(self.config.blocks)) if dropout is not None else None
            wide = self.activation(self.top_norm(self.top(x, drop)))
        pooled = wide.mean(axis=(1, 2)) if self.config.pooling == "mean" else wide.max(axis=(1, 2))
        return pooled.astype(self.dtype)

    def classify(self, hidden: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        """Vectors [..., features] -> float32 [..., num_labels]."""
        drop = dropout.fold(len(self.config.blocks) + 1) if dropout is not None else None
        return self.classifier(hidden, drop).astype(jnp.float32)


def _pointwise(dim_in: int, dim_out: int, *, bias: bool = False, dtype: jnp.dtype, rngs: nnx.Rngs) -> Linear:
    """A convolution of one pixel: a product over channels."""
    return Linear(dim_in, dim_out, bias=bias, std=he(dim_in), dtype=dtype, rngs=rngs)
