"""The encoder: several texts a row, padding, windows to both sides, heads, pooling, adapters, remat.

That it computes what transformers computes is tested with the golden files, in tests/hub/families.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.adapt.quantize import is_chosen
from jaxlean.config import MeshSection
from jaxlean.models.build import abstract
from jaxlean.models.config import ACTIVATIONS, Kind
from jaxlean.models.encoder import EncoderConfig, first_tokens
from jaxlean.models.layout import ALONE, layout_on
from jaxlean.models.linear import Dropout, Linear
from jaxlean.models.rope import Rope
from jaxlean.xla.mesh import make_mesh, place
from jaxlean.xla.remat import scan_layers

VOCAB = 40
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_heads": 4, "num_kv_heads": 4, "head_dim": 4}
BERT = EncoderConfig(
    vocab_size=VOCAB, num_layers=2, **SHAPE, rope=None, learned_positions=20, first_position=2, token_types=2,
    norm="layer", norm_bias=True, norm_at=("sum",), qkv_bias=True, out_bias=True, mlp_bias=True, gated=False,
    dense_of=("classify",), num_labels=3,
)  # fmt: skip
MODERN = EncoderConfig(
    vocab_size=VOCAB, num_layers=3, **SHAPE, norm="layer", fused_qkv="parts", fused_gate_up=True,
    local_rope=Rope(rope_theta=100.0), dense_of=("classify", "tag"), dense_norm=True, num_labels=3,
    kinds=(Kind(attention_norm=False), Kind(window=3, rope="local_rope"), Kind()),
)  # fmt: skip
CONFIGS = {
    "none": BERT,
    "bert_cls": replace(BERT, head="classify"),
    "bert_mean": replace(BERT, head="classify", pooling="mean"),
    "bert_tag": replace(BERT, head="tag"),
    "bert_vector": replace(BERT, head="embed", pooling="mean", normalize=True),
    "modern_cls": replace(MODERN, head="classify"),
    "modern_tag": replace(MODERN, head="tag"),
    "modern_vector": replace(MODERN, head="embed", pooling="cls"),
}
# Two texts in the first row with padding behind, one in the second.
SEGMENTS = jnp.array([[1] * 7 + [2] * 5 + [0] * 4, [1] * 16], jnp.int32)


def randomised(config, seed=0, adapters=None):
    rng = np.random.default_rng(seed)
    shapes = tree.merge(abstract(config)[1], adapters or {})

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        return jnp.asarray(1 + 0.3 * noise if path.endswith(".scale") else 0.4 * noise, jnp.float32)

    return tree.map_with_path(draw, shapes)


def run(config, params, *args, **how):
    graph, _ = abstract(config, params)
    whole = jax.jit(lambda p: nnx.merge(graph, p)(*args, **how))
    # to compile takes longer than to run, and optimising is most of it
    return whole.lower(params).compile({"xla_backend_optimization_level": 0})(params)


def inputs(seed=1):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, VOCAB, (2, 16)), jnp.int32), jnp.asarray(rng.integers(0, 2, (2, 16)), jnp.int32)


def with_types(config, types):
    return {"token_types": types} if config.token_types else {}


@pytest.mark.parametrize("name", CONFIGS)
def test_texts_that_share_a_row_are_as_by_themselves(name):
    config, (tokens, types) = CONFIGS[name], inputs()
    params = randomised(config)
    packed = run(config, params, tokens, segments=SEGMENTS, **with_types(config, types))
    places = ((0, 0, 7), (0, 7, 12), (1, 0, 16))

    def rows(x):
        return jnp.stack([jnp.pad(x[row, start:stop], (0, 16 - stop + start)) for row, start, stop in places])

    own = rows(jnp.ones_like(tokens))
    alone = run(config, params, rows(tokens), segments=own, **with_types(config, rows(types)))
    for one, (row, start, stop) in zip(alone, places, strict=True):
        # of a whole text only what stands at its first token counts
        count = 1 if config.head in ("classify", "embed") else stop - start
        np.testing.assert_allclose(packed[row, start : start + count], one[:count], atol=1e-5, rtol=0)
        assert float(jnp.abs(one[:count]).max()) > 0.05


@pytest.mark.parametrize("name", ["none", "modern_tag"])
def test_what_stands_behind_a_token_is_seen(name):
    config, (tokens, types) = CONFIGS[name], inputs()
    params = randomised(config)
    before = run(config, params, tokens, **with_types(config, types))
    after = run(config, params, tokens.at[:, -1].add(1) % VOCAB, **with_types(config, types))
    assert float(jnp.abs(before - after)[:, 0].max()) > 1e-4


def test_a_window_reaches_to_both_sides():
    config = replace(MODERN, num_layers=1, kinds=(Kind(window=3, rope="local_rope", attention_norm=False),))
    params, (tokens, _) = randomised(config), inputs()
    change = jnp.abs(run(config, params, tokens) - run(config, params, tokens.at[:, 8].add(1) % VOCAB)).max((0, 2))
    assert [i for i in range(16) if change[i] > 1e-6] == [6, 7, 8, 9, 10]


@pytest.mark.parametrize("name", ["bert_mean", "modern_vector", "none"])
def test_padding_changes_nothing_however_long_it_is(name):
    config, (tokens, types) = CONFIGS[name], inputs()
    params = randomised(config)
    short = run(config, params, tokens[:, :6], **with_types(config, types[:, :6]))
    wide = jnp.pad(tokens[:, :6], ((0, 0), (0, 30)), constant_values=1)  # longer than the table of positions
    segments = jnp.pad(jnp.ones((2, 6), jnp.int32), ((0, 0), (0, 30)))
    more = with_types(config, jnp.pad(types[:, :6], ((0, 0), (0, 30))))
    padded = run(config, params, wide, segments=segments, **more)
    np.testing.assert_allclose(padded[:, :6], short, atol=1e-5, rtol=0)
    assert np.isfinite(padded).all()


def test_positions_and_types_are_those_given():
    (tokens, types), params = inputs(), randomised(BERT)
    places = jnp.broadcast_to(jnp.arange(16, dtype=jnp.int32), (2, 16))
    default = run(BERT, params, tokens)
    np.testing.assert_array_equal(run(BERT, params, tokens, positions=places), default)
    np.testing.assert_array_equal(run(BERT, params, tokens, token_types=jnp.zeros_like(types)), default)
    assert float(jnp.abs(run(BERT, params, tokens, positions=places + 1) - default).max()) > 1e-2
    assert float(jnp.abs(run(BERT, params, tokens, token_types=types) - default).max()) > 1e-2
    # the first row of the table that is read is `first_position`
    table = params["positions"]["embedding"]
    params["positions"]["embedding"] = table.at[:2].add(100.0).at[18:].add(100.0)
    np.testing.assert_array_equal(run(BERT, params, tokens), default)


def test_pooling_is_the_first_token_or_the_mean_of_a_text():
    (tokens, types), params = inputs(), randomised(BERT)
    how = {"segments": SEGMENTS, "token_types": types}
    hidden = run(BERT, params, tokens, **how)
    first = run(replace(BERT, head="embed", pooling="cls"), params, tokens, **how)
    mean = run(replace(BERT, head="embed", pooling="mean"), params, tokens, **how)
    unit = run(replace(BERT, head="embed", pooling="mean", normalize=True), params, tokens, **how)
    np.testing.assert_allclose(first[0, 7], hidden[0, 7], atol=1e-6)
    np.testing.assert_allclose(mean[0, 7], hidden[0, 7:12].mean(0), atol=1e-6)
    np.testing.assert_allclose(mean[1, 0], hidden[1].mean(0), atol=1e-6)
    np.testing.assert_allclose(unit[0, 7], mean[0, 7] / np.linalg.norm(mean[0, 7]), atol=1e-6)
    assert first.dtype == mean.dtype == jnp.float32


def test_a_head_that_is_not_asked_for_has_no_parameters():
    def paths(**changes):
        return {path for path in tree.flatten(abstract(replace(BERT, **changes))[1]) if path.startswith("classifier")}

    scores = {"classifier.scores.kernel", "classifier.scores.bias"}
    assert paths(head="none") == paths(head="embed") == set()
    assert paths(head="tag") == scores
    assert paths(head="classify") == scores | {"classifier.dense.kernel", "classifier.dense.bias"}


def test_logits_are_float32_in_bfloat16_too():
    config = CONFIGS["bert_mean"]
    params, (tokens, _) = randomised(config), inputs()
    graph, _ = abstract(config, dtype=jnp.bfloat16)
    hidden = jax.jit(lambda p: nnx.merge(graph, p).hidden(tokens))(params)
    assert hidden.dtype == jnp.bfloat16
    logits = jax.jit(lambda p, x: nnx.merge(graph, p).classify(x, jnp.ones_like(tokens)))(params, hidden)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits[:, 0], run(config, params, tokens)[:, 0], atol=0.15)


def test_remat_changes_no_gradient():
    config = CONFIGS["modern_cls"]
    params, (tokens, _) = randomised(config), inputs()
    graph, _ = abstract(config)

    def loss(params, scan):
        return jnp.square(nnx.merge(graph, params)(tokens, segments=SEGMENTS, scan=scan)[:, 0]).sum()

    plain = jax.jit(lambda p: jax.grad(loss)(p, jax.lax.scan))(params)
    kept = jax.jit(lambda p: jax.grad(loss)(p, scan_layers("full", ACTIVATIONS)))(params)
    for path, leaf in tree.flatten(plain).items():
        np.testing.assert_allclose(tree.flatten(kept)[path], leaf, atol=1e-5, rtol=1e-4, err_msg=path)


def test_adapters_and_their_dropout_reach_every_place():
    config = replace(CONFIGS["bert_cls"], num_layers=2)
    adapters = {}
    for path, leaf in tree.flatten(abstract(config)[1]).items():
        if path.endswith(".kernel"):
            module, (*stack, rows, columns) = path.removesuffix(".kernel"), leaf.shape
            adapters |= {
                f"{module}.lora_a": jax.ShapeDtypeStruct((*stack, rows, 2), jnp.float32),
                f"{module}.lora_b": jax.ShapeDtypeStruct((*stack, 2, columns), jnp.float32),
                f"{module}.lora_scale": jax.ShapeDtypeStruct(tuple(stack), jnp.float32),
            }
    params, (tokens, _) = randomised(config, adapters=tree.unflatten(adapters)), inputs()
    graph, _ = abstract(config, params)

    def loss(params, dropout=None):
        return jnp.square(nnx.merge(graph, params)(tokens, dropout=dropout)[:, 0]).sum()

    gradients = tree.flatten(jax.jit(jax.grad(loss))(params))
    assert len(adapters) == 3 * 8
    for path in adapters:
        assert float(jnp.abs(gradients[path]).max()) > 1e-6, path
    dropped = jax.jit(lambda p, key: loss(p, Dropout(0.5, key)))
    found = {float(dropped(params, jax.random.key(i))) for i in (0, 0, 1)}
    assert len(found) == 2
    assert float(jax.jit(loss)(params)) not in found


def test_where_texts_begin():
    assert first_tokens(jnp.array([[1, 1, 2, 2, 2, 0], [3, 3, 3, 3, 3, 3]])).tolist() == [[0, 0, 2, 2, 2, 5], [0] * 6]
    assert first_tokens(jnp.array([[1]])).tolist() == [[0]]


def test_what_is_done_to_all_kernels_is_not_done_to_the_head():
    shapes = abstract(CONFIGS["bert_cls"])[1]
    graph, params = abstract(CONFIGS["bert_cls"], shapes, matmul="int8")
    found = {
        ".".join(map(str, path)): module.matmul
        for path, module in nnx.iter_modules(nnx.merge(graph, params))
        if isinstance(module, Linear)
    }
    assert found.pop("classifier.dense") == found.pop("classifier.scores") == "default"
    assert set(found.values()) == {"int8"}
    kernels = {path.removesuffix(".kernel") for path in tree.flatten(shapes) if path.endswith(".kernel")}
    layers = {module for module in kernels if module.startswith("layers.")}
    assert {module for module in kernels if is_chosen(f"{module}.kernel")} == layers
    assert set(lora.targets(shapes, "all-linear")) == layers
    assert kernels - layers == {"classifier.dense", "classifier.scores"}


@pytest.mark.parametrize(
    ("name", "axes"),
    [("bert_mean", {"fsdp": 2, "context": 2, "tensor": 2}), ("modern_cls", {"data": 2, "context": 2, "tensor": 2})],
)
def test_a_mesh_changes_nothing(name, axes):
    config, (tokens, types) = CONFIGS[name], inputs()
    tokens, types, segments = (jnp.concatenate([x, x[::-1]]) for x in (tokens, types, SEGMENTS))
    params, mesh = randomised(config), make_mesh(MeshSection(**axes))
    graph, _ = abstract(config)
    where = place(mesh)
    spread = tree.map_with_path(lambda path, x: jax.device_put(x, where(path, x.shape)), params)

    def loss(params, layout):
        model = nnx.merge(graph, params).lay_out(layout)
        return jnp.square(model(tokens, segments=segments, **with_types(config, types))[:, jnp.array([0, 7])]).sum()

    want, gradient = jax.jit(lambda p: jax.value_and_grad(loss)(p, ALONE))(params)
    got, found = jax.jit(lambda p: jax.value_and_grad(loss)(p, layout_on(mesh)))(spread)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for path, leaf in tree.flatten(gradient).items():
        error = np.abs(np.asarray(tree.flatten(found)[path]) - leaf).max()
        assert error <= 1e-4 * max(1.0, np.abs(leaf).max()), path
