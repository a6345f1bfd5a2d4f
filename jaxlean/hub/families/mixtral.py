"""Mixtral (arXiv 2401.04088): Mistral, with a mixture of experts for the MLP of every layer."""

from jaxlean.hub.family import LLAMA_MODULES, Family, decoder_config
from jaxlean.models.config import Experts, Kind

# What layers with experts have where others have an MLP, after `model.layers.{}.`.
MODULES = {
    "layers.mlp.router": "block_sparse_moe.gate",
    "layers.mlp.experts.gate": "block_sparse_moe.experts.{}.w1",
    "layers.mlp.experts.up": "block_sparse_moe.experts.{}.w3",
    "layers.mlp.experts.down": "block_sparse_moe.experts.{}.w2",
}

FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    config=lambda hf: decoder_config(
        hf,
        kinds=(Kind(window=hf.sliding_window, sparse=True),) * hf.num_hidden_layers,
        experts=Experts(
            num=hf.num_local_experts,
            per_token=hf.num_experts_per_tok,
            intermediate_size=hf.intermediate_size,
            aux_coef=hf.router_aux_loss_coef,
        ),
    ),
    modules={ours: theirs for ours, theirs in LLAMA_MODULES.items() if ".mlp." not in ours}
    | {ours: f"model.layers.{{}}.{theirs}" for ours, theirs in MODULES.items()},
    adapters={"layers.mlp.router": "model.layers.{}.mlp.gate"},
    unsupported={"router_jitter_noise": 0.0},
)
