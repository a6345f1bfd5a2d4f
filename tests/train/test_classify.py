from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlean import tree
from jaxlean.config import MeshSection
from jaxlean.models.decoder import DecoderConfig
from jaxlean.models.layout import layout_on
from jaxlean.train.classify import judge_labels, label_logits, label_loss, label_objective, likeliest
from jaxlean.train.loss import Terms
from jaxlean.train.step import init_state, make_eval_step, make_step
from jaxlean.xla.mesh import batch_sharding, make_mesh, place

CONFIG = DecoderConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4,
    tie_embeddings=True, initializer_range=0.5,
)  # fmt: skip
ROWS, LENGTH, LABELS = 8, 16, 3


@pytest.fixture
def model(stand_in: Any) -> tuple[Any, tree.Tree]:
    made = stand_in.Encoder(CONFIG, LABELS, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, state = nnx.split(made)
    params = nnx.to_pure_dict(state)
    params["classifier"]["kernel"] = 0.5 * jax.random.normal(jax.random.key(1), (16, LABELS))
    return graph, params


@pytest.fixture
def batch(packed: Any) -> dict[str, jax.Array]:
    """A label at the first token of each text."""
    out, texts = packed
    rng = np.random.default_rng(1)
    out["labels"] = np.full((ROWS, LENGTH), -100, np.int32)
    for row, start, _ in texts:
        out["labels"][row, start] = rng.integers(0, LABELS)
    return {name: jnp.asarray(value) for name, value in out.items()}


def test_the_loss_is_that_of_each_text_alone(model: Any, batch: dict[str, jax.Array]) -> None:
    """Packed into rows, or each in a row of its own: a mean of its tokens, logits, softmax, logarithm, in numpy."""
    graph, params = model
    found = jax.jit(label_objective(label_logits(graph, "classify")))(params, batch, jax.random.key(0))
    host = {name: np.asarray(x) for name, x in batch.items()}
    texts = [
        np.flatnonzero(host["segments"][row] == segment) + row * LENGTH
        for row in range(ROWS)
        for segment in range(1, host["segments"][row].max() + 1)
    ]
    alone = np.zeros((len(texts), LENGTH), np.int32)
    for i, at in enumerate(texts):
        alone[i, : len(at)] = host["tokens"].reshape(-1)[at]
    hidden = np.asarray(jax.jit(lambda p, t: nnx.merge(graph, p).hidden(t))(params, alone), np.float64)
    wanted = 0.0
    for i, at in enumerate(texts):
        z = hidden[i, : len(at)].mean(0) @ np.asarray(params["classifier"]["kernel"], np.float64)
        wanted -= np.log(np.exp(z) / np.exp(z).sum())[host["labels"].reshape(-1)[at[0]]]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_terms_are_those_of_tokens() -> None:
    """Label smoothing against optax's, z-loss by its formula; positions without a label cost nothing."""
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    labels = jnp.array([[1, -100, 4], [-100, -100, 0]])
    there = np.asarray(labels) >= 0
    smooth = optax.smooth_labels(jax.nn.one_hot(jnp.maximum(labels, 0), 5), 0.1)
    wanted = np.asarray(optax.softmax_cross_entropy(logits, smooth))[there].sum()
    np.testing.assert_allclose(label_loss(logits, labels, Terms(0.0, 0.1)), wanted, rtol=1e-6)
    extra = 0.5 * np.square(np.asarray(jax.nn.logsumexp(logits, axis=-1)))[there].sum()
    both = label_loss(logits, labels, Terms(0.5, 0.1))
    np.testing.assert_allclose(both, wanted + extra, rtol=1e-6)
    gradient = jax.grad(label_loss)(logits, labels)
    assert (np.asarray(gradient)[~there] == 0).all()
    assert (np.asarray(gradient)[there] != 0).all()


def test_tags_read_each_token(model: Any, batch: dict[str, jax.Array]) -> None:
    graph, params = model
    logits = jax.jit(lambda p, b: label_logits(graph, "tag")(p, b, None))(params, batch)
    other = jax.jit(lambda p, b: label_logits(graph, "classify")(p, b, None))(params, batch)
    assert logits.shape == (ROWS, LENGTH, LABELS)
    assert not np.allclose(logits, other)


def test_types_of_tokens_reach_the_encoder(model: Any, batch: dict[str, jax.Array]) -> None:
    graph, params = model
    logits = jax.jit(lambda p, b: label_logits(graph, "tag")(p, b, None))
    plain = logits(params, batch)
    typed = logits(params, batch | {"token_types": (batch["positions"] > 1).astype(jnp.int32)})
    assert not np.allclose(plain, typed)
    np.testing.assert_allclose(plain, logits(params, batch | {"token_types": 0 * batch["tokens"]}), atol=1e-6)


def test_likeliest() -> None:
    logits = jnp.log(jnp.array([[[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]]]))
    best, probability = likeliest(logits)
    np.testing.assert_array_equal(best, [[1, 0]])
    np.testing.assert_allclose(probability, [[0.7, 0.5]], rtol=1e-6)


def test_judging_gives_the_evaluations_loss(model: Any, batch: dict[str, jax.Array]) -> None:
    graph, params = model
    logits = label_logits(graph, "classify")
    loss, (best, _) = jax.jit(judge_labels(logits))(params, batch)
    total, num = make_eval_step(label_objective(logits))({}, params, batch)
    np.testing.assert_allclose(loss, total, rtol=1e-6)
    assert num == (np.asarray(batch["labels"]) >= 0).sum()
    np.testing.assert_array_equal(best, jnp.argmax(jax.jit(lambda p, b: logits(p, b, None))(params, batch), -1))


def steps(graph: Any, params: tree.Tree, batch: dict[str, Any], mesh: Any, parts: int = 1) -> tuple[list[float], Any]:
    where = place(mesh)
    params = tree.map_with_path(lambda path, x: jax.device_put(jnp.copy(x), where(path, x.shape)), params)
    parted = {name: x.reshape(parts, ROWS // parts, LENGTH) for name, x in batch.items()}
    placed = {name: jax.device_put(x, batch_sharding(mesh, leading=1)) for name, x in parted.items()}
    transform = optax.sgd(0.1)
    step = make_step(label_objective(label_logits(graph, "classify", layout=layout_on(mesh))), transform)
    state = init_state(params, transform)
    losses = []
    for _ in range(3):
        state, measured = step(state, {}, placed)
        losses.append(float(measured.loss))
    return losses, (jax.device_get(state.trainable), int(measured.tokens))


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 4}, {"fsdp": 2, "context": 2, "tensor": 2}])
def test_a_mesh_changes_nothing(model: Any, batch: dict[str, jax.Array], axes: dict[str, int]) -> None:
    alone, (params, tokens) = steps(*model, batch, make_mesh(MeshSection(), jax.devices()[:1]))
    section = MeshSection(**{"data": 1, **axes})
    spread, (other, num) = steps(*model, batch, make_mesh(section))
    np.testing.assert_allclose(spread, alone, rtol=2e-5)
    assert num == tokens
    for path, leaf in tree.flatten(params).items():
        np.testing.assert_allclose(tree.flatten(other)[path], leaf, atol=2e-5, err_msg=path)


def test_microbatches_are_one_batch(model: Any, batch: dict[str, jax.Array]) -> None:
    one = make_mesh(MeshSection(), jax.devices()[:1])
    whole, _ = steps(*model, batch, one)
    parted, _ = steps(*model, batch, one, parts=4)
    np.testing.assert_allclose(parted, whole, rtol=1e-5)
    assert whole[2] < whole[0]
