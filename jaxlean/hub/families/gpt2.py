"""GPT-2 (openai.com/research/better-language-models): learned positions, kernels that files hold as [in, out]."""

from typing import TYPE_CHECKING

from jaxlean.hub.family import Family, activation
from jaxlean.models.decoder import DecoderConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _config(hf: "PreTrainedConfig") -> DecoderConfig:
    return DecoderConfig(
        vocab_size=hf.vocab_size,
        hidden_size=hf.n_embd,
        intermediate_size=hf.n_inner or 4 * hf.n_embd,
        num_layers=hf.n_layer,
        num_heads=hf.n_head,
        num_kv_heads=hf.n_head,
        head_dim=hf.n_embd // hf.n_head,
        rope=None,
        learned_positions=hf.n_positions,
        norm="layer",
        norm_bias=True,
        norm_eps=hf.layer_norm_epsilon,
        fused_qkv="parts",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        gated=False,
        activation=activation(hf),
        attention_scale_by_layer=hf.scale_attn_by_inverse_layer_idx,
        attention_scale=None if hf.scale_attn_weights else 1.0,
        tie_embeddings=bool(hf.tie_word_embeddings),
        max_position_embeddings=hf.n_positions,
        initializer_range=hf.initializer_range,
    )


FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    config=_config,
    modules={
        "embed": "transformer.wte",
        "positions": "transformer.wpe",
        "layers.attention_norm": "transformer.h.{}.ln_1",
        "layers.attention.qkv": "transformer.h.{}.attn.c_attn",
        "layers.attention.out": "transformer.h.{}.attn.c_proj",
        "layers.mlp_norm": "transformer.h.{}.ln_2",
        "layers.mlp.up": "transformer.h.{}.mlp.c_fc",
        "layers.mlp.down": "transformer.h.{}.mlp.c_proj",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    },
    prefix="transformer.",
    ignored=(r"\.attn\.(masked_)?bias$",),  # the causal mask, as torch kept it
    untransposed=(r"^layers\.",),
    unsupported={"add_cross_attention": False},
)
