"""The step: accumulation, what may change, donation, one compilation, numbers that are none, dropout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.config import LoraSection, MeshSection, TrainSection
from jaxlean.models.build import abstract
from jaxlean.models.decoder import ACTIVATIONS, Decoder, DecoderConfig
from jaxlean.models.layout import layout_on
from jaxlean.train.loss import next_token_loss
from jaxlean.train.objective import objective
from jaxlean.train.optimizer import optimizer
from jaxlean.train.step import TrainState, init_state, make_eval_step, make_step
from jaxlean.xla.mesh import batch_sharding, make_mesh, num_batch_shards, place, replicated
from jaxlean.xla.remat import scan_layers

VOCAB, LENGTH, ROWS = 17, 8, 8


def draw_batch(seed, *, density=None):
    """All rows of one step. `density`: the share of tokens with loss in each row; default: any, so that rows differ."""
    rng = np.random.default_rng(seed)
    density = rng.random((ROWS, 1)) if density is None else density
    mask = rng.random((ROWS, LENGTH)) < density
    mask[:, 0] = False
    mask[-1] = False  # a row without a token to learn
    mask[0, 1:3] = True
    return {
        "tokens": rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32),
        "loss_mask": mask,
        "segments": np.repeat([[1] * (LENGTH - 2) + [0, 0]], ROWS, axis=0).astype(np.int32),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
    }


def in_microbatches(batch, num):
    return {name: jnp.asarray(x.reshape(num, -1, LENGTH)) for name, x in batch.items()}


def bigram(params, batch, key):
    """The smallest language model: quick to compile."""
    hidden = jnp.tanh(params["embed"]["embedding"][batch["tokens"]] @ params["inner"]["kernel"])
    return hidden @ params["head"]["kernel"]


def summed(model):
    """Of a function that gives logits, the one that gives the summed loss."""
    return lambda params, batch, key: next_token_loss(model(params, batch, key), batch["tokens"], batch["loss_mask"])


def draw_params(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"embed.embedding": (VOCAB, 6), "inner.kernel": (6, 5), "head.kernel": (5, VOCAB)}
    return tree.unflatten({path: jnp.asarray(rng.normal(size=s), jnp.float32) for path, s in shapes.items()})


def start(transform, *trains):
    """(state, frozen) of the bigram model; what `trains` names trains, by default all."""
    trainable, frozen = tree.split(draw_params(), lambda path: not trains or path.startswith(trains))
    return init_state(trainable, transform), frozen


def optimizer_of(name, params, **changes):
    section = TrainSection(learning_rate=0.05, optim=name, lr_scheduler_type="constant", warmup_steps=0, **changes)
    return optimizer(section, 10, params)


@pytest.fixture(scope="module")
def accumulated():
    """(optimizer, microbatches) -> a compiled step, compiled once for all examples."""
    steps = {}

    def get(name, num):
        if (name, num) not in steps:
            transform = optimizer_of(name, draw_params())
            steps[name, num] = (transform, make_step(summed(bigram), transform))
        return steps[name, num]

    return get


@settings(max_examples=15)
@given(num=st.sampled_from([2, 4, 8]), name=st.sampled_from(["sgd", "adamw"]), seed=st.integers(0, 2**16))
def test_microbatches_that_differ_in_tokens_are_one_big_batch(accumulated, num, name, seed):
    results = []
    for parts in (1, num):
        transform, step = accumulated(name, parts)
        state, frozen = start(transform)
        for at in range(2):
            state, metrics = step(state, frozen, in_microbatches(draw_batch(seed + at), parts))
        results.append((state.trainable, metrics))
    (one, one_says), (many, many_says) = results
    for path, leaf in tree.flatten(one).items():
        np.testing.assert_allclose(tree.flatten(many)[path], leaf, atol=1e-5, rtol=1e-5, err_msg=path)
    np.testing.assert_allclose(many_says.loss, one_says.loss, rtol=1e-5)
    np.testing.assert_allclose(many_says.grad_norm, one_says.grad_norm, rtol=1e-5)
    assert many_says.tokens == one_says.tokens


@pytest.mark.parametrize("name", ["adafactor", "adamw_8bit", "lion", "muon"])
def test_accumulation_with_the_other_optimizers(accumulated, name):
    after = []
    for parts in (1, 4):
        transform, step = accumulated(name, parts)
        state, frozen = start(transform)
        after.append(step(state, frozen, in_microbatches(draw_batch(3), parts))[0].trainable)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), *after)


def test_the_first_step_by_hand():
    batch = draw_batch(5)
    transform = optax.sgd(0.1)
    state, frozen = start(transform)
    params = jax.tree.map(jnp.copy, state.trainable)
    tokens = batch["loss_mask"].sum()

    def mean_loss(params):
        logits = bigram(params, batch, None)
        return next_token_loss(logits, batch["tokens"], batch["loss_mask"]) / tokens

    loss, grads = jax.value_and_grad(mean_loss)(params)
    state, says = make_step(summed(bigram), transform)(state, frozen, in_microbatches(batch, 2))
    jax.tree.map(lambda x, p, g: np.testing.assert_allclose(x, p - 0.1 * g, atol=1e-6), state.trainable, params, grads)
    np.testing.assert_allclose(says.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(says.grad_norm, optax.tree.norm(grads), rtol=1e-5)
    assert (int(says.tokens), int(says.total_tokens), int(says.broken_at)) == (tokens, ROWS * (LENGTH - 2), 0)
    assert int(state.step) == 1


def test_the_norm_is_told_before_clipping():
    says = []
    for limit in (None, 1e-3):
        transform = optimizer_of("sgd", draw_params(), max_grad_norm=limit)
        state, frozen = start(transform)
        says.append(make_step(summed(bigram), transform)(state, frozen, in_microbatches(draw_batch(0), 1))[1].grad_norm)
    assert says[0] == says[1] > 1e-2


def test_only_what_trains_changes_and_has_state():
    transform = optimizer_of("adamw", tree.split(draw_params(), lambda path: path.startswith("inner"))[0])
    state, frozen = start(transform, "inner")
    before = jax.tree.map(np.array, (state.trainable, frozen))
    sizes = {x.shape for x in jax.tree.leaves(frozen)}
    assert sizes == {(VOCAB, 6), (5, VOCAB)}
    assert not sizes & {x.shape for x in jax.tree.leaves(state)}
    step = make_step(summed(bigram), transform)
    for seed in range(3):
        state, _ = step(state, frozen, in_microbatches(draw_batch(seed), 2))
    assert tree.flatten(state.trainable).keys() == {"inner.kernel"}
    assert not np.array_equal(state.trainable["inner"]["kernel"], before[0]["inner"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, frozen, before[1])  # not donated, not changed
    # no gradient of a frozen parameter is even computed: its shape is nowhere in what the step gives back
    shapes = jax.eval_shape(step, state, frozen, in_microbatches(draw_batch(0), 2))
    assert not sizes & {x.shape for x in jax.tree.leaves(shapes)}


def test_the_old_state_is_given_away():
    transform = optax.adam(0.1)
    state, frozen = start(transform)
    new, _ = make_step(summed(bigram), transform)(state, frozen, in_microbatches(draw_batch(0), 1))
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert not any(x.is_deleted() for x in jax.tree.leaves((new, frozen)))


HELD = {
    "adamw": {"optim": "adamw"},
    "momentum in bfloat16": {"optim": "adamw", "momentum_dtype": "bfloat16"},
    "adamw_8bit": {"optim": "adamw_8bit"},
    "adafactor": {"optim": "adafactor"},
    "sgd": {"optim": "sgd"},
}


@pytest.mark.parametrize("changes", HELD.values(), ids=HELD)
def test_a_second_gradient_is_held_only_for_a_second_microbatch(changes):
    """By XLA's own account of the compiled step: the parameters are far larger than the rows."""
    size = 16 * 256 * 256 * 4
    params = {"layers": {"up": {"kernel": jax.ShapeDtypeStruct((16, 256, 256), jnp.float32)}}}
    section = TrainSection(lr_scheduler_type="constant", warmup_steps=0, max_grad_norm=1.0, **changes)
    transform = optimizer(section, 10, params)
    state = jax.eval_shape(lambda t: init_state(t, transform), params)

    def loss(params, batch, key):
        def layer(x, kernel):
            return x + jnp.tanh(x @ kernel) @ kernel.T, None

        x = jnp.ones((batch["tokens"].shape[0], 256)) * batch["tokens"][:, :1]
        return jnp.square(jax.lax.scan(layer, x, params["layers"]["up"]["kernel"])[0]).sum()

    def by_hand(params, optimizer_state, rows):
        tokens = rows["loss_mask"][:, 1:].sum()
        grads = jax.grad(lambda params: loss(params, rows, None) / tokens)(params)
        updates, optimizer_state = transform.update(grads, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state

    def temp(lowered):
        return lowered.compile().memory_analysis().temp_size_in_bytes

    def microbatches(num):  # of the same rows each, so that activations take the same
        batch = {name: jnp.asarray(np.stack([x] * num)) for name, x in draw_batch(0).items()}
        return temp(make_step(loss, transform).lower(state, {}, batch))

    plain = temp(jax.jit(by_hand, donate_argnums=(0, 1)).lower(params, state.optimizer, draw_batch(0)))
    one, two, five = (microbatches(num) for num in (1, 2, 5))
    # a twentieth: the branch around the optimizer costs the 8-bit one a buffer (0.024 of a gradient, with jax 0.12)
    assert one - plain < 0.05 * size, "no gradient more than by hand"
    assert abs(two - one - size) < 0.05 * size, "exactly one more"
    assert abs(five - two) < 0.05 * size, "and not one for each"


def poisoned(kind):
    """The bigram model, which breaks where a batch has a position beyond 100."""

    def apply(params, batch, key):
        bad = batch["positions"].max() > 100
        logits = bigram(params, batch, key)
        if kind == "loss":
            return jnp.where(bad, jnp.inf, 1.0) * logits
        # zero either way, but its gradient is 0 / 0
        root = jnp.sqrt(jnp.where(bad, 0.0, 1.0) * (1 + jnp.square(params["inner"]["kernel"]).sum()))
        return logits + root - jax.lax.stop_gradient(root)

    return apply


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("parts", [1, 2])
def test_numbers_that_are_none_stop_everything_where_it_was(kind, parts):
    transform = optax.adam(0.1)
    state, frozen = start(transform)
    step = make_step(summed(poisoned(kind)), transform)
    good, bad = (in_microbatches(draw_batch(seed), parts) for seed in (0, 1))
    bad["positions"] = bad["positions"].at[-1, -1, -1].set(101)
    for _ in range(2):
        state, says = step(state, frozen, good)
        assert np.isfinite(says.loss)
    sound = jax.tree.map(np.array, state._replace(broken_at=0))
    state, says = step(state, frozen, bad)
    assert np.isfinite(says.loss) == (kind == "gradient")
    assert not np.isfinite(says.grad_norm)
    assert int(says.broken_at) == int(state.broken_at) == 3
    for batch in (good, bad, good):  # no later step changes anything, nor the number of the first broken one
        jax.tree.map(np.testing.assert_array_equal, state._replace(broken_at=0), sound)
        state, says = step(state, frozen, batch)
        assert int(says.broken_at) == 3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    assert int(state.step) == 2


def test_a_batch_without_a_token_to_learn_moves_nothing():
    transform = optax.sgd(0.1)
    state, frozen = start(transform)
    before = jax.tree.map(np.array, state.trainable)
    batch = draw_batch(0)
    batch["loss_mask"][:] = False
    state, says = make_step(summed(bigram), transform)(state, frozen, in_microbatches(batch, 2))
    assert (float(says.loss), int(says.tokens), int(says.broken_at)) == (0.0, 0, 0)
    jax.tree.map(np.testing.assert_array_equal, state.trainable, before)


def test_dropout_differs_by_step_and_microbatch_and_is_fixed_by_the_seed():
    def noisy(params, batch, key):
        return bigram(params, batch, key) + jax.random.normal(key, (VOCAB,))

    still = optax.set_to_zero()
    batch = draw_batch(0)

    def losses(seed, batch):
        step = make_step(summed(noisy), still, seed=seed)
        state, frozen = start(still)
        found = []
        for _ in range(3):
            state, says = step(state, frozen, batch)
            found.append(float(says.loss))
        return found

    one = losses(1, in_microbatches(batch, 1))
    assert len(set(one)) == 3
    assert losses(1, in_microbatches(batch, 1)) == one
    assert not set(losses(2, in_microbatches(batch, 1))) & set(one)
    # the same rows twice in one step: with one key for both the mean loss would be that of one
    twice = {name: jnp.asarray(np.stack([x, x])) for name, x in batch.items()}
    assert not np.allclose(losses(1, twice), one, atol=1e-3)


def test_the_eval_step_sums():
    trainable, frozen = tree.split(draw_params(), lambda path: path.startswith("inner"))
    batch = draw_batch(0)
    batch["loss_mask"][:, 0] = True  # counts for nothing: there is no logit before it
    loss, tokens = make_eval_step(summed(bigram))(trainable, frozen, batch)
    logits = bigram(draw_params(), batch, None)
    np.testing.assert_allclose(loss, next_token_loss(logits, batch["tokens"], batch["loss_mask"]), rtol=1e-5)
    assert tokens == batch["loss_mask"][:, 1:].sum()


# ---- the real thing: a decoder with adapters, as run/finetune.py puts it together

CONFIG = DecoderConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    initializer_range=0.3,
)  # fmt: skip


