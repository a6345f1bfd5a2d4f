"""What stands inside of models: kept as it is, and compared as numpy compares it, over any widths and alternations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean.models.config import Kind
from jaxlean.models.decoder import Decoder, DecoderConfig
from jaxlean.train.match import HIDDEN, RELATED, Match, collect, match_loss, widths

pytestmark = pytest.mark.slow

ROWS, LENGTH = 2, 7
KINDS = (Kind(window=3), Kind(), Kind(window=3))


def decoder(seed, **shape):
    sizes = {"hidden_size": 8, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "head_dim": 2, "kinds": KINDS}
    config = DecoderConfig(vocab_size=16, intermediate_size=12, initializer_range=0.5, **(sizes | shape))
    return Decoder(config, rngs=nnx.Rngs(seed))


def batch():
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(0, 16, (ROWS, LENGTH)).astype(np.int32),
        "segments": np.asarray([[1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1]], np.int32),
        "positions": np.asarray([[0, 1, 2, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5, 6]], np.int32),
    }


def inside(model, layers):
    return jax.jit(lambda b: collect(model, b, layers, hidden=True, attention=True))(batch())


def relations(x, heads, sees):
    """[length, features] -> [heads, length, length], in float64."""
    found = []
    for part in np.split(np.asarray(x, np.float64), heads, axis=-1):
        scores = np.where(sees, part @ part.T / np.sqrt(part.shape[-1]), -np.inf)
        powers = np.exp(scores - scores.max(-1, keepdims=True))
        found.append(powers / powers.sum(-1, keepdims=True))
    return np.stack(found)


def cka(s, t):
    """By HSIC of the linear kernels, centred."""
    centre = np.eye(len(s)) - 1 / len(s)
    one, other = (centre @ x @ x.T @ centre for x in (s, t))
    return (one * other).sum() / np.sqrt(np.square(one).sum() * np.square(other).sum())


def test_what_is_kept_is_what_the_layers_give():
    model, rows = decoder(0), batch()
    hidden, kept = inside(model, [2, 0])
    how = {"positions": rows["positions"], "segments": rows["segments"]}
    np.testing.assert_allclose(hidden, model.hidden(rows["tokens"], **how), rtol=1e-5, atol=1e-6)
    assert kept[HIDDEN].shape == (ROWS, LENGTH, 2, 8)
    assert kept[RELATED].shape == (ROWS, LENGTH, 2, sum(widths(model.config)))
    np.testing.assert_allclose(model.leave(kept[HIDDEN][:, :, 0]), hidden, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["cosine", "mse", "cka"])
def test_the_loss_is_numpy_s(loss):
    wide = {"hidden_size": 12} if loss == "cka" else {}
    student, teacher, rows = decoder(0), decoder(1, num_kv_heads=4, **wide), batch()
    _, ours = inside(student, [0, 2])
    _, theirs = inside(teacher, [1, 2])
    match = Match(((0, 1), (2, 2)), 0.7, 0.3, loss, 2, widths(teacher.config))
    got = match_loss(ours, rows | theirs, match, widths(student.config), causal=True)

    there = rows["segments"] > 0
    s, t = np.asarray(ours[HIDDEN], np.float64), np.asarray(theirs[HIDDEN], np.float64)
    if loss == "cosine":
        each = 1 - (s * t).sum(-1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1)
    elif loss == "cka":  # of gram matrices over tokens, equation 4 there
        each = 1 - np.broadcast_to([cka(s[there][:, i], t[there][:, i]) for i in range(2)], s.shape[:3])
    else:
        each = np.square(s - t).sum(-1) / np.square(t).sum(-1)
    want = 0.7 * each.mean(-1)[there].sum()
    for row in range(ROWS):
        segments = rows["segments"][row]
        sees = (segments[:, None] == segments) & np.tril(np.ones((LENGTH, LENGTH), bool))
        for layer in range(2):
            cut = [np.cumsum(widths(model.config))[:2] for model in (student, teacher)]
            parts = [
                np.split(np.asarray(x[RELATED][row, :, layer]), c, -1) for x, c in zip((ours, theirs), cut, strict=True)
            ]
            for x, y in zip(*parts, strict=True):
                q, p = relations(x, 2, sees), relations(y, 2, sees)
                with np.errstate(divide="ignore", invalid="ignore"):
                    far = np.where(sees, p * np.log(p / q), 0.0).sum(-1).mean(0)
                want += 0.3 * far[segments > 0].sum() / 3 / 2
    np.testing.assert_allclose(got, want / there.sum(), rtol=1e-4)


def test_a_model_is_like_itself_and_what_differs_pulls():
    student, rows = decoder(0), batch()
    graph, params = nnx.split(student)
    _, theirs = inside(student, [0, 1])
    match = Match(((0, 0), (1, 1)), 1.0, 1.0, "mse", 2, widths(student.config))

    @jax.jit
    def far(params, theirs):
        own = collect(nnx.merge(graph, params), rows, [0, 1], hidden=True, attention=True)[1]
        return match_loss(own, rows | theirs, match, widths(student.config), causal=True)

    np.testing.assert_allclose(far(params, theirs), 0.0, atol=1e-5)
    other = jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), params)
    value, gradient = jax.jit(jax.value_and_grad(far))(other, theirs)
    assert value > 1e-3
    moved = jax.tree.map(lambda x, g: x - 1e-2 * g, other, gradient)
    assert far(moved, theirs) < value
