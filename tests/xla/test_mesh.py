"""Meshes of eight CPU devices, and where each parameter lies on them."""

import math
import os
import re
import subprocess
import sys
from dataclasses import replace

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from jaxlean import codec, tree
from jaxlean.config import MeshSection
from jaxlean.errors import ConfigError
from jaxlean.models.build import abstract
from jaxlean.models.config import Experts, Kind, Latent
from jaxlean.models.decoder import DecoderConfig
from jaxlean.xla.mesh import (
    AXES,
    RULES,
    batch_sharding,
    check_axes,
    make_mesh,
    num_batch_shards,
    num_parts,
    place,
    replicated,
    split_host,
)

CONFIG = DecoderConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8,
    qkv_bias=True, qk_norm="head",
)  # fmt: skip


def mesh_of(**axes):
    return make_mesh(MeshSection(**axes))


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ({}, {"data": 8}),
        ({"fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}),
        ({"data": 1, "fsdp": -1}, {"fsdp": 8}),
        ({"data": 2, "context": 2, "tensor": -1}, {"data": 2, "context": 2, "tensor": 2}),
        ({"data": 8}, {"data": 8}),
    ],
)
def test_minus_one_takes_what_is_left(axes, shape):
    mesh = mesh_of(**axes)
    assert dict(mesh.shape) == {**dict.fromkeys(AXES, 1), **shape}
    assert mesh.axis_names == AXES
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_no_section_is_all_devices_and_some_can_be_given():
    assert make_mesh().size == 8
    assert make_mesh(devices=jax.devices()[:3]).shape["data"] == 3


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"fsdp": -1}, "at most one axis is -1"),
        ({"fsdp": 3}, "do not multiply to the number of devices"),
        ({"data": 4, "fsdp": 4}, "8 devices in all"),
        ({"data": 1}, "set one axis to -1"),
    ],
)
def test_axes_that_do_not_fit(axes, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        mesh_of(**axes)


def test_where_each_parameter_lies():
    where = place(mesh_of(fsdp=2, tensor=2))
    specs = tree.map_with_path(lambda path, leaf: where(path, leaf.shape).spec, abstract(CONFIG)[1])
    split = {path: spec for path, spec in tree.flatten(specs).items() if spec != PartitionSpec()}
    into, back = PartitionSpec(None, "fsdp", "tensor"), PartitionSpec(None, "tensor", "fsdp")
    assert split == {
        "embed.embedding": PartitionSpec("tensor", "fsdp"),
        "head.kernel": PartitionSpec("fsdp", "tensor"),
        **{f"layers.attention.{name}.kernel": into for name in ("query", "key", "value")},
        **{f"layers.mlp.{name}.kernel": into for name in ("gate", "up")},
        "layers.attention.out.kernel": back,
        "layers.mlp.down.kernel": back,
    }
    # an adapter beside a kernel that is split is not
    assert where("layers.mlp.down.lora_a", (3, 24, 5)).spec == PartitionSpec()
    assert where("head.lora_b", (5, 31)).spec == PartitionSpec()


def test_a_kernel_in_fewer_bits_lies_as_the_kernel_does():
    where = place(mesh_of(fsdp=2, tensor=2))
    plain = tree.flatten(abstract(CONFIG)[1])
    for form in ("int8", "nf4"):
        for module, held in codec.kernels(plain).items():
            leaves = codec.shapes(held["kernel"].shape, form)
            specs = {name: where(f"{module}.{name}", leaf.shape).spec for name, leaf in leaves.items()}
            kernel = where(f"{module}.kernel", held["kernel"].shape).spec
            assert specs.pop(f"kernel_{form}") == (kernel if module != "head" else PartitionSpec()), module
            if form == "nf4" and module != "head":
                assert specs.pop("kernel_absmax") == PartitionSpec(None, None, kernel[2])
            assert set(specs.values()) == {PartitionSpec()}


def test_no_rule_is_dead():
    experts = Experts(num=4, per_token=2, intermediate_size=8)
    others = (
        replace(CONFIG, kinds=(Kind(sparse=True),) * 3, experts=experts),
        replace(CONFIG, num_kv_heads=4, latent=Latent(rank=8, query_rank=8, rope_dim=4, value_dim=8), qk_norm=None),
    )
    plain = {path: leaf for config in (CONFIG, *others) for path, leaf in tree.flatten(abstract(config)[1]).items()}
    quantized = {
        f"{module}.{name}": leaf
        for module, held in codec.kernels(plain).items()
        for name, leaf in codec.shapes(held["kernel"].shape, "nf4").items()
    }
    tree.match(RULES, plain | quantized, what="mesh")


@pytest.mark.parametrize(
    ("path", "shape", "axis", "dim"),
    [
        ("layers.mlp.gate.kernel", (2, 16, 21), "tensor", 2),
        ("layers.mlp.down.kernel", (2, 24, 15), "fsdp", 2),
        ("embed.embedding", (32, 15), "fsdp", 1),
    ],
)
def test_an_axis_that_does_not_divide_names_the_parameter(path, shape, axis, dim):
    where = place(mesh_of(fsdp=2, tensor=2))
    with pytest.raises(ConfigError) as caught:
        where(path, shape)
    assert f"the {axis} axis does not divide dim {dim} of {path}" in str(caught.value)
    assert f"a mesh.{axis} that divides {shape[dim]}" in str(caught.value)
    assert place(mesh_of())(path, shape).is_fully_replicated  # axes of size 1 divide everything


def test_a_vocabulary_that_nothing_divides_is_whole_on_each_device_of_tensor_and_that_is_said():
    mesh = mesh_of(fsdp=2, tensor=2)
    shapes = {"embed.embedding": (33, 16), "layers.mlp.gate.kernel": (2, 16, 24)}
    assert place(mesh)("embed.embedding", (33, 16)).spec == PartitionSpec(None, "fsdp")
    (line,) = check_axes(mesh, shapes, num_kv_heads=2, length=8)
    assert line == "mesh: embed.embedding is whole on each device of tensor, which does not divide 33"
    assert check_axes(mesh, shapes | {"embed.embedding": (34, 16)}, num_kv_heads=2, length=8) == []


@pytest.mark.parametrize(
    ("axes", "shapes", "says"),
    [
        (
            {"expert": 2},
            {"layers.mlp.gate.kernel": (2, 16, 24)},
            "the expert axis splits nothing: the model has no exp",
        ),
        ({"fsdp": 2}, {"layers.norm.scale": (2, 16)}, "the fsdp axis splits nothing: every parameter is whole"),
        ({"tensor": 2}, {"embed.embedding": (33, 16)}, "the tensor axis splits nothing"),
        ({"tensor": 4}, {"layers.mlp.gate.kernel": (2, 16, 24)}, "does not divide the key/value heads of the model"),
        ({"context": 8}, {"layers.mlp.gate.kernel": (2, 16, 24)}, "does not divide the tokens of a sequence"),
    ],
)
def test_an_axis_with_nothing_to_split_is_an_error(axes, shapes, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        check_axes(mesh_of(**axes), shapes, num_kv_heads=2, length=12)


@given(
    sizes=st.tuples(*[st.sampled_from([1, 2, 4, 8])] * 2),
    path=st.sampled_from(["embed.embedding", "layers.mlp.gate.kernel", "layers.attention.out.kernel", "norm.scale"]),
    dims=st.tuples(*[st.integers(1, 24)] * 3),
)
def test_the_number_of_parts_is_what_place_makes_of_it(sizes, path, dims):
    fsdp, tensor = sizes
    if fsdp * tensor > 8:
        return
    mesh = mesh_of(data=8 // (fsdp * tensor), fsdp=fsdp, tensor=tensor)
    shape = dims[: 3 if path.startswith("layers") else 1 if path.startswith("norm") else 2]
    found = num_parts(path, shape, mesh.shape)
    try:
        sharding = place(mesh)(path, shape)
    except ConfigError:
        assert found is None
    else:
        assert found == math.prod(shape) // math.prod(sharding.shard_shape(shape))


def test_batches_are_split_over_copies_and_fsdp_but_not_over_tensor():
    mesh = mesh_of(fsdp=2, tensor=2)
    assert num_batch_shards(mesh) == 4
    assert batch_sharding(mesh).shard_shape((8, 10)) == (2, 10)
    assert batch_sharding(mesh, leading=1).shard_shape((3, 8, 10)) == (3, 2, 10)
    assert replicated(mesh).shard_shape((8, 10)) == (8, 10)


def test_the_host_is_split_before_jax_looks():
    code = """
from jaxlean.xla.mesh import make_mesh, split_host
split_host(3)
print(dict(make_mesh().shape))
"""
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "NPROC")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "{'data': 3, 'fsdp': 1, 'expert': 1, 'context': 1, 'tensor': 1}"


def test_a_host_that_is_split_otherwise_is_an_error(monkeypatch):
    monkeypatch.setenv("NPROC", "1")  # as it is: set by the call it would stay
    split_host(1)
    split_host(8)  # what the tests run on
    with pytest.raises(ConfigError, match=r"mesh\.host_devices[\s\S]*3, where jax has 8 of cpu[\s\S]*before"):
        split_host(3)
