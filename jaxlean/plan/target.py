"""A target: so many devices of one kind, as `--targets` names them, and the devices that XLA compiles for.

    cpu           the CPU of this machine          h100-80gb:8    eight cards of one machine
    l4            one card                         h100-80gb:16   two machines of eight, and the network between them
                                                   v5e:2x4        a slice of a TPU pod

Both TPU and NVIDIA programs compile on a machine that has neither: libtpu and the CUDA plugin each hold a compiler, and
jax hands it a description of the hardware in place of devices (`pip install 'jaxlean[plan]'`).
"""

import importlib.util
import math
import os
import re
from dataclasses import dataclass
from typing import Any

import jax

from jaxlean.cost.hardware import Device, Gpu, of_target
from jaxlean.errors import ConfigError
from jaxlean.platform import GPU_SHARE
from jaxlean.run.predict import Machine
from jaxlean.xla.remat_auto import host_budget

# A mix of both vendors, small and large: what `jaxlean plan` looks at when it is not told.
DEFAULT = ("h100-80gb:1", "h100-80gb:8", "a100-80gb:1", "l4:1", "rtx4090:1", "v5e:1x1", "v5e:2x4", "v6e:2x2", "cpu")
# Of a TPU, the table says what a program may have.
_USABLE = {"gpu": GPU_SHARE, "tpu": 1.0, "cpu": 1.0}
_MODULES = {"gpu": ("jax_plugins.xla_cuda12", "jax_cuda12_plugin"), "tpu": ("libtpu",)}
_COMPILERS = {"gpu": "the CUDA plugin of jax", "tpu": "libtpu"}


@dataclass(frozen=True)
class Target:
    """So many devices of one kind.

    Args:
        name: as it was asked for.
        device: what the table knows of one.
        shape: devices along each axis of the slice; one number for cards and CPUs.
        limit: bytes that a program may take, where that is known better than from the table.
    """

    name: str
    device: Device
    shape: tuple[int, ...]
    limit: int | None = None

    @property
    def num_devices(self) -> int:
        """All of them, as jax counts: a chip of some TPUs is two."""
        return math.prod(self.shape) * self.device.per_chip

    @property
    def platform(self) -> str:
        """cpu, gpu or tpu."""
        assert self.device.platform is not None
        return self.device.platform

    @property
    def machine(self) -> Machine:
        """What a step runs on."""
        assert self.device.platform is not None
        return Machine(self.device, self.device.platform, self.num_devices, self.per_machine)

    @property
    def per_machine(self) -> int:
        """Devices of one machine; of a TPU slice, which is linked as a whole, all."""
        most = self.device.max_devices if self.platform == "gpu" else None
        return min(self.num_devices, most or self.num_devices)

    @property
    def note(self) -> str:
        """What its name does not say: of how many machines it is, and how they are connected."""
        machines = self.num_devices // self.per_machine
        if machines == 1:
            return ""
        rate, source = self.device.network_gb_per_second, self.device.network_source or "no source given"
        return f"{self.name}: {machines} machines of {self.per_machine}, {rate:g} GB/s a card between them ({source})"

    @property
    def capacity(self) -> int | None:
        """Bytes that a program may take on one device; None where the table does not know its memory."""
        if self.limit is not None:
            return self.limit
        memory = self.device.memory_bytes
        if self.platform == "cpu" and memory is None:
            return host_budget() // self.num_devices
        return None if memory is None else int(memory * _USABLE[self.platform])


