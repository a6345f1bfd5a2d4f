"""How long a step takes on a target: from the work in its trace and, once it is compiled, from what it exchanges.

    seconds = work / rates  +  (1 - overlap) * (bytes sent / link  +  collectives * latency)

Over several machines a ring's chunks follow one another through all of its hops, so it goes as fast as its slowest: the
bytes of an exchange that leaves the machine count at the rate of the network or of the link, whichever takes longer.
NCCL reckons so too (NVIDIA/nccl, `src/graph/tuning.cc`: bandwidth of the ring's slowest part, latency by its steps).

Work is exact (`xla.work`, recomputation included); the rates are shares of the peaks in the hardware table that
programs of this kind reach. On a TPU the compiler's own estimate of cycles is a second opinion: it adds up fusions as
if none overlapped, and is far above what is left of the peak for some products, so where it is the slower one their
geometric mean counts. All of it is an estimate: `finetune` prints it beside what it measured.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxlean.cost.hardware import Device, Platform, of_kind
from jaxlean.cost.price import num_vcpus
from jaxlean.train.step import UPDATE
from jaxlean.xla import hlo
from jaxlean.xla.groups import Sent
from jaxlean.xla.hlo import Program
from jaxlean.xla.remat_auto import RATES, Rates
from jaxlean.xla.work import Work, count, kept_bytes, repeated

# Of the peak: what large products reach, and what everything else reaches of the memory's bandwidth. H100: 8192^3 in
# bfloat16 at 798 of 989 TFLOP/s, a copy at 3.0 of 3.35 TB/s (measured); a model's own products are smaller.
_PRODUCTS = {"gpu": 0.70, "tpu": 0.75}
_MEMORY = {"gpu": 0.75, "tpu": 0.75}
# Of the elements that are not products' most are fused into something else.
_ELEMENTS_PER_BYTE = 1.0
_KEPT = 0.36
_LINK = 0.8
# The share of an exchange that hides behind computation, and what one costs however small it is.
OVERLAP = {"cpu": 0.0, "gpu": 0.5, "tpu": 0.6}
_LATENCY = {"cpu": 60e-6, "gpu": 15e-6, "tpu": 5e-6}
# What starting a kernel takes, however small it is (CUDA, as remembered: 2 to 3 microseconds).
_LAUNCH = 2.5e-6
# Devices that the host is split into exchange through its memory.
_HOST_EXCHANGE = 2.0e9
# What XLA's runtime on CPU (YNNPACK) works in beside the buffers that XLA plans and tells of: in so many times a
# layer's input in float32, as measured (benchmarks/plan_accuracy.py).
_CPU_WORKSPACE = 6
# Where the table does not say: a link, and a network of 25 Gb/s a device with what one step over it takes.
_UNKNOWN_LINK, _UNKNOWN_NETWORK, _UNKNOWN_STEP = 10.0, 3.125, 15.0
# The machine that the CPU's rates were fitted on.
_FITTED_CORES = 2


@dataclass(frozen=True)
class Machine:
    """So many devices of one kind.

    Args:
        device: what the hardware table knows of one.
        platform: of them.
        num_devices: that a step runs on.
        per_machine: devices that are linked (of a machine, of a TPU slice), one such after the other; default: all.
    """

    device: Device
    platform: Platform
    num_devices: int
    per_machine: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "per_machine", self.per_machine or self.num_devices)


def here(devices: Sequence[Any], file: str | None = None) -> Machine:
    """The machine of a run; `file` is the user's hardware table."""
    kind, platform = devices[0].device_kind, devices[0].platform
    known = of_kind(kind, file) or Device(match=re.escape(kind), name=kind, platform=platform)
    slices = Counter(getattr(device, "slice_index", 0) for device in devices)
    # jax tells slices apart, not machines: then the table says how many cards a machine holds
    most = known.max_devices if platform == "gpu" and len(slices) == 1 else None
    return Machine(known, platform, len(devices), min(most or len(devices), *slices.values()))


@dataclass(frozen=True)
class Seconds:
    """Of one step.

    Args:
        work: computing.
        exchange: between devices, beyond what computing hides.
    """

    work: float
    exchange: float

    @property
    def total(self) -> float:
        """Both."""
        return self.work + self.exchange


def rates_of(machine: Machine) -> Rates:
    """How fast one device of the target is (for CPUs: the whole machine)."""
    device = machine.device
    if machine.platform == "cpu" or device.memory_gb_per_second is None:
        here, cores = RATES.get(machine.platform, RATES["gpu"]), num_vcpus() / _FITTED_CORES
        if machine.platform != "cpu":
            return here
        return Rates(
            {dtype: rate * cores for dtype, rate in here.flops.items()},
            here.product_bytes * cores, here.elements * cores, here.kept_bytes * cores,
        )  # fmt: skip
    reached, bandwidth = _PRODUCTS[machine.platform], device.memory_gb_per_second * 1e9 * _MEMORY[machine.platform]
    flops: dict[str, float] = {dtype: tera * 1e12 * reached for dtype, tera in device.tflops.items()}
    if "float8" in flops:
        flops |= dict.fromkeys(("float8_e4m3fn", "float8_e5m2"), flops["float8"])
    flops.setdefault("float32", min(flops.values(), default=1e12))
    return Rates(flops, bandwidth, bandwidth * _ELEMENTS_PER_BYTE, bandwidth * _KEPT)


