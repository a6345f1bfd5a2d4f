"""Divergences against numpy in float64, their gradients against jax.grad of the plain formula; what holds of all."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlean import tree
from jaxlean.config import MeshSection
from jaxlean.models.build import abstract
from jaxlean.models.decoder import Decoder, DecoderConfig
from jaxlean.models.layout import layout_on
from jaxlean.train.distill import (
    IDS,
    LEAST,
    LOGS,
    Distilled,
    Teaching,
    likeliest,
    make_teach,
)
from jaxlean.train.loss import Terms, shifted
from jaxlean.train.objective import objective
from jaxlean.xla.mesh import batch_sharding, make_mesh, place

PLACES, VOCAB = 6, 12
NAMES = ("forward_kl", "reverse_kl", "jsd")


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def kl(p, q):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(p / q), 0.0).sum(-1)


def naive(p, q, name, beta):
    if name == "forward_kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def merged(p, ids):
    """[..., k + 1]: the mass of these tokens, and of all others."""
    chosen = np.take_along_axis(p, ids, -1)
    rest = p.copy()
    np.put_along_axis(rest, ids, 0.0, -1)
    return np.concatenate([chosen, rest.sum(-1, keepdims=True)], -1)


def reference(student, teacher, targets, k, how):
    """float64 [places], with nothing of ours."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    p, q = softmax(teacher / how.temperature), softmax(student / how.temperature)
    ids = np.argsort(-p, -1, kind="stable")[:, :k]
    far = naive(merged(p, ids), merged(q, ids), how.divergence, how.beta)
    task = -np.log(np.take_along_axis(softmax(student), targets[:, None], -1))[:, 0]
    return how.alpha * how.temperature**2 * far + (1 - how.alpha) * task


def drawn(seed, size=2.0):
    rng = np.random.default_rng(seed)
    logits = [(size * rng.normal(size=(PLACES, VOCAB))).astype(np.float32) for _ in range(2)]
    return *logits, rng.integers(0, VOCAB, PLACES).astype(np.int32)


def wanted_of(teacher, targets, k, temperature=1.0, dtype=jnp.float32, vocab=VOCAB):
    return {"targets": jnp.asarray(targets)} | likeliest(jnp.asarray(teacher), Teaching(k, temperature, vocab, dtype))


losses = jax.jit(lambda how, logits, wanted: how.losses(logits, wanted), static_argnums=0)
both = jax.jit(lambda how, logits, wanted: how.losses_and_gradient(logits, wanted), static_argnums=0)
plain_gradient = jax.jit(jax.grad(lambda how, z, w: how.losses(z, w).sum(), argnums=1), static_argnums=0)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**16),
    size=st.sampled_from([0.1, 2.0, 8.0]),
    k=st.sampled_from([1, 5, VOCAB]),
    name=st.sampled_from(NAMES),
    weights=st.sampled_from([(1.0, 1.0), (1.0, 0.4), (2.5, 0.3)]),
)
def test_a_loss_is_the_formula_s(seed, size, k, name, weights):
    temperature, alpha = weights
    student, teacher, targets = drawn(seed, size)
    how = Distilled(name, alpha, temperature, 0.3)
    wanted = wanted_of(teacher, targets, k, temperature)
    got, gradient = both(how, student, wanted)
    np.testing.assert_allclose(got, reference(student, teacher, targets, k, how), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(losses(how, student, wanted), got, rtol=1e-6, atol=1e-6)
    # by hand against jax's own, of the same sum
    np.testing.assert_allclose(gradient, plain_gradient(how, student, wanted), rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [3, VOCAB])
def test_the_gradient_is_what_finite_differences_say(name, k):
    student, teacher, targets = drawn(5)
    how = Distilled(name, 0.6, 1.7, 0.4, Terms())
    gradient = np.asarray(both(how, student, wanted_of(teacher, targets, k, 1.7))[1], np.float64)
    way = np.random.default_rng(1).normal(size=student.shape)
    up, down = (reference(student + sign * 1e-6 * way, teacher, targets, k, how).sum() for sign in (1, -1))
    np.testing.assert_allclose((gradient * way).sum(), (up - down) / 2e-6, rtol=1e-4)


def test_the_whole_vocabulary_at_temperature_one_is_the_kl_of_the_softmaxes():
    student, teacher, targets = drawn(7)
    p, q = softmax(teacher.astype(np.float64)), softmax(student.astype(np.float64))
    got = losses(Distilled("forward_kl", 1.0), student, wanted_of(teacher, targets, VOCAB))
    np.testing.assert_allclose(got, (p * (np.log(p) - np.log(q))).sum(-1), rtol=1e-5)
    # labels come without ids: each is a class
    logs = {"targets": jnp.asarray(targets), LOGS: jax.nn.log_softmax(teacher)}
    np.testing.assert_allclose(both(Distilled("forward_kl", 1.0), student, logs)[0], got, rtol=1e-5)
    gradient = both(Distilled("forward_kl", 1.0), student, logs)[1]
    np.testing.assert_allclose(gradient, q - p, atol=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 2**16), st.sampled_from(NAMES), st.sampled_from([0.5, 3.0, 8.0]))
