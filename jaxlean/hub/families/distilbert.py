"""DistilBERT (arXiv 1910.01108): BERT with half the layers, without types of tokens."""

from typing import TYPE_CHECKING

from jaxlean.hub.family import Family, activation
from jaxlean.models.encoder import EncoderConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _config(hf: "PreTrainedConfig") -> EncoderConfig:
    return EncoderConfig(
        vocab_size=hf.vocab_size,
        hidden_size=hf.dim,
        intermediate_size=hf.hidden_dim,
        num_layers=hf.n_layers,
        num_heads=hf.n_heads,
        num_kv_heads=hf.n_heads,
        head_dim=hf.dim // hf.n_heads,
        rope=None,
        learned_positions=hf.max_position_embeddings,
        max_position_embeddings=hf.max_position_embeddings,
        norm="layer",
        norm_bias=True,
        norm_eps=1e-12,
        norm_at=("sum",),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        gated=False,
        activation=activation(hf),
        dense_of=("classify",),
        dense_activation="relu",
        initializer_range=hf.initializer_range,
    )


FAMILY = Family(
    model_type="distilbert",
    architecture="DistilBertModel",
    config=_config,
    modules={
        "embed": "distilbert.embeddings.word_embeddings",
        "positions": "distilbert.embeddings.position_embeddings",
        "embed_norm": "distilbert.embeddings.LayerNorm",
        "layers.attention.query": "distilbert.transformer.layer.{}.attention.q_lin",
        "layers.attention.key": "distilbert.transformer.layer.{}.attention.k_lin",
        "layers.attention.value": "distilbert.transformer.layer.{}.attention.v_lin",
        "layers.attention.out": "distilbert.transformer.layer.{}.attention.out_lin",
        "layers.attention_sum_norm": "distilbert.transformer.layer.{}.sa_layer_norm",
        "layers.mlp.up": "distilbert.transformer.layer.{}.ffn.lin1",
        "layers.mlp.down": "distilbert.transformer.layer.{}.ffn.lin2",
        "layers.mlp_sum_norm": "distilbert.transformer.layer.{}.output_layer_norm",
    },
    heads={
        "classify": {"classifier.dense": "pre_classifier", "classifier.scores": "classifier"},
        "tag": {"classifier.scores": "classifier"},
    },
    prefix="distilbert.",
    ignored=(r"^vocab_\w+\.", r"^qa_outputs\.", r"^(pre_)?classifier\.", r"\.position_ids$"),
)
