"""Attention in blocks: what the plain one computes, values and gradients, and what it leaves for the backward pass."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlean.models.attention import Slots, attention
from jaxlean.models.block_attention import _MOST_BLOCKS, Settings, block_attention

DIM = 8


def draw(seed, length, heads=4, kv_heads=2, dtype=jnp.float32, batch=2):
    rng = np.random.default_rng(seed)
    sizes = (heads, kv_heads, kv_heads, heads)  # the last one weighs the output
    return [jnp.asarray(rng.normal(size=(batch, length, h, DIM)), dtype) for h in sizes]


def packed(seed, length, batch=2):
    """Segments of random lengths, and padding at the end of every row but the first."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.integers(1, 4, size=(batch, length)), axis=1)
    for row, padding in zip(rows[1:], rng.integers(1, max(length // 2, 2), size=batch - 1), strict=True):
        row[length - padding :] = 0
    return jnp.asarray(rows, jnp.int32)


def both(inputs, segments, *, window=None, softcap=None, block=4, traced=False, scale=0.4):
    """((value, gradients) of the block back end, the same of the plain one); both weigh the output by `inputs[3]`."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    slots = Slots(index, index, segments, segments)
    fixed, own = (None, jnp.int32(window)) if traced else (window, None)

    def ours(q, k, v, own):
        return block_attention(Settings(fixed, softcap, scale, block), q, k, v, segments, own)

    def plain(q, k, v, own):
        return attention(q, k, v, slots, window=window, softcap=softcap, scale=scale)

    def evaluated(function):
        @jax.jit
        def run(q, k, v, weight, own):
            def weighed(q, k, v):
                out = function(q, k, v, own)
                return (out.astype(jnp.float32) * weight.astype(jnp.float32)).sum(), out

            (_, out), grads = jax.value_and_grad(weighed, argnums=(0, 1, 2), has_aux=True)(q, k, v)
            return [out, *grads]

        return run(*inputs, own)

    return evaluated(ours), evaluated(plain)


def assert_close(ours, plain, tolerance):
    for name, got, want in zip(("context", "query", "key", "value"), ours, plain, strict=True):
        assert got.dtype == want.dtype
        got, want = (np.asarray(x, np.float32) for x in (got, want))
        assert np.isfinite(got).all(), name
        np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max(), rtol=tolerance, err_msg=name)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 2), (4, 1), (1, 1)])
@pytest.mark.parametrize("length", [16, 17, 3])
def test_it_is_the_plain_one(heads, length):
    assert_close(*both(draw(0, length, *heads), packed(1, length)), 2e-5)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("window", [1, 2, 4, 5, 9, 99])
def test_windows(window, traced):
    # smaller than a block, a block, larger, and all there is
    assert_close(*both(draw(2, 15), packed(3, 15), window=window, traced=traced), 2e-5)


@pytest.mark.parametrize("softcap", [0.5, 3.0])
def test_soft_caps(softcap):
    assert_close(*both(draw(4, 13), packed(5, 13), softcap=softcap, scale=2.0), 2e-5)


@pytest.mark.parametrize("window", [None, 6])
def test_bfloat16_is_as_near_to_float32_as_the_plain_one(window):
    length = 33
    exact = both(draw(6, length), packed(7, length), window=window)[1]
    ours, plain = both(draw(6, length, dtype=jnp.bfloat16), packed(7, length), window=window)
    assert {x.dtype for x in ours} == {jnp.dtype(jnp.bfloat16)}

    def error(found):
        return [
            np.linalg.norm(np.asarray(x, np.float32) - y) / np.linalg.norm(y)
            for x, y in zip(found, exact, strict=True)
        ]

    assert max(error(ours)) < 0.01
    for own, other in zip(error(ours), error(plain), strict=True):
        assert own < 1.5 * other


@settings(max_examples=25)
@given(
    length=st.integers(1, 24),
    block=st.integers(1, 9),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    window=st.none() | st.integers(1, 26),
    traced=st.booleans(),
    softcap=st.none() | st.floats(0.3, 30.0),
    seed=st.integers(0, 2**16),
)
def test_whatever_the_lengths_blocks_and_windows(length, block, heads, window, traced, softcap, seed):
    inputs = draw(seed, length, *heads)
    found = both(
        inputs, packed(seed, length), window=window, traced=traced and window is not None, softcap=softcap, block=block
    )
    assert_close(*found, 5e-5)


def test_large_scores_and_padding_stay_finite():
    query, *others = draw(8, 12)
    segments = jnp.zeros((2, 12), jnp.int32).at[0, :5].set(1)  # the second row is nothing but padding
    ours, plain = both([query * 1e4, *others], segments)
    assert_close(ours[:1], plain[:1], 1e-4)
    assert all(np.isfinite(np.asarray(x)).all() for x in ours)


def test_the_program_stays_short(equations):
    """The loop over blocks is unrolled, so a long sequence gets larger blocks and not more of them."""

    def num_products(length):
        q, k, v, _ = draw(0, length, batch=1)
        segments = jnp.ones((1, length), jnp.int32)
        found = equations(lambda q, k, v: block_attention(Settings(None, None, 1.0, 2), q, k, v, segments, None), q, k, v)
        return sum(str(e.primitive) == "dot_general" for e in found)

    assert num_products(2 * 5) == 2 * 5
    assert num_products(2 * _MOST_BLOCKS) == num_products(2 * _MOST_BLOCKS + 1) + 2 * (_MOST_BLOCKS - 22)
    assert num_products(7 * _MOST_BLOCKS) == 2 * _MOST_BLOCKS


def test_more_blocks_than_there_may_be():
    length = 2 * _MOST_BLOCKS + 5
    assert_close(*both(draw(9, length), packed(10, length), block=2, window=7), 2e-5)


def test_what_lies_above_the_diagonal_or_outside_the_window_is_not_computed(equations):
    def num_scores(window):
        q, k, v, _ = draw(0, 64, heads=1, kv_heads=1, batch=1)
        segments = jnp.ones((1, 64), jnp.int32)
        found = equations(lambda q, k, v: block_attention(Settings(window, None, 1.0, 8), q, k, v, segments, None), q, k, v)
        return sum(e.outvars[0].aval.size for e in found if str(e.primitive) == "exp")

    assert num_scores(None) == 8 * sum(range(8, 65, 8))
    assert num_scores(9) == 8 * (8 + 7 * 16)


@pytest.mark.parametrize(("kept", "again"), [(("context", "attention_lse"), 0), (("context",), 1), ((), 1)])
def test_a_policy_that_keeps_both_does_not_run_the_forward_pass_again(kept, again, equations):
    q, k, v, weight = draw(11, 16)
    segments = packed(12, 16)
    policy = jax.checkpoint_policies.save_only_these_names(*kept)

    @partial(jax.checkpoint, policy=policy)
    def attend(q, k, v):
        return block_attention(Settings(None, None, 1.0, 4), q, k, v, segments, None)

    def loss(q, k, v):
        return (attend(q, k, v) * weight).sum()

    found = equations(jax.grad(loss, argnums=(0, 1, 2)), q, k, v)
    blocks = 4
    assert sum(str(e.primitive) == "dot_general" for e in found) == blocks * (2 + 5 + 2 * again)
    if kept:
        assert {e.params["name"] for e in found if str(e.primitive) == "name"} >= set(kept)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_a_policy_saves_is_the_context_and_a_number_a_row(dtype, capsys):
    q, k, v, _ = draw(13, 16, dtype=dtype)
    segments = packed(14, 16)
    attend = jax.checkpoint(
        lambda q, k, v: block_attention(Settings(None, None, 1.0, 4), q, k, v, segments, None).sum(),
        policy=jax.checkpoint_policies.save_only_these_names("context", "attention_lse"),
    )
    jax.ad_checkpoint.print_saved_residuals(attend, q, k, v)
    saved = sorted(line.split()[0] for line in capsys.readouterr().out.splitlines() if "argument" not in line and "constant" not in line)
    context = {"float32": "f32[2,16,4,8]", "bfloat16": "u16[2,16,4,8]"}[jnp.dtype(dtype).name]
    assert saved == sorted([context, "f32[2,2,2,16]"])
