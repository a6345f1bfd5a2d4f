from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean import tree
from jaxlean.config import MeshSection
from jaxlean.models.decoder import DecoderConfig
from jaxlean.models.layout import layout_on
from jaxlean.train.contrast import contrast_objective, contrastive_loss, judge_vectors, text_vectors, unit
from jaxlean.train.objective import num_targets
from jaxlean.xla.mesh import batch_sharding, make_mesh, place

CONFIG = DecoderConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=4,
    tie_embeddings=True, initializer_range=0.5,
)  # fmt: skip


def by_hand(a: np.ndarray, p: np.ndarray, scale: float) -> float:
    """One pair after the other, as the formula says it."""
    total = 0.0
    for i in range(len(a)):
        scores = [scale * float(a[i] @ p[j] / np.linalg.norm(a[i]) / np.linalg.norm(p[j])) for j in range(len(p))]
        total -= np.log(np.exp(scores[i]) / sum(np.exp(score) for score in scores))
    return total


@pytest.fixture
def vectors() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 8)), rng.normal(size=(5, 8))


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_loss_is_the_formula(vectors: tuple[np.ndarray, np.ndarray], symmetric: bool) -> None:
    a, p = vectors
    wanted = by_hand(a, p, 5.0) if not symmetric else (by_hand(a, p, 5.0) + by_hand(p, a, 5.0)) / 2
    there = jnp.ones(5, bool)
    found = contrastive_loss(jnp.asarray(a), jnp.asarray(p), there, scale=5.0, symmetric=symmetric)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_padding_is_nobodys_negative(vectors: tuple[np.ndarray, np.ndarray], symmetric: bool) -> None:
    a, p = (np.concatenate([x, np.zeros((3, 8))]).astype(np.float32) for x in vectors)
    there = jnp.arange(8) < 5

    def loss(a: Any, p: Any, there: Any) -> Any:
        return contrastive_loss(a, p, there, scale=20.0, symmetric=symmetric)

    found, gradients = jax.value_and_grad(loss, (0, 1))(a, p, there)
    np.testing.assert_allclose(found, loss(a[:5], p[:5], there[:5]), rtol=1e-6)
    assert all(np.isfinite(g).all() for g in gradients)
    assert all((np.asarray(g)[5:] == 0).all() for g in gradients)


def test_equal_vectors_cost_the_logarithm_of_their_number() -> None:
    same = jnp.ones((4, 8))
    np.testing.assert_allclose(contrastive_loss(same, same, jnp.ones(4, bool), scale=20.0), 4 * np.log(4), rtol=1e-6)


def test_unit_vectors() -> None:
    np.testing.assert_allclose(unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    assert unit(jnp.ones((1, 2), jnp.bfloat16)).dtype == jnp.float32


@pytest.fixture
def model(stand_in: Any) -> tuple[Any, tree.Tree]:
    graph, state = nnx.split(stand_in.Encoder(CONFIG, 0, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    return graph, nnx.to_pure_dict(state)


@pytest.fixture
def batch() -> dict[str, np.ndarray]:
    """Seven pairs in sixteen rows: the last two rows are padding."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(3, 13, (16, 1))
    lengths[14:] = 0
    there = np.arange(16) < lengths
    labels = np.full((16, 16), -100)
    labels[0:14:2, 0] = 0
    return {
        "tokens": np.where(there, rng.integers(0, 32, (16, 16)), 0).astype(np.int32),
        "segments": there.astype(np.int32),
        "positions": np.where(there, np.arange(16), 0).astype(np.int32),
        "labels": labels.astype(np.int32),
    }


@pytest.mark.parametrize("axes", [None, {"data": 2, "fsdp": 4}, {"fsdp": 2, "context": 2, "tensor": 2}])
def test_all_devices_rows_are_told_apart(model: Any, batch: dict[str, np.ndarray], axes: dict[str, int] | None) -> None:
    """The loss of a batch over a mesh is that of all its pairs, and so is its gradient."""
    graph, params = model
    hidden = np.asarray(jax.jit(lambda p, t: nnx.merge(graph, p).hidden(t))(params, batch["tokens"]), np.float64)
    pooled = [hidden[row, : batch["segments"][row].sum()].mean(0) for row in range(14)]
    wanted = by_hand(np.stack(pooled[0::2]), np.stack(pooled[1::2]), 20.0)
    if axes is None:
        mesh = make_mesh(MeshSection(), jax.devices()[:1])
    else:
        mesh = make_mesh(MeshSection(**{"data": 1, **axes}))
    where = place(mesh)
    placed = tree.map_with_path(lambda path, x: jax.device_put(x, where(path, x.shape)), params)
    rows = {name: jax.device_put(x, batch_sharding(mesh)) for name, x in batch.items()}
    vectors = text_vectors(graph, layout=layout_on(mesh))
    loss = contrast_objective(vectors)
    found, gradient = jax.jit(jax.value_and_grad(loss))(placed, rows, jax.random.key(0))
    np.testing.assert_allclose(found, wanted, rtol=2e-4)
    alone = jax.jit(jax.grad(contrast_objective(text_vectors(graph))))(
        params, {k: jnp.asarray(v) for k, v in batch.items()}, jax.random.key(0)
    )
    for path, leaf in tree.flatten(alone).items():
        np.testing.assert_allclose(
            tree.flatten(gradient)[path], leaf, atol=2e-4 * float(np.abs(leaf).max()), err_msg=path
        )
    assert num_targets(rows) == 7
    judged, said = jax.jit(judge_vectors(vectors))(placed, rows)
    np.testing.assert_allclose(judged, found, rtol=1e-6)
    np.testing.assert_allclose(said[:14], np.stack(pooled), atol=1e-4)
    assert (np.asarray(said)[14:] == 0).all()
