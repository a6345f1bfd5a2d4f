"""The loss against numpy in float64, its gradient against the formula and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlean.train.loss import next_token_loss

ROWS, LENGTH, VOCAB = 3, 6, 11


loss = jax.jit(next_token_loss)
gradient = jax.jit(jax.grad(next_token_loss))


def draw(seed, size=3.0):
    rng = np.random.default_rng(seed)
    logits = (size * rng.normal(size=(ROWS, LENGTH, VOCAB))).astype(np.float32)
    return logits, rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32), rng.random((ROWS, LENGTH)) < 0.5


def reference(logits, tokens, mask):
    total = 0.0
    for row in range(ROWS):
        for at in range(1, LENGTH):
            if mask[row, at]:
                scores = logits[row, at - 1].astype(np.float64)
                total += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[tokens[row, at]]
    return total


@settings(max_examples=20)
@given(st.integers(0, 2**16), st.sampled_from([0.1, 3.0, 1e4]))
def test_it_is_the_sum_of_the_cross_entropies(seed, size):
    arrays = draw(seed, size)
    got = loss(*arrays)
    assert got.dtype == jnp.float32
    assert got.shape == ()
    np.testing.assert_allclose(got, reference(*arrays), rtol=1e-5, atol=1e-5)


def test_the_first_token_of_a_row_is_never_predicted():
    logits, tokens, mask = draw(0)
    mask[:] = False
    mask[:, 0] = True
    assert loss(logits, tokens, mask) == 0


def test_parts_add_up():
    logits, tokens, mask = draw(1)
    parts = [loss(logits[i : i + 1], tokens[i : i + 1], mask[i : i + 1]) for i in range(ROWS)]
    np.testing.assert_allclose(sum(parts), loss(logits, tokens, mask), rtol=1e-6)


def test_the_gradient_is_probabilities_less_one_at_the_token():
    logits, tokens, mask = draw(2)
    got = gradient(logits, tokens, mask)
    wide = logits.astype(np.float64)
    probabilities = np.exp(wide) / np.exp(wide).sum(-1, keepdims=True)
    want = np.zeros_like(wide)
    for row in range(ROWS):
        for at in range(1, LENGTH):
            if mask[row, at]:
                want[row, at - 1] = probabilities[row, at - 1] - np.eye(VOCAB)[tokens[row, at]]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_the_gradient_is_what_finite_differences_say():
    logits, tokens, mask = draw(3)
    got = np.asarray(gradient(logits, tokens, mask))
    rng = np.random.default_rng(4)
    for _ in range(5):
        way = rng.normal(size=logits.shape)
        up, down = (reference(logits + sign * 1e-5 * way, tokens, mask) for sign in (1, -1))
        np.testing.assert_allclose((got * way).sum(), (up - down) / 2e-5, rtol=1e-4, atol=1e-4)