def parse(text: str, file: str | None = None) -> Target:
    """`h100-80gb:8`, `v5e:2x4` or `cpu` -> the target.

    Args:
        file: the user's hardware table.

    Raises:
        ConfigError: no such device in the table, or a size that is none.
    """
    name, _, size = text.strip().partition(":")
    device = of_target(name, file)
    if device.platform is None:
        raise ConfigError("the hardware table does not say what platform a target is", where=name, wanted="platform")
    if not re.fullmatch(r"(\d+(x\d+)*)?", size) or "0" in size.split("x"):
        raise ConfigError("a target's size is a number or, for TPUs, a grid", got=text, wanted="h100-80gb:8, v5e:2x4")
    shape = tuple(int(n) for n in size.split("x")) if size else (1, 1) if device.platform == "tpu" else (1,)
    if device.platform == "tpu" and len(shape) not in (2, 3):
        raise ConfigError("a TPU slice is a grid of chips", got=text, wanted=f"{name}:2x4")
    if device.platform != "tpu" and len(shape) != 1:
        raise ConfigError("cards are counted, only TPU slices are grids", got=text, wanted=f"{name}:{math.prod(shape)}")
    _check_machines(text.strip(), name, device, math.prod(shape))
    return Target(text.strip(), device, shape)


def _check_machines(text: str, name: str, device: Device, number: int) -> None:
    """Cards beyond what a machine holds: whole machines, with a network between them that the table knows."""
    most = device.max_devices
    if most is None or number <= most:
        return
    if device.network_gb_per_second is None:
        raise ConfigError(
            f"a machine holds at most {most} of these, and the hardware table knows no network between machines",
            got=text,
            fix=f"{name}:{most}, or add network_gb_per_second to your table (cost.hardware)",
        )
    if number % most:
        raise ConfigError(
            f"a machine holds {most} of these: more are whole machines",
            got=text,
            wanted=f"{name}:{number // most * most} or {name}:{(number // most + 1) * most}",
        )


def missing(target: Target) -> str | None:
    """What is needed to compile for a target and is not here; None where nothing lacks."""
    if target.platform == "cpu":
        return None
    described = target.device.tpu if target.platform == "tpu" else target.device.gpu
    if described is None:
        return f"the hardware table has no {target.platform}: of it, which describes it to the compiler"
    if any(_installed(name) for name in _MODULES[target.platform]):
        return None
    return f"{_COMPILERS[target.platform]} is not installed (pip install 'jaxlean[plan]')"


def devices_of(target: Target) -> list[Any]:
    """The devices to compile for: descriptions, but for CPUs, which are here.

    For a process of its own: what it loads stays loaded.

    Raises:
        ConfigError: a CPU target of more devices than the host was split into.
    """
    if target.platform == "cpu":
        devices = jax.devices("cpu")[: target.num_devices]
        if len(devices) < target.num_devices:
            raise ConfigError("the host counts as fewer devices", got=len(devices), wanted=target.num_devices)
        return devices
    from jax.experimental import topologies

    if target.platform == "tpu":
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        extra = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(target.shape) == 1 else {}
        shape = "x".join(map(str, target.shape))
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{target.device.tpu}:{shape}", **extra)
        return list(found.devices)
    assert target.device.gpu is not None
    # machines that no NVLink joins, hosts of each, cards of each
    shape = f"{target.num_devices // target.per_machine}x1x{target.per_machine}"
    found = topologies.get_topology_desc(
        platform="cuda", topology_name=shape, topology=shape, target_config=target_config(target.device)
    )
    return list(found.devices)


def target_config(device: Device) -> str:
    """A card as the text of XLA's `GpuTargetConfig` (openxla/xla, `stream_executor/device_description.proto`)."""
    card: Gpu | None = device.gpu
    assert card is not None
    major, minor = card.capability.split(".")
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {card.shared_memory_per_core} threads_per_core_limit: {card.threads_per_core_limit}
  core_count: {card.core_count} fpus_per_core: {card.fpus_per_core}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {card.memory_bandwidth} l2_cache_size: {card.l2_cache_size} clock_rate_ghz: {card.clock_rate_ghz}
  device_memory_size: {card.device_memory_size}
  shared_memory_per_block_optin: {card.shared_memory_per_block_optin}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{device.name}"
"""


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
