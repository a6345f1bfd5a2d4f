"""Recomputing activations changes memory and work, never a gradient; and each policy keeps what it says."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.config import LoraSection, MeshSection
from jaxlean.errors import ConfigError
from jaxlean.models.build import abstract
from jaxlean.models.decoder import ACTIVATIONS, Decoder, DecoderConfig
from jaxlean.models.linear import Dropout
from jaxlean.xla.mesh import batch_sharding, make_mesh, place
from jaxlean.xla.remat import POLICIES, check, kept_names, nested_groups, scan_layers
from jaxlean.xla.work import count, kept_bytes

LAYERS, ROWS, LENGTH = 13, 2, 64  # 13: no divisor but itself
CONFIG = DecoderConfig(
    vocab_size=16, hidden_size=16, intermediate_size=48, num_layers=LAYERS, num_heads=2, num_kv_heads=1, head_dim=8,
    initializer_range=0.3,
)  # fmt: skip
WIDTHS = {"attention_in": 16, "query": 16, "key": 8, "value": 8, "context": 16, "attention_out": 16, "mlp_in": 16,
          "gate": 48, "up": 48, "mlp_out": 16}  # fmt: skip
NAMES = ["query", "key", "value", "gate", "up"]
MOVED = {"save": ["gate"], "offload": ["up", "context"]}
SETTINGS = [name for name in POLICIES if name != "auto"] + [NAMES, MOVED]
# less work on the speed of what comes out
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
EACH = 4 * LAYERS * ROWS * LENGTH  # bytes of one feature in all layers, float32


def tokens(rows=ROWS):
    return jnp.asarray(np.random.default_rng(0).integers(0, 16, (rows, LENGTH)), jnp.int32)


def gradient(policy, *, graph, dropout=None):
    # as for a GPU: a CPU computes with offloading as well, it only gains nothing
    scan = scan_layers(policy, ACTIVATIONS, platform="gpu")

    def loss(trainable, frozen, tokens):
        model = nnx.merge(graph, tree.merge(trainable, frozen))
        return jnp.square(model(tokens, scan=scan, dropout=dropout)).mean()

    return jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)


@pytest.fixture(scope="module")
def results():
    """policy -> (loss and gradients, temp bytes, jaxpr) of the gradient of everything."""
    with jax.numpy_dtype_promotion("strict"):
        graph, params = nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(0)))
        params = nnx.to_pure_dict(params)
        found = {}
        for policy in SETTINGS:
            traced = gradient(policy, graph=graph).trace(params, {}, tokens())
            compiled = traced.lower().compile()
            memory = compiled.memory_analysis().temp_size_in_bytes
            found[str(policy)] = (compiled(params, {}, tokens()), memory, traced.jaxpr.jaxpr)
        return found


def same(got, want):
    for ours, plain in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.abs(plain).max() > 1e-4  # something to be the same as
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", SETTINGS[1:], ids=str)
def test_gradients_are_the_same(results, policy):
    same(results[str(policy)][0], results["none"][0])


def test_each_policy_keeps_less_and_computes_more_than_the_one_before(results):
    memory = {policy: found[1] for policy, found in results.items()}
    work = {policy: count(found[2]).total_flops for policy, found in results.items()}
    assert memory["full"] < memory["dots_no_batch"] < memory["dots"] < memory["none"]
    assert memory["full"] < memory["mlp"] < memory[str(NAMES)] < memory["attention"] < memory["none"]
    # `dots` computes no product again, `full` all of them, `nested` all but its last layers' twice
    assert work["none"] == work["dots"] < work["dots_no_batch"] < work["full"] < work["nested"]
    assert work["attention"] == work["dots_no_batch"]  # nothing but scores and context
    assert work["dots"] < work["mlp"] < work["full"]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ("full", []),
        # mlp_out is never read again: nothing keeps it
        ("attention", ["attention_in", "query", "key", "value", "attention_out", "mlp_in", "gate", "up"]),
        ("mlp", ["attention_in", "query", "key", "value", "context", "attention_out", "mlp_in"]),
        (NAMES, NAMES),
        (["mlp_out"], []),
        ([], []),
        ({"save": NAMES}, NAMES),
        (MOVED, ["gate", "up", "context"]),
        # every product but that of scores and values and the last one: query, key, value, out, gate, up
        ("dots_no_batch", ["query", "key", "value", "attention_out", "gate", "up"]),
    ],
    ids=str,
)
def test_a_policy_keeps_what_it_says_and_nothing_else(policy, kept):
    graph, shapes = abstract(CONFIG)
    jaxpr = gradient(policy, graph=graph).trace(shapes, {}, tokens()).jaxpr.jaxpr
    layer_inputs = 16
    assert kept_bytes(jaxpr) == EACH * (layer_inputs + sum(WIDTHS[name] for name in kept))


def test_nested_keeps_the_square_root_of_the_layers_and_takes_less_memory():
    rows = jax.ShapeDtypeStruct((16, LENGTH), jnp.int32)
    one = 4 * 16 * LENGTH * CONFIG.hidden_size

    def trace(policy, layers):
        graph, shapes = abstract(replace(CONFIG, num_layers=layers))
        return gradient(policy, graph=graph).trace(shapes, {}, rows)

    full, nested = trace("full", 36), trace("nested", 36)
    assert kept_bytes(full.jaxpr.jaxpr) == 36 * one
    assert kept_bytes(nested.jaxpr.jaxpr) == (6 + 6) * one
    # six groups of six and one alone; they are not due at the same time, but are counted
    assert kept_bytes(trace("nested", 37).jaxpr.jaxpr) == (6 + 6 + 1) * one
    less, more = (t.lower().compile().memory_analysis().temp_size_in_bytes for t in (nested, full))
    assert less < more - 0.8 * (36 - 12) * one


@pytest.mark.parametrize("layers", range(1, 130))
def test_groups_of_layers(layers):
    groups, each = nested_groups(layers)
    left = layers - groups * each
    assert 0 <= left < max(each, 2)
    assert groups + each + (left > 0) <= 3 * np.sqrt(layers) + 1


def test_adapters_with_dropout():
    """What is dropped is drawn again, the same: its key is an input of the layer."""
    params = nnx.to_pure_dict(nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(0)))[1])
    params = lora.add(params, lora.targets(params, "all-linear"), LoraSection(r=2), jax.random.key(1))
    params = tree.map_with_path(lambda path, x: x + 0.1 if path.endswith("lora_b") else x, params)
    trainable, frozen = tree.split(params, lora.is_adapter)
    graph, _ = abstract(CONFIG, params)
    dropout = Dropout(0.3, jax.random.key(2))
    want, *others = (
        gradient(policy, graph=graph, dropout=dropout)(trainable, frozen, tokens())
        for policy in ("none", "nested", NAMES)
    )
    for got in others:
        same(got, want)


def test_on_eight_devices(results):
    mesh = make_mesh(MeshSection(data=2, fsdp=2, tensor=2))
    graph, params = nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(params)
    params = tree.map_with_path(lambda path, x: jax.device_put(x, place(mesh)(path, x.shape)), params)
    rows = jax.device_put(tokens(8), batch_sharding(mesh))
    found, memory = {}, {}
    for policy in ("none", "full", "nested", NAMES):
        compiled = gradient(policy, graph=graph).lower(params, {}, rows).compile()
        found[str(policy)] = compiled(params, {}, rows)
        memory[str(policy)] = compiled.memory_analysis().temp_size_in_bytes
        same(found[str(policy)], found["none"])
    assert memory["full"] < memory[str(NAMES)] < memory["none"]
    # of each device, which has a quarter of the rows: as many as the others' one
    assert memory["none"] < 1.5 * results["none"][1]


def test_none_is_the_plain_scan():
    assert scan_layers("none", ACTIVATIONS) is jax.lax.scan


def test_a_name_inside_a_gradient_of_ones_own_is_seen():
    """Residuals named in the forward rule of a custom_vjp: how attention's back ends keep context and lse."""

    @jax.custom_vjp
    def squash(x):
        return jnp.tanh(x)

    def forward(x):
        y = checkpoint_name(jnp.tanh(x), "context")
        return y, y

    squash.defvjp(forward, lambda y, grad: (grad * (1 - y * y),))

    def loss(x, policy):
        scan = scan_layers(policy, ["context"])
        return scan(lambda c, _: (squash(c * 2.0), None), x, jnp.arange(3))[0].sum()

    def tanhs(policy):
        return str(jax.make_jaxpr(jax.grad(lambda x: loss(x, policy)))(jnp.ones(5))).count("= tanh")

    assert tanhs(["context"]) == 1
    assert tanhs("full") == 2


