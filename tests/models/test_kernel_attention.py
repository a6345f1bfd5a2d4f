"""The kernels of others, against the plain attention: cuDNN's in its XLA form, the TPU's in its interpreter."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean.models.attention import attention
from jaxlean.models.kernel_attention import cudnn_attention, splash_attention

SCALE = 0.2


@pytest.fixture(scope="module")
def plain(evaluate):
    def run(case, window=None, softcap=None):
        return evaluate(partial(attention, slots=case.slots, window=window, softcap=softcap, scale=SCALE), case)

    return run


# ---- cudnn


@pytest.fixture(scope="module")
def cudnn(evaluate):
    def run(case, window=None):
        def attend(q, k, v, window):
            return cudnn_attention(q, k, v, case.slots.visible(window), SCALE, implementation="xla")

        with jax.numpy_dtype_promotion("standard"):  # jax's own function is not written for the strict one
            return evaluate(attend, case, window)

    return run


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("length", [1, 14])
def test_cudnn_is_the_plain_one(case, cudnn, plain, assert_near, heads, length):
    drawn = case(0, length, *heads)
    assert_near(cudnn(drawn), plain(drawn), 1e-5)


@pytest.mark.parametrize("window", [1, 5])
def test_cudnn_with_windows(case, cudnn, plain, assert_near, window):
    drawn = case(1, 14)
    want = plain(drawn, window)
    assert_near(cudnn(drawn, window), want, 1e-5)


def test_cudnn_in_bfloat16(case, cudnn, plain, error):
    exact = plain(case(2, 16))
    assert max(error(cudnn(case(2, 16, dtype=jnp.bfloat16)), exact).values()) < 0.01


def test_cudnns_own_kernel_is_what_is_asked_for(case):
    drawn = case(3, 16, dtype=jnp.bfloat16)
    with pytest.raises(RuntimeError, match="cuDNN"):
        cudnn_attention(*drawn[:3], drawn.slots.visible(None), SCALE)


# ---- splash


@pytest.fixture(scope="module")
def splash(evaluate):
    def run(case, window=None, softcap=None):
        def attend(q, k, v):
            return splash_attention(q, k, v, case.segments, window, softcap, SCALE, interpret=True)

        return evaluate(attend, case)

    return run


@pytest.mark.parametrize(
    ("length", "heads", "window", "softcap"),
    [
        (256, (2, 1), 40, 3.0),
        pytest.param(128, (4, 2), None, None, marks=pytest.mark.slow),
        pytest.param(128, (2, 2), None, None, marks=pytest.mark.slow),
        pytest.param(256, (2, 1), 1, None, marks=pytest.mark.slow),
        pytest.param(256, (2, 1), 128, None, marks=pytest.mark.slow),
        pytest.param(128, (2, 1), None, 0.5, marks=pytest.mark.slow),
    ],
)
def test_splash_is_the_plain_one(case, splash, plain, assert_near, length, heads, window, softcap):
    drawn = case(4, length, *heads, dim=128)
    assert_near(splash(drawn, window, softcap), plain(drawn, window, softcap), 1e-5)


@pytest.mark.slow
def test_splash_in_bfloat16(case, splash, plain, error):
    exact = plain(case(5, 128, 2, 1, dim=128))
    assert max(error(splash(case(5, 128, 2, 1, dim=128, dtype=jnp.bfloat16)), exact).values()) < 0.01


@pytest.mark.parametrize(("kept", "runs"), [((), 4), (("context",), 3)])
def test_a_policy_that_keeps_the_context_does_not_run_splash_again(case, equations, kept, runs):
    """Its backward pass is two kernels, one for the queries and one for keys and values."""
    drawn = case(7, 128, 1, 1, dim=128, batch=1)

    @partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(*kept))
    def attend(q, k, v):
        return splash_attention(q, k, v, drawn.segments, None, None, SCALE, interpret=True)

    def loss(q, k, v):
        # not linear in the output: its gradient reads it, so that all that is not kept has to be computed
        return jnp.square(attend(q, k, v)).sum()

    found = equations(jax.grad(loss, argnums=(0, 1, 2)), *drawn[:3])
    assert sum(str(e.primitive) == "pallas_call" for e in found) == runs


def test_splash_skips_what_nothing_can_see(case, equations):
    """The grid of the forward kernel has a place for each block of keys that the widest row of blocks sees."""

    def grid(window):
        drawn = case(8, 512, 1, 1, dim=128, batch=1)

        def attend(q, k, v):
            return splash_attention(q, k, v, drawn.segments, window, None, SCALE, interpret=True)

        (call,) = (e for e in equations(attend, *drawn[:3]) if str(e.primitive) == "pallas_call")
        return int(np.prod(call.params["grid_mapping"].grid))

    assert grid(None) == 2 * grid(128)
