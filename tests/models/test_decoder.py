"""The decoder: packing, padding, the cache, precision, dropout, and how it is traced.

That it computes what transformers computes is tested with the golden files, in tests/hub/families.
"""

import itertools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlean import tree
from jaxlean.models.build import abstract
from jaxlean.models.config import Kind
from jaxlean.models.decoder import ACTIVATIONS, LAYER_INPUT, Cache, Decoder, DecoderConfig
from jaxlean.models.kernel_attention import cudnn_attention, splash_attention
from jaxlean.models.linear import Dropout
from jaxlean.models.projection import LORA_LOW
from jaxlean.models.rope import Rope
from jaxlean.models.stack import stacks

VOCAB, LENGTH = 64, 16


def sliding(*windows):
    return tuple(Kind(window=window) for window in windows)


BASE = DecoderConfig(
    vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8
)
# Every switch of the config is on in one of these; windows are narrower than the segments they have to cut.
FAMILIES = {
    "llama": replace(BASE, rope=Rope("llama3", factor=8.0, original_max_position_embeddings=8)),
    "mistral": replace(BASE, kinds=sliding(3, 3, 3)),
    "qwen2": replace(BASE, qkv_bias=True, tie_embeddings=True, kinds=sliding(None, None, 3), norm_eps=1e-2),
    "qwen3": replace(
        BASE, qk_norm="head", out_bias=True, mlp_bias=True, kinds=sliding(3, None, 4), activation="gelu_tanh"
    ),
}


