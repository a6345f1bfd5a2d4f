"""BERT (arXiv 1810.04805), and the sentence encoders and MiniLMs that are saved under its name."""

from typing import TYPE_CHECKING, Any

from jaxlean.hub.family import Family, activation, head_dim
from jaxlean.models.encoder import EncoderConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def encoder_config(hf: "PreTrainedConfig", **changes: Any) -> EncoderConfig:
    """What BERT's and RoBERTa's configs have in common."""
    fields: dict[str, Any] = {
        "vocab_size": hf.vocab_size,
        "hidden_size": hf.hidden_size,
        "intermediate_size": hf.intermediate_size,
        "num_layers": hf.num_hidden_layers,
        "num_heads": hf.num_attention_heads,
        "num_kv_heads": hf.num_attention_heads,
        "head_dim": head_dim(hf),
        "rope": None,
        "learned_positions": hf.max_position_embeddings,
        "max_position_embeddings": hf.max_position_embeddings,
        "token_types": hf.type_vocab_size,
        "norm": "layer",
        "norm_bias": True,
        "norm_eps": hf.layer_norm_eps,
        "norm_at": ("sum",),
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "gated": False,
        "activation": activation(hf),
        "dense_of": ("classify",),
        "initializer_range": hf.initializer_range,
    }
    return EncoderConfig(**fields | changes)


MODULES = {
    "embed": "bert.embeddings.word_embeddings",
    "positions": "bert.embeddings.position_embeddings",
    "token_types": "bert.embeddings.token_type_embeddings",
    "embed_norm": "bert.embeddings.LayerNorm",
    "layers.attention.query": "bert.encoder.layer.{}.attention.self.query",
    "layers.attention.key": "bert.encoder.layer.{}.attention.self.key",
    "layers.attention.value": "bert.encoder.layer.{}.attention.self.value",
    "layers.attention.out": "bert.encoder.layer.{}.attention.output.dense",
    "layers.attention_sum_norm": "bert.encoder.layer.{}.attention.output.LayerNorm",
    "layers.mlp.up": "bert.encoder.layer.{}.intermediate.dense",
    "layers.mlp.down": "bert.encoder.layer.{}.output.dense",
    "layers.mlp_sum_norm": "bert.encoder.layer.{}.output.LayerNorm",
}
# What changes what these models compute, and is not there: they stopped being encoders, or count positions otherwise.
UNSUPPORTED = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}

FAMILY = Family(
    model_type="bert",
    architecture="BertModel",
    config=encoder_config,
    modules=MODULES,
    heads={
        "classify": {"classifier.dense": "bert.pooler.dense", "classifier.scores": "classifier"},
        "tag": {"classifier.scores": "classifier"},
    },
    prefix="bert.",
    ignored=(r"^cls\.", r"^qa_outputs\.", r"^classifier\.", r"\.position_ids$"),
    carried=(r"^pooler\.",),
    renamed=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    unsupported=UNSUPPORTED,
)
