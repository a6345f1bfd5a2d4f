"""DiLoCo: against a simulation replica by replica, against data parallelism; what crosses `data` in the programs."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlean import tree
from jaxlean.config import MeshSection, TrainSection
from jaxlean.models.build import abstract
from jaxlean.models.decoder import ACTIVATIONS, Decoder, DecoderConfig
from jaxlean.models.layout import layout_on, layout_within
from jaxlean.train import diloco
from jaxlean.train.diloco import init_replicas, make_inner_step, make_outer_step, outer_optimizer, replica_shardings
from jaxlean.train.loss import next_token_loss
from jaxlean.train.objective import objective
from jaxlean.train.optimizer import optimizer
from jaxlean.train.step import StepMetrics, init_state, make_step, over_replicas
from jaxlean.xla import hlo
from jaxlean.xla.mesh import batch_sharding, make_mesh, place, replicated
from jaxlean.xla.remat import scan_layers

VOCAB, LENGTH, ROWS = 17, 8, 8


def draw_batch(seed, *, parts=1, alike=False):
    """[parts, rows, length]; `alike`: every row has as many tokens with loss."""
    rng = np.random.default_rng(seed)
    rows = parts * ROWS
    mask = rng.random((rows, LENGTH)) < (2.0 if alike else rng.uniform(0.2, 0.9, (rows, 1)))
    mask[:, 0] = False
    batch = {
        "tokens": rng.integers(0, VOCAB, (rows, LENGTH)).astype(np.int32),
        "loss_mask": mask,
        "segments": np.ones((rows, LENGTH), np.int32),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (rows, 1)),
    }
    return {name: x.reshape(parts, ROWS, LENGTH) for name, x in batch.items()}


def draw_params():
    """Of the bigram model: shapes that no 256 divides, one larger than a block, a vector."""
    rng = np.random.default_rng(0)
    shapes = {"embed.embedding": (VOCAB, 24), "inner.kernel": (24, 20), "inner.bias": (20,), "head.kernel": (20, VOCAB)}
    return tree.unflatten({path: jnp.asarray(rng.normal(size=s), jnp.float32) for path, s in shapes.items()})


def bigram(params, batch, key):
    """The summed loss of the smallest language model."""
    hidden = params["embed"]["embedding"][batch["tokens"]] @ params["inner"]["kernel"] + params["inner"]["bias"]
    logits = jnp.tanh(hidden) @ params["head"]["kernel"]
    return next_token_loss(logits, batch["tokens"], batch["loss_mask"])


def optimizer_of(name, params, **changes):
    section = TrainSection(learning_rate=0.05, optim=name, lr_scheduler_type="constant", warmup_steps=0, **changes)
    return optimizer(section, 10, params)


class Run:
    """Replicas on a mesh: `step(batch)`, `exchange()`."""

    def __init__(self, axes, loss, transform, *, outer=(0.7, 0.9), compression="none", params=None, seed=0):
        self.mesh = mesh = make_mesh(MeshSection(**axes))
        params = params if params is not None else draw_params()
        where = tree.map_with_path(lambda path, x: place(mesh)(path, x.shape), params)
        one = jax.tree.map(lambda _: replicated(mesh), jax.eval_shape(lambda p: init_state(p, transform), params))
        rule = outer_optimizer(*outer)

        def start(params):
            return init_replicas(init_state(params, transform), rule, mesh.shape["data"])

        common = jax.eval_shape(start, params)
        common = common._replace(outer=where, momentum=(common.momentum[0]._replace(trace=where), *common.momentum[1:]))
        shardings = replica_shardings(one._replace(trainable=where), common)
        self.state = jax.jit(start, out_shardings=shardings)(params)
        self.inner = make_inner_step(loss, transform, mesh, seed=seed, shardings=shardings)
        self.outer = make_outer_step(rule, mesh, shardings, compression)

        self._compiled = {}

    def on_devices(self, batch):
        return {name: jax.device_put(x, batch_sharding(self.mesh, leading=1)) for name, x in batch.items()}

    def compiled(self, name, *arguments):
        """`inner` or `outer`, compiled once: it takes no state that lies elsewhere than the first one."""
        if name not in self._compiled:
            self._compiled[name] = getattr(self, name).lower(self.state, *arguments).compile()
        return self._compiled[name]

    def step(self, batch):
        batch = self.on_devices(batch)
        self.state, says = self.compiled("inner", {}, batch)(self.state, {}, batch)
        return says

    def exchange(self):
        self.state = self.compiled("outer")(self.state)

    def texts(self):
        """HLO of (the inner step, the outer one)."""
        inner = self.compiled("inner", {}, self.on_devices(draw_batch(0)))
        return inner.as_text(), self.compiled("outer").as_text()


# ---- against references


def simulated(num, transform, rounds, every, *, parts=1, outer=(0.7, 0.9)):
    """The same, replica after replica, by jax.grad and optax; the outer step by hand -> (outer parameters, losses)."""
    start = draw_params()
    velocity = jax.tree.map(lambda p: np.zeros(p.shape), start)
    states, losses = [transform.init(start)] * num, []

    @jax.jit
    def one_step(params, state, rows):
        tokens = rows["loss_mask"][..., 1:].sum()

        def mean_loss(params):
            sums = [bigram(params, {name: x[part] for name, x in rows.items()}, None) for part in range(parts)]
            return sum(sums) / tokens

        loss, grads = jax.value_and_grad(mean_loss)(params)
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss, tokens

    at, (rate, keep) = 0, outer
    for _ in range(rounds):
        replicas = [start] * num
        for _ in range(every):
            batch, told = draw_batch(at, parts=parts), []
            for i in range(num):
                own = {name: x[:, i * ROWS // num : (i + 1) * ROWS // num] for name, x in batch.items()}
                replicas[i], states[i], loss, tokens = one_step(replicas[i], states[i], own)
                told.append((float(loss), int(tokens)))
            losses.append(sum(loss * n for loss, n in told) / sum(n for _, n in told))
            at += 1
        moved = jax.tree.map(lambda p, *own: np.mean([np.asarray(p - x, np.float64) for x in own], 0), start, *replicas)
        velocity = jax.tree.map(lambda v, g: np.float64(keep) * v + g, velocity, moved)
        ahead = jax.tree.map(lambda v, g: g + np.float64(keep) * v, velocity, moved)
        start = jax.tree.map(lambda p, a: jnp.asarray(p - rate * a, jnp.float32), start, ahead)
    return start, losses


@pytest.mark.parametrize(
    ("name", "num", "parts"), [("adamw", 2, 1), ("adamw", 4, 3), ("muon", 2, 1), ("adafactor", 2, 2)]
)
def test_it_is_the_algorithm(name, num, parts):
    transform = optimizer_of(name, draw_params())
    wanted, losses = simulated(num, transform, 3, 4, parts=parts)
    run = Run({"data": num, "fsdp": 1, "context": 8 // num}, bigram, transform)
    found = []
    for at in range(12):
        says = run.step(draw_batch(at, parts=parts))
        found.append(float(over_replicas(says).loss))
        if at % 4 == 3:
            run.exchange()
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), run.state.result, wanted)
    for leaf, of_all in zip(jax.tree.leaves(run.state.outer), jax.tree.leaves(run.state.trainable), strict=True):
        np.testing.assert_array_equal(of_all, np.stack([leaf] * num))  # every replica begins where the round ended
    assert run.state.step.tolist() == [12] * num


def test_exchanging_plain_sgd_after_every_step_is_data_parallelism():
    run = Run({"data": 8}, bigram, optax.sgd(0.1), outer=(1.0, 0.0))
    alone = init_state(draw_params(), optax.sgd(0.1))
    step = make_step(bigram, optax.sgd(0.1))
    for at in range(4):
        batch = draw_batch(at, parts=2, alike=True)
        says = over_replicas(run.step(batch))
        run.exchange()
        alone, wanted = step(alone, {}, {name: jnp.asarray(x) for name, x in batch.items()})
        np.testing.assert_allclose(says.loss, wanted.loss, rtol=1e-6)
        assert (says.tokens, says.total_tokens) == (wanted.tokens, wanted.total_tokens)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), run.state.result, alone.trainable)


def test_in_int8_all_get_the_same_mean_and_it_is_near():
    runs = [Run({"data": 8}, bigram, optax.sgd(0.5), outer=(1.0, 0.0), compression=how) for how in ("none", "int8")]
    before = jax.tree.map(np.array, runs[0].state.outer)
    for run in runs:
        for at in range(3):
            run.step(draw_batch(at))
        run.exchange()
    exact, rounded = (run.state.outer for run in runs)
    for path, leaf in tree.flatten(rounded).items():
        largest = np.abs(tree.flatten(runs[1].state.trainable)[path]).max()
        assert np.isfinite(largest)
        moved = tree.flatten(exact)[path] - tree.flatten(before)[path]
        error = np.abs(leaf - tree.flatten(exact)[path])
        # two roundings, each to 1/254 of the largest of a block; a replica may have moved further than their mean
        assert error.max() < 8 * 2 * np.abs(moved).max() / 254, path
        assert error.max() > 0, path
    for leaf, of_all in zip(jax.tree.leaves(rounded), jax.tree.leaves(runs[1].state.trainable), strict=True):
        np.testing.assert_array_equal(of_all, np.stack([leaf] * 8))


def test_a_block_keeps_its_own_scale():
    rng = np.random.default_rng(0)
    blocks = (rng.normal(size=(5, diloco.BLOCK)) * 10.0 ** np.arange(-6, 4, 2)[:, None]).astype(np.float32)
    blocks[3] = 0
    back = diloco._decode(diloco._encode(jnp.asarray(blocks)))
    assert diloco._encode(jnp.asarray(blocks)).dtype == jnp.int8
    largest = np.abs(blocks).max(-1, keepdims=True)
    assert (np.abs(back - blocks) <= largest / 254 * 1.0001).all()
    np.testing.assert_array_equal(back[3], 0)


# ---- what a replica is


CONFIG = DecoderConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=8,
    initializer_range=0.3,
)  # fmt: skip


def decoder_run(axes, **options):
    mesh = make_mesh(MeshSection(**axes))
    params = nnx.to_pure_dict(nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(0)))[1])
    params = tree.map_with_path(lambda path, x: jax.device_put(x, place(mesh)(path, x.shape)), params)
    graph, _ = abstract(CONFIG, params, attention="block")
    loss = objective(
        graph, CONFIG, logits_bytes=4 * CONFIG.vocab_size * ROWS * 3, scan=scan_layers("full", ACTIVATIONS),
        layout=layout_within(mesh, "data"),
    )  # fmt: skip
    return Run(axes, loss, optax.sgd(0.3), params=params, **options)


MESHES = [
    {"data": 2, "fsdp": 4},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"data": 2, "tensor": 2, "context": 2},
]


def groups_of(line):
    """Of 8 devices, in each of the forms that XLA writes them in."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{\{([0-9,{}]*)\}\}", line)
    if listed is not None:
        return [[int(n) for n in group.split(",")] for group in listed[1].split("},{")]
    counted = re.search(r"replica_groups=\[([0-9,]+)\]<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?", line)
    if counted is not None:
        shape, dims, turned = ([int(n) for n in part.split(",")] if part else None for part in counted.groups())
        ids = np.arange(8).reshape(dims)
        return (ids.transpose(turned) if turned else ids).reshape(shape).tolist()
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^:}]*)\}", line)
    assert named is not None, line
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
    used = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", named[2])]
    ids = np.moveaxis(np.arange(8).reshape(list(sizes.values())), used, range(-len(used), 0))
    return ids.reshape(-1, int(np.prod([list(sizes.values())[at] for at in used]))).tolist()


