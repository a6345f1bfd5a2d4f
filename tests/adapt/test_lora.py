"""LoRA over parameter paths: which kernels, how it starts, what it adds up to."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import SingleDeviceSharding

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.config import LoraSection, MeshSection
from jaxlean.errors import ConfigError
from jaxlean.hub.families import FAMILIES
from jaxlean.models.build import abstract
from jaxlean.models.decoder import Decoder, DecoderConfig
from jaxlean.xla.mesh import make_mesh, place

CONFIG = DecoderConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    qkv_bias=True, initializer_range=0.3,
)  # fmt: skip
NAMES = FAMILIES["llama"].modules
ATTENTION = [f"layers.attention.{name}" for name in ("key", "out", "query", "value")]
MLP = [f"layers.mlp.{name}" for name in ("down", "gate", "up")]
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 12)).astype(np.int32)


@pytest.fixture(scope="module")
def base():
    return nnx.to_pure_dict(nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(0)))[1])


@partial(jax.jit, static_argnums=0)
def forward(graph, params):
    return nnx.merge(graph, params)(jnp.asarray(TOKENS))


def logits(params):
    graph, shapes = abstract(CONFIG, params)
    tree.check(params, shapes)
    return np.asarray(forward(graph, params))


def moved(params, seed=1, size=0.1):
    """The parameters as after some training: what trains is somewhere else."""
    rng = np.random.default_rng(seed)
    return tree.map_with_path(
        lambda path, x: x + jnp.asarray(size * rng.normal(size=x.shape), jnp.float32) if lora.is_adapter(path) else x,
        params,
    )


def message(function, *args):
    with pytest.raises(ConfigError) as caught:
        function(*args)
    return str(caught.value)


# ---- which kernels


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("all-linear", ATTENTION + MLP),
        (["q_proj"], ["layers.attention.query"]),
        (["query", "down_proj", "query"], ["layers.attention.query", "layers.mlp.down"]),
        (["layers.mlp.up"], ["layers.mlp.up"]),
        (["lm_head"], ["head"]),
        (r"attention\.", ATTENTION),
        (r"^(q|v)_proj$", ["layers.attention.query", "layers.attention.value"]),
        (r".*self_attn\.[qk]_proj", ["layers.attention.key", "layers.attention.query"]),
        (r".*", ["head", *ATTENTION, *MLP]),
    ],
)
def test_targets(base, wanted, found):
    assert lora.targets(base, wanted, NAMES) == found


def test_all_linear_of_a_tied_model_and_without_other_names():
    tied = abstract(replace(CONFIG, tie_embeddings=True))[1]
    assert lora.targets(tied, "all-linear") == ATTENTION + MLP
    assert lora.targets(tied, ["gate"]) == ["layers.mlp.gate"]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (["q_prj"], ["no such module", "'q_prj'", "did you mean 'q_proj'?"]),
        (["query", "c_attn"], ["no such module", "'c_attn'", "known: ", "down_proj"]),
        ("c_attn", ["the rule matched no module", "'c_attn'", "all-linear", "layers.attention.query"]),
        ("(", ["not a regular expression", "'('"]),
        (["embed"], ["no such module"]),  # an embedding has no kernel
        (["norm"], ["no such module"]),
    ],
)
def test_targets_that_match_nothing(base, wanted, says):
    text = message(lora.targets, base, wanted, NAMES)
    for words in ["lora.target_modules", *says]:
        assert words in text


# ---- how it starts


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_fresh_adapter_changes_nothing(base, use_dora):
    params = lora.add(base, lora.targets(base, ".*"), LoraSection(r=3, use_dora=use_dora), jax.random.key(0))
    np.testing.assert_allclose(logits(params), logits(base), atol=1e-5)
    for path, leaf in tree.flatten(base).items():
        assert tree.flatten(params)[path] is leaf  # the base is not even copied


def test_the_leaves_of_a_fresh_adapter(base):
    config = LoraSection(r=3, lora_alpha=12, use_dora=True)
    params = tree.flatten(lora.add(base, ["layers.mlp.down", "head"], config, jax.random.key(0)))
    new = {path: leaf for path, leaf in params.items() if path not in tree.flatten(base)}
    assert {path: leaf.shape for path, leaf in new.items()} == {
        "layers.mlp.down.lora_a": (2, 24, 3),
        "layers.mlp.down.lora_b": (2, 3, 16),
        "layers.mlp.down.lora_scale": (2,),
        "layers.mlp.down.lora_magnitude": (2, 16),
        "head.lora_a": (16, 3),
        "head.lora_b": (3, 32),
        "head.lora_scale": (),
        "head.lora_magnitude": (32,),
    }
    assert {str(leaf.dtype) for leaf in new.values()} == {"float32"}
    a = np.asarray(new["layers.mlp.down.lora_a"])
    assert np.abs(a).max() <= 24**-0.5  # PEFT's kaiming_uniform(sqrt(5))
    assert np.std(a) == pytest.approx(24**-0.5 / 3**0.5, rel=0.1)
    assert not np.array_equal(a[0], a[1])
    assert not np.asarray(new["head.lora_b"]).any()
    np.testing.assert_array_equal(new["layers.mlp.down.lora_scale"], [4, 4])
    kernel = np.asarray(params["layers.mlp.down.kernel"])
    np.testing.assert_allclose(new["layers.mlp.down.lora_magnitude"], np.linalg.norm(kernel, axis=1), rtol=1e-6)
    assert {path for path in new if not lora.is_adapter(path)} == {"layers.mlp.down.lora_scale", "head.lora_scale"}
    assert not any(lora.is_adapter(path) for path in tree.flatten(base))


def test_adapters_are_drawn_by_the_key_and_each_its_own(base):
    def draw(seed, modules=("layers.mlp.gate", "layers.mlp.up")):
        return tree.flatten(lora.add(base, modules, LoraSection(r=2), jax.random.key(seed)))

    one = draw(0)
    np.testing.assert_array_equal(one["layers.mlp.up.lora_a"], draw(0)["layers.mlp.up.lora_a"])
    np.testing.assert_array_equal(
        one["layers.mlp.up.lora_a"], draw(0, ("layers.mlp.up", "layers.mlp.gate"))["layers.mlp.up.lora_a"]
    )
    assert not np.array_equal(one["layers.mlp.up.lora_a"], one["layers.mlp.gate.lora_a"])
    assert not np.array_equal(one["layers.mlp.up.lora_a"], draw(1)["layers.mlp.up.lora_a"])


def test_a_rank_beyond_the_matrix(base):
    text = message(lora.add, base, ["layers.mlp.up"], LoraSection(r=17), jax.random.key(0))
    for words in ("lora.r exceeds the matrix", "layers.mlp.up", "17", "at most 16"):
        assert words in text
    lora.add(base, ["layers.mlp.up"], LoraSection(r=16), jax.random.key(0))


@given(st.integers(1, 64), st.floats(0.1, 100), st.booleans())
def test_the_scale(r, alpha, rslora):
    got = lora.scale(LoraSection(r=r, lora_alpha=alpha, use_rslora=rslora))
    assert got == pytest.approx(alpha / (np.sqrt(r) if rslora else r))


# ---- merging


@settings(max_examples=8)
@given(
    r=st.sampled_from([1, 4]),
    alpha=st.floats(0.5, 8),
    rslora=st.booleans(),
    dora=st.booleans(),
    targets=st.sampled_from([".*", ["q_proj"]]),
)
def test_merged_kernels_compute_what_the_adapter_does(base, r, alpha, rslora, dora, targets):
    config = LoraSection(r=r, lora_alpha=alpha, use_rslora=rslora, use_dora=dora)
    modules = lora.targets(base, targets, NAMES)
    params = tree.flatten(moved(lora.add(base, modules, config, jax.random.key(1))))
    merged = tree.flatten(lora.merge(tree.unflatten(params)))
    assert merged.keys() == tree.flatten(base).keys()
    for path, leaf in merged.items():
        module = path.removesuffix(".kernel")
        if module not in modules:
            assert leaf is params[path]
            continue
        kernel, a, b = (np.asarray(params[f"{module}.{x}"], np.float64) for x in ("kernel", "lora_a", "lora_b"))
        want = kernel + lora.scale(config) * a @ b
        if dora:
            want *= (np.asarray(params[f"{module}.lora_magnitude"]) / np.linalg.norm(want, axis=-2))[..., None, :]
        np.testing.assert_allclose(leaf, want, atol=1e-5)


@pytest.mark.parametrize("use_dora", [False, True])
def test_merged_logits_are_those_of_the_adapter(base, use_dora):
    params = lora.add(base, lora.targets(base, ".*"), LoraSection(r=3, use_dora=use_dora), jax.random.key(0))
    params = moved(params)
    assert np.abs(logits(params) - logits(base)).max() > 0.1
    np.testing.assert_allclose(logits(lora.merge(params)), logits(params), atol=1e-4)


def test_a_merged_kernel_keeps_its_dtype(base):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    params = moved(lora.add(half, ["layers.mlp.up"], LoraSection(r=2), jax.random.key(0)))
    merged = tree.flatten(lora.merge(params))
    assert {str(leaf.dtype) for leaf in merged.values()} == {"bfloat16"}
    # summed in float32 and rounded once
    up = {k: np.asarray(v, np.float32) for k, v in params["layers"]["mlp"]["up"].items()}
    want = up["kernel"] + 16 * up["lora_a"] @ up["lora_b"]
    np.testing.assert_allclose(np.asarray(merged["layers.mlp.up.kernel"], np.float32), want, rtol=2**-8, atol=1e-6)


# ---- PiSSA

PISSA = LoraSection(r=3, lora_alpha=6, init_lora_weights="pissa")


def adapter_of(params):
    return tree.split(params, lambda path: ".lora_" in path)[0]


def test_pissa_starts_as_the_base(base):
    params = lora.add(base, lora.targets(base, "all-linear"), PISSA, jax.random.key(0))
    np.testing.assert_allclose(logits(params), logits(base), atol=1e-5)


def test_pissa_takes_the_principal_directions_out_of_the_kernel(base):
    params = lora.add(base, ["layers.mlp.up"], PISSA, jax.random.key(0))["layers"]["mlp"]["up"]
    for layer in range(2):
        kernel = np.asarray(base["layers"]["mlp"]["up"]["kernel"][layer], np.float64)
        values = np.linalg.svd(kernel, compute_uv=False)
        low = 2 * np.asarray(params["lora_a"][layer], np.float64) @ np.asarray(params["lora_b"][layer], np.float64)
        np.testing.assert_allclose(np.linalg.svd(low, compute_uv=False)[:3], values[:3], rtol=1e-5)
        rest = np.linalg.svd(np.asarray(params["kernel"][layer], np.float64), compute_uv=False)
        np.testing.assert_allclose(rest[:-3], values[3:], rtol=1e-4, atol=1e-5)
        # the two factors share the singular values
        np.testing.assert_allclose(
            np.linalg.norm(params["lora_a"][layer], axis=0), np.linalg.norm(params["lora_b"][layer], axis=1), rtol=1e-5
        )


@pytest.mark.parametrize("rslora", [False, True])
def test_a_trained_pissa_adapter_over_the_original_base(base, rslora):
    """What is exported for PEFT (twice the rank, the untouched base) is the model that was trained."""
    config = PISSA.model_copy(update={"use_rslora": rslora})
    start = lora.add(base, lora.targets(base, "all-linear"), config, jax.random.key(0))
    trained = moved(start)
    exported = lora.unprincipal(adapter_of(trained), adapter_of(start))
    assert exported["layers"]["mlp"]["up"]["lora_a"].shape == (2, 16, 6)
    assert np.abs(logits(trained) - logits(base)).max() > 0.1
    np.testing.assert_allclose(logits(tree.merge(base, exported)), logits(trained), atol=1e-4)
    # without training it is the base
    np.testing.assert_allclose(
        logits(tree.merge(base, lora.unprincipal(adapter_of(start), adapter_of(start)))), logits(base), atol=1e-5
    )


# ---- where it lies


@pytest.mark.parametrize("config", [LoraSection(r=2, use_dora=True), PISSA], ids=["dora", "pissa"])
def test_on_a_mesh_adapters_are_copied_to_all_devices_and_kernels_stay(base, config):
    mesh = make_mesh(MeshSection(data=2, fsdp=2, tensor=2))
    spread = tree.map_with_path(lambda path, x: jax.device_put(x, place(mesh)(path, x.shape)), base)
    params = tree.flatten(lora.add(spread, ["layers.mlp.up", "head"], config, jax.random.key(0)))
    for path, leaf in params.items():
        assert leaf.sharding == place(mesh)(path, leaf.shape), path
    alone = tree.flatten(lora.add(base, ["layers.mlp.up", "head"], config, jax.random.key(0)))
    for path, leaf in alone.items():
        np.testing.assert_allclose(params[path], leaf, atol=1e-6, err_msg=path)
    assert isinstance(alone["head.lora_a"].sharding, SingleDeviceSharding)


def test_shapes_can_be_had_without_memory():
    shapes = abstract(CONFIG)[1]
    got = jax.eval_shape(lambda p: lora.add(p, ["layers.mlp.up"], LoraSection(r=2), jax.random.key(0)), shapes)
    assert got["layers"]["mlp"]["up"]["lora_a"].shape == (2, 16, 2)


# ---- LoRA+


def test_lora_plus_speeds_up_b_alone():
    faster = lora.learning_rate_ratios(LoraSection(loraplus_lr_ratio=16))
    paths = [f"layers.mlp.up.lora_{name}" for name in ("a", "b", "magnitude")]
    assert [faster(path) for path in paths] == [1, 16, 1]
    for config in (LoraSection(), None):
        assert {lora.learning_rate_ratios(config)(path) for path in paths} == {1}
