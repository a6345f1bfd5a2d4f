"""A decoder's summed loss: in chunks and at once, with every kind of head, on every path to the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean import tree
from jaxlean.adapt import lora, vocabulary
from jaxlean.config import LoraSection, MeshSection
from jaxlean.models.build import abstract
from jaxlean.models.decoder import Decoder, DecoderConfig
from jaxlean.models.layout import ALONE, layout_on
from jaxlean.train.loss import CROSS_ENTROPY, Terms, next_token_loss
from jaxlean.train.objective import objective
from jaxlean.xla import hlo
from jaxlean.xla.mesh import batch_sharding, make_mesh, place

ROWS, LENGTH, VOCAB = 2, 10, 32
THREE_POSITIONS = 4 * ROWS * VOCAB * 3
SMALL = {"vocab_size": VOCAB, "intermediate_size": 12, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4}


def decoder(*, tied=False, adapted=None, dtype=jnp.float32, **shape):
    """(graph, config, parameters) of a small decoder, perhaps with adapters that are not zero."""
    config = DecoderConfig(hidden_size=8, num_layers=1, initializer_range=0.5, tie_embeddings=tied, **(SMALL | shape))
    params = nnx.to_pure_dict(nnx.split(Decoder(config, rngs=nnx.Rngs(0)))[1])
    if adapted is not None:
        params = lora.add(params, adapted, LoraSection(r=2), jax.random.key(1))
        moved = jax.random.normal(jax.random.key(2), (64,))
        params = tree.map_with_path(
            lambda path, x: jnp.resize(moved, x.shape) if path.endswith("lora_b") else x, params
        )
    return abstract(config, params, dtype=dtype)[0], config, params


def batch(seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((ROWS, LENGTH)) < 0.6
    mask[:, 0] = False
    return {
        "tokens": rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32),
        "loss_mask": mask,
        "segments": np.repeat([[1] * 6 + [2] * 3 + [0]], ROWS, axis=0).astype(np.int32),
        "positions": np.repeat([[0, 1, 2, 3, 4, 5, 0, 1, 2, 0]], ROWS, axis=0).astype(np.int32),
    }


def gradients(model, trains, **options):
    graph, config, params = model
    trainable, frozen = tree.split(params, trains)
    loss = objective(graph, config, **options)

    def total(trainable, rows):
        return loss(tree.merge(trainable, frozen), rows, jax.random.key(0))

    value, grads = jax.jit(jax.value_and_grad(total))(trainable, batch())
    return value, tree.flatten(grads)


HEADS = {"untied": {}, "tied": {"tied": True}, "adapted": {"adapted": ["head", "layers.mlp.down"]}}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("terms", [CROSS_ENTROPY, Terms(0.01, 0.1)])
def test_in_chunks_and_at_once_it_is_the_same(kind, terms):
    model = decoder(**HEADS[kind])
    trains = lora.is_adapter if kind == "adapted" else lambda path: True
    got, want = (gradients(model, trains, logits_bytes=budget, criterion=terms) for budget in (THREE_POSITIONS, None))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    assert got[1].keys() == want[1].keys()
    for path, leaf in want[1].items():
        assert np.abs(leaf).max() > 0, path
        np.testing.assert_allclose(got[1][path], leaf, rtol=1e-4, atol=1e-5, err_msg=path)


def test_at_once_it_is_the_loss_of_the_model_s_logits():
    graph, config, params = decoder()
    rows = batch()
    logits = nnx.merge(graph, params)(rows["tokens"], positions=rows["positions"], segments=rows["segments"])
    want = next_token_loss(logits, rows["tokens"], rows["loss_mask"])
    for budget in (None, THREE_POSITIONS):
        got = objective(graph, config, logits_bytes=budget)(params, rows, jax.random.key(0))
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_in_bfloat16_the_logits_are_not_rounded():
    graph, _, params = decoder(dtype=jnp.bfloat16)
    model = nnx.merge(graph, params)
    hidden = model.hidden(jnp.asarray(batch()["tokens"]))
    assert hidden.dtype == jnp.bfloat16
    kernel = params["head"]["kernel"].astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(model.logits(hidden), hidden.astype(jnp.float32) @ kernel, rtol=1e-5, atol=1e-5)


def test_dropout_of_a_head_s_adapter_follows_the_key():
    graph, config, params = decoder(adapted=["head"])

    def total(key, rate=0.5):
        loss = objective(graph, config, logits_bytes=THREE_POSITIONS, dropout_rate=rate)
        return float(jax.jit(loss)(params, batch(), jax.random.key(key)))

    assert total(1) == total(1)
    assert total(1) != total(2)
    assert total(1, rate=0.0) == pytest.approx(total(2, rate=0.0))


def test_a_row_of_one_token_has_no_loss():
    graph, config, params = decoder()
    one = {name: x[:, :1] for name, x in batch().items()}
    assert objective(graph, config, logits_bytes=THREE_POSITIONS)(params, one, jax.random.key(0)) == 0


# ---- rows of new tokens beside the table, of which one replaces an old token


def with_rows(model, ids):
    """(graph, config, parameters) with random rows of some tokens beside the tables."""
    _, config, params = model
    leaves, rng = tree.flatten(params), np.random.default_rng(5)
    own = [leaf for leaf, (table, _) in vocabulary.TABLES.items() if table in leaves]
    params = vocabulary.add(params, np.asarray(ids), {leaf: rng.normal(size=(len(ids), 8)) for leaf in own})
    return abstract(config, params)[0], config, params


def merged(model):
    """The same model with the rows in its tables."""
    _, config, params = model
    params = vocabulary.merge(params)
    return abstract(config, params)[0], config, params


def same_as_in_tables(got, want, ids):
    """Assert that rows have the gradients that they have in the tables."""
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for leaf, (table, dim) in vocabulary.TABLES.items():
        if leaf in got[1]:
            rows = want[1][table] if dim == 0 else want[1][table].T
            assert np.abs(got[1][leaf]).max() > 0, leaf
            np.testing.assert_allclose(got[1][leaf], rows[np.asarray(ids)], rtol=1e-4, atol=1e-5, err_msg=leaf)


@pytest.mark.parametrize("kind", ["untied", "tied"])
@pytest.mark.parametrize("terms", [CROSS_ENTROPY, Terms(0.01, 0.1)])
def test_rows_of_new_tokens_have_the_loss_and_gradients_that_they_have_in_the_table(kind, terms):
    ids = [2, 29, 30, 31]
    model = with_rows(decoder(**HEADS[kind]), ids)
    for budget in (THREE_POSITIONS, None):
        got = gradients(model, vocabulary.is_row, logits_bytes=budget, criterion=terms)
        want = gradients(merged(model), lambda path: True, logits_bytes=budget, criterion=terms)
        same_as_in_tables(got, want, ids)


def test_a_step_over_rows_of_new_tokens_puts_no_table_together():
    # a table of 32,768 x 8 in float32 is a megabyte; the chunk's logits a tenth of that
    model = with_rows(decoder(tied=True, vocab_size=32_768), [2, 32_766])
    graph, config, params = model
    trainable, frozen = tree.split(params, vocabulary.is_row)
    loss = objective(graph, config, logits_bytes=4 * ROWS * 32_768)
    step = jax.jit(jax.value_and_grad(lambda t, f, b: loss(tree.merge(t, f), b, jax.random.key(0))))
    table = 4 * 32_768 * 8
    assert step.lower(trainable, frozen, batch()).compile().memory_analysis().temp_size_in_bytes < 0.9 * table


# ---- over several devices: each its rows, its columns of the embedding, its part of the vocabulary

ROWS_AND_VOCABULARY = {"data": 2, "fsdp": 2, "tensor": 2}
SEQUENCES = {"data": 1, "fsdp": 4, "context": 2}
VOCABULARY = {"data": 1, "tensor": 8}


@pytest.mark.parametrize(
    ("axes", "kind", "vocab"),
    [
        *[(ROWS_AND_VOCABULARY, kind, VOCAB) for kind in HEADS],
        (SEQUENCES, "tied", VOCAB),
        (VOCABULARY, "untied", VOCAB),
        # which `tensor` does not divide: each of its devices has all of it
        (ROWS_AND_VOCABULARY, "tied", 33),
        (VOCABULARY, "adapted", 33),
    ],
)
def test_on_a_mesh_value_and_gradient_are_those_of_one_device(kind, axes, vocab):
    model = wide_decoder(vocab, **HEADS[kind])
    trains = lora.is_adapter if kind == "adapted" else lambda path: True
    options = {"logits_bytes": 4 * 8 * vocab * 3, "criterion": Terms(0.01, 0.1)}
    want = wide_gradients(model, trains, **options)
    mesh = make_mesh(MeshSection(**axes))
    got = wide_gradients(model, trains, mesh=mesh, **options)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for path, leaf in want[1].items():
        assert np.abs(leaf).max() > 0, path
        np.testing.assert_allclose(got[1][path], leaf, rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize(
    ("axes", "kind", "vocab"),
    [
        (ROWS_AND_VOCABULARY, "tied", VOCAB), (ROWS_AND_VOCABULARY, "untied", VOCAB), (VOCABULARY, "tied", VOCAB),
        (SEQUENCES, "untied", VOCAB), (ROWS_AND_VOCABULARY, "tied", 33),
    ],
)  # fmt: skip
def test_on_a_mesh_rows_of_new_tokens_are_those_of_one_device(kind, axes, vocab):
    ids = [2, 7, 8, 15, 16, vocab - 1]
    model = with_rows(wide_decoder(vocab, **HEADS[kind]), ids)
    options = {"logits_bytes": 4 * 8 * vocab * 3, "criterion": Terms(0.01, 0.1)}
    got = wide_gradients(model, vocabulary.is_row, mesh=make_mesh(MeshSection(**axes)), **options)
    same_as_in_tables(got, wide_gradients(merged(model), lambda path: True, **options), ids)


@pytest.mark.parametrize("axes", [{"data": 1, "fsdp": 8}, {"data": 1, "fsdp": 2, "tensor": 4}])
def test_on_a_mesh_the_head_is_gathered_and_its_gradient_summed_once_and_not_in_each_chunk(axes):
    mesh = make_mesh(MeshSection(**axes))
    few, many = (
        hlo.read(wide_program(wide_decoder(64, tied=True), mesh, logits_bytes=4 * 8 * 64 * positions), unknown=5)
        for positions in (64, 2)
    )
    large = 64 * 8 * 4 / 8  # bytes of a device's part of the embedding
    assert few.unknown_loops == many.unknown_loops == 1
    for program in (few, many):
        of_the_head = [
            c for c in program.collectives if c.kind in ("all-gather", "reduce-scatter") and c.bytes >= large
        ]
        assert {c.kind for c in of_the_head} >= {"all-gather", "reduce-scatter"}
        assert all(c.times == 1 for c in of_the_head)


def wide_decoder(vocab, **kind):
    """As `decoder`, with enough heads and columns for eight devices."""
    return decoder(vocab_size=vocab, intermediate_size=16, num_heads=8, num_kv_heads=8, head_dim=2, **kind)


def wide_batch(vocab):
    """8 rows of 16 tokens, one of them without a token to learn."""
    rng = np.random.default_rng(0)
    mask = rng.random((8, 16)) < np.linspace(0.0, 0.9, 8)[:, None]
    mask[:, 0] = False
    return {
        "tokens": rng.integers(0, vocab, (8, 16)).astype(np.int32),
        "loss_mask": mask,
        "segments": np.repeat([[1] * 9 + [2] * 6 + [0]], 8, axis=0).astype(np.int32),
        "positions": np.repeat([[*range(9), *range(6), 0]], 8, axis=0).astype(np.int32),
    }


def wide_loss(model, trains, mesh, **options):
    """(value and gradient, what trains, what does not, batch), laid out on the mesh."""
    graph, config, params = model
    rows = wide_batch(config.vocab_size)
    layout = layout_on(mesh) if mesh is not None else ALONE
    if mesh is not None:
        params = tree.map_with_path(lambda path, x: jax.device_put(x, place(mesh)(path, x.shape)), params)
        rows = {name: jax.device_put(x, batch_sharding(mesh)) for name, x in rows.items()}
    trainable, frozen = tree.split(params, trains)
    loss = objective(graph, config, layout=layout, **options)

    def total(trainable, frozen, rows):
        return loss(tree.merge(trainable, frozen), rows, jax.random.key(0))

    where = None if mesh is None else (None, jax.tree.map(lambda x: x.sharding, trainable))
    return jax.jit(jax.value_and_grad(total), out_shardings=where), trainable, frozen, rows


def wide_gradients(model, trains, *, mesh=None, **options):
    run, *arguments = wide_loss(model, trains, mesh, **options)
    value, grads = run(*arguments)
    return value, tree.flatten(grads)


def wide_program(model, mesh, **options):
    run, *arguments = wide_loss(model, lambda path: True, mesh, **options)
    return run.lower(*arguments).compile().as_text()