def test_what_holds_of_every_divergence(seed, name, size):
    student, teacher, targets = drawn(seed, size)
    how = Distilled(name, 1.0)
    found = [np.asarray(losses(how, student, wanted_of(teacher, targets, k))) for k in (1, 4, 8, VOCAB)]
    assert np.isfinite(found).all()
    assert (np.min(found, axis=0) >= -1e-5).all()
    for fewer, more in itertools.pairwise(found):  # classes that are merged tell less apart
        assert (fewer <= more + 1e-4 * np.maximum(more, 1)).all()
    assert (found[-1] > 1e-9).all(), "they are not the same"
    for k in (1, 4, VOCAB):
        same, gradient = both(how, teacher, wanted_of(teacher, targets, k))
        np.testing.assert_allclose(same, 0, atol=2e-5)
        np.testing.assert_allclose(gradient, 0, atol=2e-5)


@settings(max_examples=10)
@given(st.integers(0, 2**16))
def test_jensen_and_shannon_s_is_the_same_either_way_at_a_half(seed):
    one, two, targets = drawn(seed)
    there, back = (losses(Distilled("jsd", 1.0), a, wanted_of(b, targets, VOCAB)) for a, b in ((one, two), (two, one)))
    np.testing.assert_allclose(there, back, rtol=1e-4, atol=1e-6)
    assert (np.asarray(there) <= np.log(2) + 1e-5).all()


@pytest.mark.parametrize("name", NAMES)
def test_certainty_breaks_nothing(name):
    student, teacher, targets = drawn(3)
    teacher[:, 0] += 1e4
    student[:, 1] += 1e4
    for k in (1, 4, VOCAB):
        for dtype in (jnp.float16, jnp.float32):
            value, gradient = both(Distilled(name, 0.5), student, wanted_of(teacher, targets, k, dtype=dtype))
            assert np.isfinite(value).all()
            assert np.isfinite(gradient).all()
    assert likeliest(jnp.asarray(teacher), Teaching(3, 1.0, VOCAB, jnp.float32))[LOGS].min() == LEAST


def test_sixteen_bits_are_nearly_as_good():
    student, teacher, targets = drawn(4)
    wide, narrow = (
        losses(Distilled("jsd", 1.0), student, wanted_of(teacher, targets, 4, dtype=dtype))
        for dtype in (jnp.float32, jnp.float16)
    )
    np.testing.assert_allclose(narrow, wide, rtol=3e-3, atol=1e-4)
    own = losses(Distilled("forward_kl", 1.0), teacher, wanted_of(teacher, targets, 4, dtype=jnp.float16))
    assert (np.asarray(own) >= -1e-6).all()


def test_a_teacher_names_its_likeliest_and_never_what_only_fills_its_table():
    _, teacher, _ = drawn(2)
    found = likeliest(jnp.asarray(teacher), Teaching(4, 2.0, 10, jnp.float32))
    log_p = np.log(softmax(teacher[:, :10].astype(np.float64) / 2.0))
    order = np.argsort(-log_p, -1)
    np.testing.assert_array_equal(found[IDS], order[:, :4])
    np.testing.assert_allclose(found[LOGS][:, :4], np.take_along_axis(log_p, order[:, :4], -1), rtol=1e-5)
    others = np.log(np.exp(np.take_along_axis(log_p, order[:, 4:], -1)).sum(-1))
    np.testing.assert_allclose(found[LOGS][:, 4], others, rtol=1e-5)


# ---- a teacher and a student


