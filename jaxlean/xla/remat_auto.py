"""`train.remat: auto`: the named activations to keep so that a step fits into a memory budget and takes least time.

From the trace of the step (nothing is compiled for it) follow, for every set of names, the bytes that keeping them
takes and the work that it saves: `jaxlean.xla.work`. Both cost time, by the `Rates` of the platform, so that to keep
nothing may win on a processor whose memory is slow. The sets are tried in the order of that time: the first one that
should fit is compiled, XLA's own memory analysis says whether it does, and the estimate of the others is corrected by
it. The compiled step is the one that trains.

All of it is a function of the program and the budget: every process, and a run that is resumed, chooses alike.
"""

import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlean.errors import RunError
from jaxlean.platform import platform
from jaxlean.xla.remat import Policy
from jaxlean.xla.work import Recomputation, Work, count, kept_bytes, largest_result

# Of a step under `none`, `dots` ...: XLA holds more than what is kept (a copy in another layout or dtype).
_SPREAD = 1.3
# Compilations before falling back on `full` and `nested`, and the gain in time that one more is worth.
_MAX_COMPILES = 4
_WORTH = 0.01
# The share of a machine's memory that a run on CPU may take; XLA's own default for GPUs is the same.
_HOST_SHARE = 0.75


@dataclass(frozen=True)
class Rates:
    """How fast a platform is. Only their ratios decide.

    Args:
        flops: of matrix products, a second, by dtype; a dtype that is not here is as fast as float32.
        product_bytes: that a matrix product reads and writes, a second.
        elements: of all other operations, a second.
        kept_bytes: of activations written for the backward pass and read in it, a second.
    """

    flops: Mapping[str, float]
    product_bytes: float
    elements: float
    kept_bytes: float

    def seconds(self, work: Work, kept: Any) -> Any:
        """Of work done while `kept` bytes are held."""
        slowest = self.flops["float32"]
        products = sum(flops / self.flops.get(dtype, slowest) for dtype, flops in work.flops.items())
        other = work.product_bytes / self.product_bytes + work.elements / self.elements
        return products + other + kept / self.kept_bytes


# cpu: fitted by `benchmarks/remat.py --calibrate --elements 1e10` to twelve policies in bfloat16 and in float32 on 2
# cores of an AMD EPYC with avx512_bf16: they explain each time to 6 %, 2.5 % in the mean. int8 is a guess. A kept byte
# is dear since the pages of a step's memory are new each time. gpu, tpu: half of an H100's and a v5e's peaks, not
# measured; the two have about the same ratios, and so have other accelerators of their years.
RATES = {
    "cpu": Rates({"float32": 200e9, "bfloat16": 410e9, "int8": 800e9}, 5.5e9, 10e9, 1.5e9),
    "gpu": Rates({"float32": 100e12, "bfloat16": 500e12, "int8": 900e12}, 2.4e12, 2.4e12, 1.2e12),
    "tpu": Rates({"float32": 25e12, "bfloat16": 120e12, "int8": 200e12}, 0.6e12, 0.6e12, 0.3e12),
}


@dataclass(frozen=True)
class PolicyCost:
    """A policy and what is known of it before it is compiled.

    Args:
        policy: what `scan_layers` takes.
        kept: bytes of activations that it keeps, over all devices.
        seconds: of a step by the rates; only differences count.
        flops: of the matrix products of a step.
        spread: what XLA holds for each of those bytes.
    """

    policy: Policy
    kept: int
    seconds: float
    flops: float
    spread: float = 1.0


@dataclass(frozen=True)
class Choice:
    """What was chosen, and the proof.

    Args:
        policy: the policy.
        compiled: the step under it.
        jaxpr: that it was compiled from.
        needed: bytes that it takes on one device, by XLA's analysis.
        budget: bytes it was allowed.
        recomputed: share of the step's FLOPs that is recomputation.
        tried: all that was compiled for it, with the bytes of each.
        seconds: that choosing took, compilations included.
    """

    policy: Policy
    compiled: jax.stages.Compiled = field(repr=False)
    jaxpr: Any = field(repr=False)
    needed: int
    budget: int
    recomputed: float
    tried: tuple[tuple[Policy, int], ...]
    seconds: float

    def __str__(self) -> str:
        return (
            f"remat: auto chose {_words(self.policy)}: {say_bytes(self.needed)} of {say_bytes(self.budget)}, "
            f"{self.recomputed:.0%} of the step is recomputation ({len(self.tried)} compiled)"
        )


