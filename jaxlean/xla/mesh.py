"""Devices as a mesh, and one table of rules that says how each parameter lies on it.

Axes, the slowest link first:

    data      copies of the model, each with its part of the batch
    fsdp      parameters and batch split
    expert    the experts of a mixture split, and the batch
    context   sequences split
    tensor    matrices split
"""

import os
import re
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlean.config import MeshSection
from jaxlean.errors import ConfigError

AXES = ("data", "fsdp", "expert", "context", "tensor")
# A batch's rows are split over these, and its sequences over `context`.
ROWS = ("data", "fsdp", "expert")

# The first pattern found in a path decides; of its specs, the first whose axes divide the dims. Where none does it is
# an error. Stacked layers have a leading dim, which no axis splits.
Specs = tuple[PartitionSpec, ...]
# Layers whose columns `tensor` splits; of `out` and `down` it is the rows.
_WIDE = r"\.(query|query_b|key|key_value_b|value|qkv|gate|up|gate_up)"
_FORMS = r"(_int8|_nf4|_int4|_int8_grouped)?$"
RULES: tuple[tuple[str, Specs], ...] = (
    # A vocabulary is often a number that nothing divides: then each device of `tensor` holds all of it.
    (r"embed\.embedding$", (PartitionSpec("tensor", "fsdp"), PartitionSpec(None, "fsdp"))),
    (r"head\.kernel$", (PartitionSpec("fsdp", "tensor"), PartitionSpec("fsdp", None))),
    (r"\.experts\.(gate|up|gate_up)\.kernel(_int8|_nf4)?$", (PartitionSpec(None, "expert", "fsdp", "tensor"),)),
    (r"\.experts\.down\.kernel(_int8|_nf4)?$", (PartitionSpec(None, "expert", "tensor", "fsdp"),)),
    (r"\.experts\.(gate|up|gate_up)\.kernel_absmax$", (PartitionSpec(None, "expert", None, "tensor"),)),
    (r"\.experts\.down\.kernel_absmax$", (PartitionSpec(None, "expert", None, "fsdp"),)),
    # A kernel in fewer bits (`jaxlean.codec`) lies as the kernel does.
    (r"\.(query_a|key_value_a)\.kernel" + _FORMS, (PartitionSpec(None, "fsdp", None),)),
    (_WIDE + r"\.kernel" + _FORMS, (PartitionSpec(None, "fsdp", "tensor"),)),
    (r"\.(out|down)\.kernel" + _FORMS, (PartitionSpec(None, "tensor", "fsdp"),)),
    # One number for many parameters, split along the columns only: the number of blocks seldom divides.
    (_WIDE + r"\.kernel_(absmax|scales)$", (PartitionSpec(None, None, "tensor"),)),
    (r"\.(out|down)\.kernel_(absmax|scales)$", (PartitionSpec(None, None, "fsdp"),)),
    # Norms, biases, adapters and scales are small: a copy everywhere costs less than gathering them.
    (r".*", (PartitionSpec(),)),
)


