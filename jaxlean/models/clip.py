"""CLIP (arXiv 2103.00020): an encoder of texts and one of images, whose vectors are alike where both belong together.

The texts' tower is a decoder without an output head: each token sees what stands before it, and the vector of a text is
that of its end.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean.models.config import ACTIVATIONS, Kind, LayersConfig
from jaxlean.models.decoder import Decoder, DecoderConfig
from jaxlean.models.layout import Layout
from jaxlean.models.linear import Dropout, Linear
from jaxlean.models.stack import Scan
from jaxlean.models.vision import VisionConfig, VisionEncoder

# What stands for the end of a text in configs that were written before transformers knew better (pull request 24773).
# The end is then the token with the largest number: in CLIP's own vocabulary, the last one.
_LARGEST = 2


@dataclass(frozen=True)
class ClipConfig:
    """The shape of a CLIP.

    Args:
        text, vision: of its towers.
        projection_dim: of the vectors that are compared.
        end_token: whose place in a text, the first, has the text's vector.
        logit_scale: logarithm of what cosines are multiplied with, at the start.
    """

    inputs = ("tokens", "pixels")
    activations = ACTIVATIONS

    text: DecoderConfig
    vision: VisionConfig
    projection_dim: int
    end_token: int
    logit_scale: float = 2.6592

    @property
    def parts(self) -> tuple[LayersConfig, ...]:
        """What its towers' layers are made of."""
        return self.text, self.vision

    def towers(self) -> dict[str, tuple[Kind, ...]]:
        """The paths at which layers stand, and of each the kinds of its layers."""
        return {"text.layers": self.text.all_kinds, "vision.layers": self.vision.all_kinds}

    def build(self, *, dtype: Any, rngs: nnx.Rngs) -> "Clip":
        """The module."""
        return Clip(self, dtype=dtype, rngs=rngs)


class Clip(nnx.Module):
    """Texts and images -> vectors of one space.

    Args:
        config: its shape.
        dtype: what matrices are multiplied in; norms, softmax and the vectors' products are float32 always.
        rngs: draws the initial parameters.
    """

    def __init__(self, config: ClipConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.text = Decoder(config.text, dtype=dtype, rngs=rngs)
        self.vision = VisionEncoder(config.vision, dtype=dtype, rngs=rngs)
        self.text_projection = _projection(config.text, config, dtype=dtype, rngs=rngs)
        self.vision_projection = _projection(config.vision, config, dtype=dtype, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(config.logit_scale, jnp.float32))
        self.config = config

    def __call__(self, tokens: jax.Array, pixels: jax.Array) -> jax.Array:
        """`logits_per_image` of the vectors of texts and images. Args as of `embed_text` and `embed_images`."""
        return self.logits_per_image(self.embed_text(tokens), self.embed_images(pixels))

    def lay_out(self, layout: Layout) -> "Clip":
        """This model with its activations laid out over several devices, whose axes must divide its batches."""
        self.text.lay_out(layout)
        self.vision.lay_out(layout)
        return self

    def without_kernels(self) -> "Clip":
        """This model with attention in plain XLA, which jax can split over devices as it likes."""
        self.text.without_kernels()
        self.vision.without_kernels()
        return self

    def embed_text(
        self,
        tokens: jax.Array,
        *,
        segments: jax.Array | None = None,
        dropout: Dropout | None = None,
        scan: Scan = jax.lax.scan,
    ) -> jax.Array:
        """Vectors of texts, one a row.

        Args:
            tokens: int32 [batch, length], each with its end token; what stands after that counts for nothing.
            segments: int32 [batch, length], 0 where there is padding; default: none.
            dropout: of the adapters, in training.
            scan: runs the body over the layers.

        Returns:
            float32 [batch, projection], of length 1.
        """
        drop = _part(dropout, 0)
        hidden = self.text.hidden(tokens, segments=segments, dropout=drop, scan=scan)
        end = jnp.argmax(tokens if self.config.end_token == _LARGEST else tokens == self.config.end_token, axis=-1)
        pooled = jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
        return _unit(self.text_projection(pooled, _part(dropout, 2)))

    def embed_images(
        self, pixels: jax.Array, *, dropout: Dropout | None = None, scan: Scan = jax.lax.scan
    ) -> jax.Array:
        """Vectors of images: float32 [batch, projection], of length 1. Args as of `VisionEncoder.hidden`."""
        drop = _part(dropout, 1)
        pooled = self.vision.pool(self.vision.hidden(pixels, dropout=drop, scan=scan), drop)
        return _unit(self.vision_projection(pooled, _part(dropout, 3)))

    def logits_per_image(self, texts: jax.Array, images: jax.Array) -> jax.Array:
        """How well each image goes with each text, as scaled cosines.

        Args:
            texts: float32 [texts, projection], of length 1.
            images: float32 [images, projection], of length 1.

        Returns:
            float32 [images, texts]; softmax makes probabilities of a row's texts.
        """
        cosines = jnp.einsum("id,td->it", images, texts, precision=jax.lax.Precision.HIGHEST)
        return cosines * jnp.exp(self.logit_scale[...].astype(jnp.float32))


def _projection(tower: LayersConfig, config: ClipConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> Linear:
    hidden = tower.hidden_size
    return Linear(hidden, config.projection_dim, bias=False, std=hidden**-0.5, dtype=dtype, rngs=rngs)


def _part(dropout: Dropout | None, number: int) -> Dropout | None:
    return dropout.fold(number) if dropout is not None else None


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))
