"""Where activations lie on eight devices, and sequences folded into rows and back."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlean import codec
from jaxlean.config import MeshSection
from jaxlean.models import quantized
from jaxlean.models.layout import ALONE, FOLDED, ROWS, SPECS, KernelPlace, Layout, layout_on
from jaxlean.xla import mesh as meshes
from jaxlean.xla.mesh import batch_sharding, make_mesh, place


def layout(**axes):
    return layout_on(make_mesh(MeshSection(**{"data": 1, **axes})))


def test_the_table_speaks_of_the_mesh_s_axes_and_splits_every_batch():
    assert all(spec[0] == FOLDED for spec in SPECS.values())
    assert ROWS == meshes.ROWS
    named = {
        axis for spec in SPECS.values() for part in spec for axis in ((part,) if isinstance(part, str) else part or ())
    }
    assert named == {*FOLDED, "tensor"} == set(meshes.AXES)


@pytest.mark.parametrize(
    ("name", "axes", "shard"),
    [
        ("query", {"data": 2, "fsdp": 2, "tensor": 2}, (2, 16, 2, 3)),
        ("query", {"expert": 2, "context": 4}, (1, 16, 4, 3)),
        ("context", {"tensor": 4, "context": 2}, (4, 16, 1, 3)),
        ("gate", {"data": 4, "tensor": 2}, (2, 16, 6)),
        ("mlp_out", {"data": 4, "tensor": 2}, (2, 16, 12)),
        ("layer_in", {"fsdp": 8}, (1, 16, 12)),
    ],
)
def test_it_lies_where_the_table_says(name, axes, shard):
    shapes = {3: (8, 16, 12), 4: (8, 16, 4, 3)}
    x = jnp.arange(np.prod(shapes[len(shard)]), dtype=jnp.float32).reshape(shapes[len(shard)])
    lies = jax.jit(layout(**axes).constrain, static_argnums=1)(x, name)
    assert {piece.data.shape for piece in lies.addressable_shards} == {shard}
    np.testing.assert_array_equal(lies, x)


def test_a_name_that_is_not_in_the_table():
    with pytest.raises(KeyError, match="qeury"):
        layout(data=8).constrain(jnp.ones((8, 2)), "qeury")


@pytest.mark.parametrize("context", [1, 2, 4, 8])
@pytest.mark.parametrize("rest", [(), (4,), (4, 3)])
def test_folded_and_back(context, rest):
    on = layout(data=8 // context, context=context)
    assert on.parts == context
    x = np.arange(2 * 8 * np.prod(rest, dtype=int)).reshape(2, 8, *rest)
    folded = on.fold(x)
    assert folded.shape == (2 * context, 8 // context, *rest)
    for row in range(2):
        for part in range(context):  # the first parts of all rows, then the second ones
            np.testing.assert_array_equal(
                folded[part * 2 + row], x[row, part * 8 // context : (part + 1) * 8 // context]
            )
    np.testing.assert_array_equal(on.unfold(folded), x)


def test_folding_moves_nothing_between_devices():
    """Neither a batch, of which each device has whole sequences, nor activations there and back: two rows a device."""
    on = layout(data=2, context=4)
    x = jax.device_put(jnp.ones((4, 16, 12)), batch_sharding(on.mesh))
    to_parts = jax.jit(lambda x: on.constrain(on.fold(x), "layer_in"))
    assert {piece.data.shape for piece in to_parts(x).addressable_shards} == {(2, 4, 12)}

    def there_and_back(x):
        whole = on.unfold(on.constrain(x * 2.0, "layer_in"))
        halved = jax.lax.with_sharding_constraint(whole, NamedSharding(on.mesh, PartitionSpec(ROWS, "context"))) / 2.0
        return on.constrain(on.fold(halved), "layer_in")

    parts = to_parts(x)
    for function, given in ((to_parts, x), (jax.jit(there_and_back), parts)):
        text = function.lower(given).compile().as_text()
        for word in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
            assert word not in text


def test_one_device_needs_no_layout():
    x = jnp.ones((4, 8))
    for alone in (ALONE, Layout(), layout_on(make_mesh(MeshSection(data=1), jax.devices()[:1]))):
        assert alone.mesh is None
        assert alone.parts == 1
        assert alone.constrain(x, "any name") is x
        assert alone.fold(x) is x
        assert alone.unfold(x) is x


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"data": 2, "tensor": 4}])
@pytest.mark.parametrize("vocab", [16, 18])
def test_a_lookup_finds_the_rows_and_its_gradient_the_places(axes, vocab):
    """A vocabulary of 18, which `tensor` does not divide, is whole on each of its devices."""
    on = layout(**axes)
    table = jnp.asarray(np.random.default_rng(0).normal(size=(vocab, 8)), jnp.float32)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, vocab, (8, 6)), jnp.int32)
    weight = jnp.arange(8 * 6 * 8, dtype=jnp.float32).reshape(8, 6, 8)
    placed = jax.device_put(table, place(on.mesh)("embed.embedding", table.shape))
    ids = jax.device_put(tokens, batch_sharding(on.mesh))

    def total(table, tokens):
        return (on.lookup(table, tokens) * weight).sum()

    np.testing.assert_array_equal(jax.jit(on.lookup)(placed, ids), np.asarray(table)[tokens])
    wanted = np.zeros((vocab, 8), np.float32)
    np.add.at(wanted, np.asarray(tokens), np.asarray(weight))
    np.testing.assert_allclose(jax.jit(jax.grad(total))(placed, ids), wanted, rtol=1e-6)


@pytest.mark.parametrize("form", ["int8", "nf4"])
@pytest.mark.parametrize("layer", ["query", "key", "value", "out", "gate", "up", "down"])
def test_gathered_a_kernel_lies_as_the_rules_say_but_for_fsdp(form, layer):
    on = layout(fsdp=4, tensor=2)
    held = codec.shapes((128, 512), form)
    placed = {
        name: jax.device_put(
            jnp.zeros((1, *leaf.shape), leaf.dtype), place(on.mesh)(f"layers.x.{layer}.{name}", (1, *leaf.shape))
        )
        for name, leaf in held.items()
    }
    whole = jax.jit(lambda leaves: KernelPlace(on, layer).gathered({n: x[0] for n, x in leaves.items()}))(placed)
    for name, leaf in whole.items():
        rule = place(on.mesh)(f"layers.x.{layer}.{name}", (1, *leaf.shape)).spec[1:]
        wanted = NamedSharding(on.mesh, PartitionSpec(*(None if axis == "fsdp" else axis for axis in rule)))
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), name


@pytest.mark.parametrize("form", ["int8", "nf4"])
@pytest.mark.parametrize("layer", ["gate", "down"])
def test_a_quantized_kernel_is_sent_as_it_is_held(form, layer):
    on = layout(fsdp=4, tensor=2)
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(128, 512)), jnp.float32)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3, 128)), jnp.float32)
    leaves = codec.encode(kernel, form)
    where = place(on.mesh)
    # a layer's part of a stack: the rules are for stacks
    placed = {
        name: jax.device_put(leaf[None], where(f"layers.mlp.{layer}.{name}", (1, *leaf.shape)))
        for name, leaf in leaves.items()
    }
    rows = jax.device_put(x, batch_sharding(on.mesh))

    def total(x, stacked, place):
        one = {name: leaf[0] for name, leaf in stacked.items()}
        return (quantized.dot(x, one, "default", place) ** 2).sum()

    step = jax.jit(jax.value_and_grad(total), static_argnums=2)
    value, grad = step(rows, placed, KernelPlace(on, layer))
    alone_value, alone_grad = jax.value_and_grad(total)(x, {n: leaf[None] for n, leaf in leaves.items()}, KernelPlace())
    np.testing.assert_allclose(value, alone_value, rtol=1e-5)
    np.testing.assert_allclose(grad, alone_grad, rtol=1e-4, atol=1e-3)

    def gathered(place):
        """{dtype: elements of the largest all-gather} of kernels."""
        text = step.lower(rows, placed, place).compile().as_text()
        found = {}
        for dtype, dims in re.findall(r"= ([a-z0-9]+)\[([0-9,]+)\]\S* all-gather", text):
            size = np.prod([int(n) for n in dims.split(",")])
            found[dtype] = max(found.get(dtype, 0), size)
        return found

    whole, code = kernel.size // 2, "s8" if form == "int8" else "u8"
    as_held = gathered(KernelPlace(on, layer))
    assert as_held[code] == (whole if form == "int8" else whole // 2)
    assert as_held.get("f32", 0) < whole
    assert code not in gathered(KernelPlace()), "what XLA would do by itself"
