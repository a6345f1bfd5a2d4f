"""Rows beside tables: added with room for them, told apart, folded in again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean import tree
from jaxlean.adapt import vocabulary
from jaxlean.errors import ConfigError
from jaxlean.xla.mesh import make_mesh, place


def tables(**more):
    rng = np.random.default_rng(0)
    made = {"embed.embedding": rng.normal(size=(8, 4)), "head.kernel": rng.normal(size=(4, 8)), **more}
    return tree.unflatten({path: jnp.asarray(leaf, jnp.float32) for path, leaf in made.items()})


def test_only_rows_train_and_their_ids_stand_beside_them():
    paths = ["embed.embedding", "new_tokens.ids", "new_tokens.embed", "new_tokens.head", "layers.mlp.up.kernel"]
    assert [vocabulary.is_row(path) for path in paths] == [False, False, True, True, False]
    assert [vocabulary.is_beside(path) for path in paths] == [False, True, True, True, False]


def test_a_longer_table_keeps_its_rows_and_gets_their_mean():
    before = tables()
    after = tree.flatten(vocabulary.resized(before, 10))
    old = tree.flatten(before)
    assert {path: leaf.shape for path, leaf in after.items()} == {
        "embed.embedding": (10, 4), "head.kernel": (4, 10)
    }  # fmt: skip
    np.testing.assert_array_equal(after["embed.embedding"][:8], old["embed.embedding"])
    np.testing.assert_allclose(after["embed.embedding"][9], old["embed.embedding"].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(after["head.kernel"][:, 8], old["head.kernel"].mean(axis=1), rtol=1e-6)
    same = tree.flatten(vocabulary.resized(before, 5))
    assert all(same[path] is old[path] for path in old)


def test_lora_has_no_place_beside_rows_of_the_head():
    rows = {"new_tokens.embed": np.zeros((1, 4)), "new_tokens.head": np.zeros((1, 4))}
    with_rows = vocabulary.add(tables(), np.array([7]), rows)
    vocabulary.check_apart(with_rows, ["layers.mlp.up"])
    vocabulary.check_apart(tables(), ["head"])
    with pytest.raises(ConfigError) as raised:
        vocabulary.check_apart(with_rows, ["layers.mlp.up", "head"])
    assert "can have no LoRA adapter beside them" in str(raised.value)
    assert "lora.target_modules" in str(raised.value)


def test_merging_writes_the_rows_into_both_tables_in_their_dtype():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tables())
    ids = np.array([1, 6, 7])
    rows = {"new_tokens.embed": np.full((3, 4), 2.0), "new_tokens.head": np.arange(12.0).reshape(3, 4)}
    merged = tree.flatten(vocabulary.merge(vocabulary.add(params, ids, rows)))
    old = tree.flatten(params)
    assert merged.keys() == old.keys()
    assert all(leaf.dtype == jnp.bfloat16 for leaf in merged.values())
    wanted = np.array(old["embed.embedding"])
    wanted[ids] = 2.0
    np.testing.assert_array_equal(merged["embed.embedding"], wanted)
    np.testing.assert_array_equal(merged["head.kernel"][:, 6], [4, 5, 6, 7])
    np.testing.assert_array_equal(merged["head.kernel"][:, 0], old["head.kernel"][:, 0])


def test_rows_and_their_spread_are_read_off_either_table():
    params = tables()
    old = tree.flatten(params)
    np.testing.assert_array_equal(vocabulary.rows_of(params, "new_tokens.embed", np.array([3, 0])),
                                  old["embed.embedding"][np.array([3, 0])])  # fmt: skip
    np.testing.assert_array_equal(
        vocabulary.rows_of(params, "new_tokens.head", np.array([3])), old["head.kernel"].T[3:4]
    )
    for leaf, table in (("new_tokens.embed", old["embed.embedding"]), ("new_tokens.head", old["head.kernel"].T)):
        mean, std = vocabulary.spread_of(params, leaf, 5)
        np.testing.assert_allclose(mean, np.asarray(table[:5], np.float64).mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(std, np.asarray(table[:5], np.float64).std(axis=0), atol=1e-6)


def test_shapes_become_shapes():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tables())
    rows = {leaf: jax.ShapeDtypeStruct((2, 4), jnp.float32) for leaf in vocabulary.TABLES}
    made = tree.flatten(vocabulary.add(vocabulary.resized(shapes, 10), np.array([8, 9]), rows))
    assert made["embed.embedding"].shape == (10, 4)
    assert made["new_tokens.head"].shape == (2, 4)
    assert made["new_tokens.ids"].dtype == jnp.int32


@pytest.mark.parametrize(("size", "spec"), [(12, ("tensor", "fsdp")), (9, (None, "fsdp"))])
def test_on_a_mesh_a_table_stays_split_where_the_axis_divides_it(size, spec):
    from jaxlean.config import MeshSection

    mesh = make_mesh(MeshSection(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    where = place(mesh)
    params = tree.map_with_path(lambda path, x: jax.device_put(x, where(path, x.shape)), tables())
    assert vocabulary.split_by(params) == {"tensor": 2}
    assert vocabulary.split_by(tables()) == {}
    longer = vocabulary.resized(params, size)
    table = longer["embed"]["embedding"]
    assert tuple(table.sharding.spec) == spec
    assert table.sharding == where("embed.embedding", table.shape)
    np.testing.assert_array_equal(table[:8], params["embed"]["embedding"])
    found = vocabulary.add(longer, np.array([8]), {"new_tokens.embed": np.ones((1, 4))})
    assert found["new_tokens"]["embed"].sharding.is_fully_replicated
    merged = vocabulary.merge(found)["embed"]["embedding"]
    np.testing.assert_array_equal(merged[8], np.ones(4))
