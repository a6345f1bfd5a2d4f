"""Who sees whom, the softmax over it against numpy in float64, and which back end is chosen."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlean.errors import ConfigError
from jaxlean.models.attention import Slots, attention, choose
from jaxlean.models.block_attention import block_attention
from jaxlean.models.kernel_attention import cudnn_attention, splash_attention


def slots(segments):
    segments = jnp.asarray(segments, jnp.int32)
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    return Slots(index, index, segments, segments)


@pytest.mark.parametrize("window", [None, 1, 3, 99])
def test_a_token_sees_its_own_segment_up_to_itself_and_the_window(window):
    segments = [[1, 1, 1, 1, 2, 2, 3, 0, 0]]
    got = np.asarray(slots(segments).visible(window))[0]
    for q, own in enumerate(segments[0]):
        for k, other in enumerate(segments[0]):
            assert got[q, k] == (own == other and k <= q and (window is None or q - k < window)), (q, k)


@pytest.mark.parametrize("window", [None, 1, 3, 99])
def test_where_attention_is_not_causal_a_token_sees_both_sides(window):
    segments = [[1, 1, 1, 1, 2, 2, 3, 0, 0]]
    got = np.asarray(slots(segments).visible(window, causal=False))[0]
    for q, own in enumerate(segments[0]):
        for k, other in enumerate(segments[0]):
            assert got[q, k] == (own == other and (window is None or abs(q - k) < window)), (q, k)


def test_every_row_sees_itself():
    assert np.asarray(slots([[1, 2, 0, 0], [0, 0, 3, 3]]).visible(1)).any(-1).all()


def test_later_queries_against_a_cache():
    # two queries that stand at slots 3 and 4 of five; slot 0 is left padding
    at = Slots(jnp.asarray([3, 4]), jnp.arange(5), jnp.ones((1, 2), jnp.int32), jnp.asarray([[0, 1, 1, 1, 1]]))
    np.testing.assert_array_equal(at.visible(None)[0], [[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]])
    np.testing.assert_array_equal(at.visible(2)[0], [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]])


def reference(query, key, value, visible, softcap=None, scale=None):
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    group = query.shape[2] // key.shape[2]
    key, value = np.repeat(key, group, axis=2), np.repeat(value, group, axis=2)  # head h reads kv head h // group
    scores = np.einsum("bthd,bshd->bhts", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    scores = np.where(np.asarray(visible)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), value)


SHAPES = [(4, 4), (4, 2), (6, 1)]


@settings(max_examples=15)
@given(
    heads=st.sampled_from(SHAPES),
    window=st.sampled_from([None, 3]),
    softcap=st.sampled_from([None, 0.5, 20.0]),
    scale=st.sampled_from([None, 0.1, 2.0]),
    backend=st.sampled_from(["plain", "block"]),
    seed=st.integers(0, 2**16),
)
def test_float32_is_the_formula(case, heads, window, softcap, scale, backend, seed):
    drawn = case(seed, 9, *heads)
    got = attention(*drawn[:3], drawn.slots, window=window, softcap=softcap, scale=scale, backend=backend)
    want = reference(*drawn[:3], drawn.slots.visible(window), softcap, scale)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["plain", "block"])
def test_large_scores_stay_finite_and_sharp(case, backend):
    query, key, value, _, segments = case(0, 9)
    at = slots(jnp.ones_like(segments))
    got = attention(query * 1e4, key, value, at, backend=backend)
    assert np.isfinite(np.asarray(got)).all()
    np.testing.assert_allclose(got, reference(query * 1e4, key, value, at.visible(None)), atol=2e-3)


@pytest.mark.parametrize("backend", ["plain", "block"])
def test_bfloat16_sums_in_float32(case, backend):
    drawn = case(1, 9, dtype=jnp.bfloat16)
    got = attention(*drawn[:3], drawn.slots, backend=backend)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), reference(*drawn[:3], drawn.slots.visible(None)), atol=0.02)


# ---- the kernels, which do not run on this machine: in a form of theirs that does


@pytest.fixture
def called(monkeypatch):
    """The kernels that were called, in order."""
    names = []

    def stand_in(name, kernel, **changed):
        def call(*args):
            names.append(name)
            return kernel(*args, **changed)

        monkeypatch.setattr(f"jaxlean.models.attention.{name}_attention", call)

    stand_in("cudnn", cudnn_attention, implementation="xla")
    stand_in("splash", splash_attention, interpret=True)
    stand_in("block", block_attention)
    return names


def test_cudnn_is_handed_what_it_needs(case, called):
    drawn = case(3, 10)
    options = {"window": 3, "scale": 0.7}
    got = attention(*drawn[:3], drawn.slots, backend="cudnn", **options)
    assert called == ["cudnn"]
    np.testing.assert_allclose(got, attention(*drawn[:3], drawn.slots, **options), rtol=1e-5, atol=1e-5)


def test_splash_is_handed_what_it_needs(case, called):
    drawn = case(3, 128, 2, 1, dim=128)
    options = {"window": 30, "scale": 0.2, "softcap": 3.0}
    got = attention(*drawn[:3], drawn.slots, backend="splash", **options)
    assert called == ["splash"]
    np.testing.assert_allclose(got, attention(*drawn[:3], drawn.slots, **options), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("backend", "length", "window"), [("cudnn", 9, None), ("splash", 9, 3)])
def test_where_a_kernel_cannot_run_block_takes_its_place(case, called, backend, length, window):
    # an odd length; one that 128 does not divide; layers that differ
    drawn = case(4, length, 1, 1, batch=1)
    got = attention(*drawn[:3], drawn.slots, window=window, backend=backend)
    assert called == ["block"]
    np.testing.assert_allclose(got, attention(*drawn[:3], drawn.slots, window=window), rtol=1e-5, atol=1e-5)


# ---- which one


def chosen(wanted, platform, **changed):
    settings = {"dtype": jnp.dtype(jnp.bfloat16), "head_dim": 128} | changed
    return choose(wanted, platform=platform, **settings)


def test_auto_takes_the_fastest_that_runs():
    assert chosen("auto", "cpu") == "block"
    assert chosen("auto", "gpu") == "cudnn"
    assert chosen("auto", "tpu") == "splash"
    assert chosen("auto", "gpu", dtype=jnp.dtype(jnp.float32)) == "block"
    assert chosen("auto", "gpu", softcap=50.0) == "block"
    assert chosen("auto", "gpu", head_dim=100) == "block"
    assert chosen("auto", "gpu", head_dim=512) == "block"
    assert chosen("auto", "tpu", softcap=50.0) == "splash"
    assert chosen("auto", "tpu", head_dim=64) == "block"


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("wanted", ["plain", "block"])
def test_plain_xla_runs_everywhere(wanted, platform):
    assert chosen(wanted, platform, dtype=jnp.dtype(jnp.float32), head_dim=7, softcap=1.0) == wanted


@pytest.mark.parametrize(
    ("wanted", "platform", "changed", "words"),
    [
        ("cudnn", "cpu", {}, ["NVIDIA", "cpu"]),
        ("cudnn", "gpu", {"dtype": jnp.dtype(jnp.float32)}, ["bfloat16", "float32"]),
        ("cudnn", "gpu", {"head_dim": 100}, ["head_dim", "100"]),
        ("cudnn", "gpu", {"head_dim": 136}, ["head_dim", "128", "136"]),
        ("cudnn", "gpu", {"softcap": 30.0}, ["soft cap"]),
        ("splash", "gpu", {}, ["TPU", "gpu"]),
        ("splash", "tpu", {"head_dim": 64}, ["head_dim", "128", "64"]),
    ],
)
def test_one_that_does_not_run_there_is_refused_with_the_reason_and_the_fix(wanted, platform, changed, words):
    with pytest.raises(ConfigError) as caught:
        chosen(wanted, platform, **changed)
    for word in [wanted, *words, "model.attention=auto"]:
        assert word in str(caught.value)
