"""Layers in stacks: which groups are found, and that a stack is what its layers are one by one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from jaxlean import tree
from jaxlean.models.attention import Slots
from jaxlean.models.build import abstract
from jaxlean.models.config import Kind
from jaxlean.models.decoder import DecoderConfig
from jaxlean.models.rope import Rope
from jaxlean.models.stack import Group, modules, put_together, runs, stacks, take_apart, through
from jaxlean.xla.remat import scan_layers

LOCAL, FULL = Kind(window=3, rope="local_rope"), Kind()
SHAPE = DecoderConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=8, num_heads=4, num_kv_heads=2, head_dim=8,
    local_rope=Rope(rope_theta=100.0),
)  # fmt: skip


def found(kinds):
    return [[(stack.first, stack.step, stack.num) for stack in run] for run in runs(tuple(kinds))]


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [
        ([FULL] * 5, [[(0, 1, 5)]]),
        ([LOCAL, FULL] * 3, [[(0, 2, 3), (1, 2, 3)]]),
        # Gemma 3 1B: four groups of six, two layers left
        (
            ([LOCAL] * 5 + [FULL]) * 4 + [LOCAL] * 2,
            [[(i, 6, 4) for i in range(6)], [(24, 1, 2)]],
        ),
        # Qwen2: full layers first, then windows
        ([FULL] * 3 + [LOCAL] * 4, [[(0, 1, 3)], [(3, 1, 4)]]),
        # DeepSeek: one dense layer, then experts
        ([FULL] + [Kind(sparse=True)] * 6, [[(0, 1, 1)], [(1, 1, 6)]]),
        ([FULL], [[(0, 1, 1)]]),
    ],
)
def test_the_groups_that_repeat(kinds, wanted):
    assert found(kinds) == wanted


@given(st.lists(st.sampled_from([LOCAL, FULL, Kind(sparse=True)]), min_size=1, max_size=12))
def test_every_layer_is_in_one_stack_of_its_kind_and_runs_follow_each_other(kinds):
    numbers = {}
    for stack in stacks(tuple(kinds)):
        for number in stack.numbers:
            assert number not in numbers
            numbers[number] = stack.kind
    assert [numbers[i] for i in range(len(kinds))] == kinds
    at = 0
    for run in runs(tuple(kinds)):
        assert [stack.first for stack in run] == list(range(at, at + len(run)))
        assert len({stack.num for stack in run}) == 1
        at += len(run) * run[0].num
    # no worse than layer by layer, or than one group that is all of them
    assert len(stacks(tuple(kinds))) <= sum(1 for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1])


def draw(config, seed=0):
    graph, shapes = abstract(config)
    rng = np.random.default_rng(seed)
    params = tree.map_with_path(lambda _, x: jnp.asarray(rng.normal(size=x.shape) * 0.3, jnp.float32), shapes)
    return graph, params


def restacked(params, kinds, into):
    """The same layers in the stacks of other kinds (whose order is the same)."""
    layers = {}
    for number, stack in enumerate(stacks(kinds)):
        own = params["layers"] if len(stacks(kinds)) == 1 else params["layers"][str(number)]
        for row, layer in enumerate(stack.numbers):
            layers[layer] = jax.tree.map(lambda x, row=row: x[row], own)
    out = [jax.tree.map(lambda *x: jnp.stack(x), *(layers[i] for i in stack.numbers)) for stack in stacks(into)]
    return {**params, "layers": out[0] if len(out) == 1 else {str(i): x for i, x in enumerate(out)}}


KINDS = {
    "groups and a rest": (LOCAL, LOCAL, FULL) * 2 + (LOCAL, LOCAL),
    "two runs": (FULL,) * 3 + (LOCAL,) * 5,
    "no group": (LOCAL, FULL, FULL, LOCAL, FULL, LOCAL, LOCAL, LOCAL),
}


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_stacks_compute_what_layers_do_one_by_one(kinds):
    config = replace(SHAPE, kinds=kinds)
    graph, params = draw(config)
    model = nnx.merge(graph, params)
    tokens = jnp.arange(20).reshape(2, 10) % 32
    got = model(tokens)

    # by hand: one layer after the other, without a scan
    layers = {}
    for number, stack in enumerate(stacks(kinds)):
        own = params["layers"][str(number)]
        for row, layer in enumerate(stack.numbers):
            layers[layer] = jax.tree.map(lambda x, row=row: x[row], own)
    by_kind = {kind: abstract(replace(SHAPE, num_layers=1, kinds=(kind,)))[0] for kind in set(kinds)}
    x = params["embed"]["embedding"][tokens]
    for i, kind in enumerate(kinds):
        one = {**params, "layers": jax.tree.map(lambda leaf: leaf[None], layers[i])}
        single = nnx.merge(by_kind[kind], {**one, "embed": {"embedding": params["embed"]["embedding"]}})
        x = _through_one(single, x, tokens)
    want = model.logits(model.norm(x))
    np.testing.assert_allclose(got, want, atol=2e-5)


def _through_one(model, x, tokens):
    """A model's layers (it has one) over hidden states."""
    steps, ones = jnp.arange(tokens.shape[1]), jnp.ones_like(tokens)
    angles = model.config.angles(jnp.broadcast_to(steps, tokens.shape))
    slots = Slots(steps, steps, ones, ones)

    def apply(layer, x, number, stack):
        return layer(x, angles, slots, None, None, number)

    return through(model.layers, model.config.all_kinds, apply, x, jax.lax.scan)[0]


