"""MobileNetV2 (arXiv 1801.04381). Its first block expands nothing, and is called the stem in Hugging Face's files."""

from typing import TYPE_CHECKING

from jaxlean.hub.convnets import ConvNetFamily, divisible
from jaxlean.hub.family import activation
from jaxlean.models.convnet import BlockConfig, ConvNetConfig
from jaxlean.models.convolution import Padding

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Of each block, with a multiplier of 1 (the paper's table 2).
_CHANNELS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
_STRIDES = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)


def shape(hf: "PreTrainedConfig") -> ConvNetConfig:
    """Where `output_stride` is reached, a stride becomes a dilation of the blocks after it."""

    def channels(base: int) -> int:
        return divisible(round(base * hf.depth_multiplier), hf.depth_divisible_by, hf.min_depth)

    padding: Padding = "same" if hf.tf_padding else "symmetric"
    stem = last = channels(32)
    blocks: list[BlockConfig] = []
    shrunk, dilation = 2, 1  # by the stem
    for i, (base, stride) in enumerate(zip(_CHANNELS, _STRIDES, strict=True)):
        whole = i > 0 and shrunk == hf.output_stride
        stride, dilated = (1, dilation) if whole else (stride, 1)
        if whole:
            dilation *= _STRIDES[i]
        shrunk *= stride
        inner: int | None = divisible(round(last * hf.expand_ratio), hf.depth_divisible_by, hf.min_depth)
        if i == 0:
            inner = None if hf.first_layer_is_expansion else stem
        residual = i > 0 and stride == 1 and last == channels(base)
        blocks.append(
            BlockConfig(channels(base), inner, stride=stride, dilation=dilated, padding=padding, residual=residual)
        )
        last = channels(base)
    return ConvNetConfig(
        stem=stem,
        blocks=tuple(blocks),
        top=1280 if hf.finegrained_output and hf.depth_multiplier < 1.0 else channels(1280),
        num_labels=hf.num_labels or 0,
        num_channels=hf.num_channels,
        activation=activation(hf),
        norm_eps=hf.layer_norm_eps,
        stem_padding=padding,
    )


def block(i: int) -> dict[str, str]:
    """Our modules of block i -> Hugging Face's."""
    theirs = f"mobilenet_v2.layer.{i - 1}" if i > 0 else "mobilenet_v2.conv_stem"
    return {
        "expand": f"{theirs}.expand_1x1.convolution",
        "expand_norm": f"{theirs}.expand_1x1.normalization",
        "depthwise": f"{theirs}.conv_3x3.convolution",
        "depthwise_norm": f"{theirs}.conv_3x3.normalization",
        "project": f"{theirs}.reduce_1x1.convolution",
        "project_norm": f"{theirs}.reduce_1x1.normalization",
    }


FAMILY = ConvNetFamily(
    model_type="mobilenet_v2",
    architecture="MobileNetV2ForImageClassification",
    shape=shape,
    ends={
        "stem": "mobilenet_v2.conv_stem.first_conv.convolution",
        "stem_norm": "mobilenet_v2.conv_stem.first_conv.normalization",
        "top": "mobilenet_v2.conv_1x1.convolution",
        "top_norm": "mobilenet_v2.conv_1x1.normalization",
        "classifier": "classifier",
    },
    block=block,
)
