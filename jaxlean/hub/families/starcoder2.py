"""StarCoder2 (arXiv 2402.19173): layer norms, biases, an MLP without a gate, a sliding window."""

from jaxlean.hub.family import LLAMA_MODULES, Family, decoder_config

FAMILY = Family(
    model_type="starcoder2",
    architecture="Starcoder2ForCausalLM",
    config=lambda hf: decoder_config(
        hf,
        norm="layer",
        norm_bias=True,
        norm_eps=hf.norm_epsilon,
        qkv_bias=hf.use_bias,
        out_bias=hf.use_bias,
        mlp_bias=hf.use_bias,
        gated=False,
        windows=(hf.sliding_window,) * hf.num_hidden_layers,
    ),
    modules={ours: theirs for ours, theirs in LLAMA_MODULES.items() if "mlp." not in ours}
    | {"layers.mlp.up": "model.layers.{}.mlp.c_fc", "layers.mlp.down": "model.layers.{}.mlp.c_proj"},
)
