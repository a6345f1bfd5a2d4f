"""Gemma 3's text model (arXiv 2503.19786): five layers with a window to one without, and a rope for each kind."""

from jaxlean.hub.families import gemma2
from jaxlean.hub.family import QK_NORMS, Family, decoder_config, layer_kinds, rope
from jaxlean.models.config import Kind

FAMILY = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    config=lambda hf: decoder_config(
        hf,
        qkv_bias=hf.attention_bias,
        out_bias=hf.attention_bias,
        qk_norm="head",
        norm_offset=1.0,
        norm_at=("input", "output"),
        embedding_multiplier=hf.hidden_size**0.5,
        attention_scale=hf.query_pre_attn_scalar**-0.5,
        attention_softcap=hf.attn_logit_softcapping,
        logits_softcap=hf.final_logit_softcapping,
        rope=rope(hf, "full_attention"),
        local_rope=rope(hf, "sliding_attention"),
        kinds=tuple(
            Kind(window=hf.sliding_window, rope="local_rope") if slides else Kind() for slides in layer_kinds(hf)
        ),
    ),
    modules=gemma2.MODULES | QK_NORMS,
    unsupported={"use_bidirectional_attention": False},
)
