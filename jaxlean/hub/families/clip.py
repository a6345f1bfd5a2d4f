"""CLIP (arXiv 2103.00020): both towers, or the images' alone with a classifier on the mean of the patches."""

from typing import TYPE_CHECKING

from jaxlean.errors import ModelError
from jaxlean.hub.family import Family, Modules, decoder_config
from jaxlean.hub.vision import architecture, vision_config
from jaxlean.models.clip import ClipConfig
from jaxlean.models.vision import VisionConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ARCHITECTURES = ("CLIPModel", "CLIPForImageClassification")
# Of both towers, and of their layers.
_LAYERS = {
    "layers.attention_norm": "encoder.layers.{}.layer_norm1",
    "layers.attention.query": "encoder.layers.{}.self_attn.q_proj",
    "layers.attention.key": "encoder.layers.{}.self_attn.k_proj",
    "layers.attention.value": "encoder.layers.{}.self_attn.v_proj",
    "layers.attention.out": "encoder.layers.{}.self_attn.out_proj",
    "layers.mlp_norm": "encoder.layers.{}.layer_norm2",
    "layers.mlp.up": "encoder.layers.{}.mlp.fc1",
    "layers.mlp.down": "encoder.layers.{}.mlp.fc2",
}
_TEXT = {
    "embed": "embeddings.token_embedding",
    "positions": "embeddings.position_embedding",
    **_LAYERS,
    "norm": "final_layer_norm",
}
_VISION = {
    "patches": "embeddings.patch_embedding",
    "class_token": "embeddings.class_embedding",
    "positions": "embeddings.position_embedding.weight",
    "pre_norm": "pre_layrnorm",  # so it is spelt
    **_LAYERS,
    "norm": "post_layernorm",
}


def _config(hf: "PreTrainedConfig") -> ClipConfig | VisionConfig:
    classifies = architecture(hf, _ARCHITECTURES) == "CLIPForImageClassification"
    vision = vision_config(
        hf.vision_config,
        patch_bias=False,
        pre_norm=True,
        norm_of="pooled",
        classifies="patches",
        num_labels=hf.num_labels if classifies else 0,
    )
    if classifies:
        return vision
    text = hf.text_config
    if not isinstance(text.eos_token_id, int):
        raise ModelError("a text's end that is not one token", got=f"eos_token_id {text.eos_token_id}")
    return ClipConfig(
        text=decoder_config(
            text,
            rope=None,
            learned_positions=text.max_position_embeddings,
            norm="layer",
            norm_bias=True,
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
            gated=False,
            tie_embeddings=True,  # there is no output head
        ),
        vision=vision,
        projection_dim=hf.projection_dim,
        end_token=text.eos_token_id,
        logit_scale=hf.logit_scale_init_value,
    )


def _modules(config: ClipConfig | VisionConfig) -> Modules:
    if isinstance(config, VisionConfig):
        return {ours: f"vision_model.{theirs}" for ours, theirs in _VISION.items()} | {"classifier": "classifier"}
    return {
        **{f"text.{ours}": f"text_model.{theirs}" for ours, theirs in _TEXT.items()},
        **{f"vision.{ours}": f"vision_model.{theirs}" for ours, theirs in _VISION.items()},
        "text_projection": "text_projection",
        "vision_projection": "visual_projection",
        "logit_scale": "logit_scale",
    }


FAMILY = Family(
    model_type="clip",
    architecture="CLIPModel",
    config=_config,
    modules=_modules,
    classifier="CLIPForImageClassification",
    prefix="",
    # what a classifier of images has no use for stands in the files of a whole CLIP
    ignored=(r"\.position_ids$", r"^(classifier|text_model|text_projection|visual_projection)\.", r"^logit_scale$"),
)