def make_mesh(section: MeshSection | None = None, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (or of those given).

    Raises:
        ConfigError: more than one axis is -1, the axes do not multiply to the number of devices, or they are still to
            be chosen (`auto`).
    """
    devices = devices if devices is not None else jax.devices()
    section = section if section is not None else MeshSection()
    if section.auto:
        raise ConfigError(
            "mesh: auto is chosen before a run",
            fix="jaxlean finetune does it; in Python, jaxlean.plan.local.choose_mesh",
        )
    sizes = [getattr(section, axis) for axis in AXES]
    known = int(np.prod([size for size in sizes if size > 0]))
    if sizes.count(-1) > 1:
        raise ConfigError("mesh: at most one axis is -1", got=dict(zip(AXES, sizes, strict=True)))
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices):
        raise ConfigError(
            "mesh: the axes do not multiply to the number of devices",
            got=dict(zip(AXES, sizes, strict=True)),
            wanted=f"{len(devices)} devices in all",
            fix="set one axis to -1: it takes what is left",
        )
    # Auto axes: XLA propagates shardings. The explicit ones, newer jax's default, reject the embedding's gather.
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def split_host(num: int) -> None:
    """Let the CPU count as so many devices, each with its share of the cores; before jax has looked at its devices.

    Raises:
        ConfigError: jax has counted already, and otherwise.
    """
    if num == 1:
        return
    # XLA's name for the threads that one operation is spread over
    os.environ.setdefault("NPROC", str(max((os.cpu_count() or 1) // num, 1)))
    try:
        jax.config.update("jax_num_cpu_devices", num)
        found = jax.local_devices()
    except RuntimeError:  # it has counted, or XLA_FLAGS says a number too
        found = jax.local_devices()
    if found[0].platform != "cpu" or len(found) != num:
        raise ConfigError(
            "mesh.host_devices cannot be had",
            got=f"{num}, where jax has {len(found)} of {found[0].device_kind}",
            fix="leave it out where there is an accelerator; else set it before anything else uses jax",
        )


def place(mesh: Mesh | AbstractMesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """(path, shape) -> where that parameter lies, by `RULES`.

    Raises (when called):
        ConfigError: an axis does not divide a dim that it should split, and no other spec is allowed; names the
            parameter.
    """

    def sharding(path: str, shape: tuple[int, ...]) -> NamedSharding:
        for spec in _specs(path):
            uneven = _uneven(mesh.shape, spec, shape)
            if uneven is None:
                return NamedSharding(mesh, spec)
            dim, axis = uneven
        raise ConfigError(
            f"mesh: the {axis} axis does not divide dim {dim} of {path}",
            got=f"shape {shape}, {axis}={mesh.shape[axis]}",
            fix=f"choose a mesh.{axis} that divides {shape[dim]}",
        )

    return sharding


def check_axes(mesh: Mesh, shapes: Mapping[str, tuple[int, ...]], *, num_kv_heads: int, length: int) -> list[str]:
    """Check that every axis of several devices has something to split.

    Args:
        shapes: of all parameters, by path.
        num_kv_heads: of the model: a head's keys and values are not cut.
        length: of the sequences.

    Returns:
        a line for each parameter that an axis should split and does not, by the rules' second choice.

    Raises:
        ConfigError: an axis that splits nothing, or does not divide what it should split.
    """
    where = place(mesh)
    found = {path: where(path, shape).spec for path, shape in shapes.items()}
    for axis, what, size, key in (
        ("tensor", "key/value heads of the model", num_kv_heads, "mesh.tensor"),
        ("context", "tokens of a sequence", length, "mesh.context, or a data.max_length,"),
    ):
        if size % mesh.shape[axis]:
            raise ConfigError(
                f"mesh: the {axis} axis does not divide the {what}",
                got=f"{size}, {axis}={mesh.shape[axis]}",
                fix=f"choose another {key} so that it divides",
            )
    at_work = {axis for spec in found.values() for axis in spec if axis is not None} | {"data", "context"}
    for axis in AXES:
        if mesh.shape[axis] > 1 and axis not in at_work:
            why = "the model has no experts" if axis == "expert" else "every parameter is whole on each of its devices"
            raise ConfigError(
                f"mesh: the {axis} axis splits nothing: {why}",
                got=f"mesh.{axis}={mesh.shape[axis]}",
                fix=f"mesh.{axis}=1, and mesh.data takes its devices",
            )
    lines = []
    for path in found:
        uneven = _uneven(mesh.shape, _specs(path)[0], shapes[path])
        if uneven is not None:
            dim, axis = uneven
            lines.append(f"mesh: {path} is whole on each device of {axis}, which does not divide {shapes[path][dim]:,}")
    return lines


def _specs(path: str) -> Specs:
    return next(specs for pattern, specs in RULES if re.search(pattern, path))


def _uneven(axes: Mapping[str, int], spec: PartitionSpec, shape: tuple[int, ...]) -> tuple[int, str] | None:
    """(dim, axis) of the first axis that does not divide the dim it should split."""
    pairs = ((dim, axis) for dim, axis in enumerate(spec) if axis is not None)
    return next(((dim, axis) for dim, axis in pairs if shape[dim] % axes[axis]), None)


def num_parts(path: str, shape: tuple[int, ...], axes: Mapping[str, int]) -> int | None:
    """Into how many parts `place` cuts a parameter on a mesh of these sizes; None where it would refuse."""
    for spec in _specs(path):
        if _uneven(axes, spec, shape) is None:
            return int(np.prod([axes[axis] for axis in spec if axis is not None], dtype=np.int64))
    return None


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """[rows, length] over the devices that hold different rows, after `leading` unsplit dims.

    Whole sequences, also where `context` splits what is computed from them: they are small, and which token is next
    is then known without asking another device. (XLA of jaxlib 0.10 gets that wrong inside of a loop.)
    """
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, ROWS))


def num_batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch's rows are split."""
    return int(np.prod([mesh.shape[axis] for axis in ROWS]))
