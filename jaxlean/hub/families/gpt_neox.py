"""GPT-NeoX and Pythia (arXiv 2204.06745, 2304.01373): attention and MLP side by side, a part of each head turned."""

from jaxlean.hub.family import Family, decoder_config

FAMILY = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    config=lambda hf: decoder_config(
        hf,
        norm="layer",
        norm_bias=True,
        norm_eps=hf.layer_norm_eps,
        fused_qkv="heads",
        qkv_bias=hf.attention_bias,
        out_bias=hf.attention_bias,
        mlp_bias=True,
        gated=False,
        parallel=hf.use_parallel_residual,
    ),
    modules={
        "embed": "gpt_neox.embed_in",
        "layers.attention_norm": "gpt_neox.layers.{}.input_layernorm",
        "layers.attention.qkv": "gpt_neox.layers.{}.attention.query_key_value",
        "layers.attention.out": "gpt_neox.layers.{}.attention.dense",
        "layers.mlp_norm": "gpt_neox.layers.{}.post_attention_layernorm",
        "layers.mlp.up": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
        "layers.mlp.down": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
        "norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
    },
    prefix="gpt_neox.",
    ignored=(r"rotary_emb\.inv_freq$", r"\.attention\.(masked_)?bias$"),
)
