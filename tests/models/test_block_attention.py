"""Attention in blocks: what the plain one computes, values and gradients, and what it leaves for the backward pass."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlean.models.attention import attention
from jaxlean.models.block_attention import _MOST_BLOCKS as BY_PLATFORM
from jaxlean.models.block_attention import Settings, _blocks, block_attention

SCALE = 0.4
_MOST_BLOCKS = BY_PLATFORM["cpu"]


@pytest.fixture(scope="module")
def both(evaluate):
    """(case, ...) -> (the block back end's value and gradients, the plain one's)."""

    def run(case, *, window=None, softcap=None, block=4, causal=True):
        settings = Settings(window, softcap, SCALE, block, causal)

        def ours(q, k, v):
            return block_attention(settings, q, k, v, (case.segments, case.segments), None)

        def plain(q, k, v):
            return attention(q, k, v, case.slots, window=window, causal=causal, softcap=softcap, scale=SCALE)

        return evaluate(ours, case), evaluate(plain, case)

    return run


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("length", [1, 12, 15])
def test_it_is_the_plain_one(case, both, assert_near, heads, length):
    assert_near(*both(case(0, length, *heads)), 1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 4, 6, 99, None])
def test_windows(case, both, assert_near, window, causal):
    # smaller than a block, a block, larger, and all there is
    assert_near(*both(case(2, 15), window=window, causal=causal), 1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [(4, 2), (3, 1)])
def test_sinks_and_their_gradient(case, assert_near, heads, causal):
    drawn = case(3, 15, *heads)
    sinks = jnp.linspace(-1.0, 2.0, heads[0])

    def run(attend):
        def loss(q, k, v, sinks):
            return jnp.sum(jnp.sin(attend(q, k, v, sinks)))

        value, grads = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(*drawn[:3], sinks)
        return dict(zip(("value", "query", "key", "value_", "sinks"), (value, *grads), strict=True))

    settings = Settings(None, None, SCALE, 4, causal)
    ours = run(lambda q, k, v, s: block_attention(settings, q, k, v, (drawn.segments, drawn.segments), s))
    plain = run(lambda q, k, v, s: attention(q, k, v, drawn.slots, causal=causal, scale=SCALE, sinks=s))
    assert np.abs(plain["sinks"]).max() > 1e-2
    for name, want in plain.items():
        np.testing.assert_allclose(ours[name], want, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("softcap", [0.5, 3.0])
def test_soft_caps(case, both, assert_near, softcap):
    assert_near(*both(case(4, 9), softcap=softcap), 1e-5)


@pytest.mark.parametrize("window", [None, 6])
def test_bfloat16_is_as_near_to_float32_as_the_plain_one(case, both, error, window):
    exact = both(case(6, 17), window=window)[1]
    ours, plain = (error(found, exact) for found in both(case(6, 17, dtype=jnp.bfloat16), window=window))
    for name in exact:
        assert ours[name] < min(0.01, 1.5 * plain[name]), name


@settings(max_examples=15)
@given(
    length=st.integers(1, 20),
    block=st.integers(3, 9),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    window=st.none() | st.integers(1, 22),
    causal=st.booleans(),
    softcap=st.none() | st.floats(0.3, 30.0),
    seed=st.integers(0, 2**16),
)
@pytest.mark.slow
def test_whatever_the_lengths_blocks_and_windows(
    case, both, assert_near, length, block, heads, window, causal, softcap, seed
):
    found = both(case(seed, length, *heads), window=window, causal=causal, softcap=softcap, block=block)
    assert_near(*found, 3e-5)


def test_each_row_has_a_mask_of_its_own(case, both, assert_near):
    drawn = case(8, 12)
    padded = jnp.zeros((2, 12), jnp.int32).at[0, :5].set(1)  # the second row is nothing but padding
    assert_near(*both(drawn._replace(segments=padded)), 1e-5)
    one, other = (both(drawn._replace(segments=s))[0]["context"] for s in (padded, padded[::-1]))
    assert np.abs(one - other).max() > 0.1


def test_large_scores_stay_finite(case, both, assert_near):
    drawn = case(8, 12)
    ours, plain = both(drawn._replace(query=drawn.query * 1e4))
    np.testing.assert_allclose(ours["context"], plain["context"], atol=1e-3)
    assert all(np.isfinite(x).all() for x in ours.values())


# ---- the blocks


def spans(length, window=None, block=4):
    """(first query, first key, end of both) of each block."""
    found = _blocks(length, length, Settings(window, None, SCALE, block), None)
    assert all(seen.stop == end for _, end, seen in found)
    return [(at, seen.start, end) for at, end, seen in found]


def test_the_blocks_are_cut_where_the_length_ends():
    assert spans(10) == [(0, 0, 4), (4, 0, 8), (8, 0, 10)]
    assert spans(10, window=3) == [(0, 0, 4), (4, 2, 8), (8, 6, 10)]
    assert spans(1) == [(0, 0, 1)]


@pytest.mark.parametrize("length", [4 * _MOST_BLOCKS, 4 * _MOST_BLOCKS + 1, 7 * _MOST_BLOCKS, 1000 * _MOST_BLOCKS - 1])
def test_a_longer_sequence_has_larger_blocks_and_not_more_of_them(length):
    """The loop over blocks is unrolled: the program would grow with them."""
    found = spans(length)
    assert _MOST_BLOCKS // 2 < len(found) <= _MOST_BLOCKS
    assert [at for at, _, _ in found] == [0, *(end for _, _, end in found[:-1])]
    assert found[-1][2] == length


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_part_of_the_queries_against_all_keys(case, evaluate, assert_near, part, window):
    drawn = case(10, 18)
    own = slice(6 * part, 6 * part + 6)

    def of_part(q, k, v, first):
        segments = (drawn.segments[:, own], drawn.segments)
        found = block_attention(Settings(window, None, SCALE, 4), q[:, own], k, v, segments, None, first)
        return jnp.zeros_like(q).at[:, own].set(found)

    def of_whole(q, k, v):
        found = attention(q, k, v, drawn.slots, window=window, scale=SCALE)
        return jnp.zeros_like(q).at[:, own].set(found[:, own])

    assert_near(evaluate(of_part, drawn, jnp.int32(6 * part)), evaluate(of_whole, drawn), 1e-5)


def test_more_blocks_than_there_may_be(case, both, assert_near):
    assert_near(*both(case(9, _MOST_BLOCKS + 3, 1, 1, batch=1), block=1, window=5), 1e-5)


def test_what_lies_above_the_diagonal_or_outside_the_window_is_not_computed(case, equations):
    def num_scores(window):
        drawn = case(0, 64, 1, 1, batch=1)

        def attend(q, k, v):
            return block_attention(Settings(window, None, SCALE, 8), q, k, v, (drawn.segments, drawn.segments), None)

        found = equations(attend, *drawn[:3])
        return sum(e.outvars[0].aval.size for e in found if str(e.primitive) == "exp")

    assert num_scores(None) == 8 * sum(range(8, 65, 8))
    assert num_scores(9) == 8 * (8 + 7 * 16)


# ---- what is kept for the backward pass


# without the log-sum-exp the scores are multiplied again; without the context it is as well
@pytest.mark.parametrize(("kept", "again"), [(("context", "attention_lse"), 0), (("context",), 1), ((), 2)])
def test_a_policy_that_keeps_both_does_not_run_the_forward_pass_again(case, products, kept, again):
    drawn, blocks = case(11, 16), 4

    @partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(*kept))
    def attend(q, k, v):
        return block_attention(Settings(None, None, SCALE, 4), q, k, v, (drawn.segments, drawn.segments), None)

    def loss(q, k, v):
        return (attend(q, k, v) * drawn.weight).sum()

    assert products(jax.grad(loss, argnums=(0, 1, 2)), *drawn[:3]) == blocks * (2 + 5 + again)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_a_policy_saves_is_the_context_and_a_number_a_row(case, saved, dtype):
    drawn = case(13, 16, dtype=dtype)
    attend = jax.checkpoint(
        lambda q, k, v: block_attention(
            Settings(None, None, SCALE, 4), q, k, v, (drawn.segments, drawn.segments), None
        ).sum(),
        policy=jax.checkpoint_policies.save_only_these_names("context", "attention_lse"),
    )
    context = {"float32": "f32[2,16,4,8]", "bfloat16": "u16[2,16,4,8]"}[jnp.dtype(dtype).name]
    assert saved(attend, *drawn[:3]) == sorted([context, "f32[2,2,2,16]"])
