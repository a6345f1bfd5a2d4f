"""EfficientNet B0 to B8 and L2 (arXiv 1905.11946): one table of stages, made wider and deeper by two factors."""

import math
from typing import TYPE_CHECKING

from jaxlean.errors import ModelError
from jaxlean.hub.convnets import ConvNetFamily, divisible
from jaxlean.hub.family import activation
from jaxlean.models.convnet import BlockConfig, ConvNetConfig
from jaxlean.models.convolution import Padding

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def shape(hf: "PreTrainedConfig") -> ConvNetConfig:
    """The stages, each a number of blocks whose first may shrink the image and never adds its input.

    Raises:
        ModelError: stages that do not fit together, or a kind of pooling, stride or kernel that is not supported.
    """

    def channels(base: int) -> int:
        return divisible(base * hf.width_coefficient, hf.depth_divisor)

    last = stem = channels(32)
    blocks: list[BlockConfig] = []
    stages = (hf.in_channels, hf.out_channels, hf.strides, hf.kernel_sizes, hf.expand_ratios, hf.num_block_repeats)
    if len({len(stage) for stage in stages}) > 1:
        raise ModelError("the tables of stages differ in length", got=[list(stage) for stage in stages])
    for stage, (dim_in, dim_out, stride, kernel, ratio, repeats) in enumerate(zip(*stages, strict=True)):
        if channels(dim_in) != last:
            raise ModelError(
                "a stage does not fit the one before", where=f"in_channels[{stage}]", got=dim_in, wanted=last
            )
        if stride not in (1, 2) or kernel % 2 == 0:
            raise ModelError(
                "a convolution that is not supported",
                where=f"stage {stage}",
                got=f"stride {stride}, kernel {kernel}",
                wanted="stride 1 or 2, and an odd kernel",
            )
        for place in range(math.ceil(hf.depth_coefficient * repeats)):
            first = place == 0
            shrinks = first and stride == 2
            blocks.append(
                BlockConfig(
                    channels(dim_out),
                    last * ratio if ratio != 1 else None,
                    kernel=kernel,
                    stride=stride if first else 1,
                    padding=_padding(shrinks, len(blocks) in hf.depthwise_padding),
                    squeeze=max(1, int(last * hf.squeeze_expansion_ratio)),
                    residual=not first,
                )
            )
            last = channels(dim_out)
    top = channels(1280)
    if hf.hidden_dim != top:
        raise ModelError("hidden_dim is not what width_coefficient makes of 1280", got=hf.hidden_dim, wanted=top)
    if hf.pooling_type not in ("mean", "max"):
        raise ModelError("a kind of pooling that is not supported", got=hf.pooling_type, wanted="mean, max")
    return ConvNetConfig(
        stem=stem,
        blocks=tuple(blocks),
        top=top,
        num_labels=hf.num_labels or 0,
        num_channels=hf.num_channels,
        activation=activation(hf),
        norm_eps=hf.batch_norm_eps,
        stem_padding="late",
        pooling=hf.pooling_type,
    )


def _padding(shrinks: bool, square: bool) -> Padding:
    """Keras pads by the size that its own images have there; what it found is listed in `depthwise_padding`."""
    if not shrinks:
        return "same"
    return "symmetric" if square else "late"


def block(i: int) -> dict[str, str]:
    """Our modules of block i -> Hugging Face's."""
    theirs = f"efficientnet.encoder.blocks.{i}"
    return {
        "expand": f"{theirs}.expansion.expand_conv",
        "expand_norm": f"{theirs}.expansion.expand_bn",
        "depthwise": f"{theirs}.depthwise_conv.depthwise_conv",
        "depthwise_norm": f"{theirs}.depthwise_conv.depthwise_norm",
        "squeeze.reduce": f"{theirs}.squeeze_excite.reduce",
        "squeeze.expand": f"{theirs}.squeeze_excite.expand",
        "project": f"{theirs}.projection.project_conv",
        "project_norm": f"{theirs}.projection.project_bn",
    }


FAMILY = ConvNetFamily(
    model_type="efficientnet",
    architecture="EfficientNetForImageClassification",
    shape=shape,
    ends={
        "stem": "efficientnet.embeddings.convolution",
        "stem_norm": "efficientnet.embeddings.batchnorm",
        "top": "efficientnet.encoder.top_conv",
        "top_norm": "efficientnet.encoder.top_bn",
        "classifier": "classifier",
    },
    block=block,
)
