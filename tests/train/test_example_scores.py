from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean.config import MeshSection
from jaxlean.models.decoder import Decoder, DecoderConfig
from jaxlean.models.layout import ALONE, layout_on
from jaxlean.train.example_scores import completion_scores, continuation_scores, cost_and_error, label_scores
from jaxlean.xla.mesh import batch_sharding, make_mesh

CONFIG = DecoderConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4,
    tie_embeddings=True, initializer_range=0.5,
)  # fmt: skip
ROWS, LENGTH = 8, 16


@pytest.fixture
def batch(packed: Any) -> dict[str, np.ndarray]:
    """Some tokens of each example carry loss, its last one always."""
    out, examples = packed
    rng = np.random.default_rng(1)
    out["loss_mask"] = np.zeros((ROWS, LENGTH), bool)
    for row, start, end in examples:
        out["loss_mask"][row, start + int(rng.integers(1, end - start)) : end] = True
    return dict(out)


def by_hand(logits: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    """Cross entropies and norms of p - onehot, float64, as they are written."""
    z = np.asarray(logits, np.float64)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    own = np.take_along_axis(p, np.asarray(targets)[..., None], -1)[..., 0]
    return -np.log(own), np.sqrt((p**2).sum(-1) - 2 * own + 1)


def test_cost_and_error_are_those_of_the_softmax() -> None:
    logits = 4 * np.random.default_rng(0).normal(size=(5, 7, 11)).astype(np.float32)
    targets = np.random.default_rng(1).integers(0, 11, (5, 7))
    loss, error = cost_and_error(jnp.asarray(logits), jnp.asarray(targets))
    wanted = by_hand(logits, targets)
    np.testing.assert_allclose(loss, wanted[0], rtol=1e-5)
    np.testing.assert_allclose(error, wanted[1], rtol=1e-5)


def test_the_error_of_a_token_that_is_nearly_certain_is_not_rounded_away() -> None:
    loss, error = cost_and_error(jnp.array([[7.0, 0.0]], jnp.float32), jnp.array([0]))
    q = np.exp(-7.0) / (1 + np.exp(-7.0))  # p**2 - 2 * p + 1 would be 8.3e-7, where float32 rounds by 1e-7
    np.testing.assert_allclose(error, [np.sqrt(2) * q], rtol=1e-3)
    np.testing.assert_allclose(loss, [-np.log1p(-q)], rtol=1e-3)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("data", [1, 8])
def test_the_tokens_of_each_example_are_added_up(batch: dict[str, np.ndarray], chunked: bool, data: int) -> None:
    graph, state = nnx.split(Decoder(CONFIG, dtype=jnp.dtype(jnp.float32), rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    mesh = make_mesh(MeshSection(data=data), jax.devices()[:data])
    logits_bytes = 4 * ROWS * 32 * 5 if chunked else None  # chunks of at most 5 positions
    layout = layout_on(mesh) if data > 1 else ALONE
    placed = {name: jax.device_put(x, batch_sharding(mesh)) for name, x in batch.items()}
    got = jax.jit(completion_scores(graph, CONFIG, logits_bytes=logits_bytes, layout=layout))(params, placed)
    assert got.num.sum() == batch["loss_mask"].sum()
    seen, given = 0, {name: jnp.asarray(batch[name]) for name in ("tokens", "positions", "segments")}
    logits = jax.jit(lambda params: nnx.merge(graph, params)(**given))(params)
    for row in range(ROWS):
        for segment in range(1, int(batch["segments"][row].max()) + 1):
            at = np.flatnonzero(batch["segments"][row] == segment)
            tokens, mask = batch["tokens"][row, at], batch["loss_mask"][row, at]
            loss, error = by_hand(logits[row, at[:-1]], tokens[1:])
            np.testing.assert_allclose(got.loss[row, segment], loss[mask[1:]].sum(), rtol=1e-4)
            np.testing.assert_allclose(got.error[row, segment], error[mask[1:]].sum(), rtol=1e-4)
            assert got.num[row, segment] == mask.sum()
            seen += 1
    assert seen > ROWS
    assert not np.asarray(got.loss)[:, 0].any()


def test_labels_score_where_they_stand(batch: dict[str, np.ndarray]) -> None:
    labels = np.where(batch["loss_mask"], 1, -100)
    logits = np.random.default_rng(0).normal(size=(ROWS, LENGTH, 3)).astype(np.float32)
    given = {"labels": jnp.asarray(labels), "segments": jnp.asarray(batch["segments"])}
    got = label_scores(lambda params, batch, dropout: jnp.asarray(logits))({}, given)
    loss, error = by_hand(logits, np.ones((ROWS, LENGTH), int))
    at = (batch["segments"] == 2) & batch["loss_mask"]
    np.testing.assert_allclose(got.loss[:, 2], (loss * at).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(got.error[:, 2], (error * at).sum(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(got.num[:, 2], at.sum(axis=1))


@pytest.mark.parametrize("logits_bytes", [None, 4 * ROWS * CONFIG.vocab_size * 3])
@pytest.mark.parametrize("data", [1, 8])
def test_a_continuation_is_as_likely_as_its_tokens_one_after_the_other(logits_bytes: int | None, data: int) -> None:
    rng = np.random.default_rng(3)
    graph, state = nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    tokens = rng.integers(1, CONFIG.vocab_size, (ROWS, LENGTH)).astype(np.int32)
    lengths, starts = rng.integers(6, LENGTH + 1, ROWS), rng.integers(1, 5, ROWS)
    places = np.arange(LENGTH)
    logits = np.asarray(nnx.merge(graph, params)(jnp.asarray(tokens)), np.float64)
    for row in range(0, ROWS, 2):  # what greedy decoding would go on with
        for place in range(starts[row], lengths[row]):
            logits[row] = np.asarray(nnx.merge(graph, params)(jnp.asarray(tokens[row : row + 1])), np.float64)[0]
            tokens[row, place] = logits[row, place - 1].argmax()
    logits = np.asarray(nnx.merge(graph, params)(jnp.asarray(tokens)), np.float64)
    seen = places < lengths[:, None]
    batch = {
        "tokens": np.where(seen, tokens, 0), "segments": seen.astype(np.int32),
        "positions": np.broadcast_to(places, tokens.shape).astype(np.int32),
        "loss_mask": seen & (places >= starts[:, None]),
    }  # fmt: skip
    mesh = make_mesh(MeshSection(data=data), jax.devices()[:data])
    placed = {name: jax.device_put(value, batch_sharding(mesh)) for name, value in batch.items()}
    layout = layout_on(mesh) if data > 1 else ALONE
    scores = jax.jit(continuation_scores(graph, CONFIG, logits_bytes=logits_bytes, layout=layout))
    found, greedy = scores(params, placed)
    for row in range(ROWS):
        here = range(starts[row] - 1, lengths[row] - 1)
        wanted = -sum(by_hand(logits[row, place], tokens[row, place + 1])[0] for place in here)
        np.testing.assert_allclose(found[row], wanted, rtol=1e-5)
        assert greedy[row] == all(logits[row, place].argmax() == tokens[row, place + 1] for place in here)
        assert greedy[row] == (row % 2 == 0)
