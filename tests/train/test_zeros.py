"""Zeros that stay zeros under every optimizer, and a schedule that makes more of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlean.config import GradualSection, TrainSection
from jaxlean.errors import ConfigError
from jaxlean.train.optimizer import optimizer
from jaxlean.train.zeros import Gradual, gradual, share_of_zeros, with_zeros, zeros_to_keep


def pruned_params(seed=0):
    random = np.random.default_rng(seed)
    kernel = random.normal(size=(2, 16, 12)).astype(np.float32)
    kernel[random.random(kernel.shape) < 0.5] = 0
    embedding = random.normal(size=(6, 16)).astype(np.float32)
    embedding[0] = 0
    return {
        "embed": {"embedding": jnp.asarray(embedding)},
        "layers": {"up": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros((2, 12))}},
    }


def steps(rule, params, *, num=4):
    state, random = rule.init(params), np.random.default_rng(1)
    update = jax.jit(lambda grads, state, params: rule.update(grads, state, params))
    for _ in range(num):
        grads = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), jnp.float32), params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("optim", ["adamw", "adamw_8bit", "adafactor", "lion", "sgd", "muon"])
def test_zeros_stay_zeros_and_all_else_moves(optim):
    params = pruned_params()
    config = TrainSection(optim=optim, keep_zeros=True, weight_decay=0.1, learning_rate=0.01, warmup_ratio=0)
    after = steps(optimizer(config, 4, params), params)
    zeros = np.asarray(params["layers"]["up"]["kernel"]) == 0
    np.testing.assert_array_equal(np.asarray(after["layers"]["up"]["kernel"]) == 0, zeros)
    assert (np.asarray(after["layers"]["up"]["bias"]) != 0).all()
    assert (np.asarray(after["embed"]["embedding"]) != 0).all()
    plain = steps(optimizer(config.model_copy(update={"keep_zeros": False}), 4, params), params)
    assert (np.asarray(plain["layers"]["up"]["kernel"]) != 0).all()


def test_what_is_gone_counts_in_no_norm():
    """Clipping sees the gradient of what is there: as if there were no other weights."""
    params = {"layers": {"up": {"kernel": jnp.asarray([[[3.0, 0.0], [0.0, 4.0]]])}}}
    config = TrainSection(optim="sgd", momentum=0, keep_zeros=True, max_grad_norm=1.0, learning_rate=1, warmup_ratio=0)
    rule = optimizer(config, 1, params)
    grads = {"layers": {"up": {"kernel": jnp.asarray([[[3.0, 100.0], [100.0, 4.0]]])}}}
    updates, _ = rule.update(grads, rule.init(params), params)
    np.testing.assert_allclose(updates["layers"]["up"]["kernel"], [[[-0.6, 0], [0, -0.8]]], rtol=1e-6)


def test_the_schedule_is_the_papers():
    schedule = Gradual(0.1, 0.8, begin=4, end=20, frequency=5)
    due = [step for step in range(1, 30) if schedule.is_due(step)]
    assert due == [4, 9, 14, 19, 20]
    assert schedule.sparsity(4) == pytest.approx(0.1)
    assert schedule.sparsity(20) == pytest.approx(0.8)
    assert schedule.sparsity(12) == pytest.approx(0.8 - 0.7 * 0.5**3)
    assert gradual(GradualSection(final_sparsity=0.6), 200) == Gradual(0.0, 0.6, 1, 150, 7)
    assert gradual(GradualSection(initial_sparsity=0.2), 4) == Gradual(0.2, 0.5, 1, 3, 1)
    with pytest.raises(ConfigError, match=r"all zeros at once(?s:.)*every 100 steps, from step 1 to 75"):
        gradual(GradualSection(frequency=100), 100)
    assert gradual(None, 5) is None
    with pytest.raises(ConfigError, match="ends after the run"):
        gradual(GradualSection(end_step=30), 20)


def test_zeros_become_more_step_by_step_the_smallest_first():
    params = pruned_params()
    random = np.random.default_rng(3)
    params["layers"]["up"]["kernel"] = jnp.asarray(random.normal(size=(2, 16, 12)), jnp.float32)
    rule = with_zeros(optax.sgd(0.01), Gradual(0.0, 0.75, begin=0, end=4, frequency=2))
    half = steps(rule, params, num=3)
    for layer, was in zip(half["layers"]["up"]["kernel"], params["layers"]["up"]["kernel"], strict=True):
        gone = np.asarray(layer) == 0
        assert gone.sum() == round(0.75 * (1 - 0.5**3) * 192)
        assert np.abs(was)[gone].max() < np.abs(was)[~gone].min() + 0.1  # as they were two small steps before
    whole = steps(rule, params, num=4)["layers"]["up"]["kernel"]
    assert [(layer == 0).sum() for layer in np.asarray(whole)] == [144, 144]
    assert (np.asarray(whole)[np.asarray(half["layers"]["up"]["kernel"]) == 0] == 0).all()
    assert (np.asarray(steps(rule, params, num=6)["layers"]["up"]["kernel"]) == 0).sum() == 288


def test_a_base_without_zeros_has_none_to_keep():
    params = pruned_params()
    kernel = np.asarray(params["layers"]["up"]["kernel"])
    assert share_of_zeros(params) == pytest.approx((kernel == 0).mean())
    assert zeros_to_keep(params) == share_of_zeros(params)
    with pytest.raises(ConfigError, match="have no zeros"):
        zeros_to_keep({"layers": {"up": {"kernel": jnp.ones((2, 2))}}})
    assert share_of_zeros({"embed": {"embedding": jnp.zeros((2, 2))}}) == 0
