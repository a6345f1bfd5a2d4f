"""Rows beside a table do what the same rows in the table would."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean import tree
from jaxlean.adapt import vocabulary
from jaxlean.models.build import abstract
from jaxlean.models.decoder import Cache, DecoderConfig
from jaxlean.models.encoder import EncoderConfig
from jaxlean.models.new_tokens import own_ids

SHAPE = {
    "vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2,
    "head_dim": 8, "initializer_range": 0.4,
}  # fmt: skip
IDS = np.array([3, 17, 18, 19])
TOKENS = jnp.asarray([[1, 3, 17, 5, 19, 19, 2, 0]], jnp.int32)
CONFIGS = {
    "tied": DecoderConfig(**SHAPE, tie_embeddings=True, embedding_multiplier=2.0, logits_softcap=20.0),
    "untied": DecoderConfig(**SHAPE, logits_multiplier=0.5),
}


def built(config, seed=0):
    """(parameters with rows, the same parameters with the rows in their tables)."""
    params = nnx.to_pure_dict(nnx.split(config.build(dtype=jnp.dtype(jnp.float32), rngs=nnx.Rngs(seed)))[1])
    rng = np.random.default_rng(seed)
    leaves = tree.flatten(params)
    rows = {
        leaf: 0.5 * rng.normal(size=(len(IDS), 16)) for leaf, (table, _) in vocabulary.TABLES.items() if table in leaves
    }
    beside = vocabulary.add(params, IDS, rows)
    return beside, vocabulary.merge(beside)


def module(config, params):
    graph, shapes = abstract(config, params)
    tree.check(params, shapes)
    return nnx.merge(graph, params)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients_are_those_of_merged_tables(name):
    config = CONFIGS[name]
    beside, merged = built(config)
    graph, _ = abstract(config, beside)
    plain, _ = abstract(config, merged)

    def likely(graph, params):
        logits = nnx.merge(graph, params)(TOKENS)
        scores = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.take_along_axis(scores, TOKENS[:, 1:, None], axis=-1).sum(), logits

    def of_rows(rows):
        rest = tree.split(beside, lambda path: not vocabulary.is_row(path))[0]
        return likely(graph, tree.merge(rest, rows))

    (loss, logits), own = jax.value_and_grad(of_rows, has_aux=True)(tree.split(beside, vocabulary.is_row)[0])
    (wanted_loss, wanted), whole = jax.value_and_grad(likely, argnums=1, has_aux=True)(plain, merged)
    np.testing.assert_allclose(logits, wanted, atol=2e-6)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
    np.testing.assert_allclose(own["new_tokens"]["embed"], whole["embed"]["embedding"][IDS], atol=1e-5)
    if name == "untied":
        np.testing.assert_allclose(own["new_tokens"]["head"], whole["head"]["kernel"].T[IDS], atol=1e-5)
    assert float(jnp.abs(own["new_tokens"]["embed"]).max()) > 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_what_the_table_holds_at_their_ids_counts_for_nothing(name):
    config = CONFIGS[name]
    beside, _ = built(config)
    other = tree.flatten(beside)
    other["embed.embedding"] = other["embed.embedding"].at[IDS].set(7.0)
    if "head.kernel" in other:
        other["head.kernel"] = other["head.kernel"].at[:, IDS].set(-7.0)
    np.testing.assert_array_equal(module(config, beside)(TOKENS), module(config, tree.unflatten(other))(TOKENS))


def test_decoding_with_a_cache_sees_them_too():
    config = CONFIGS["untied"]
    beside, _ = built(config)
    model = module(config, beside)
    ones = jnp.ones_like(TOKENS)
    places = jnp.arange(8, dtype=jnp.int32)[None]
    cache = Cache.empty(config, 1, 8, jnp.dtype(jnp.float32))
    first, cache = model.decode(TOKENS[:, :5], places[:, :5], ones[:, :5], cache)
    rest, _ = model.decode(TOKENS[:, 5:], places[:, 5:], ones[:, 5:], cache)
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), model(TOKENS), atol=1e-5)


def test_an_encoder_embeds_them():
    config = EncoderConfig(**SHAPE, learned_positions=8, token_types=2)
    params = nnx.to_pure_dict(nnx.split(config.build(dtype=jnp.dtype(jnp.float32), rngs=nnx.Rngs(0)))[1])
    rows = np.random.default_rng(0).normal(size=(len(IDS), 16))
    beside = vocabulary.add(params, IDS, {"new_tokens.embed": rows})
    found = module(config, beside)(TOKENS)
    np.testing.assert_allclose(found, module(config, vocabulary.merge(beside))(TOKENS), atol=1e-6)
    assert float(jnp.abs(found - module(config, params)(TOKENS)).max()) > 0.1


def test_without_rows_the_graph_is_what_it_was():
    config = CONFIGS["tied"]
    _, merged = built(config)
    assert module(config, merged).new_tokens is None


def test_parts_of_a_vocabulary_have_each_token_once():
    ids = jnp.asarray(IDS, jnp.int32)
    logits = jnp.zeros((20,))
    found = []
    for first in range(0, 20, 5):
        own = own_ids(ids, jnp.asarray(first, jnp.int32), 5)
        assert len(set(own.tolist())) == len(IDS)
        found.append(logits[first : first + 5].at[own].set(1.0, mode="drop", unique_indices=True))
    assert np.flatnonzero(jnp.concatenate(found)).tolist() == IDS.tolist()
