"""Mistral (arXiv 2310.06825): Llama with a sliding window in every layer, where the config states one."""

from jaxlean.hub.family import LLAMA_MODULES, Family, decoder_config

FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    config=lambda hf: decoder_config(hf, windows=(hf.sliding_window,) * hf.num_hidden_layers),
    modules=LLAMA_MODULES,
)
