"""What the families of images share: sizes as Hugging Face's configs state them, and which head a checkpoint has."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from jaxlean.errors import ModelError
from jaxlean.hub.family import activation
from jaxlean.models.activation import ACTIVATION_FUNCTIONS
from jaxlean.models.vision import VisionConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def vision_config(hf: "PreTrainedConfig", **changes: Any) -> VisionConfig:
    """What all ViT-like configs have in common; `changes` holds what a family does in its own way."""
    heads = hf.num_attention_heads
    fields: dict[str, Any] = {
        "hidden_size": hf.hidden_size,
        "intermediate_size": hf.intermediate_size,
        "num_layers": hf.num_hidden_layers,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": hf.hidden_size // heads,
        "image_size": pair(hf.image_size),
        "patch_size": pair(hf.patch_size),
        "num_channels": hf.num_channels,
        "norm": "layer",
        "norm_bias": True,
        "norm_eps": hf.layer_norm_eps,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "gated": False,
        "activation": activation(hf),
        "initializer_range": hf.initializer_range,
    }
    return VisionConfig(**(fields | changes))


def pair(size: Any) -> tuple[int, int]:
    """Height and width, of which a config may state one for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def pooler(name: str) -> str:
    """The pooler's activation."""
    if name not in ACTIVATION_FUNCTIONS:
        raise ModelError(
            "a pooler's activation that is not supported", got=name, wanted=", ".join(ACTIVATION_FUNCTIONS)
        )
    return name


def architecture(hf: "PreTrainedConfig", known: Collection[str]) -> str:
    """The class of transformers that a checkpoint is of, the first of `known` where the config does not say.

    Raises:
        ModelError: another one.
    """
    named = next(iter(getattr(hf, "architectures", None) or known))
    if named not in known:
        raise ModelError("an architecture that is not supported", got=named, wanted=", ".join(known))
    return named