def choose(
    build: Callable[[Policy], jax.stages.Wrapped],
    arguments: tuple[Any, ...],
    budget: int,
    names: Collection[str],
    *,
    shards: int = 1,
    rates: Rates | None = None,
    advice: Callable[[int], str] | None = None,
) -> Choice:
    """Choose a policy and compile the step under it.

    Args:
        build: policy -> the jitted step.
        arguments: of the step, arrays or `jax.ShapeDtypeStruct`s with shardings.
        budget: bytes of one device.
        names: the activations that the model names.
        shards: devices that the batch is split over.
        rates: of what it is compiled for; default: of what runs here.
        advice: bytes that the smallest step takes -> what to do, for the message.

    Raises:
        RunError: it does not fit, whatever is recomputed; says by how much.
    """
    start = time.perf_counter()
    rates = rates if rates is not None else RATES.get(platform(), RATES["gpu"])
    traces = {policy: build(policy).trace(*arguments) for policy in ("full", "none", "dots", "dots_no_batch")}
    found = candidates({policy: traced.jaxpr.jaxpr for policy, traced in traces.items()}, names, rates)
    least = count(traces["none"].jaxpr.jaxpr).total_flops
    rest = _rest(traces["full"], arguments, shards)
    needed: dict[PolicyCost, int] = {}
    best: tuple[PolicyCost, jax.stages.Compiled, Any] | None = None

    def attempt(candidate: PolicyCost) -> tuple[PolicyCost, jax.stages.Compiled, Any] | None:
        policy = candidate.policy
        traced = traces[policy] if isinstance(policy, str) and policy in traces else build(policy).trace(*arguments)
        compiled, needed[candidate] = compile_within(traced, budget)
        if compiled is None or needed[candidate] > budget:
            return None
        return candidate, compiled, traced.jaxpr.jaxpr

    def estimate(candidate: PolicyCost) -> float:
        return rest + candidate.spread * candidate.kept / shards

    full = next(c for c in found if c.policy == "full")
    while len(needed) < _MAX_COMPILES:
        limit = best[0].seconds * (1 - _WORTH) if best is not None else float("inf")
        open_ = (c for c in found if c not in needed and c.seconds < limit and estimate(c) <= budget)
        candidate = next(open_, None)  # in the order of time
        if candidate is None and best is None and full not in needed:
            candidate = full  # nothing seems to fit: the smallest of them says how good the guess was
        if candidate is None:
            break
        fitting = attempt(candidate)
        rest += needed[candidate] - estimate(candidate)
        best = fitting or best
    if best is None:
        work = count(build("nested").trace(*arguments).jaxpr.jaxpr)
        for candidate in (full, PolicyCost("nested", 0, rates.seconds(work, 0), work.total_flops)):
            if candidate in needed:
                continue
            best = attempt(candidate)
            if best is not None:
                break
    if best is None:
        smallest = min(needed.values())
        short = smallest - budget
        raise RunError(
            f"the step does not fit into memory, by {say_bytes(short)}, even with every activation recomputed",
            where="train.remat: auto",
            got=f"{say_bytes(smallest)} on each device",
            wanted=f"at most {say_bytes(budget)} (train.memory_budget; default: what the device has)",
            fix=advice(smallest) if advice is not None else None,
        )
    chosen, compiled, jaxpr = best
    tried = tuple((candidate.policy, size) for candidate, size in needed.items())
    share = 1 - least / chosen.flops
    return Choice(chosen.policy, compiled, jaxpr, needed[chosen], budget, share, tried, time.perf_counter() - start)


def candidates(traces: Mapping[str, Any], names: Collection[str], rates: Rates) -> list[PolicyCost]:
    """Every policy that is worth a thought, the fastest first: none other is both faster and smaller.

    Args:
        traces: policy -> the jaxpr of the step under it; `full`, whose backward pass says what each name is worth, and
            others that go by no names.
        names: the activations that may be kept.
        rates: of the platform.
    """
    found = []
    for policy, jaxpr in traces.items():
        work, kept = count(jaxpr), kept_bytes(jaxpr)
        spread = 1.0 if policy == "full" else _SPREAD
        found.append(PolicyCost(policy, kept, rates.seconds(work, kept), work.total_flops, spread))
    full = next(candidate for candidate in found if candidate.policy == "full")
    found += _sets_of_names(Recomputation(traces["full"]), names, full, rates)
    found.sort(key=lambda c: (c.seconds, c.kept, str(c.policy)))
    front: list[PolicyCost] = []
    for candidate in found:
        held = candidate.kept * candidate.spread
        if candidate.policy == "full" or all(held < other.kept * other.spread for other in front):
            front.append(candidate)
    return front


