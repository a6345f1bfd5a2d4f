"""Devices as a mesh, and one table of rules that says how each parameter lies on it.

Axes: `data` (copies, each with its part of the batch), `fsdp` (parameters and batch split), `tensor` (matrices split).
"""

import os
import re
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlean.config import MeshSection
from jaxlean.errors import ConfigError

AXES = ("data", "fsdp", "tensor")

# The first pattern found in a path decides. Stacked layers have a leading dim, which no axis splits.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"embed\.embedding$", PartitionSpec("tensor", "fsdp")),
    (r"head\.kernel$", PartitionSpec("fsdp", "tensor")),
    # A kernel in fewer bits (`jaxlean.codec`) lies as the kernel does.
    (r"\.(query|key|value|gate|up)\.kernel(_int8|_nf4)?$", PartitionSpec(None, "fsdp", "tensor")),
    (r"\.(out|down)\.kernel(_int8|_nf4)?$", PartitionSpec(None, "tensor", "fsdp")),
    # A byte for 64 parameters, split along the columns only: the number of blocks seldom divides.
    (r"\.(query|key|value|gate|up)\.kernel_absmax$", PartitionSpec(None, None, "tensor")),
    (r"\.(out|down)\.kernel_absmax$", PartitionSpec(None, None, "fsdp")),
    # Norms, biases, adapters and scales are small: a copy everywhere costs less than gathering them.
    (r".*", PartitionSpec()),
)


def make_mesh(section: MeshSection | None = None, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (or of those given).

    Raises:
        ConfigError: more than one axis is -1, or the axes do not multiply to the number of devices.
    """
    devices = devices if devices is not None else jax.devices()
    section = section if section is not None else MeshSection()
    sizes = [getattr(section, axis) for axis in AXES]
    known = int(np.prod([size for size in sizes if size > 0]))
    if 0 in sizes or sizes.count(-1) > 1:
        raise ConfigError("mesh: at most one axis is -1, and none is 0", got=dict(zip(AXES, sizes, strict=True)))
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
        found = jax.devices()
    except RuntimeError:  # it has counted, or XLA_FLAGS says a number too
        found = jax.devices()
    if found[0].platform != "cpu" or len(found) != num:
        raise ConfigError(
            "mesh.host_devices cannot be had",
            got=f"{num}, where jax has {len(found)} of {found[0].device_kind}",
            fix="leave it out where there is an accelerator; else set it before anything else uses jax",
        )


def place(mesh: Mesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """(path, shape) -> where that parameter lies, by `RULES`.

    Raises (when called):
        ConfigError: an axis does not divide a dim that it should split; names the parameter.
    """

    def sharding(path: str, shape: tuple[int, ...]) -> NamedSharding:
        spec = next(spec for pattern, spec in RULES if re.search(pattern, path))
        for dim, axis in enumerate(spec):
            if axis is not None and shape[dim] % mesh.shape[axis]:
                raise ConfigError(
                    f"mesh: the {axis} axis does not divide dim {dim} of {path}",
                    got=f"shape {shape}, {axis}={mesh.shape[axis]}",
                    fix=f"choose a mesh.{axis} that divides {shape[dim]}",
                )
        return NamedSharding(mesh, spec)

    return sharding


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Rows split over the devices that hold different parts of the batch, after `leading` unsplit dims."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, ("data", "fsdp")))


def num_batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
