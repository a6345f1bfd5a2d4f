"""Command R (docs.cohere.com/docs/command-r): attention and MLP side by side behind one norm, logits scaled."""

from jaxlean.hub.family import LLAMA_MODULES, QK_NORMS, Family, decoder_config, rope

FAMILY = Family(
    model_type="cohere",
    architecture="CohereForCausalLM",
    config=lambda hf: decoder_config(
        hf,
        qkv_bias=hf.attention_bias,
        out_bias=hf.attention_bias,
        qk_norm="heads" if hf.use_qk_norm else None,
        norm="layer",
        norm_eps=hf.layer_norm_eps,
        parallel=True,
        shared_norm=True,
        rope=rope(hf, interleaved=True),
        logits_multiplier=hf.logit_scale,
    ),
    modules={ours: theirs for ours, theirs in LLAMA_MODULES.items() if ours != "layers.mlp_norm"} | QK_NORMS,
)
