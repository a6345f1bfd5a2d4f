"""Meshes of eight CPU devices, and where each parameter lies on them."""

import os
import re
import subprocess
import sys

import jax
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxlean import codec, tree
from jaxlean.config import MeshSection
from jaxlean.errors import ConfigError
from jaxlean.models.decoder import DecoderConfig, abstract
from jaxlean.xla.mesh import AXES, RULES, batch_sharding, make_mesh, num_batch_shards, place, replicated, split_host

CONFIG = DecoderConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8,
    qkv_bias=True, qk_norm=True,
)  # fmt: skip


def mesh_of(**axes):
    return make_mesh(MeshSection(**axes))


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "fsdp": -1}, (1, 8, 1)),
        ({"data": 2, "fsdp": 2, "tensor": -1}, (2, 2, 2)),
        ({"data": 8}, (8, 1, 1)),
    ],
)
def test_minus_one_takes_what_is_left(axes, shape):
    mesh = mesh_of(**axes)
    assert mesh.devices.shape == shape
    assert mesh.axis_names == AXES
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_no_section_is_all_devices_and_some_can_be_given():
    assert make_mesh().size == 8
    assert make_mesh(devices=jax.devices()[:3]).devices.shape == (3, 1, 1)


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"fsdp": -1}, "at most one axis is -1"),
        ({"tensor": 0}, "none is 0"),
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
    plain = tree.flatten(abstract(CONFIG)[1])
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
        ("embed.embedding", (33, 16), "tensor", 0),
    ],
)
def test_an_axis_that_does_not_divide_names_the_parameter(path, shape, axis, dim):
    where = place(mesh_of(fsdp=2, tensor=2))
    with pytest.raises(ConfigError) as caught:
        where(path, shape)
    assert f"the {axis} axis does not divide dim {dim} of {path}" in str(caught.value)
    assert f"a mesh.{axis} that divides {shape[dim]}" in str(caught.value)
    assert place(mesh_of())(path, shape).is_fully_replicated  # axes of size 1 divide everything


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
    assert done.stdout.strip() == "{'data': 3, 'fsdp': 1, 'tensor': 1}"


def test_a_host_that_is_split_otherwise_is_an_error(monkeypatch):
    monkeypatch.setenv("NPROC", "1")  # as it is: set by the call it would stay
    split_host(1)
    split_host(8)  # what the tests run on
    with pytest.raises(ConfigError, match=r"mesh\.host_devices[\s\S]*3, where jax has 8 of cpu[\s\S]*before"):
        split_host(3)
