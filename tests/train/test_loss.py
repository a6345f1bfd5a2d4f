"""The loss against numpy in float64, its gradient against finite differences, the chunked one against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlean.config import MeshSection
from jaxlean.models.linear import dot_wide
from jaxlean.train.loss import (
    CROSS_ENTROPY,
    Terms,
    chunk_budget,
    chunk_length,
    chunked_loss,
    chunked_tokens,
    next_token_loss,
    shifted,
)
from jaxlean.xla.mesh import batch_sharding, make_mesh, place

ROWS, LENGTH, VOCAB, HIDDEN = 3, 6, 11, 5
ALL_TERMS = [CROSS_ENTROPY, Terms(z_loss=0.03), Terms(label_smoothing=0.2), Terms(0.03, 0.2)]


loss = jax.jit(next_token_loss, static_argnums=3)
gradient = jax.jit(jax.grad(next_token_loss), static_argnums=3)


def draw(seed, size=3.0, vocab=VOCAB):
    rng = np.random.default_rng(seed)
    logits = (size * rng.normal(size=(ROWS, LENGTH, vocab))).astype(np.float32)
    return logits, rng.integers(0, vocab, (ROWS, LENGTH)).astype(np.int32), rng.random((ROWS, LENGTH)) < 0.5


def reference(logits, tokens, mask, terms=CROSS_ENTROPY):
    total = 0.0
    for row in range(tokens.shape[0]):
        for at in range(1, tokens.shape[1]):
            if mask[row, at]:
                scores = logits[row, at - 1].astype(np.float64)
                log_sum = np.log(np.exp(scores - scores.max()).sum()) + scores.max()
                surprise = log_sum - scores  # of each token of the vocabulary
                # as transformers' LabelSmoother has it
                smoothed = terms.label_smoothing * surprise.mean()
                total += (1 - terms.label_smoothing) * surprise[tokens[row, at]] + smoothed + terms.z_loss * log_sum**2
    return total


@settings(max_examples=20)
@given(st.integers(0, 2**16), st.sampled_from([0.1, 3.0, 1e4]), st.sampled_from(ALL_TERMS))
def test_it_is_the_sum_of_the_cross_entropies_and_its_terms(seed, size, terms):
    arrays = draw(seed, size)
    got = loss(*arrays, terms)
    assert got.dtype == jnp.float32
    assert got.shape == ()
    np.testing.assert_allclose(got, reference(*arrays, terms), rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("terms", ALL_TERMS)
def test_the_gradient_is_what_finite_differences_say(terms):
    logits, tokens, mask = draw(3)
    got = np.asarray(gradient(logits, tokens, mask, terms))
    rng = np.random.default_rng(4)
    for _ in range(5):
        way = rng.normal(size=logits.shape)
        up, down = (reference(logits + sign * 1e-5 * way, tokens, mask, terms) for sign in (1, -1))
        np.testing.assert_allclose((got * way).sum(), (up - down) / 2e-5, rtol=1e-4, atol=1e-4)


# ---- in chunks


def linear_head(params, x, number):
    return dot_wide(x, params["kernel"].astype(x.dtype))


def plain(params, hidden, tokens, mask, *, head=linear_head, chunk=None, terms=CROSS_ENTROPY):
    """The same arguments, all logits at once."""
    return next_token_loss(head(params, hidden, 0), tokens, mask, terms)


def in_chunks(params, hidden, tokens, mask, *, chunk, terms=CROSS_ENTROPY):
    return chunked_loss(linear_head, params, hidden, *shifted(tokens, mask), chunk=chunk, criterion=terms)


STATIC = {"static_argnames": ("chunk", "terms")}
values = {f: jax.jit(f, **STATIC) for f in (plain, in_chunks)}
both = {f: jax.jit(jax.value_and_grad(f, argnums=(0, 1)), **STATIC) for f in (plain, in_chunks)}
of_hidden = {f: jax.jit(jax.value_and_grad(f, argnums=1), **STATIC) for f in (plain, in_chunks)}


def problem(seed, *, density=0.5, vocab=VOCAB, dtype=np.float32):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(HIDDEN, vocab)).astype(np.float32)
    hidden = jnp.asarray(rng.normal(size=(ROWS, LENGTH, HIDDEN)), dtype)
    tokens = rng.integers(0, vocab, (ROWS, LENGTH)).astype(np.int32)
    return {"kernel": jnp.asarray(kernel)}, hidden, tokens, rng.random((ROWS, LENGTH)) < density


def assert_close(got, want, *, rtol=1e-5, atol=1e-5):
    def close(a, b):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=rtol, atol=atol)

    jax.tree.map(close, got, want)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**16),
    density=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    chunk=st.sampled_from([1, 4, 6]),
    vocab=st.sampled_from([1, VOCAB]),
    terms=st.sampled_from([ALL_TERMS[0], ALL_TERMS[-1]]),
)
def test_chunks_give_the_same_value_and_gradient(seed, density, chunk, vocab, terms):
    arguments = problem(seed, density=density, vocab=vocab)
    params, hidden, tokens, mask = arguments
    got = both[in_chunks](*arguments, chunk=chunk, terms=terms)
    assert_close(got, both[plain](*arguments, chunk=None, terms=terms))
    logits = np.asarray(hidden, np.float64) @ np.asarray(params["kernel"], np.float64)
    np.testing.assert_allclose(got[0], reference(logits, tokens, mask, terms), rtol=1e-5, atol=1e-5)
    # not differentiated, as in the evaluation
    np.testing.assert_allclose(values[in_chunks](*arguments, chunk=chunk, terms=terms), got[0], rtol=1e-6, atol=1e-6)


def test_a_chunk_longer_than_the_sequence_is_the_sequence():
    arguments = problem(0)
    assert_close(both[in_chunks](*arguments, chunk=100), both[plain](*arguments))


@pytest.mark.parametrize("chunk", [2, 6])
def test_in_bfloat16(chunk):
    arguments = problem(1, dtype=jnp.bfloat16, density=0.8)
    got, want = both[in_chunks](*arguments, chunk=chunk), both[plain](*arguments)
    assert got[1][1].dtype == jnp.bfloat16
    assert_close(got, want, rtol=2**-7, atol=2**-7)
    params, hidden, tokens, mask = arguments
    exact = both[plain](params, hidden.astype(jnp.float32), tokens, mask)
    np.testing.assert_allclose(got[0], exact[0], rtol=2**-7)
    np.testing.assert_allclose(got[1][0]["kernel"], exact[1][0]["kernel"], atol=0.05)


def test_the_gradient_is_scaled_by_what_comes_back():
    params, hidden, tokens, mask = problem(2)

    def scaled(function):
        return jax.grad(lambda p, h: jnp.square(function(p, h, tokens, mask, chunk=4)) / 7, argnums=(0, 1))(
            params, hidden
        )

    assert_close(scaled(in_chunks), scaled(plain), rtol=1e-4)


def test_other_leaves_of_the_head_are_left_alone():
    """Whole numbers, keys and frozen arrays stand beside what trains, as in a quantized head with an adapter."""
    params, hidden, tokens, mask = problem(3)
    frozen = {"codes": jnp.arange(VOCAB, dtype=jnp.int8), "key": jax.random.key(0), "frozen": jnp.ones((VOCAB,))}

    def head(params, x, number):
        noise = 0 * jax.random.normal(params["key"], (VOCAB,))
        return x @ params["kernel"] + params["frozen"] * params["codes"].astype(jnp.float32) + noise

    def total(kernel, function):
        return function({"kernel": kernel, **frozen})

    got = jax.value_and_grad(total)(
        params["kernel"], lambda params: chunked_loss(head, params, hidden, *shifted(tokens, mask), chunk=4)
    )
    want = jax.value_and_grad(total)(params["kernel"], lambda params: plain(params, hidden, tokens, mask, head=head))
    assert_close(got, want)


def test_chunks_without_a_token_to_predict_are_left_out():
    """A head that scales each chunk's logits by a number of its own: its gradient says which chunks were asked for."""
    params, hidden, tokens, _ = problem(4)

    def head(params, x, number):
        return x @ params["kernel"] * params["scale"][number]

    def asked(mask):
        params_too = {**params, "scale": jnp.ones((LENGTH // 2,))}
        gradient = jax.grad(lambda p: chunked_loss(head, p, hidden, *shifted(tokens, mask), chunk=2))(params_too)[
            "scale"
        ]
        return [bool(x != 0) for x in gradient]

    mask = np.zeros((ROWS, LENGTH), bool)
    assert asked(mask) == [False, False, False]
    mask[:, 0] = True  # nothing predicts it
    assert asked(mask) == [False, False, False]
    mask[0, 2] = mask[1, 5] = mask[2, 3] = True  # far apart, yet one chunk
    assert asked(mask) == [True, False, False]
    mask[1, 1:4] = True  # four in one row
    assert asked(mask) == [True, True, False]
    assert asked(np.ones((ROWS, LENGTH), bool)) == [True, True, True]


def compiled(function, *shapes, grad=()):
    function = jax.value_and_grad(function, argnums=grad) if grad else function
    return jax.jit(function).lower(*shapes).compile()


def shapes_of(rows, length, vocab, hidden):
    return (
        {"kernel": jax.ShapeDtypeStruct((hidden, vocab), jnp.float32)},
        jax.ShapeDtypeStruct((rows, length, hidden), jnp.float32),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
        jax.ShapeDtypeStruct((rows, length), bool),
    )


def test_a_frozen_head_costs_two_products_one_that_trains_three():
    rows, length, vocab, hidden, chunk = 2, 32, 512, 256, 8
    shapes = shapes_of(rows, length, vocab, hidden)
    product = 2 * rows * chunk * vocab * hidden  # XLA counts the body of a loop once

    def products(grad):
        found = compiled(lambda *a: in_chunks(*a, chunk=chunk), *shapes, grad=grad)
        return found.cost_analysis()["flops"] / product

    assert products(()) == pytest.approx(1, abs=0.1)
    assert products((1,)) == pytest.approx(2, abs=0.1)
    assert products((0, 1)) == pytest.approx(3, abs=0.1)


def test_it_never_holds_all_logits():
    rows, length, vocab, hidden = 2, 64, 2048, 8
    shapes = shapes_of(rows, length, vocab, hidden)
    logits = 4 * rows * length * vocab

    def temp(function, **how):
        return compiled(lambda *a: function(*a, **how), *shapes, grad=(1,)).memory_analysis().temp_size_in_bytes

    assert temp(plain) > logits
    # a chunk's logits and their softmax, of eight chunks
    assert temp(in_chunks, chunk=8) < 2.2 * logits / 8


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_on_a_mesh_rows_stay_where_they_are(axes):
    rows, length, vocab, hidden = 8, 12, 64, 16
    rng = np.random.default_rng(0)
    arrays = (
        rng.normal(size=(hidden, vocab)).astype(np.float32),
        rng.normal(size=(rows, length, hidden)).astype(np.float32),
        rng.integers(0, vocab, (rows, length)).astype(np.int32),
        rng.random((rows, length)) < 0.5,
    )

    def total(kernel, *rest):
        return in_chunks({"kernel": kernel}, *rest, chunk=5)

    mesh = make_mesh(MeshSection(**axes))
    where = (place(mesh)("head.kernel", (hidden, vocab)), *[batch_sharding(mesh)] * 3)
    gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    placed = [jax.device_put(x, to) for x, to in zip(arrays, where, strict=True)]
    assert_close(gradient(*placed), gradient(*arrays))
    gathered = [line for line in gradient.lower(*placed).compile().as_text().splitlines() if " all-gather(" in line]
    # only the kernel, where its own axis splits it: no hidden states, and no logits
    assert all(f"f32[{hidden},{vocab // axes.get('tensor', 1)}]" in line for line in gathered), gathered


# ---- how long a chunk is


@given(st.integers(1, 5000), st.integers(1, 10**9), st.integers(1, 2**33))
def test_a_chunk_keeps_to_the_budget(length, row_bytes, budget):
    chunk = chunk_length(length, row_bytes=row_bytes, budget=budget)
    assert 1 <= chunk <= length
    assert chunk == 1 or chunk * row_bytes <= budget
    number = -(-length // chunk)
    assert number * chunk - length < number  # less than one position of padding a chunk
    longest = min(max(budget // row_bytes, 1), length)
    assert number == -(-length // longest)  # and no chunk more than there must be


def test_the_budget_is_a_device_s():
    assert chunk_budget(None, 8, 2048) is None
    assert chunk_budget(1000, 8, 2048) == 8000
    assert chunk_budget("auto", 1, 49152) == 32 << 20
    assert chunk_budget("auto", 2, 2048) == 2 * 256 * 4 * 2048  # no more than 256 positions


@pytest.mark.parametrize("chunk", [1, 2, 4, 6])
def test_each_tokens_loss_stands_at_its_position(chunk):
    rng = np.random.default_rng(5)
    hidden = rng.normal(size=(ROWS, LENGTH, HIDDEN)).astype(np.float32)
    kernel = rng.normal(size=(HIDDEN, VOCAB)).astype(np.float32)
    _, tokens, mask = draw(5)
    targets, counts = shifted(tokens, mask)
    head = lambda params, x, number: x @ params  # noqa: E731

    def measure(logits, targets):
        return jnp.stack([CROSS_ENTROPY.losses(logits, targets), logits.max(axis=-1)], axis=-1)

    got = jax.jit(lambda h: chunked_tokens(head, kernel, h, targets, counts, measure, chunk=chunk))(hidden)
    want = np.where(counts[..., None], measure(hidden @ kernel, targets), 0.0)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[..., 0].sum(), reference(hidden @ kernel, tokens, mask), rtol=1e-5)
