"""ViT (arXiv 2010.11929): layers over patches, then a classifier on the class token, or a pooler."""

from typing import TYPE_CHECKING

from jaxlean.hub.family import Family
from jaxlean.hub.vision import architecture, pooler, vision_config
from jaxlean.models.vision import VisionConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ARCHITECTURES = ("ViTForImageClassification", "ViTModel")


def _config(hf: "PreTrainedConfig") -> VisionConfig:
    classifies = architecture(hf, _ARCHITECTURES) == "ViTForImageClassification"
    return vision_config(
        hf,
        qkv_bias=hf.qkv_bias,
        pooler=None if classifies else pooler(hf.pooler_act),
        pooler_size=hf.pooler_output_size or hf.hidden_size,
        num_labels=hf.num_labels if classifies else 0,
    )


FAMILY = Family(
    model_type="vit",
    architecture="ViTForImageClassification",
    config=_config,
    modules={
        "patches": "vit.embeddings.patch_embeddings.projection",
        "class_token": "vit.embeddings.cls_token",
        "positions": "vit.embeddings.position_embeddings",
        "layers.attention_norm": "vit.encoder.layer.{}.layernorm_before",
        "layers.attention.query": "vit.encoder.layer.{}.attention.attention.query",
        "layers.attention.key": "vit.encoder.layer.{}.attention.attention.key",
        "layers.attention.value": "vit.encoder.layer.{}.attention.attention.value",
        "layers.attention.out": "vit.encoder.layer.{}.attention.output.dense",
        "layers.mlp_norm": "vit.encoder.layer.{}.layernorm_after",
        "layers.mlp.up": "vit.encoder.layer.{}.intermediate.dense",
        "layers.mlp.down": "vit.encoder.layer.{}.output.dense",
        "norm": "vit.layernorm",
        "pooler": "vit.pooler.dense",
        "classifier": "classifier",
    },
    classifier="ViTForImageClassification",
    prefix="vit.",
    ignored=(r"^classifier\.", r"^(vit\.)?pooler\."),
    adapters={
        "layers.attention.query": "vit.layers.{}.attention.q_proj",
        "layers.attention.key": "vit.layers.{}.attention.k_proj",
        "layers.attention.value": "vit.layers.{}.attention.v_proj",
        "layers.attention.out": "vit.layers.{}.attention.o_proj",
        "layers.mlp.up": "vit.layers.{}.mlp.fc1",
        "layers.mlp.down": "vit.layers.{}.mlp.fc2",
    },
    ones={r"^class_token$": (0, 1), r"^positions$": (0,)},
)