def _sets_of_names(graph: Recomputation, names: Collection[str], full: PolicyCost, rates: Rates) -> list[PolicyCost]:
    """The sets that no other set beats in both time and bytes, found among all of them at once."""
    there = set(graph.names)
    read = [name for name in names if name in there]
    num = 2 ** len(read)
    kept = {name: (np.arange(num) >> bit) % 2 == 1 for bit, name in enumerate(read)}
    work, sizes = graph.without_each(kept, num)
    held = sum(sizes[name] * kept[name] for name in read)
    # one that holds a name in vain is the same as the set without it
    sound = np.logical_and.reduce([(sizes[name] > 0) | ~kept[name] for name in read])
    seconds, flops = rates.seconds(work, held), work.total_flops
    order = np.lexsort((held, np.where(sound, seconds, np.inf)))
    least = np.minimum.accumulate(held[order])
    best = [at for rank, at in enumerate(order) if sound[at] and (rank == 0 or held[at] < least[rank - 1])]
    return [
        PolicyCost(
            tuple(name for name in read if kept[name][at]),
            full.kept + int(held[at]),
            full.seconds + float(seconds[at] - seconds[0]),
            full.flops + float(flops[at] - flops[0]),
        )
        for at in best
        if at
    ]


def device_budget(devices: Iterable[jax.Device] | None = None) -> int:
    """The memory that a run may take on each device, in bytes: the least of all devices of all processes.

    GPU and TPU say it themselves. On CPU it is three quarters of the machine's memory (of the container's, where that
    has less), shared by the devices that are simulated on it: not what is free right now, for that changes, and a run
    that is resumed must choose as it chose before.
    """
    local = [d for d in (devices or jax.local_devices()) if d.process_index == jax.process_index()]
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in local]
    known = [limit for limit in limits if limit]
    own = min(known) if known else host_budget() // max(len(local), 1)
    if jax.process_count() == 1:
        return own
    from jax.experimental import multihost_utils

    # in MB: a process without 64-bit numbers holds no more
    megabytes = multihost_utils.process_allgather(np.asarray(own // 10**6, np.int32))
    return int(np.min(megabytes)) * 10**6


def host_budget() -> int:
    """Bytes of the host's memory that all devices simulated on it may take together."""
    return int(host_memory() * _HOST_SHARE)


def host_memory() -> int:
    """Bytes of memory of this machine, or of the container (cgroup v2) that the process runs in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 * 10**9
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def needed_bytes(compiled: jax.stages.Compiled) -> int:
    """What a compiled function takes on one device while it runs: arguments, results and all between."""
    memory: Any = compiled.memory_analysis()
    own = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return own + memory.temp_size_in_bytes


def argument_bytes(compiled: jax.stages.Compiled) -> int:
    """What the arguments of a compiled function take on one device."""
    memory: Any = compiled.memory_analysis()
    return int(memory.argument_size_in_bytes)


def say_bytes(number: float) -> str:
    """In the units of `train.memory_budget`.

    >>> say_bytes(12_345_678_900), say_bytes(20e6), say_bytes(1500)
    ('12.35 GB', '20.0 MB', '1.5 kB')
    """
    size, unit, digits = next(
        u for u in ((1e9, "GB", 2), (1e6, "MB", 1), (1e3, "kB", 1)) if number >= u[0] or u[0] == 1e3
    )
    return f"{number / size:.{digits}f} {unit}"


def compile_within(traced: Any, budget: int) -> tuple[jax.stages.Compiled | None, int]:
    """(the compiled step, its bytes); (None, more than the budget) where the compiler itself sees no room for it."""
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, max(_required(str(error)) or 0, round(budget * 1.2))
    return compiled, needed_bytes(compiled)


def _required(message: str) -> int | None:
    """What a program needs by a TPU compiler's refusal of it, in bytes; None where it does not say.

    >>> _required("the total memory required for HLO temporaries (71.99G) exceeds available HBM (15.75G)")
    77298673910
    """
    found = re.search(r"\(([0-9.]+)([KMGT]?)\),? exceeds available", message)
    return round(float(found[1]) * 1024 ** " KMGT".index(found[2] or " ")) if found else None


def _rest(traced: Any, arguments: tuple[Any, ...], shards: int) -> float:
    """A first guess of what a step takes beside the kept activations; the first compilation corrects it."""

    def local(leaf: Any) -> int:
        sharding = getattr(leaf, "sharding", None)
        shape = sharding.shard_shape(leaf.shape) if sharding is not None else leaf.shape
        return leaf.dtype.itemsize * math.prod(shape)

    return sum(map(local, jax.tree.leaves(arguments))) + 3 * largest_result(traced.jaxpr.jaxpr) / shards


def _words(policy: Policy) -> str:
    if isinstance(policy, str):
        return {"none": "to keep everything", "full": "to keep no activation"}.get(policy, policy)
    return "to keep " + ", ".join(policy)
