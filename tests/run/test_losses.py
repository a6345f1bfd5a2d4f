"""What a job minimises: the loss that the config and the model's own files ask for."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxlean.config import MeshSection
from jaxlean.hub.load import load
from jaxlean.run.losses import loss_of
from jaxlean.xla.mesh import make_mesh


@pytest.mark.parametrize(
    ("said", "override", "weight"),
    [
        ({}, [], 0.0),  # gpt-oss' files say 0.9, and that nobody is to train with it
        ({"output_router_logits": True}, [], 0.9),
        ({"output_router_logits": True}, ["train.router_aux_loss_coef=0"], 0.0),
        ({}, ["train.router_aux_loss_coef=0.1"], 0.1),
    ],
)
def test_experts_are_balanced_as_transformers_would_or_as_the_config_says(said, override, weight, tiny_run, golden):
    model = load(golden / "gptoss_plain", "float32")
    experts = replace(model.config.experts, aux_coef=0.9)
    model = replace(model, config=replace(model.config, experts=experts), hf_config=said)
    config, mesh = tiny_run(*override), make_mesh(MeshSection(), jax.devices()[:1])
    tokens = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)
    batch = {"tokens": tokens, "loss_mask": tokens >= 0, "segments": tokens * 0 + 1,
             "positions": jnp.broadcast_to(jnp.arange(6), (2, 6))}  # fmt: skip
    trained = loss_of(config, model, mesh, "full")(model.params, batch, jax.random.key(0))
    alone = loss_of(config, model, mesh)(model.params, batch, jax.random.key(0))
    uneven = nnx.merge(model.graph, model.params).hidden_and_balance(tokens)[1]
    assert float(trained - alone) == pytest.approx(weight * float(uneven) * 10, abs=1e-4)
