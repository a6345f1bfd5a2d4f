"""Models of images, alone and with text: transformers over patches, and convolutions with statistics of a batch."""

from typing import Any

from cases.case import Case

CLASSIFY = "AutoModelForImageClassification"

VIT: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 3,
}
VIT_KEY = ("key.bias", "k_proj.bias")
VIT_CASES = [
    Case(
        "vit_classify",
        {"layer_norm_eps": 0.1},
        matters=[{"layer_norm_eps": 1e-12}, {"hidden_act": "relu"}],
        base=VIT,
        head=CLASSIFY,
        mute=VIT_KEY,
        gradients=(
            "vit.embeddings.cls_token",
            "vit.embeddings.position_embeddings",
            "vit.embeddings.patch_embeddings.projection.weight",
            "vit.encoder.layer.0.attention.attention.value.bias",
            "vit.encoder.layer.1.layernorm_after.weight",
            "vit.layernorm.bias",
            "classifier.weight",
        ),
    ),
    Case(
        "vit_nobias",
        {"qkv_bias": False, "num_hidden_layers": 3, "image_size": [16, 24], "patch_size": 8, "num_channels": 1},
        base=VIT,
        head=CLASSIFY,
    ),
    Case(
        "vit_hidden",
        {"hidden_act": "gelu_pytorch_tanh", "num_attention_heads": 3},
        base=VIT,
        head="AutoModel",
        mute=(*VIT_KEY, "pooler.dense.weight", "pooler.dense.bias"),
    ),
]

CLIP_TEXT: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
    "projection_dim": 12,
    "pad_token_id": 1,
    "bos_token_id": 3,
    "eos_token_id": 20,
}
CLIP_VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 16,
    "patch_size": 4,
    "projection_dim": 12,
}
CLIP: dict[str, Any] = {"text_config": CLIP_TEXT, "vision_config": CLIP_VISION, "projection_dim": 12}
CLIP_CASES = [
    Case(
        "clip_both",
        matters=[
            {"text_config": {**CLIP_TEXT, "hidden_act": "relu"}},
            {"text_config": {**CLIP_TEXT, "layer_norm_eps": 1e-1}},
            {"vision_config": {**CLIP_VISION, "hidden_act": "relu"}},
            {"vision_config": {**CLIP_VISION, "layer_norm_eps": 1e-1}},
        ],
        base=CLIP,
        head="CLIPModel",
        mute=("k_proj.bias",),
        gradients=(
            "logit_scale",
            "text_projection.weight",
            "visual_projection.weight",
            "text_model.embeddings.position_embedding.weight",
            "text_model.encoder.layers.0.self_attn.v_proj.bias",
            "text_model.final_layer_norm.weight",
            "vision_model.embeddings.class_embedding",
            "vision_model.embeddings.patch_embedding.weight",
            "vision_model.pre_layrnorm.weight",
            "vision_model.encoder.layers.1.mlp.fc2.weight",
            "vision_model.post_layernorm.bias",
        ),
        lengths=(15, 24),
    ),
    # openai/clip-vit-base-patch32: 2 stands for the end of text, and means the token with the largest number.
    Case(
        "clip_old",
        {
            "text_config": {**CLIP_TEXT, "eos_token_id": 2, "hidden_act": "gelu", "num_hidden_layers": 3},
            "vision_config": {**CLIP_VISION, "hidden_act": "gelu", "patch_size": 8},
        },
        base=CLIP,
        head="CLIPModel",
        leftovers=True,
        mute=("k_proj.bias",),
        lengths=(24, 15),
    ),
    Case(
        "clip_classify",
        {"num_labels": 3},
        base=CLIP,
        head="CLIPForImageClassification",
        mute=("k_proj.bias", "post_layernorm.weight", "post_layernorm.bias"),
    ),
]

MOBILENET_V1: dict[str, Any] = {"image_size": 32, "depth_multiplier": 0.1, "min_depth": 4, "num_labels": 3}
MOBILENET_V1_CASES = [
    Case(
        "mobilenetv1_classify",
        {"layer_norm_eps": 0.03},
        matters=[{"layer_norm_eps": 0.001}, {"tf_padding": False}, {"hidden_act": "relu"}],
        base=MOBILENET_V1,
        model_type="mobilenet_v1",
        head=CLASSIFY,
        image=(45, 38),
        gradients=(
            "mobilenet_v1.conv_stem.convolution.weight",
            "mobilenet_v1.layer.4.convolution.weight",
            "mobilenet_v1.layer.7.convolution.weight",
            "mobilenet_v1.layer.20.normalization.weight",
            "classifier.bias",
        ),
    ),
    Case(
        "mobilenetv1_smooth",
        {"depth_multiplier": 0.15, "hidden_act": "gelu"},
        matters=[{"hidden_act": "relu6"}, {"tf_padding": False}],
        base=MOBILENET_V1,
        model_type="mobilenet_v1",
        head=CLASSIFY,
        image=(40, 33),
    ),
    Case(
        "mobilenetv1_symmetric",
        {"tf_padding": False},
        matters=[{"tf_padding": True}],
        base=MOBILENET_V1,
        model_type="mobilenet_v1",
        head=CLASSIFY,
    ),
]

