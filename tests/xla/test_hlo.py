# ruff: noqa: E501 (what compilers write has long lines)
"""What is read off a compiled program: collectives as often as they run, in the forms that the compilers write them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlean.xla.hlo import read


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.asarray(jax.devices()).reshape(2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def compiled(mesh, function, *specs, shape=(16, 32)):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec)) for spec in specs]
    return read(jax.jit(function).lower(*arguments).compile().as_text())


def on(mesh, function, inside, outside):
    return jax.shard_map(function, mesh=mesh, in_specs=inside, out_specs=outside, check_vma=False)


def test_a_program_of_one_device_exchanges_nothing(mesh):
    found = compiled(mesh, lambda x: x * 2, PartitionSpec("a"))
    assert (found.count, found.bytes, found.cycles, found.unknown_loops) == (0, 0.0, None, 0)


def test_each_kind_sends_what_a_ring_sends(mesh):
    whole = 16 * 32 * 4  # bytes
    rows, all_ = PartitionSpec("b"), PartitionSpec()
    gather = compiled(mesh, on(mesh, lambda x: jax.lax.all_gather(x, "b", tiled=True), rows, all_), rows)
    assert [(c.kind, c.group, c.times) for c in gather.collectives] == [("all-gather", 4, 1)]
    assert gather.bytes == whole * 3 / 4
    total = compiled(mesh, on(mesh, lambda x: jax.lax.psum(x, ("a", "b")), rows, all_), rows)
    assert [(c.kind, c.group) for c in total.collectives] == [("all-reduce", 8)]
    assert total.bytes == 2 * (whole / 4) * 7 / 8
    scatter = compiled(mesh, on(mesh, lambda x: jax.lax.psum_scatter(x, "b", tiled=True), all_, rows), all_)
    assert [(c.kind, c.group) for c in scatter.collectives] == [("reduce-scatter", 4)]
    assert scatter.bytes == whole / 4 * 3
    ring = [(i, (i + 1) % 4) for i in range(4)]
    passed = compiled(mesh, on(mesh, lambda x: jax.lax.ppermute(x, "b", ring), rows, rows), rows)
    assert [c.kind for c in passed.collectives] == ["collective-permute"]
    assert passed.bytes == whole / 4


@pytest.mark.parametrize("length", [1, 5])
def test_a_loop_counts_as_often_as_it_runs_and_one_inside_another_too(mesh, length):
    def inner(x, _):
        return jnp.tanh(jax.lax.psum(x, "b")), None

    def outer(x, _):
        return jax.lax.scan(inner, x, None, length=3)[0], None

    def run(x):
        return jax.lax.scan(outer, x, None, length=length)[0]

    spec = PartitionSpec("a")
    found = compiled(mesh, on(mesh, run, spec, spec), spec)
    assert found.count == 3 * length
    assert found.unknown_loops == 0


def test_a_loop_of_unknown_length_says_so_and_counts_as_often_as_it_is_told(mesh):
    def run(x):
        return jax.lax.while_loop(
            lambda c: c[0] < c[1].sum(), lambda c: (c[0] + 1.0, jax.lax.psum(c[1], "b")), (0.0, x)
        )[1]

    spec = PartitionSpec()
    argument = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=NamedSharding(mesh, spec))
    text = jax.jit(on(mesh, run, spec, spec)).lower(argument).compile().as_text()
    assert read(text).unknown_loops == 1
    assert read(text, unknown=7).count == 7 * read(text).count > 0


# As libtpu writes it: no trip counts but conditions, cycles, and one exchange spread over several operations.
TPU = """HloModule jit_step, is_scheduled=true
FileNames
1 "step.py"