def decoder_run(mesh, *, steps=3, dropout=0.0, parts=2, backend="plain"):
    """Train a few steps on a mesh -> (losses, the adapter, times compiled)."""
    with jax.default_device(mesh.devices.flat[0]):
        params = nnx.to_pure_dict(nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(0)))[1])
    params = tree.map_with_path(lambda path, x: jax.device_put(x, place(mesh)(path, x.shape)), params)
    section = LoraSection(r=2, use_dora=True, lora_dropout=dropout)
    params = lora.add(params, lora.targets(params, "all-linear"), section, jax.random.key(1))
    layout = layout_on(mesh)
    graph, _ = abstract(CONFIG, params, attention=backend)
    budget = 4 * CONFIG.vocab_size * (ROWS // parts) * 3  # so small that a row is three chunks
    scan = scan_layers("full", ACTIVATIONS)
    loss = objective(graph, CONFIG, logits_bytes=budget, dropout_rate=dropout, scan=scan, layout=layout)
    trainable, frozen = tree.split(params, lora.is_adapter)
    transform = optimizer_of("adamw", trainable)
    everywhere = jax.tree.map(lambda _: replicated(mesh), jax.eval_shape(lambda t: init_state(t, transform), trainable))
    copied = jax.jit(lambda t: init_state(jax.tree.map(jnp.copy, t), transform), out_shardings=everywhere)
    state: TrainState = copied(trainable)
    step = make_step(loss, transform, shardings=jax.tree.map(lambda x: x.sharding, state))
    where = batch_sharding(mesh, leading=1)
    losses = []
    for at in range(steps):
        batch = {name: jax.device_put(x, where) for name, x in in_microbatches(draw_batch(at), parts).items()}
        state, says = step(state, frozen, batch)
        losses.append(float(says.loss))
    return losses, jax.tree.map(np.asarray, state.trainable), step._cache_size()


@pytest.fixture(scope="module")
def alone():
    return decoder_run(make_mesh(devices=jax.devices()[:1]))


def test_three_steps_compile_once(alone):
    losses, adapter, compiled = alone
    assert compiled == 1
    assert losses[-1] != losses[0]
    assert all(np.abs(x).max() > 0 for x in tree.flatten(adapter).values())


MESHES = [
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"data": 8},
    {"fsdp": 8, "data": 1},
    {"data": 2, "context": 4},
    {"data": 1, "context": 2, "fsdp": 2, "tensor": 2},
]


@pytest.mark.parametrize("backend", ["plain", "block"])
@pytest.mark.parametrize("axes", MESHES)
@pytest.mark.slow
def test_on_a_mesh_it_compiles_once_too_and_is_the_same_training(alone, axes, backend):
    mesh = make_mesh(MeshSection(**axes))
    losses, adapter, compiled = decoder_run(mesh, parts=1 if num_batch_shards(mesh) == 8 else 2, backend=backend)
    assert compiled == 1
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
    for path, leaf in tree.flatten(alone[1]).items():
        np.testing.assert_allclose(tree.flatten(adapter)[path], leaf, atol=2e-4, err_msg=path)
