"""CLIP: the end of a text, vectors of length 1, and meshes. Parity with transformers is in tests/hub/families."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean import tree
from jaxlean.config import MeshSection
from jaxlean.models.build import abstract
from jaxlean.models.clip import ClipConfig
from jaxlean.models.decoder import DecoderConfig
from jaxlean.models.layout import layout_on
from jaxlean.models.linear import Dropout
from jaxlean.models.vision import VisionConfig
from jaxlean.xla.mesh import batch_sharding, make_mesh, place

END = 7
LAYERS = {
    "intermediate_size": 24, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "norm": "layer", "norm_bias": True,
    "qkv_bias": True, "out_bias": True, "mlp_bias": True, "gated": False, "activation": "quick_gelu",
}  # fmt: skip
CONFIG = ClipConfig(
    text=DecoderConfig(
        vocab_size=32, hidden_size=16, head_dim=8, rope=None, learned_positions=12, tie_embeddings=True, **LAYERS
    ),
    vision=VisionConfig(
        hidden_size=8, head_dim=4, image_size=(8, 8), patch_size=(4, 4), pre_norm=True, norm_of="pooled",
        patch_bias=False, classifies="patches", **LAYERS,
    ),
    projection_dim=6,
    end_token=END,
)  # fmt: skip


@pytest.fixture(scope="module")
def clip():
    """(graph, random parameters)"""
    graph, shapes = abstract(CONFIG)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        return jnp.asarray(0.3 * rng.normal(size=leaf.shape) + path.endswith(".scale"), jnp.float32)

    return graph, tree.map_with_path(draw, shapes)


def texts(rows=4):
    """Tokens above the end's number and below it, with the end at another place in each row."""
    tokens = np.random.default_rng(1).choice([*range(1, END), *range(END + 1, 32)], size=(rows, 12))
    for row in range(rows):
        tokens[row, 3 + row % 6] = END
    return jnp.asarray(tokens, jnp.int32)


def pixels(rows=4):
    return jnp.asarray(np.random.default_rng(2).normal(size=(rows, 8, 8, 3)), jnp.float32)


def test_vectors_have_length_one(clip):
    model = nnx.merge(*clip)
    for vectors in (model.embed_text(texts()), model.embed_images(pixels())):
        assert vectors.shape == (4, 6)
        assert vectors.dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-6)


def test_a_text_ends_at_its_first_end_token(clip):
    model, tokens = nnx.merge(*clip), texts()
    wanted = model.embed_text(tokens)
    after = tokens.at[:, 9:].set(END).at[:, 10].set(3)  # more ends, and other tokens, behind it
    np.testing.assert_allclose(model.embed_text(after), wanted, atol=1e-6)
    assert np.abs(np.asarray(model.embed_text(tokens.at[:, 0].set(5)) - wanted)).max() > 1e-3


def test_in_old_configs_the_end_is_the_largest_token(clip):
    graph, params = clip
    old = abstract(replace(CONFIG, end_token=2))[0]
    tokens = jnp.where(texts() > END, END - 1, texts())  # so that END is the largest
    wanted = nnx.merge(graph, params).embed_text(tokens)
    np.testing.assert_array_equal(nnx.merge(old, params).embed_text(tokens), wanted)
    assert np.abs(np.asarray(nnx.merge(old, params).embed_text(tokens.at[:, 1].set(20)) - wanted)).max() > 1e-3


def test_logits_are_scaled_cosines(clip):
    model = nnx.merge(*clip)
    a, b = np.asarray(model.embed_images(pixels(3))), np.asarray(model.embed_text(texts()))
    scale = np.exp(float(model.logit_scale[...]))
    np.testing.assert_allclose(model(texts(), pixels(3)), scale * a @ b.T, atol=1e-5)


def test_towers_drop_out_by_themselves(clip):
    """Their adapters get different masks: no number of a layer is used twice."""
    drop = Dropout(0.5, jax.random.key(0))
    from jaxlean.models.clip import _part

    keys = {tuple(np.asarray(jax.random.key_data(_part(drop, n).key))) for n in range(4)}
    assert len(keys) == 4
    assert _part(None, 0) is None


def test_on_eight_devices_it_is_the_same(clip):
    graph, params = clip

    def loss(params, tokens, images, layout=None):
        model = nnx.merge(graph, params)
        found = (model if layout is None else model.lay_out(layout))(tokens, images)
        return -jnp.diagonal(jax.nn.log_softmax(found)).mean()

    wanted, grads = jax.jit(jax.value_and_grad(loss))(params, texts(8), pixels(8))
    mesh = make_mesh(MeshSection(data=2, fsdp=2, tensor=2))
    where, rows = place(mesh), batch_sharding(mesh)
    spread = tree.map_with_path(lambda path, x: jax.device_put(x, where(path, x.shape)), params)
    on_mesh = jax.jit(jax.value_and_grad(lambda *args: loss(*args, layout=layout_on(mesh))))
    got, others = on_mesh(spread, jax.device_put(texts(8), rows), jax.device_put(pixels(8), rows))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    for path, leaf in tree.flatten(others).items():
        np.testing.assert_allclose(leaf, tree.flatten(grads)[path], atol=1e-5, err_msg=path)
