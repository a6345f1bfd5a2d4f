"""Optimizers against numpy in float64 and against optax on one layer at a time; schedules by their values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlean import tree
from jaxlean.adapt.lora import learning_rate_ratios
from jaxlean.config import LoraSection, TrainSection
from jaxlean.train.optimizer import INPUTS, optimizer, schedule

LAYERS, WIDE, NARROW = 3, 8, 6
FULL = {
    "embed.embedding": (12, WIDE),
    "layers.attention_norm.scale": (LAYERS, WIDE),
    "layers.attention.query.kernel": (LAYERS, WIDE, NARROW),
    "layers.attention.query.bias": (LAYERS, NARROW),
    "layers.mlp.down.kernel": (LAYERS, NARROW, WIDE),
    "norm.scale": (WIDE,),
    "head.kernel": (WIDE, 12),
}
LORA = {
    "head.lora_a": (WIDE, 2),
    "head.lora_b": (2, 12),
    "layers.attention.query.lora_a": (LAYERS, WIDE, 2),
    "layers.attention.query.lora_b": (LAYERS, 2, NARROW),
    "layers.attention.query.lora_magnitude": (LAYERS, NARROW),
}
OPTIMIZERS = ["adamw", "adamw_8bit", "adafactor", "lion", "sgd", "muon"]


def config(**changes):
    return TrainSection(**{"learning_rate": 0.01, "lr_scheduler_type": "constant", "warmup_steps": 0, **changes})


def draw(shapes, seed):
    rng = np.random.default_rng(seed)
    return tree.unflatten({path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()})


def runner(transform):
    """A function `(params, grads)` -> the parameters after each gradient in turn, compiled once for each shape."""

    @jax.jit
    def step(params, state, grad):
        updates, state = transform.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    init = jax.jit(transform.init)

    def run(params, grads):
        state, trail = init(params), []
        for grad in grads:
            params, state = step(params, state, grad)
            trail.append(params)
        return trail

    return run


def run(transform, params, grads):
    return runner(transform)(params, grads)


@pytest.mark.parametrize("shapes", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_each_optimizer_finds_a_minimum(optim, shapes):
    params, target = draw(shapes, 0), draw(shapes, 1)
    rate = 0.3 if optim == "muon" else 0.05
    settings = config(optim=optim, learning_rate=rate, lr_scheduler_type="linear", max_grad_norm=None)
    transform = optimizer(settings, 60, params)

    def loss(params):
        parts = jax.tree.map(lambda x, y: jnp.square(x - y).sum(), params, target)
        return sum(jax.tree.leaves(parts)) / 2

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = transform.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, transform.init(params)), length=60)[0][0]

    trained = train(params)
    assert loss(trained) < 0.25 * loss(params)
    start, end, goal = (tree.flatten(x) for x in (params, trained, target))
    for path in goal:
        assert jnp.square(end[path] - goal[path]).sum() < jnp.square(start[path] - goal[path]).sum(), path
        assert end[path].dtype == jnp.float32


def test_adamw_is_the_paper():
    """Decoupled decay, bias correction, clipping by the global norm and the schedule, in float64."""
    settings = config(
        adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-3, weight_decay=0.1, max_grad_norm=2.0, warmup_steps=2,
        lr_scheduler_type="linear",
    )  # fmt: skip
    params, grads = draw(FULL, 0), [draw(FULL, seed) for seed in range(1, 6)]
    got = run(optimizer(settings, 8, params), params, grads)
    rates = [0.005, 0.01, 0.01, 0.01 * 5 / 6, 0.01 * 4 / 6]
    want = {path: np.asarray(x, np.float64) for path, x in tree.flatten(params).items()}
    mean, square = (dict.fromkeys(want, 0.0) for _ in range(2))
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True), 1):
        grad = {path: np.asarray(x, np.float64) for path, x in tree.flatten(grad).items()}
        norm = np.sqrt(sum((x**2).sum() for x in grad.values()))
        assert norm > 2
        for path, g in grad.items():
            g = g * 2 / norm
            mean[path] = 0.8 * mean[path] + 0.2 * g
            square[path] = 0.9 * square[path] + 0.1 * g**2
            update = mean[path] / (1 - 0.8**t) / (np.sqrt(square[path] / (1 - 0.9**t)) + 1e-3)
            decay = 0.1 * want[path] if path.endswith(("kernel", "embedding")) else 0.0
            want[path] = want[path] - rate * (update + decay)
        for path, x in tree.flatten(got[t - 1]).items():
            np.testing.assert_allclose(x, want[path], atol=2e-6, err_msg=f"{path} after {t} steps")


def test_lion_and_sgd_are_their_formulas():
    params, grads = draw(LORA, 0), [draw(LORA, seed) for seed in (1, 2, 3)]
    lion = run(optimizer(config(optim="lion", adam_beta2=0.99, max_grad_norm=None), 9, params), params, grads)
    sgd = run(optimizer(config(optim="sgd", momentum=0.7, max_grad_norm=None), 9, params), params, grads)
    for path, x in tree.flatten(params).items():
        by_lion = by_sgd = np.asarray(x, np.float64)
        mean = trace = 0.0
        for t, grad in enumerate(grads):
            g = np.asarray(tree.flatten(grad)[path], np.float64)
            by_lion = by_lion - 0.01 * np.sign(0.9 * mean + 0.1 * g)
            mean = 0.99 * mean + 0.01 * g
            trace = 0.7 * trace + g
            by_sgd = by_sgd - 0.01 * trace
            np.testing.assert_allclose(tree.flatten(lion[t])[path], by_lion, atol=1e-5)
            np.testing.assert_allclose(tree.flatten(sgd[t])[path], by_sgd, atol=1e-5)


def one_layer(params, layer):
    return {path: x[layer] for path, x in tree.flatten(params).items() if path.startswith("layers.")}


@pytest.mark.parametrize("shapes", [FULL, LORA], ids=["full", "lora"])
def test_muon_of_a_stack_is_muon_of_each_layers_matrix(shapes):
    params, grads = draw(shapes, 0), [draw(shapes, seed) for seed in (1, 2, 3)]
    got = run(optimizer(config(optim="muon", momentum=0.8, max_grad_norm=None), 9, params), params, grads)
    for path, stack in tree.flatten(params).items():
        if not path.startswith("layers."):
            continue
        if stack.ndim == 3:
            # arXiv 2502.16982, eq. 4: 0.2 * sqrt(max(in, out)) gives updates the size of Adam's
            size = 0.01 * 0.2 * max(stack.shape[1:]) ** 0.5
            reference = runner(optax.chain(optax.contrib.scale_by_muon(beta=0.8), optax.scale(-size)))
        else:
            reference = runner(optax.adam(0.01))
        for layer in range(LAYERS):
            wanted = reference(stack[layer], [tree.flatten(grad)[path][layer] for grad in grads])
            for t, want in enumerate(wanted):
                message = f"{path} of layer {layer} after {t + 1}"
                np.testing.assert_allclose(tree.flatten(got[t])[path][layer], want, atol=1e-5, err_msg=message)


def test_muon_leaves_the_embedding_and_the_head_to_adam():
    params, grads = draw(FULL, 0), [draw(FULL, seed) for seed in (1, 2)]
    got = run(optimizer(config(optim="muon", max_grad_norm=None), 9, params), params, grads)
    want = run(optax.adam(0.01), params, grads)
    for path in ("embed.embedding", "head.kernel", "norm.scale", "layers.attention_norm.scale"):
        np.testing.assert_allclose(tree.flatten(got[-1])[path], tree.flatten(want[-1])[path], atol=1e-6, err_msg=path)


# Adafactor factors what has two dims of 128 or more; a stack this deep would make the layers' dim one of them.
DEEP = {
    "layers.mlp.up.kernel": (130, 128, 129),
    "layers.mlp.up.lora_a": (130, 128, 2),
    "layers.mlp_norm.scale": (130, 128),
    "embed.embedding": (128, 129),
}


def test_adafactor_of_a_stack_is_adafactor_of_each_layer():
    # one layer is far larger than the others: a common clipping or a common factor would show
    params = draw(DEEP, 0)
    grads = [tree.map_with_path(lambda path, x: x.at[0].multiply(30.0), draw(DEEP, seed)) for seed in (1, 2)]
    got = run(optimizer(config(optim="adafactor", max_grad_norm=None), 9, params), params, grads)
    rule = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale(-0.01))
    reference = runner(rule)
    for layer in (0, 1):
        want = reference(one_layer(params, layer), [one_layer(grad, layer) for grad in grads])
        for t in range(2):
            for path, x in one_layer(got[t], layer).items():
                message = f"{path} of layer {layer} after {t + 1}"
                np.testing.assert_allclose(x, want[t][path], atol=1e-6, err_msg=message)
    want = run(rule, params["embed"], [grad["embed"] for grad in grads])
    np.testing.assert_allclose(got[-1]["embed"]["embedding"], want[-1]["embedding"], atol=1e-6)


def test_adafactor_keeps_a_row_and_a_column_of_each_layers_matrix():
    kernel = {"layers": {"mlp": {"up": {"kernel": jnp.zeros((4, 128, 130))}}}}
    state = jax.eval_shape(optimizer(config(optim="adafactor"), 9, kernel).init, kernel)
    assert sum(x.size for x in jax.tree.leaves(state)) < 4 * (128 + 130) + 20


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_weight_decay_is_for_matrices_alone(optim):
    shapes = FULL | LORA | {"new_tokens.embed": (4, 16)}
    params = draw(shapes, 0)
    zero = jax.tree.map(jnp.zeros_like, params)
    settings = config(optim=optim, weight_decay=0.1)
    (after,) = run(optimizer(settings, 9, params, ratio=lambda path: 3.0 if "lora_b" in path else 1.0), params, [zero])
    shrunk = set()
    for path, x in tree.flatten(after).items():
        before = tree.flatten(params)[path]
        if not np.array_equal(x, before):
            rate = 0.03 if "lora_b" in path else 0.01
            np.testing.assert_allclose(x, before * (1 - rate * 0.1), atol=1e-6, err_msg=path)
            shrunk.add(path)
    matrices = (".kernel", ".embedding", ".lora_a", ".lora_b", "new_tokens.embed")
    assert shrunk == {path for path in shapes if path.endswith(matrices)}


# What optimizer.py says of them: bytes of state for a number of a layer's matrix, an embedding, a vector.
HELD = {
    ("adamw", "float32"): (8, 8, 8),
    ("adamw", "bfloat16"): (6, 6, 6),
    ("adamw_8bit", "float32"): (2 + 8 / 256, 2 + 8 / 256, 8),
    ("lion", "float32"): (4, 4, 4),
    ("lion", "bfloat16"): (2, 2, 2),
    ("sgd", "float32"): (4, 4, 4),
    ("sgd", "bfloat16"): (2, 2, 2),
    ("muon", "float32"): (4, 8, 8),
    ("muon", "bfloat16"): (2, 6, 6),
    ("adafactor", "float32"): (4 * (256 + 512) / (256 * 512), 4 * (300 + 256) / (300 * 256), 4),
}
PLACES = {"layers.mlp.up.kernel": (3, 256, 512), "embed.embedding": (300, 256), "layers.mlp_norm.scale": (3, 256)}


@pytest.mark.parametrize(("optim", "momentum"), HELD)
def test_bytes_of_state_are_those_told(optim, momentum):
    transform = config(optim=optim, momentum_dtype=momentum)
    for (path, shape), wanted in zip(PLACES.items(), HELD[optim, momentum], strict=True):
        params = tree.unflatten({path: jnp.zeros(shape)})
        state = jax.jit(optimizer(transform, 9, params).init)(params)
        held = sum(x.nbytes for x in jax.tree.leaves(state))
        # beside what is told: counts of steps, and what a factored moment leaves empty
        assert held / np.prod(shape) == pytest.approx(wanted, abs=60 / np.prod(shape)), path


@pytest.mark.parametrize("optim", ["adamw", "lion", "sgd", "muon"])
def test_a_first_moment_in_bfloat16_is_nearly_the_same_training(optim):
    params, grads = draw(FULL, 0), [draw(FULL, seed) for seed in range(1, 6)]
    runs = [
        run(optimizer(config(optim=optim, momentum_dtype=dtype, max_grad_norm=None), 9, params), params, grads)[-1]
        for dtype in ("float32", "bfloat16")
    ]
    for path, x in tree.flatten(params).items():
        exact, rounded = (np.asarray(tree.flatten(found)[path] - x) for found in runs)
        assert optim == "lion" or not np.array_equal(exact, rounded), "it was rounded (lion moves by signs alone)"
        assert np.linalg.norm(exact - rounded) < (0.3 if optim == "lion" else 0.02) * np.linalg.norm(exact), path
        assert rounded.dtype == np.float32


def test_clipping_is_by_the_norm_of_everything():
    params, grad = draw(LORA, 0), draw(LORA, 1)
    norm = float(optax.tree.norm(grad))
    assert norm > 4

    def moved(scale, **changes):
        transform = optimizer(config(optim="sgd", momentum=0.0, **changes), 9, params)
        (after,) = run(transform, params, [jax.tree.map(lambda x: x * scale, grad)])
        return jax.tree.map(lambda x, y: (y - x) / -0.01, params, after)

    def close(got, scale):
        jax.tree.map(lambda x, g: np.testing.assert_allclose(x, g * scale, atol=2e-4), got, grad)

    close(moved(1.0, max_grad_norm=4.0), 4.0 / norm)
    close(moved(3.0, max_grad_norm=4.0), 4.0 / norm)
    close(moved(1.0, max_grad_norm=norm * 1.01), 1.0)  # within the limit nothing is touched
    close(moved(1.0, max_grad_norm=None), 1.0)


@pytest.mark.parametrize("optim", ["adamw", "sgd", "muon", "adafactor"])
def test_lora_plus_scales_the_update_of_b_alone(optim):
    params, grads = draw(LORA, 0), [draw(LORA, seed) for seed in (1, 2)]
    ratio = learning_rate_ratios(LoraSection(loraplus_lr_ratio=8.0))
    transforms = [optimizer(config(optim=optim), 9, params), optimizer(config(optim=optim), 9, params, ratio=ratio)]
    states = [jax.jit(t.init)(params) for t in transforms]
    steps = [jax.jit(t.update) for t in transforms]
    for grad in grads:
        updates = []
        for i, step in enumerate(steps):
            update, states[i] = step(grad, states[i], params)
            updates.append(tree.flatten(update))
        for path, plain in updates[0].items():
            want = plain * (8.0 if path.endswith("lora_b") else 1.0)
            np.testing.assert_allclose(updates[1][path], want, rtol=1e-5, err_msg=path)


def rates(num_steps, **changes):
    rate = schedule(config(learning_rate=1.0, warmup_steps=None, **changes), num_steps)
    return np.array([float(rate(jnp.int32(step))) for step in range(num_steps)])


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "warmup_stable_decay", "cosine_with_restarts"])
@pytest.mark.parametrize("low", [0.0, 0.1])
def test_schedules_warm_up_to_the_peak_and_end_low(kind, low):
    got = rates(100, lr_scheduler_type=kind, warmup_ratio=0.1, min_lr_ratio=low, decay_ratio=0.2, num_cycles=3)
    np.testing.assert_allclose(got[:10], np.arange(1, 11) / 10, rtol=1e-6)  # the first step learns too
    assert got[10] == pytest.approx(1.0)
    assert got.max() <= 1 + 1e-6
    assert got.min() >= min(low, 0.1) - 1e-6
    progress = np.arange(90) / 90
    want = {
        "constant": np.ones(90),
        "linear": 1 - (1 - low) * progress,
        "cosine": low + (1 - low) * (1 + np.cos(np.pi * progress)) / 2,
        "warmup_stable_decay": 1 - (1 - low) * np.clip((np.arange(90) - 70) / 20, 0, 1),
        "cosine_with_restarts": low + (1 - low) * (1 + np.cos(np.pi * (np.arange(90) % 30) / 30)) / 2,
    }[kind]
    np.testing.assert_allclose(got[10:], want, atol=1e-5)


def test_restarts_of_a_length_that_cycles_do_not_divide():
    got = rates(100, lr_scheduler_type="cosine_with_restarts", warmup_ratio=0.0, num_cycles=7)
    # a cycle starts at the first step that its share of the run has passed
    starts = [step for step in range(1, 100) if got[step] > got[step - 1]]
    assert starts == [-(-100 * cycle // 7) for cycle in range(1, 7)]
    assert got[-1] < 0.02  # the last cycle is a whole one too


def test_steps_of_warm_up_win_over_their_share():
    settings = config(learning_rate=1.0, warmup_steps=4, warmup_ratio=0.9)
    assert float(schedule(settings, 10)(3)) == 1.0
    assert float(schedule(settings, 10)(0)) == 0.25


@pytest.mark.parametrize("kind", ["linear", "cosine", "warmup_stable_decay", "cosine_with_restarts"])
@pytest.mark.parametrize("warmup", [0, 1, 5, 9])
@pytest.mark.parametrize("num_steps", [1, 5])
def test_very_short_runs(kind, warmup, num_steps):
    rate = schedule(config(learning_rate=1.0, lr_scheduler_type=kind, warmup_steps=warmup, decay_ratio=1.0), num_steps)
    got = np.array([float(rate(step)) for step in range(num_steps)])
    assert (got > 0).all()
    assert (got <= 1).all()


def test_a_decay_longer_than_what_is_left_still_reaches_the_end():
    got = rates(100, lr_scheduler_type="warmup_stable_decay", warmup_ratio=0.5, decay_ratio=0.9)
    np.testing.assert_allclose(got[50:], 1 - np.arange(50) / 50, atol=1e-6)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_settings_may_be_arguments_of_the_program(optim):
    settings = {
        "learning_rate": 0.02, "weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6,
        "momentum": 0.7, "max_grad_norm": 0.5,
    }  # fmt: skip
    params, grads = draw(LORA, 1), [draw(LORA, 2), draw(LORA, 3)]
    constants = optimizer(config(optim=optim, **settings), 10, params, ratio=lambda path: 2.0)

    @jax.jit
    def update(inputs, ratio, grad, state, params):
        transform = optimizer(config(optim=optim), 10, params, ratio=lambda path: ratio, inputs=inputs)
        updates, state = transform.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    inputs = {name: jnp.float32(settings[name]) for name in INPUTS}
    ours, state = params, constants.init(params)
    for grad, theirs in zip(grads, run(constants, params, grads), strict=True):
        ours, state = update(inputs, jnp.float32(2.0), grad, state, ours)
        for path, leaf in tree.flatten(ours).items():
            np.testing.assert_allclose(leaf, tree.flatten(theirs)[path], rtol=2e-5, atol=2e-7, err_msg=path)