def seconds(
    machine: Machine,
    work: Work,
    kept: float,
    *,
    sent: float,
    collectives: float,
    across: float = 0.0,
    crossings: float = 0.0,
    cycles_seconds: float = 0.0,
    least_seconds: float = 0.0,
) -> Seconds:
    """The time of one step.

    Args:
        machine: its devices share the work alike.
        work: of a step, over all devices.
        kept: bytes of activations written and read again, over all devices.
        sent, collectives, across, crossings: as of `exchange`.
        cycles_seconds: a TPU compiler's estimate of one device's computing.
        least_seconds: that computing takes, however fast the device is.
    """
    # the devices of a CPU are threads of one machine, whose rates these are
    computing = float(rates_of(machine).seconds(work, kept)) / (1 if machine.platform == "cpu" else machine.num_devices)
    if cycles_seconds > computing:
        computing = math.sqrt(computing * cycles_seconds)
    return Seconds(max(computing, least_seconds), exchange(machine, sent, collectives, across, crossings))


def exchange(machine: Machine, sent: float, collectives: float, across: float = 0.0, crossings: float = 0.0) -> float:
    """Seconds that one device's exchanges take beyond what computing hides.

    Args:
        sent: bytes at the rate of the link.
        collectives: that it takes part in.
        across: bytes at the rate of the network between machines.
        crossings: steps over that network, one after the other.
    """
    latency, left = _LATENCY[machine.platform], 1 - OVERLAP[machine.platform]
    if machine.platform == "cpu":
        # what all of them send goes through one memory
        return left * machine.num_devices * ((sent + across) / _HOST_EXCHANGE + collectives * latency)
    # in each machine that a ring goes through it costs what it costs in the first
    step = latency + (machine.device.network_microseconds or _UNKNOWN_STEP) * 1e-6
    link, network = _links(machine)
    return left * (sent / link + collectives * latency + across / network + crossings * step)


def exchanges(machine: Machine, each: Iterable[tuple[Sent, float]]) -> dict[str, float]:
    """The arguments of `exchange` for exchanges and how often each is made: bytes by what limits them."""
    link, network = _links(machine)
    total = {"sent": 0.0, "collectives": 0.0, "across": 0.0, "crossings": 0.0}
    for sent, times in each:
        slow = sent.across / network > sent.inside / link
        total["across" if slow else "sent"] += times * (sent.across if slow else sent.inside)
        total["collectives"] += times
        total["crossings"] += times * sent.crossings
    return total


def _links(machine: Machine) -> tuple[float, float]:
    """(inside, between machines): bytes a second of one device."""
    device = machine.device
    rates = (device.link_gb_per_second or _UNKNOWN_LINK, device.network_gb_per_second or _UNKNOWN_NETWORK)
    return rates[0] * 1e9 * _LINK, rates[1] * 1e9 * _LINK


def of_program(machine: Machine, work: Work, kept: float, program: Program, cycle: float | None) -> Seconds:
    """`seconds` with what was read off the compiled program; `cycle` is the length of a TPU's cycle in seconds.

    A GPU's small kernels take at least the time that it takes to start them.
    """
    told = program.cycles * cycle if program.cycles and cycle else 0.0
    least = program.started * _LAUNCH if machine.platform == "gpu" else 0.0
    each = ((found.sent(machine.per_machine), float(found.times)) for found in program.collectives)
    return seconds(machine, work, kept, **exchanges(machine, each), cycles_seconds=told, least_seconds=least)


def workspace(platform: str, hidden: int, *, tokens: int) -> int:
    """Bytes that a step takes on one device beyond what XLA's analysis of its memory says.

    Args:
        hidden: size of the model's hidden states.
        tokens: positions of one microbatch on one device.
    """
    return _CPU_WORKSPACE * 4 * hidden * tokens if platform == "cpu" else 0


def step_seconds(compiled: jax.stages.Compiled, jaxpr: Any, machine: Machine, *, copies: float = 1.0) -> Seconds:
    """The time of one compiled step, from the jaxpr that it was compiled from.

    Args:
        copies: devices that hold, and update, each trained number (`job.copies`).
    """
    with repeated(UPDATE, copies):
        work = count(jaxpr)
    return of_program(machine, work, kept_bytes(jaxpr), hlo.read(compiled.as_text() or ""), None)
