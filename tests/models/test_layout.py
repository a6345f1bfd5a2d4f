"""Where activations lie on eight devices, and sequences folded into rows and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean.config import MeshSection
from jaxlean.models.layout import ALONE, FOLDED, ROWS, SPECS, Layout, layout_on
from jaxlean.xla import mesh as meshes
from jaxlean.xla.mesh import batch_sharding, make_mesh


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
        ("loss_in", {"data": 2, "tensor": 4}, (4, 12)),
        ("logits", {"data": 2, "tensor": 4}, (4, 3)),
    ],
)
def test_it_lies_where_the_table_says(name, axes, shard):
    shapes = {2: (8, 12), 3: (8, 16, 12), 4: (8, 16, 4, 3)}
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
        for part in range(context):  # a row's parts stand below each other, in order
            np.testing.assert_array_equal(
                folded[row * context + part], x[row, part * 8 // context : (part + 1) * 8 // context]
            )
    np.testing.assert_array_equal(on.unfold(folded), x)


def test_to_fold_a_batch_moves_nothing_between_devices():
    """Of a batch each device has whole sequences."""
    on = layout(data=2, context=4)
    x = jax.device_put(jnp.ones((4, 16, 12)), batch_sharding(on.mesh))
    folded = jax.jit(lambda x: on.constrain(on.fold(x), "layer_in")).lower(x).compile()
    assert {piece.data.shape for piece in folded(x).addressable_shards} == {(2, 4, 12)}
    for word in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert word not in folded.as_text()


def test_one_device_needs_no_layout():
    x = jnp.ones((4, 8))
    for alone in (ALONE, Layout(), layout_on(make_mesh(MeshSection(data=1), jax.devices()[:1]))):
        assert alone.mesh is None
        assert alone.parts == 1
        assert alone.constrain(x, "any name") is x
        assert alone.fold(x) is x
        assert alone.unfold(x) is x
