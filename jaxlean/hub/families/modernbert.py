"""ModernBERT (arXiv 2412.13663): rotary positions, a window in two layers of three, gated MLPs, norms of the input."""

from typing import TYPE_CHECKING

from jaxlean.hub.family import ACTIVATIONS, Family, activation, head_dim, layer_kinds, rope
from jaxlean.models.config import Kind
from jaxlean.models.encoder import EncoderConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _config(hf: "PreTrainedConfig") -> EncoderConfig:
    def kind(number: int, slides: bool) -> Kind:
        # `local_attention` counts both sides together: half of it to either, the last one included
        window = hf.local_attention // 2 + 1 if slides else None
        return Kind(window=window, rope="local_rope" if slides else "rope", attention_norm=number > 0)

    return EncoderConfig(
        vocab_size=hf.vocab_size,
        hidden_size=hf.hidden_size,
        intermediate_size=hf.intermediate_size,
        num_layers=hf.num_hidden_layers,
        num_heads=hf.num_attention_heads,
        num_kv_heads=hf.num_attention_heads,
        head_dim=head_dim(hf),
        kinds=tuple(kind(number, slides) for number, slides in enumerate(layer_kinds(hf))),
        rope=rope(hf, "full_attention"),
        local_rope=rope(hf, "sliding_attention"),
        max_position_embeddings=hf.max_position_embeddings,
        norm="layer",
        norm_bias=hf.norm_bias,
        norm_eps=hf.norm_eps,
        fused_qkv="parts",
        qkv_bias=hf.attention_bias,
        out_bias=hf.attention_bias,
        mlp_bias=hf.mlp_bias,
        fused_gate_up=True,
        activation=activation(hf),
        dense_of=("classify", "tag"),
        dense_activation=ACTIVATIONS[hf.classifier_activation],
        dense_bias=hf.classifier_bias,
        dense_norm=True,
        pooling=hf.classifier_pooling,
        initializer_range=hf.initializer_range,
    )


_CLASSIFIER = {"classifier.dense": "head.dense", "classifier.norm": "head.norm", "classifier.scores": "classifier"}

FAMILY = Family(
    model_type="modernbert",
    architecture="ModernBertModel",
    config=_config,
    modules={
        "embed": "model.embeddings.tok_embeddings",
        "embed_norm": "model.embeddings.norm",
        "layers.attention_norm": "model.layers.{}.attn_norm",
        "layers.attention.qkv": "model.layers.{}.attn.Wqkv",
        "layers.attention.out": "model.layers.{}.attn.Wo",
        "layers.mlp_norm": "model.layers.{}.mlp_norm",
        "layers.mlp.gate_up": "model.layers.{}.mlp.Wi",
        "layers.mlp.down": "model.layers.{}.mlp.Wo",
        "norm": "model.final_norm",
    },
    heads={"classify": _CLASSIFIER, "tag": _CLASSIFIER},
    ignored=(r"^head\.", r"^decoder\.", r"^classifier\.", r"rotary_emb\."),
)