def crossing(text, replicas):
    """Collectives of a program on 8 devices that exchange between replicas: [(kind, dtype, bytes a device gets)]."""
    found = []
    for line in text.splitlines():
        kind = re.search(r" = (\(.*?\)|\S+) ([a-z\-]+?)(?:-start)?\(", line)
        if kind is None or kind[2] not in hlo.KINDS:
            continue
        if any(len({device // (8 // replicas) for device in group}) > 1 for group in groups_of(line)):
            (dtype,) = set(re.findall(r"\b([a-z]+[0-9]+)\[", kind[1]))
            found.append((kind[2], dtype, hlo._nbytes(kind[1], started=False)))
    return found


@pytest.fixture(scope="module")
def of_single_devices():
    """Two replicas; the six devices beside them have copies."""
    losses, run = [], decoder_run({"data": 2, "context": 4})
    for at in range(4):
        losses.append(np.asarray(run.step(draw_batch(at)).loss))
        if at % 2:
            run.exchange()
    return losses, jax.tree.map(np.asarray, run.state.result)


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_a_replica_may_be_several_devices_and_they_talk_among_themselves(axes, of_single_devices):
    run = decoder_run(axes)
    inner, outer = run.texts()
    assert hlo.read(inner).count > 0
    assert crossing(inner, 2) == []
    assert {kind for kind, *_ in crossing(outer, 2)} == {"all-reduce"}
    for at in range(4):
        np.testing.assert_allclose(run.step(draw_batch(at)).loss, of_single_devices[0][at], rtol=1e-5)
        if at % 2:
            run.exchange()
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), run.state.result, of_single_devices[1])


def test_the_inner_step_sends_nothing_and_the_outer_one_bytes():
    run = decoder_run({"data": 8}, compression="int8")
    inner, outer = run.texts()
    assert hlo.read(inner).collectives == []
    sent = crossing(outer, 8)
    assert sorted((kind, dtype) for kind, dtype, _ in sent) == [
        ("all-gather", "s8"), ("all-reduce", "s32"), ("all-to-all", "s8"),
    ]  # fmt: skip
    assert {kind: size for kind, _, size in sent}["all-reduce"] == 4  # whether any replica is broken
    num = sum(x.size for x in jax.tree.leaves(run.state.outer))
    padding = 8 * diloco.BLOCK * len(jax.tree.leaves(run.state.outer))
    assert sum(size for *_, size in sent) < 2 * 1.02 * (num + padding)
    # the reader does see what crosses: the gradients of a common step
    transform = optax.sgd(0.1)
    mesh = make_mesh()
    graph, _ = abstract(CONFIG, run.state.outer, attention="block")
    loss = objective(graph, CONFIG, logits_bytes=None, layout=layout_on(mesh))
    state = jax.device_put(init_state(jax.tree.map(np.asarray, run.state.outer), transform), replicated(mesh))
    common = make_step(loss, transform).lower(state, {}, run.on_devices(draw_batch(0))).compile().as_text()
    assert sum(size for _, dtype, size in crossing(common, 8) if dtype == "f32") > num  # in a loop, counted once


def test_what_replicas_have_in_common_is_not_copied_in_a_step():
    run = decoder_run({"data": 8})
    memory = run.compiled("inner", {}, run.on_devices(draw_batch(0))).memory_analysis()
    local = sum(x.nbytes // (8 if "data" in x.sharding.spec else 1) for x in jax.tree.leaves(run.state))
    assert memory.alias_size_in_bytes == local


# ---- numbers that are none, dropout


def test_a_broken_replica_stays_and_stops_the_others_at_the_exchange():
    def breaks(params, batch, key):
        return bigram(params, batch, key) * jnp.where(batch["positions"].max() > 100, jnp.inf, 1.0)

    run = Run({"data": 4, "context": 2}, breaks, optax.adam(0.1))
    run.step(draw_batch(0))
    sound = jax.tree.map(np.array, run.state)
    bad = draw_batch(1)
    bad["positions"][0, 5, 3] = 101  # of rows 4 and 5: the third replica's
    says = run.step(bad)
    assert np.isfinite(says.loss).tolist() == [True, True, False, True]
    assert says.broken_at.tolist() == run.state.broken_at.tolist() == [0, 0, 2, 0]
    assert over_replicas(says).broken_at == 2
    assert run.step(draw_batch(2)).broken_at.tolist() == [0, 0, 2, 0]
    assert run.state.step.tolist() == [3, 3, 1, 3]
    jax.tree.map(lambda now, then: np.testing.assert_array_equal(now[2], then[2]), run.state.trainable, sound.trainable)
    run.exchange()
    assert run.state.broken_at.tolist() == [2] * 4
    run.step(draw_batch(3))
    assert run.state.step.tolist() == [3, 3, 1, 3]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(run.state))


def test_dropout_differs_by_replica_and_step_and_is_fixed_by_the_seed():
    def noise(params, batch, key):
        return jax.random.uniform(key, ()) + 0.0 * bigram(params, batch, key)

    def losses(seed):
        run = Run({"data": 8}, noise, optax.set_to_zero(), seed=seed)
        return [run.step(draw_batch(0, alike=True)).loss.tolist() for _ in range(2)]

    one = losses(1)
    assert len({loss for told in one for loss in told}) == 16
    assert losses(1) == one != losses(2)


def test_metrics_of_replicas_are_those_of_all_their_tokens():
    told = StepMetrics(*map(np.array, ([2.0, 5.0], [3.0, 4.0], [30, 10], [64, 60], [0, 7])))
    whole = over_replicas(told)
    assert (whole.loss, whole.tokens, whole.total_tokens, whole.broken_at) == (2.75, 40, 124, 7)
    assert whole.grad_norm == pytest.approx(12.5**0.5)
    scalars = StepMetrics(*map(np.array, (2.0, 3.0, 30, 64, 0)))
    assert over_replicas(scalars) is scalars
