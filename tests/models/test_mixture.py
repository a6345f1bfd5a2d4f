"""Mixtures of experts: against a loop over tokens in float64, on meshes against one device, and what is kept."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.adapt.quantize import quantize
from jaxlean.config import LoraSection, MeshSection
from jaxlean.errors import ConfigError
from jaxlean.models.build import abstract
from jaxlean.models.config import Experts, Kind
from jaxlean.models.decoder import ACTIVATIONS, DecoderConfig
from jaxlean.models.layout import layout_on
from jaxlean.models.mixture import Mixture
from jaxlean.platform import written_for
from jaxlean.train.objective import objective
from jaxlean.xla.mesh import make_mesh, place
from jaxlean.xla.remat import scan_layers

HIDDEN, INNER, BATCH, LENGTH = 16, 64, 8, 8
PLAIN = Experts(num=4, per_token=2, intermediate_size=INNER)
KINDS = {
    "plain": PLAIN,
    "shared": replace(PLAIN, shared_size=8, shared_gate=True, norm_weights=False),
    "oss": replace(PLAIN, scores="chosen", fused=True, bias=True, clamp=1.0),
    "deepseek": replace(
        PLAIN, num=8, per_token=3, scores="sigmoid", correction=True, groups=4, groups_per_token=2, scale=2.5
    ),
}


def config(experts):
    return DecoderConfig(
        vocab_size=32, hidden_size=HIDDEN, intermediate_size=8, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
        kinds=(Kind(sparse=True),) * 2, experts=experts,
    )  # fmt: skip


def randomise(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return tree.map_with_path(lambda path, x: jnp.asarray(0.4 * rng.normal(size=x.shape), jnp.float32), shapes)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(experts, params, token):
    """One token [hidden] through a mixture."""
    p = {path: np.asarray(leaf, np.float64) for path, leaf in tree.flatten(params).items()}
    logits = token @ p["router.kernel"] + p.get("router.bias", 0)
    soft = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    scores = {"softmax": soft, "sigmoid": sigmoid(logits), "chosen": logits}[experts.scores]
    choice = scores + p.get("correction", 0)
    if experts.groups > 1:
        groups = choice.reshape(experts.groups, -1)
        best = np.argsort(-np.sort(groups, axis=1)[:, -2:].sum(1))[: experts.groups_per_token]
        choice = np.where(np.isin(np.arange(experts.groups), best)[:, None], groups, -np.inf).reshape(-1)
    chosen = np.argsort(-choice)[: experts.per_token]
    weights = scores[chosen]
    if experts.scores == "chosen":
        weights = np.exp(weights) / np.exp(weights).sum()
    elif experts.norm_weights:
        weights = weights / weights.sum()
    out = np.zeros(HIDDEN)
    for expert, weight in zip(chosen, weights * experts.scale, strict=True):
        if experts.fused:
            both = token @ p["experts.gate_up.kernel"][expert] + p["experts.gate_up.bias"][expert]
            gate, up = np.minimum(both[0::2], experts.clamp), np.clip(both[1::2], -experts.clamp, experts.clamp)
            inner = gate * sigmoid(experts.clamp_slope * gate) * (up + 1)
        else:
            gate = token @ p["experts.gate.kernel"][expert]
            inner = gate * sigmoid(gate) * (token @ p["experts.up.kernel"][expert])
        out += weight * (
            inner @ p["experts.down.kernel"][expert] + p.get("experts.down.bias", np.zeros((8, 1)))[expert]
        )
    if experts.shared_size:
        gate = token @ p["shared.gate.kernel"]
        shared = (gate * sigmoid(gate) * (token @ p["shared.up.kernel"])) @ p["shared.down.kernel"]
        out += shared * sigmoid(token @ p["shared_gate.kernel"])
    return out, chosen, soft


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_loop_over_tokens_and_their_experts(kind):
    experts = KINDS[kind]
    module = nnx.eval_shape(lambda: Mixture(config(experts), dtype=jnp.float32, rngs=nnx.Rngs(0)))
    graph, shapes = nnx.split(module)
    params = randomise(nnx.to_pure_dict(shapes))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 5, HIDDEN))
    segments = jnp.asarray([[1, 1, 1, 2, 0], [1, 1, 1, 1, 1]])
    got, load = nnx.merge(graph, params)(jnp.asarray(x, jnp.float32), None, segments)
    times, probability = np.zeros((2, experts.num))
    for row, at in np.ndindex(2, 5):
        want, chosen, soft = by_hand(experts, params, x[row, at])
        np.testing.assert_allclose(got[row, at], want, atol=2e-5)
        if segments[row, at]:
            times[chosen] += 1
            probability += soft
    np.testing.assert_array_equal(load.chosen, times)
    np.testing.assert_allclose(load.probability, probability, rtol=1e-5)


MESHES = [
    {"expert": 4, "data": 2},
    {"expert": 2, "tensor": 2, "fsdp": 2},
    {"expert": 2, "context": 2, "tensor": 2},
]


@pytest.mark.parametrize(
    ("kind", "form", "platform"), [("shared", "none", "cpu"), ("oss", "int8", "cpu"), ("plain", "nf4", "tpu")]
)
@pytest.mark.slow
def test_on_every_mesh_the_loss_and_its_gradient_are_the_same(kind, form, platform):
    with written_for(platform):
        check_meshes(kind, form)


def check_meshes(kind, form):
    shape = config(KINDS[kind])
    params = randomise(abstract(shape)[1])
    modules = [f"layers.mlp.experts.{name}" for name in (["gate_up"] if KINDS[kind].fused else ["gate", "up"])]
    params = lora.add(params, [*modules, "layers.mlp.experts.down"], LoraSection(r=2), jax.random.key(0))
    params = randomise(params)
    if form != "none":
        params = quantize(params, form)
    graph, shapes = abstract(shape, params)
    tree.check(params, shapes)
    rng = np.random.default_rng(2)
    batch = {
        "tokens": jnp.asarray(rng.integers(0, 32, (BATCH, LENGTH)), jnp.int32),
        "positions": jnp.tile(jnp.arange(LENGTH), (BATCH, 1)),
        "segments": jnp.asarray(np.arange(LENGTH) < rng.integers(4, 9, (BATCH, 1)), jnp.int32),
        "loss_mask": jnp.ones((BATCH, LENGTH), bool),
    }

    def run(mesh):
        where = place(mesh)
        own = tree.map_with_path(lambda path, x: jax.device_put(x, where(path, x.shape)), params)
        scan = scan_layers(["up"], ACTIVATIONS)
        loss = objective(graph, shape, logits_bytes=None, scan=scan, layout=layout_on(mesh), balance=0.1)
        trained, frozen = tree.split(own, lora.is_adapter)
        run = jax.jit(jax.value_and_grad(lambda t, f: loss(tree.merge(t, f), batch, jax.random.key(0))))
        value, grads = run(trained, frozen)
        return float(value), tree.flatten(jax.device_get(grads))

    want, want_grads = run(make_mesh(devices=jax.devices()[:1]))
    for axes in MESHES:
        got, grads = run(make_mesh(MeshSection(**{"data": 1, **axes})))
        assert got == pytest.approx(want, rel=1e-5), axes
        for path, leaf in want_grads.items():
            assert np.abs(leaf).max() > 0
            np.testing.assert_allclose(grads[path], leaf, atol=1e-5 * np.abs(leaf).max(), err_msg=f"{axes} {path}")


def test_the_balance_of_even_routing_is_the_least():
    shape = config(KINDS["plain"])
    graph, shapes = abstract(shape)
    params = tree.map_with_path(lambda path, x: jnp.zeros_like(x) if "router" in path else x, randomise(shapes))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 8)), jnp.int32)
    _, even = nnx.merge(graph, params).hidden_and_balance(tokens)
    assert float(even) == pytest.approx(KINDS["plain"].per_token)
    _, uneven = nnx.merge(graph, randomise(shapes)).hidden_and_balance(tokens)
    assert float(uneven) > float(even)


@pytest.mark.parametrize("policy", ["full", "mlp", "nested"])
def test_what_was_chosen_is_chosen_once(policy, equations):
    shape = config(KINDS["plain"])
    graph, shapes = abstract(shape)
    params, tokens = randomise(shapes), jnp.zeros((2, 8), jnp.int32)
    scan = scan_layers(policy, ACTIVATIONS)

    def loss(params):
        return nnx.merge(graph, params).hidden(tokens, scan=scan).sum()

    choices = [e for e in equations(jax.jit(jax.grad(loss)), params) if str(e.primitive) == "top_k"]
    assert len(choices) == 1


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"lora_dropout": 0.1}])
def test_adapters_of_experts_are_plain(changes):
    params = randomise(abstract(config(KINDS["plain"]))[1])
    with pytest.raises(ConfigError, match="neither magnitudes nor dropout"):
        lora.add(params, ["layers.mlp.experts.up"], LoraSection(r=2, **changes), jax.random.key(0))
