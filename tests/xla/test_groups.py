"""Which devices exchange, as HLO writes it, and what of it leaves a machine: counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlean.xla.groups import Sent, along, read_groups, ring_bytes, split
from jaxlean.xla.hlo import read

PAIRS = ((0, 4), (1, 5), (2, 6), (3, 7))
FOURS = ((0, 1, 2, 3), (4, 5, 6, 7))


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, use_global", FOURS),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", PAIRS),
        ("replica_groups=[2,4]<=[8], dimensions={0}", FOURS),
        ("replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", PAIRS),
        ("replica_groups=[1,8]<=[8]", (tuple(range(8)),)),
        ("replica_groups=[4,2]<=[2,2,2]T(1,0,2)", ((0, 1), (4, 5), (2, 3), (6, 7))),
        ("source_target_pairs={{0,1},{1,2},{2,0}}", ((0, 1), (1, 2), (2, 0))),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", FOURS),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, x", PAIRS),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}, x", (tuple(range(8)),)),
        # the mesh's places hold 0, 4, 1, 5, ...: those that differ in b are one machine's
        ("replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}", FOURS),
        ("replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", PAIRS),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}", ((3, 1), (2, 0))),
        # parts of an axis: its slow half, its fast half, its ends
        ("replica_groups=mesh['a'=8] {'a':(1)2}", PAIRS),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", FOURS),
        ("replica_groups=mesh['a'=8] {'a':(1)2,'a':(4)2}", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("no groups at all", ()),
    ],
)
def test_groups_as_compilers_write_them(text, groups):
    assert read_groups(f"  %x = f32[8]{{0}} all-gather(%p), channel_id=1, {text}") == groups


@pytest.mark.parametrize(
    ("names", "groups"),
    [(("tensor",), ((0, 1), (2, 3), (4, 5), (6, 7))), (("data",), PAIRS), (("fsdp", "tensor"), FOURS),
     (("data", "tensor"), ((0, 1, 4, 5), (2, 3, 6, 7)))],
)  # fmt: skip
def test_groups_along_the_axes_of_a_mesh(names, groups):
    assert along({"data": 2, "fsdp": 2, "tensor": 2}, names) == groups


@pytest.mark.parametrize(
    ("kind", "groups", "inside", "across", "crossings"),
    [
        ("all-gather", FOURS, 120, 0, 0),  # each group in its machine
        ("all-gather", PAIRS, 0, 120, 1),  # one of each machine: all that it sends crosses
        ("all-gather", (tuple(range(8)),), 90, 30, 1),  # four rings at once, each leaves by a device of its own
        ("all-reduce", (tuple(range(8)),), 90, 30, 2),  # there, and back
        ("reduce-scatter", ((0, 1, 4, 5), (2, 3, 6, 7)), 60, 60, 1),
        ("all-reduce", ((0, 1, 2, 4),), 0, 120, 2),  # the second machine has one door
        ("all-to-all", (tuple(range(8)),), 120 * 3 / 7, 120 * 4 / 7, 1),  # to 3 of 7 inside
        ("collective-permute", ((0, 1), (1, 2), (2, 3), (3, 0)), 120, 0, 0),
        ("collective-permute", ((0, 1), (3, 4)), 0, 120, 1),  # the slowest pair
        ("all-gather", (), 120, 0, 0),
    ],
)
def test_what_leaves_a_machine_of_four(kind, groups, inside, across, crossings):
    found = split(kind, 120.0, groups, 4)
    assert found.inside == pytest.approx(inside)
    assert found.across == pytest.approx(across)
    assert found.crossings == crossings


def test_over_more_machines_a_ring_takes_more_steps_and_each_device_sends_as_much():
    groups = (tuple(range(32)),)
    assert split("all-gather", 80.0, groups, 8) == Sent(70.0, 10.0, 3)
    assert split("all-reduce", 80.0, groups, 8) == Sent(70.0, 10.0, 6)
    assert split("all-gather", 80.0, groups, 32) == Sent(80.0)


def test_what_a_ring_sends():
    """Result of 80 bytes on each of 8: what the others have of it; a sum goes around twice."""
    assert ring_bytes("all-gather", 80, 8) == 70
    assert ring_bytes("all-to-all", 80, 8) == 70
    assert ring_bytes("all-reduce", 80, 8) == 140
    assert ring_bytes("reduce-scatter", 10, 8) == 70
    assert ring_bytes("collective-permute", 80, 2) == 80


@pytest.fixture(scope="module")
def mesh():
    """Two machines of four, two by two: a is the slow axis."""
    return Mesh(np.asarray(jax.devices()).reshape(2, 2, 2), ("a", "b", "c"), axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize(
    ("axes", "inside", "across"),
    [("c", 512.0, 0), ("b", 512.0, 0), ("a", 0, 512.0), (("a", "c"), 384.0, 384.0), (("b", "c"), 768.0, 0),
     (("a", "b", "c"), 672.0, 224.0)],
)  # fmt: skip
def test_a_gather_compiled_for_two_machines_of_four(mesh, axes, inside, across):
    """[32, 8] of float32, 1,024 bytes, put together from n devices: each sends (n - 1) / n of it."""
    part, whole = PartitionSpec(axes), PartitionSpec()
    gather = jax.shard_map(
        lambda x: jax.lax.all_gather(x, axes, tiled=True), mesh=mesh, in_specs=part, out_specs=whole, check_vma=False
    )
    argument = jax.ShapeDtypeStruct((32, 8), jnp.float32, sharding=NamedSharding(mesh, part))
    found = read(jax.jit(gather).lower(argument).compile().as_text()).collectives
    assert sum(c.sent(4).inside for c in found) == pytest.approx(inside)
    assert sum(c.sent(4).across for c in found) == pytest.approx(across)


@pytest.mark.parametrize(("step", "inside", "across"), [(1, 0, 512.0), (2, 512.0, 0)])
def test_a_permutation_of_eight_compiled_for_two_machines_of_four(step, inside, across):
    line = Mesh(np.asarray(jax.devices()), ("a",), axis_types=(AxisType.Auto,))
    # to the next one, which from 3 is on the other machine; or to one of the same pair of pairs
    pairs = [(i, (i + 1) % 8) if step == 1 else (i, i ^ 2) for i in range(8)]
    send = jax.shard_map(
        lambda x: jax.lax.ppermute(x, "a", pairs), mesh=line, in_specs=PartitionSpec("a"), out_specs=PartitionSpec("a")
    )
    argument = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=NamedSharding(line, PartitionSpec("a")))
    (found,) = read(jax.jit(send).lower(argument).compile().as_text()).collectives
    assert (found.sent(4).inside, found.sent(4).across) == (inside, across)


def layers(sizes, specs, *shapes):
    """What two products, one after the other, exchange when they lie so on a mesh of eight."""
    mesh = Mesh(np.asarray(jax.devices()).reshape(list(sizes.values())), tuple(sizes), axis_types=(AxisType.Auto,) * 2)
    *arguments, out = [NamedSharding(mesh, PartitionSpec(*spec)) for spec in specs]
    made = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=w) for s, w in zip(shapes, arguments, strict=True)]
    program = jax.jit(lambda x, up, down: jnp.tanh(x @ up) @ down, out_shardings=out).lower(*made).compile()
    return read(program.as_text()).collectives


def test_a_layer_split_over_both_machines_is_gathered_by_four_rings():
    """fsdp=8: each kernel of 64 x 256 float32 is put together by every device."""
    rows, kernel = ("fsdp",), ("fsdp", None)
    found = layers({"fsdp": 8, "tensor": 1}, [rows, kernel, kernel, rows], (1024, 64), (64, 256), (256, 64))
    assert {c.kind for c in found} == {"all-gather"}
    sent = 2 * 64 * 256 * 4 * 7 / 8
    assert sum(c.bytes * c.times for c in found) == sent
    assert sum(c.sent(4).across * c.times for c in found) == sent / 4


@pytest.mark.parametrize(("sizes", "across"), [({"data": 2, "tensor": 4}, 0.0), ({"tensor": 8, "data": 1}, 1 / 4)])
def test_a_layer_split_by_its_matrices_adds_up_what_it_makes(sizes, across):
    """One sum of the rows of a device, there and back; of tensor=8 a quarter leaves a machine of four."""
    rows = ("data", None)
    specs = [rows, (None, "tensor"), ("tensor", None), rows]
    found = layers(sizes, specs, (1024, 64), (64, 256), (256, 64))
    assert [c.kind for c in found] == ["all-reduce"]
    sent = 2 * 1024 / sizes["data"] * 64 * 4 * (sizes["tensor"] - 1) / sizes["tensor"]
    assert (found[0].bytes, found[0].sent(4).across) == (sent, sent * across)