def decoder(seed, **shape):
    """(graph, config, parameters)."""
    sizes = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_layers": 1, "num_heads": 8}
    config = DecoderConfig(num_kv_heads=8, head_dim=2, initializer_range=0.5, **(sizes | shape))
    params = nnx.to_pure_dict(nnx.split(Decoder(config, rngs=nnx.Rngs(seed)))[1])
    return abstract(config, params, dtype=jnp.float32)[0], config, params


def rows():
    rng = np.random.default_rng(0)
    mask = rng.random((8, 16)) < np.linspace(0.0, 0.9, 8)[:, None]
    mask[:, 0] = False
    positions = np.broadcast_to(np.arange(16, dtype=np.int32), (8, 16))
    return {
        "tokens": rng.integers(0, 32, (8, 16)).astype(np.int32), "loss_mask": mask,
        "segments": np.ones((8, 16), np.int32), "positions": positions,
    }  # fmt: skip


def taught(teacher, batch, *, budget, mesh=None):
    graph, config, params = teacher
    layout = {} if mesh is None else {"layout": layout_on(mesh)}
    teach = make_teach(graph, config, Teaching(5, 1.5, 32, jnp.float32), logits_bytes=budget, **layout)
    return batch | jax.jit(teach)(params, batch)


def learned(student, batch, *, budget, mesh=None):
    """(the loss, its gradients) of a student."""
    graph, config, params = student
    layout = {} if mesh is None else {"layout": layout_on(mesh)}
    how = Distilled("jsd", 0.7, 1.5, 0.3, Terms(0.01))
    loss = objective(graph, config, logits_bytes=budget, criterion=how, beside=(IDS, LOGS), **layout)
    return jax.jit(jax.value_and_grad(lambda p: loss(p, batch, jax.random.key(0))))(params)


def test_a_student_learns_what_a_teacher_says_of_each_place():
    teacher, student, batch = decoder(0), decoder(1, hidden_size=4), rows()
    whole = taught(teacher, batch, budget=None)
    graph, _, params = teacher
    logits = np.asarray(nnx.merge(graph, params)(batch["tokens"], segments=batch["segments"]))
    own, _, own_params = student
    of_student = np.asarray(nnx.merge(own, own_params)(batch["tokens"], segments=batch["segments"]))
    targets, counts = map(np.asarray, shifted(batch["tokens"], batch["loss_mask"]))
    how = Distilled("jsd", 0.7, 1.5, 0.3)
    want = reference(of_student[counts], logits[counts], targets[counts], 5, how).sum()
    total = np.log(np.exp(of_student[counts].astype(np.float64)).sum(-1))
    want += 0.3 * 0.01 * np.square(total).sum()  # alpha leaves that share to the task's loss and its terms
    loss, gradient = learned(student, whole, budget=None)
    np.testing.assert_allclose(loss, want, rtol=1e-5)

    chunks = taught(teacher, batch, budget=4 * 8 * 32 * 3)
    np.testing.assert_array_equal(np.asarray(chunks[IDS])[counts], np.asarray(whole[IDS])[counts])
    np.testing.assert_allclose(np.asarray(chunks[LOGS])[counts], np.asarray(whole[LOGS])[counts], rtol=1e-5, atol=1e-5)
    assert not np.asarray(chunks[LOGS])[~counts].any()
    loss, in_chunks = learned(student, chunks, budget=4 * 8 * 32 * 3)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), in_chunks, gradient)


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 2, "context": 4}])
def test_on_meshes_it_is_what_it_is_on_one_device(axes):
    teacher, student, batch = decoder(0), decoder(1), rows()
    budget = 4 * 8 * 32 * 3
    mesh = make_mesh(MeshSection(**axes))

    def put(model):
        graph, config, params = model
        where = place(mesh)
        return graph, config, tree.map_with_path(lambda path, x: jax.device_put(x, where(path, x.shape)), params)

    spread = {name: jax.device_put(x, batch_sharding(mesh)) for name, x in batch.items()}
    alone, there = taught(teacher, batch, budget=budget), taught(put(teacher), spread, budget=budget, mesh=mesh)
    np.testing.assert_array_equal(there[IDS], alone[IDS])
    np.testing.assert_allclose(there[LOGS], alone[LOGS], rtol=1e-4, atol=1e-5)
    want = learned(student, alone, budget=budget)
    got = learned(put(student), there, budget=budget, mesh=mesh)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got[1], want[1])