%start.1 (param_0: bf16[1,512,1024]) -> bf16[1,4096,1024] {
  %param_0 = bf16[1,512,1024]{2,1,0} parameter(0)
  %all-gather.86 = bf16[1,4096,1024]{2,1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=90, replica_groups=mesh['axis_0'=2,'axis_1'=8], device_ids=([2,8]T(1,0)) {'axis_1'}, dimensions={1}, metadata={op_name="jit(step)/gather"}
  ROOT %custom-call.52 = (bf16[1,512,1024]{2,1,0}, u32[]{:S(2)}) custom-call(%all-gather.86), custom_call_target="AsyncCollectiveStart"
}

%done.1 (param_0: bf16[1,512,1024]) -> bf16[1,4096,1024] {
  %param_0 = bf16[1,512,1024]{2,1,0} parameter(0)
  ROOT %all-gather.88 = bf16[1,4096,1024]{2,1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=90, replica_groups=mesh['axis_0'=2,'axis_1'=8], device_ids=([2,8]T(1,0)) {'axis_1'}, dimensions={1}, metadata={op_name="jit(step)/gather"}
}

%body (arg: (s32[], bf16[1,512,1024])) -> (s32[], bf16[1,512,1024]) {
  %arg = (s32[]{:T(128)}, bf16[1,512,1024]{2,1,0}) parameter(0)
  %get-tuple-element.1 = bf16[1,512,1024]{2,1,0} get-tuple-element(%arg), index=1
  %fusion.1 = bf16[1,4096,1024]{2,1,0} fusion(%get-tuple-element.1), kind=kCustom, calls=%start.1, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %fusion.2 = bf16[1,4096,1024]{2,1,0} fusion(%get-tuple-element.1), kind=kCustom, calls=%done.1, backend_config={"window_config":{"estimated_cycles":"50"}}
  %collective-permute-start.33 = (bf16[1,512,1024]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,512,1024]{2,1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%get-tuple-element.1), channel_id=2, source_target_pairs={{0,1},{1,0}}
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[1,512,1024]{2,1,0}) tuple(%get-tuple-element.1, %get-tuple-element.1)
}

%condition (arg: (s32[], bf16[1,512,1024])) -> pred[] {
  %arg = (s32[]{:T(128)}, bf16[1,512,1024]{2,1,0}) parameter(0)
  %get-tuple-element.2 = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %constant.405 = s32[]{:T(128)} constant(32)
  ROOT %lt.147 = pred[]{:T(512)} compare(%get-tuple-element.2, %constant.405), direction=LT
}

ENTRY %main.60_spmd (param.64: (s32[], bf16[1,512,1024])) -> (s32[], bf16[1,512,1024]) {
  %param.64 = (s32[]{:T(128)}, bf16[1,512,1024]{2,1,0}) parameter(0)
  ROOT %while.115 = (s32[]{:T(128)}, bf16[1,512,1024]{2,1,0:T(8,128)(2,1)}) while(%param.64), condition=%condition, body=%body
}
"""


def test_the_text_of_a_tpu_s_compiler():
    found = read(TPU)
    assert found.cycles == 32 * 1050
    assert found.unknown_loops == 0
    gather, permute = sorted(found.collectives, key=lambda c: c.kind)
    assert (gather.kind, gather.group, gather.times, gather.source) == ("all-gather", 8, 32, "jit(step)/gather")
    assert gather.bytes == 4096 * 1024 * 2 * 7 / 8
    assert (permute.kind, permute.times, permute.bytes) == ("collective-permute", 32, 512 * 1024 * 2)


# As XLA for GPUs writes it: begun, and waited for.
GPU = """HloModule jit_step
ENTRY %main (p: bf16[512,1024]) -> bf16[4096,1024] {
  %p = bf16[512,1024]{1,0} parameter(0)
  %all-gather-start.6 = ((bf16[512,1024]{1,0}, bf16[512,1024]{1,0}), (bf16[4096,1024]{1,0}, bf16[4096,1024]{1,0})) all-gather-start(%p, %p), channel_id=12, replica_groups=[1,8]<=[8], dimensions={0}
  %all-gather-done.6 = (bf16[4096,1024]{1,0}, bf16[4096,1024]{1,0}) all-gather-done(%all-gather-start.6)
  %all-reduce-start = f32[100]{0} all-reduce-start(%q), channel_id=17, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add.1
  ROOT %get-tuple-element.1 = bf16[4096,1024]{1,0} get-tuple-element(%all-gather-done.6), index=0
}
"""


def test_the_text_of_the_compiler_for_gpus():
    gather, reduce = read(GPU).collectives
    assert (gather.group, gather.bytes) == (8, 2 * 4096 * 1024 * 2 * 7 / 8)
    assert (reduce.group, reduce.bytes) == (4, 2 * 400 * 3 / 4)
    assert gather.groups == (tuple(range(8)),)
    # two machines of four: one ring of four leaves by each card; the sum stays inside
    assert (gather.sent(4).across, gather.sent(8).across) == (gather.bytes / 4, 0)
    assert (reduce.sent(4).across, reduce.sent(2).across) == (0, reduce.bytes / 2)


def test_what_is_started_is_counted_with_its_trips_and_not_what_is_fused():
    def step(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(x @ x) + 1.0, None), x, None, length=7)[0]

    text = jax.jit(step).lower(jnp.ones((32, 32))).compile().as_text()
    found = read(text).started
    # in each trip the product and what follows it, perhaps as one; the counter, the copies of what is carried
    assert 7 <= found <= 7 * 6 + 6
    assert read(text.replace('"n":"7"', '"n":"70"')).started >= 10 * 7


def test_what_begins_an_all_reduce_names_its_results_alone():
    pair = "(f32[50]{0}, f32[50]{0})"
    line = "  %r = {} {}(%a, %b), channel_id=1, replica_groups={{{{0,1}}}}, to_apply=%add"
    program = "HloModule m\n\nENTRY %main (a: f32[50], b: f32[50]) -> f32[50] {{\n{}\n}}\n"
    begun, at_once = (read(program.format(line.format(pair, name))) for name in ("all-reduce-start", "all-reduce"))
    assert begun.bytes == at_once.bytes == 2 * 400 / 2