def randomise(params, seed=0):
    """Values large enough that everything shows in the logits; scales around one."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if path.endswith((".scale", "lora_magnitude")):
            noise = 1 + 0.3 * noise
        elif path.endswith("lora_scale"):
            noise = np.full(leaf.shape, 1.5)
        else:
            noise = 0.3 * noise
        return jnp.asarray(noise, jnp.float32)

    return tree.map_with_path(draw, params)


def with_lora(shapes, rank=2, dora=True):
    """The tree with LoRA or DoRA leaves beside every kernel."""
    leaves = dict(tree.flatten(shapes))
    for path in list(leaves):
        if path.endswith(".kernel"):
            *stack, dim_in, dim_out = leaves[path].shape
            module = path.removesuffix(".kernel")
            for name, shape in (
                ("lora_a", (*stack, dim_in, rank)),
                ("lora_b", (*stack, rank, dim_out)),
                ("lora_scale", tuple(stack)),
                ("lora_magnitude", (*stack, dim_out)),
            )[: 4 if dora else 3]:
                leaves[f"{module}.{name}"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tree.unflatten(leaves)


class Run:
    """A decoder over random parameters, each function compiled once for all tests."""

    def __init__(self, config, dtype=jnp.float32, lora=False):
        self.config, self.dtype = config, dtype
        graph, shapes = abstract(config, dtype=dtype)
        if lora:
            graph, shapes = abstract(config, with_lora(shapes), dtype=dtype)
        self.graph, self.params = graph, randomise(shapes)
        self.forward = jax.jit(partial(self._forward, graph))
        self.decode = jax.jit(lambda p, *args: nnx.merge(graph, p).decode(*args))

    @staticmethod
    def _forward(graph, params, tokens, positions=None, segments=None, dropout=None):
        return nnx.merge(graph, params)(tokens, positions=positions, segments=segments, dropout=dropout)

    def __call__(self, tokens, positions=None, segments=None, dropout=None):
        """Logits of [rows, LENGTH] tokens; always two rows, and everything given, so that one shape is compiled."""
        rows = len(tokens)
        positions = np.tile(np.arange(LENGTH), (rows, 1)) if positions is None else positions
        segments = np.ones((rows, LENGTH)) if segments is None else segments
        arrays = [jnp.asarray(np.resize(x, (2, LENGTH)), jnp.int32) for x in (tokens, positions, segments)]
        return np.asarray(self.forward(self.params, *arrays, dropout))[:rows]


@pytest.fixture(scope="module", params=FAMILIES)
def run(request):
    with jax.numpy_dtype_promotion("strict"):
        yield Run(FAMILIES[request.param])


def draw_tokens(seed, *shape):
    return np.random.default_rng(seed).integers(1, VOCAB, size=shape)


@settings(max_examples=6)
@given(cuts=st.sets(st.integers(1, LENGTH - 1), min_size=1, max_size=4), padding=st.booleans(), seed=st.integers(0, 99))
def test_packed_rows_equal_unpacked_ones(run, cuts, padding, seed):
    tokens = draw_tokens(seed, 1, LENGTH)
    bounds = [0, *sorted(cuts), LENGTH]
    pieces = list(itertools.pairwise(bounds))
    segments, positions = np.zeros((2, LENGTH), np.int32)
    for number, (start, stop) in enumerate(pieces, 1):
        segments[start:stop] = 0 if padding and stop == LENGTH else number
        positions[start:stop] = range(stop - start)
    packed = run(tokens, positions[None], segments[None])[0]
    for start, stop in pieces[: -1 if padding else None]:
        # alone in a row of the same length, filled up with another token and no mask: causality does the rest
        alone = np.full((1, LENGTH), 7)
        alone[0, : stop - start] = tokens[0, start:stop]
        np.testing.assert_allclose(packed[start:stop], run(alone)[0, : stop - start], atol=1e-5, rtol=1e-5)
    assert np.isfinite(packed).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(run, side):
    whole = draw_tokens(3, 2, LENGTH)
    kept = slice(5, None) if side == "left" else slice(None, -5)
    segments = np.zeros((2, LENGTH), np.int32)
    segments[:, kept] = 1
    positions = np.maximum(segments.cumsum(1) - 1, 0)
    other = np.where(segments == 1, whole, 9)
    with_these = run(whole, positions, segments)[:, kept]
    np.testing.assert_array_equal(with_these, run(other, positions, segments)[:, kept])
    alone = run(np.pad(whole[:, kept], ((0, 0), (0, 5))))[:, :-5]
    np.testing.assert_allclose(with_these, alone, atol=1e-5, rtol=1e-5)


def test_the_future_is_not_seen_and_the_past_is_as_far_as_the_windows_reach(run):
    tokens = draw_tokens(4, 1, LENGTH)
    changed = tokens.copy()
    changed[0, 8] = (changed[0, 8] + 1) % VOCAB
    moved = np.abs(run(tokens)[0] - run(changed)[0]).max(-1)
    # each layer hands on what it saw: one that sees `window` tokens reaches window - 1 further back
    reach = sum(LENGTH if window is None else window - 1 for window in (kind.window for kind in run.config.all_kinds))
    assert not moved[:8].any()
    assert (moved[8 : 9 + reach] > 1e-4).all()
    assert not moved[9 + reach :].any()


@pytest.mark.parametrize("padding", [0, 4])
def test_decoding_token_by_token_equals_the_forward_pass(run, padding):
    prompt = 5
    tokens = draw_tokens(5, 2, LENGTH)
    segments = np.ones((2, LENGTH), np.int32)
    segments[1, :padding] = 0  # the second row is shorter and padded on the left
    positions = np.maximum(segments.cumsum(1) - 1, 0)
    want = run(tokens, positions, segments)
    slots = LENGTH + 3  # room that is never used must not show
    cache = Cache.empty(run.config, 2, slots, run.dtype)
    cuts = [slice(0, prompt), *(slice(at, at + 1) for at in range(prompt, LENGTH))]
    for cut in cuts:
        rows = [jnp.asarray(x[:, cut], jnp.int32) for x in (tokens, positions, segments)]
        got, cache = run.decode(run.params, *rows, cache)
        seen = np.s_[segments[:, cut] == 1]
        np.testing.assert_allclose(np.asarray(got)[seen], want[:, cut][seen], atol=2e-5, rtol=1e-5)
    assert int(cache.filled) == LENGTH
    shapes = [(key.values.shape, value.values.shape) for key, value in cache.layers]
    assert shapes == [((stack.num, 2, 2, slots, 8),) * 2 for stack in stacks(run.config.all_kinds)]
    np.testing.assert_array_equal(cache.segments, np.pad(segments, ((0, 0), (0, 3))))
    assert run.decode._cache_size() == 2  # one for the prompt, one for a token


def test_default_positions_and_segments():
    """What is not given is what a whole row has; operation by operation, since XLA rounds two programs differently."""
    run = Run(FAMILIES["qwen3"])
    tokens = jnp.asarray(draw_tokens(6, 2, LENGTH), jnp.int32)
    positions, segments = jnp.broadcast_to(jnp.arange(LENGTH), (2, LENGTH)), jnp.ones((2, LENGTH), jnp.int32)
    model = nnx.merge(run.graph, run.params)
    np.testing.assert_array_equal(model(tokens), model(tokens, positions=positions, segments=segments))


def test_bfloat16_is_close_to_float32():
    """The test runs under strict promotion, so that no product is in float32 by accident."""
    config = replace(FAMILIES["qwen3"], qkv_bias=True)
    wide, narrow = Run(config, lora=True), Run(config, jnp.bfloat16, lora=True)
    tokens = draw_tokens(7, 2, LENGTH)
    want, got = wide(tokens), narrow(tokens)
    assert got.dtype == np.float32
    assert np.abs(got - want).mean() < 0.03 * np.abs(want).mean() * np.sqrt(BASE.num_layers)
    cosine = (got * want).sum() / np.linalg.norm(got) / np.linalg.norm(want)
    assert 0.998 < cosine < 1 - 1e-7


def test_dropout_is_keyed_and_reaches_every_adapter():
    run = Run(replace(FAMILIES["qwen3"], kinds=()), lora=True)
    tokens = draw_tokens(8, 1, LENGTH)

    def drop(seed):
        return Dropout(0.3, jax.random.key(seed))

    np.testing.assert_array_equal(run(tokens, dropout=drop(1)), run(tokens, dropout=drop(1)))
    assert not np.array_equal(run(tokens, dropout=drop(1)), run(tokens, dropout=drop(2)))
    whole = dict(run.params)
    places = [path.removesuffix(".lora_b") for path in tree.flatten(whole) if path.endswith(".lora_b")]
    assert "head" in places
    assert len(places) == 8
    for place in places:
        # only this adapter adds anything, so what two keys make different is its own dropout
        run.params = tree.map_with_path(
            lambda path, x, place=place: x * 0 if path.endswith(".lora_b") and not path.startswith(place) else x, whole
        )
        assert not np.array_equal(run(tokens, dropout=drop(1)), run(tokens, dropout=drop(2))), place


def test_dropout_differs_by_place():
    """Twice the same layer, and query and key over the same input: no two get the same mask."""
    config = replace(BASE, num_layers=2)
    graph, shapes = abstract(config, with_lora(abstract(config)[1]))
    masks = []
    keep = Dropout.__call__

    def spy(self, x):
        jax.debug.callback(lambda mask: masks.append(np.asarray(mask).tobytes()), keep(self, jnp.ones_like(x)))
        return keep(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dropout, "__call__", spy)
        nnx.merge(graph, randomise(shapes))(jnp.ones((1, 8), jnp.int32), dropout=Dropout(0.5, jax.random.key(0)))
        jax.effects_barrier()
    assert len(masks) == 2 * 7 + 1
    assert len(set(masks)) == len(masks)


def test_layers_are_one_scan(equations):
    graph, shapes = abstract(BASE)
    scanned = []

    def scan(body, carry, xs):
        scanned.append(body)
        return jax.lax.scan(body, carry, xs)

    traced = equations(lambda p, t: nnx.merge(graph, p)(t, scan=scan), shapes, jnp.ones((1, 8), jnp.int32))
    assert len(scanned) == 1
    scans = [e for e in traced if str(e.primitive) == "scan"]
    assert [e.params["length"] for e in scans] == [BASE.num_layers]


@pytest.fixture
def anywhere(monkeypatch):
    """The kernels in a form that runs on this machine."""
    for name, kernel in (
        ("cudnn", partial(cudnn_attention, implementation="xla")),
        ("splash", partial(splash_attention, interpret=True)),
    ):
        monkeypatch.setattr(f"jaxlean.models.attention.{name}_attention", kernel)


# what each back end names; one that has a backward pass of its own names what that needs
@pytest.mark.parametrize(
    ("backend", "own"),
    [
        ("plain", ["context"]),
        ("cudnn", ["context"]),
        ("block", ["context", "attention_lse"]),
    ],
)
def test_the_activations_are_those_that_a_policy_can_name(names, anywhere, backend, own):
    adapted = with_lora(abstract(BASE)[1], dora=False)
    graph, shapes = abstract(BASE, adapted, attention=backend)
    found = names(lambda p, t: nnx.merge(graph, p).hidden(t), shapes, jnp.ones((1, 8), jnp.int32))
    assert found.count(LORA_LOW) == 4  # query, key and value; out; gate and up; down
    others = {*ACTIVATIONS} - {"context", "attention_lse", LORA_LOW}
    assert sorted(name for name in found if name != LORA_LOW) == sorted([LAYER_INPUT, *others, *own])  # each once


def test_what_the_gradient_through_splash_names(names, anywhere):
    """Its own rule names the log-sum-exp as it does the output."""
    config = replace(BASE, head_dim=128)
    graph, shapes = abstract(config, attention="splash")

    def loss(params, tokens):
        return nnx.merge(graph, params).hidden(tokens).sum()

    found = names(jax.grad(loss), shapes, jnp.ones((1, 128), jnp.int32))
    assert set(found) == {LAYER_INPUT, *ACTIVATIONS} - {"attention_lse", LORA_LOW}
    assert found.count("context") == 2


@pytest.mark.parametrize(
    ("backend", "head_dim", "length"),
    [("block", 8, 16), ("cudnn", 8, 16), pytest.param("splash", 128, 128, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("windows", [(), (3, 3, 3), (3, None, 4)])
def test_every_back_end_gives_the_same_logits(anywhere, backend, head_dim, length, windows):
    config = replace(BASE, head_dim=head_dim, kinds=sliding(*windows))
    params = randomise(abstract(config)[1])
    tokens = jnp.asarray(draw_tokens(9, 2, length), jnp.int32)
    segments = jnp.asarray(np.sort(np.random.default_rng(9).integers(0, 3, size=(2, length)))[:, ::-1], jnp.int32)

    def logits(attention):
        graph, _ = abstract(config, attention=attention)
        return jax.jit(lambda p: nnx.merge(graph, p)(tokens, segments=segments))(params)

    want = logits("plain")
    np.testing.assert_allclose(logits(backend), want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_a_bfloat16_stack_does_not_pretend_to_have_a_gradient():
    """On CPU it is scanned over as its bits; what trains is held in float32 (`xla.precision`)."""
    graph, shapes = abstract(BASE, dtype=jnp.bfloat16)
    tokens = jnp.ones((1, 8), jnp.int32)

    def loss(layers, others):
        return nnx.merge(graph, {**others, "layers": layers})(tokens).sum()

    wide = randomise(shapes)
    layers = jax.tree.map(lambda x: x.astype(jnp.bfloat16), wide["layers"])
    with pytest.raises(TypeError, match="float32"):
        jax.grad(loss)(layers, wide)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(jax.jit(jax.grad(loss, 1))(layers, wide)["norm"]))


def test_parameters_lie_where_the_rules_look_for_them():
    shapes = tree.flatten(abstract(replace(FAMILIES["qwen3"], kinds=()))[1])
    layer = "layers.attention_norm.scale layers.mlp_norm.scale"
    layer += " layers.attention.query_norm.scale layers.attention.key_norm.scale"
    for module in ("attention.query", "attention.key", "attention.value", "attention.out"):
        layer += f" layers.{module}.kernel"
    layer += " layers.attention.out.bias"
    for module in ("mlp.gate", "mlp.up", "mlp.down"):
        layer += f" layers.{module}.kernel layers.{module}.bias"
    assert set(shapes) == {*layer.split(), "embed.embedding", "norm.scale", "head.kernel"}
    assert all(leaf.shape[0] == 3 for path, leaf in shapes.items() if path.startswith("layers."))
    assert shapes["layers.attention.key.kernel"].shape == (3, 16, 2 * 8)
    assert shapes["layers.mlp.down.kernel"].shape == (3, 24, 16)
    assert shapes["embed.embedding"].shape == shapes["head.kernel"].shape[::-1] == (VOCAB, 16)
    assert "head.kernel" not in tree.flatten(abstract(FAMILIES["qwen2"])[1])
    # layers of several kinds: the same paths, behind the number of their stack
    apart = tree.flatten(abstract(FAMILIES["qwen3"])[1])
    assert {path: leaf.shape for path, leaf in apart.items() if path.startswith("layers.1.")} == {
        path.replace("layers.", "layers.1."): (1, *leaf.shape[1:])
        for path, leaf in shapes.items()
        if path.startswith("layers.")
    }
    assert {leaf.dtype for leaf in shapes.values()} == {jnp.dtype("float32")}


def test_layers_are_drawn_apart_and_by_the_seed():
    @partial(jax.jit, static_argnames="std")
    def draw(key, std):
        config = replace(BASE, initializer_range=std)
        return nnx.to_pure_dict(nnx.split(Decoder(config, rngs=nnx.Rngs(params=key)))[1])

    def build(seed, std=0.02):
        return tree.flatten(draw(jax.random.key(seed), std))

    first, again, other = build(0), build(0), build(1)
    kernel = np.asarray(first["layers.attention.query.kernel"])
    assert len({row.tobytes() for row in kernel}) == 3
    for path, leaf in first.items():
        np.testing.assert_array_equal(leaf, again[path])
        constant = path.endswith((".scale", ".bias"))
        assert np.array_equal(leaf, other[path]) == constant, path
        if not constant:
            assert np.std(leaf) == pytest.approx(0.02, rel=0.15), path
    assert np.std(build(0, std=0.5)["layers.mlp.up.kernel"]) == pytest.approx(0.5, rel=0.1)