def test_names_of_policies():
    left_out = ("context", "attention_lse")
    assert kept_names("attention", ACTIVATIONS) == tuple(name for name in ACTIVATIONS if name not in left_out)
    assert kept_names("full", ACTIVATIONS) == ()
    assert kept_names(MOVED, ACTIVATIONS) == ("gate",)
    assert kept_names("dots", ACTIVATIONS) is None


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("dot", ["train.remat: unknown policy", "dot", "did you mean 'dots'?"]),
        ("everything", ["unknown policy", "none, full, dots, dots_no_batch, attention, mlp, nested, auto"]),
        (["gate", "qeury"], ["no such activation", "qeury", "attention_in, query, key"]),
        (["full"], ["no such activation"]),
        ({"save": ["gate"], "drop": ["up"]}, ["no such place", "drop", "save, offload"]),
        ({"offload": ["gates"]}, ["no such activation", "gates"]),
        ({"save": ["gate"], "offload": ["gate"]}, ["either saved or offloaded", "gate"]),
        (MOVED, ["a memory of its own", "platform cpu", "train.remat=[gate, up, context]"]),
    ],
    ids=str,
)
def test_a_policy_that_cannot_be(policy, says):
    with pytest.raises(ConfigError) as caught:
        scan_layers(policy, ACTIVATIONS)
    for words in says:
        assert words in str(caught.value)


def test_auto_is_a_policy_but_no_scan():
    check("auto", ACTIVATIONS)
    with pytest.raises(AssertionError):
        scan_layers("auto", ACTIVATIONS)
