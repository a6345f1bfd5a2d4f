"""A transformer over the patches of an image: the one behind ViT (arXiv 2010.11929) and CLIP's images.

Its layers are those of the decoder (`models/layer.py`), without a mask: each patch sees all others. Before them stand a
product that makes a token of each patch, a token of no patch that gathers what is said of the whole image, and learned
positions.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean.errors import ModelError
from jaxlean.models.activation import ACTIVATION_FUNCTIONS
from jaxlean.models.attention import Slots
from jaxlean.models.config import LayersConfig
from jaxlean.models.layer import LAYER_INPUT, Layer
from jaxlean.models.layout import ALONE, Layout
from jaxlean.models.linear import Dropout, Linear, dot, normal
from jaxlean.models.rope import Rope
from jaxlean.models.self_attention import make_norm
from jaxlean.models.stack import Scan, stacked, through
from jaxlean.models.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class VisionConfig(LayersConfig):
    """The shape of an encoder of images.

    Args:
        image_size: height and width in pixels.
        patch_size: of one patch; what is left over at the right and the bottom is not seen.
        patch_bias: of the product that makes a token of a patch.
        pre_norm: the tokens are normalised before the first layer (CLIP).
        norm_of: what the last norm is of: all tokens (ViT), or the class token alone, when it is pooled (CLIP).
        pooler: activation of a further product of the pooled class token; None: there is none.
        pooler_size: features that it gives.
        num_labels: of the classifier; 0: there is none.
        classifies: what the classifier reads: the class token (ViT), or the mean of all others (CLIP).
    """

    inputs = ("pixels",)

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    num_channels: int = 3
    patch_bias: bool = True
    pre_norm: bool = False
    norm_of: Literal["tokens", "pooled"] = "tokens"
    pooler: str | None = None
    pooler_size: int = 0
    num_labels: int = 0
    classifies: Literal["class", "patches"] = "class"
    causal: bool = False
    rope: Rope | None = None

    @property
    def head(self) -> str:
        """What stands over the hidden states: `classify`, or `none`."""
        return "classify" if self.num_labels else "none"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return (*self.image_size, self.num_channels)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of an image, down and across."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def num_tokens(self) -> int:
        """Patches, and the class token."""
        return self.grid[0] * self.grid[1] + 1

    def build(self, *, dtype: Any, rngs: nnx.Rngs) -> "VisionEncoder":
        """The module."""
        return VisionEncoder(self, dtype=dtype, rngs=rngs)


class Patches(nnx.Module):
    """Pixels -> one token a patch: a convolution whose stride is its size, which is one product.

    Its leaf is `filters` [height, width, channels, hidden], not `kernel`, which is a matrix everywhere.
    """

    def __init__(self, config: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        shape = (*config.patch_size, config.num_channels, config.hidden_size)
        self.filters = nnx.Param(normal(rngs, shape, config.initializer_range))
        self.bias = nnx.Param(jnp.zeros((config.hidden_size,), jnp.float32)) if config.patch_bias else None
        self.config = config
        self.dtype = dtype

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """float32 [batch, height, width, channels] -> [batch, patches, hidden] in the compute dtype."""
        (down, across), (height, width) = self.config.grid, self.config.patch_size
        seen = pixels[:, : down * height, : across * width]
        cut = seen.reshape(len(pixels), down, height, across, width, -1).swapaxes(2, 3)
        filters = self.filters[...].astype(self.dtype)
        flat = cut.reshape(len(pixels), down * across, -1).astype(self.dtype)
        tokens = dot(flat, filters.reshape(-1, filters.shape[-1]))
        return tokens if self.bias is None else tokens + self.bias[...].astype(self.dtype)


class VisionEncoder(Transformer):
    """Pixels -> hidden states of patches, and what is said of the whole image.

    Args:
        config: its shape.
        dtype: what matrices are multiplied in; norms and softmax are float32 always.
        rngs: draws the initial parameters.
    """

    def __init__(self, config: VisionConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        std, hidden = config.initializer_range, config.hidden_size
        self.patches = Patches(config, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(normal(rngs, (hidden,), std))
        self.positions = nnx.Param(normal(rngs, (config.num_tokens, hidden), std))
        self.pre_norm = make_norm(config, hidden) if config.pre_norm else None
        self.layers = stacked(lambda kind, rngs: Layer(config, kind, dtype=dtype, rngs=rngs), config.all_kinds, rngs)
        self.norm = make_norm(config, hidden)
        self.pooler = (
            Linear(hidden, config.pooler_size, bias=True, std=std, dtype=dtype, rngs=rngs)
            if config.pooler is not None
            else None
        )
        self.classifier = (
            Linear(hidden, config.num_labels, bias=True, std=std, dtype=jnp.dtype(jnp.float32), rngs=rngs)
            if config.num_labels
            else None
        )
        self.config: VisionConfig = config
        self.dtype = dtype
        self.layout: Layout = ALONE

    def __call__(self, pixels: jax.Array, *, dropout: Dropout | None = None, scan: Scan = jax.lax.scan) -> jax.Array:
        """What the model is for: `classify` where it has a classifier, or else `hidden`. Args as there."""
        hidden = self.hidden(pixels, dropout=dropout, scan=scan)
        return hidden if self.classifier is None else self.classify(hidden, dropout)

    def hidden(self, pixels: jax.Array, *, dropout: Dropout | None = None, scan: Scan = jax.lax.scan) -> jax.Array:
        """The hidden states of the class token and of all patches, row by row.

        Args:
            pixels: float32 [batch, height, width, channels], normalised as the model wants them.
            dropout: of the adapters, in training.
            scan: runs the body over the layers (`xla.remat.scan_layers` makes one of a policy).

        Returns:
            [batch, 1 + patches, hidden] in the compute dtype; normalised, unless the last norm is of what is pooled.

        Raises:
            ModelError: images of another size than the model has positions for.
        """
        config = self.config
        self._check(pixels)
        tokens = self.patches(pixels)
        first = jnp.broadcast_to(self.class_token[...].astype(self.dtype), (len(pixels), 1, config.hidden_size))
        x = jnp.concatenate([first, tokens], axis=1) + self.positions[...].astype(self.dtype)
        steps, segments = jnp.arange(config.num_tokens, dtype=jnp.int32), jnp.ones(x.shape[:2], jnp.int32)
        slots = Slots(steps, steps, segments, segments)

        def apply(layer: Layer, x: jax.Array, number: jax.Array, stack: Any) -> tuple[jax.Array, None]:
            return layer(x, {}, slots, None, dropout.fold(number) if dropout is not None else None, number)[0], None

        x = self.layout.constrain(self.layout.fold(x), LAYER_INPUT)
        x = self.pre_norm(x) if self.pre_norm is not None else x
        x, _ = through(self.layers, config.all_kinds, apply, x, scan)
        return self.layout.unfold(self.norm(x) if config.norm_of == "tokens" else x)

    def pool(self, hidden: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        """What `hidden` says of each image as a whole: [batch, features] in the compute dtype."""
        first = hidden[:, 0]
        if self.config.norm_of == "pooled":
            first = self.norm(first)
        if self.pooler is None or self.config.pooler is None:
            return first
        # the layers fold in 0, 1 ... num_layers - 1
        drop = dropout.fold(self.config.num_layers) if dropout is not None else None
        act = ACTIVATION_FUNCTIONS[self.config.pooler]
        return act(self.pooler(first, drop).astype(jnp.float32)).astype(first.dtype)

    def classify(self, hidden: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        """Logits of each image's label, float32 [batch, labels].

        Raises:
            ModelError: the model has no classifier.
        """
        if self.classifier is None:
            raise ModelError("this model has no classifier", fix="task: classify puts one on it")
        seen = hidden[:, 0] if self.config.classifies == "class" else hidden[:, 1:].astype(jnp.float32).mean(axis=1)
        drop = dropout.fold(self.config.num_layers + 1) if dropout is not None else None
        return self.classifier(seen, drop)

    def _check(self, pixels: jax.Array) -> None:
        wanted = self.config.image_shape
        if pixels.shape[1:] != wanted:
            raise ModelError(
                "images that the model has no positions for",
                got="height {}, width {}, {} channels".format(*pixels.shape[1:])
                if pixels.ndim == 4
                else f"an array {pixels.shape}",
                wanted="[batch, height {}, width {}, {} channels]".format(*wanted),
                fix="resize them",
            )