@pytest.mark.parametrize("policy", ["full", "attention", "nested", ["query", "gate"]])
@pytest.mark.parametrize("kinds", [KINDS["groups and a rest"], KINDS["no group"]], ids=["groups", "no group"])
def test_gradients_are_the_same_under_every_policy(kinds, policy):
    graph, params = draw(replace(SHAPE, kinds=kinds))
    tokens = jnp.arange(20).reshape(2, 10) % 32

    def loss(params, scan):
        return jnp.sum(jnp.sin(nnx.merge(graph, params)(tokens, scan=scan)))

    names = ("query", "key", "value", "context", "attention_lse", "attention_in", "attention_out", "gate", "up")
    want = jax.grad(lambda p: loss(p, jax.lax.scan))(params)
    got = jax.grad(lambda p: loss(p, scan_layers(policy, names)))(params)
    for path, leaf in tree.flatten(want).items():
        np.testing.assert_allclose(tree.flatten(got)[path], leaf, atol=1e-4, rtol=1e-4, err_msg=path)


def test_a_group_is_its_layers_in_turn_and_each_can_be_wrapped():
    group = Group([lambda x, y: (x + y, x), lambda x, y: (x * y, x)])
    assert group(2, (3, 4)) == (20, (2, 5))
    calls = []

    def wrap(body):
        def run(x, y):
            calls.append(y)
            return body(x, y)

        return run

    assert group.each(wrap)(2, (3, 4)) == (20, (2, 5))
    assert calls == [3, 4]


def test_more_than_ten_stacks_keep_their_parameters():
    """nnx pairs parameters and modules by position, and `10` stands before `2` where names are sorted."""
    kinds = tuple(Kind(window=window) for window in range(1, 13))
    graph, params = draw(replace(SHAPE, num_layers=12, kinds=kinds))
    model = nnx.merge(graph, params)
    for number, module in enumerate(modules(model.layers, kinds)):
        assert module.attention.kind == kinds[number]
        kernel = params["layers"][str(number)]["attention"]["query"]["kernel"]
        np.testing.assert_array_equal(module.attention.query.kernel[...], kernel)


def test_dropout_differs_from_layer_to_layer_in_every_stack():
    """Layers are counted through the model, not through their stack."""
    seen = []
    graph, params = draw(replace(SHAPE, kinds=KINDS["groups and a rest"]))
    model = nnx.merge(graph, params)

    def apply(layer, x, number, stack):
        assert stack in stacks(KINDS["groups and a rest"])
        return x, number

    _, found = through(model.layers, KINDS["groups and a rest"], apply, jnp.zeros(()), jax.lax.scan)
    for numbers in found:
        seen += np.asarray(numbers).tolist()
    assert sorted(seen) == list(range(8))


@pytest.mark.parametrize("kinds", [(FULL,) * 4, (LOCAL, FULL) * 2, (LOCAL, LOCAL, FULL)], ids=["one", "groups", "runs"])
def test_layers_are_taken_apart_and_put_together(kinds):
    _, params = draw(replace(SHAPE, num_layers=len(kinds), kinds=kinds))
    layers = take_apart(params["layers"], kinds)
    assert [layer["attention"]["query"]["kernel"].shape for layer in layers] == [(16, 32)] * len(kinds)
    every = stacks(kinds)
    for place, stack in enumerate(every):
        own = params["layers"] if len(every) == 1 else params["layers"][str(place)]
        for index, number in enumerate(stack.numbers):
            np.testing.assert_array_equal(layers[number]["mlp"]["down"]["kernel"], own["mlp"]["down"]["kernel"][index])
    again = tree.flatten(put_together(layers, kinds))
    assert again.keys() == tree.flatten(params["layers"]).keys()
    for path, leaf in tree.flatten(params["layers"]).items():
        np.testing.assert_array_equal(again[path], leaf)


def test_a_layer_that_keeps_a_wide_kernel_is_of_another_kind():
    """So it is a stack of its own, and holds its kernel in a form that the others do not have."""
    kinds = (Kind(), Kind(wide=("mlp.down",)), Kind(), Kind())
    assert [list(one.numbers) for one in stacks(kinds) if one.kind.wide] == [[1]]
