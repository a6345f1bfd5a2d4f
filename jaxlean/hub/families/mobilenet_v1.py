"""MobileNet v1 (arXiv 1704.04861): blocks without expansion or addition, each two numbered layers in the files."""

from typing import TYPE_CHECKING

from jaxlean.hub.convnets import ConvNetFamily
from jaxlean.hub.family import activation
from jaxlean.models.convnet import BlockConfig, ConvNetConfig
from jaxlean.models.convolution import Padding

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Of each block, with a multiplier of 1 (the paper's table 1).
_CHANNELS = (64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


def shape(hf: "PreTrainedConfig") -> ConvNetConfig:
    """Channels are cut off to whole numbers, not rounded to multiples."""

    def channels(base: int) -> int:
        return max(int(base * hf.depth_multiplier), hf.min_depth)

    padding: Padding = "same" if hf.tf_padding else "symmetric"
    return ConvNetConfig(
        stem=channels(32),
        blocks=tuple(
            BlockConfig(channels(base), stride=stride, padding=padding, activate=True)
            for base, stride in zip(_CHANNELS, _STRIDES, strict=True)
        ),
        top=None,
        num_labels=hf.num_labels or 0,
        num_channels=hf.num_channels,
        activation=activation(hf),
        norm_eps=hf.layer_norm_eps,
        stem_padding=padding,
    )


def block(i: int) -> dict[str, str]:
    """Our modules of block i -> Hugging Face's."""
    return {
        "depthwise": f"mobilenet_v1.layer.{2 * i}.convolution",
        "depthwise_norm": f"mobilenet_v1.layer.{2 * i}.normalization",
        "project": f"mobilenet_v1.layer.{2 * i + 1}.convolution",
        "project_norm": f"mobilenet_v1.layer.{2 * i + 1}.normalization",
    }


FAMILY = ConvNetFamily(
    model_type="mobilenet_v1",
    architecture="MobileNetV1ForImageClassification",
    shape=shape,
    ends={
        "stem": "mobilenet_v1.conv_stem.convolution",
        "stem_norm": "mobilenet_v1.conv_stem.normalization",
        "classifier": "classifier",
    },
    block=block,
)