MOBILENET_V2: dict[str, Any] = {
    "image_size": 24,
    "depth_multiplier": 0.05,
    "depth_divisible_by": 4,
    "min_depth": 4,
    "expand_ratio": 2.0,
    "finegrained_output": False,
    "num_labels": 3,
}
MOBILENET_V2_CASES = [
    Case(
        "mobilenetv2_classify",
        {"layer_norm_eps": 0.1},
        matters=[
            {"layer_norm_eps": 0.001},
            {"tf_padding": False},
            {"output_stride": 8},
            {"output_stride": 16},
            {"hidden_act": "relu"},
        ],
        base=MOBILENET_V2,
        model_type="mobilenet_v2",
        head=CLASSIFY,
        gradients=(
            "mobilenet_v2.conv_stem.first_conv.convolution.weight",
            "mobilenet_v2.conv_stem.conv_3x3.normalization.weight",
            "mobilenet_v2.layer.3.conv_3x3.convolution.weight",
            "mobilenet_v2.layer.15.reduce_1x1.normalization.bias",
            "mobilenet_v2.conv_1x1.convolution.weight",
            "classifier.weight",
        ),
    ),
    # The stride held at 8 by spreading the kernels; padded alike on all sides.
    Case(
        "mobilenetv2_spread",
        {"output_stride": 8, "tf_padding": False, "first_layer_is_expansion": False, "image_size": 22},
        matters=[{"tf_padding": True}, {"output_stride": 16}],
        base=MOBILENET_V2,
        model_type="mobilenet_v2",
        head=CLASSIFY,
    ),
    Case(
        "mobilenetv2_odd",
        {"expand_ratio": 3.0, "finegrained_output": True, "output_stride": 16, "layer_norm_eps": 0.3},
        matters=[{"tf_padding": False}, {"output_stride": 32}],
        base=MOBILENET_V2,
        model_type="mobilenet_v2",
        head=CLASSIFY,
        image=(50, 37),
    ),
]

# A width of 0.1 makes the 32 channels of the first convolution 4, the 1280 of the last 128.
EFFICIENTNET: dict[str, Any] = {
    "image_size": 24,
    "width_coefficient": 0.1,
    "depth_coefficient": 1.0,
    "depth_divisor": 4,
    "hidden_dim": 128,
    "kernel_sizes": [3, 5, 3],
    "in_channels": [32, 80, 120],
    "out_channels": [80, 120, 160],
    "strides": [1, 2, 2],
    "num_block_repeats": [1, 2, 1],
    "expand_ratios": [1, 4, 3],
    "num_labels": 3,
}
EFFICIENTNET_CASES = [
    Case(
        "efficientnet_classify",
        {"batch_norm_eps": 0.1},
        matters=[{"batch_norm_eps": 0.001}, {"hidden_act": "relu"}, {"pooling_type": "max"}],
        base=EFFICIENTNET,
        head=CLASSIFY,
        gradients=(
            "efficientnet.embeddings.convolution.weight",
            "efficientnet.encoder.blocks.1.depthwise_conv.depthwise_conv.weight",
            "efficientnet.encoder.blocks.2.squeeze_excite.reduce.bias",
            "efficientnet.encoder.blocks.2.projection.project_bn.weight",
            "efficientnet.encoder.top_conv.weight",
            "classifier.weight",
        ),
    ),
    Case(
        "efficientnet_deep",
        {"depth_coefficient": 1.5, "strides": [2, 1, 2], "kernel_sizes": [5, 3, 7], "depthwise_padding": [5]},
        matters=[{"depthwise_padding": []}],
        base=EFFICIENTNET,
        head=CLASSIFY,
        image=(46, 39),
    ),
    Case(
        "efficientnet_max",
        {"pooling_type": "max", "squeeze_expansion_ratio": 0.5, "image_size": 27, "hidden_act": "relu"},
        matters=[{"pooling_type": "mean"}],
        base=EFFICIENTNET,
        head=CLASSIFY,
    ),
]

CASES = [*VIT_CASES, *CLIP_CASES, *MOBILENET_V1_CASES, *MOBILENET_V2_CASES, *EFFICIENTNET_CASES]
