"""What a compiled program does between devices, read off its HLO text: collectives, as often as they run.

XLA's own cost analysis counts the body of a loop once. The text has the number of trips of each loop whose number is
known (`known_trip_count`), and, from TPU compilers, an estimate of the cycles of each fusion (`estimated_cycles`).

Source of the format: openxla/xla, `xla/hlo/parser`, and `xla/service/hlo.proto` for the meaning of the attributes.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from jaxlean.xla.groups import Groups, Sent, read_groups, ring_bytes, split

# What a program starts one by one, beside collectives; all else is no work, or inside of these.
_STARTED = {
    "fusion", "custom-call", "dot", "convolution", "copy", "sort", "scatter", "gather", "reduce", "reduce-window",
    "dynamic-slice", "dynamic-update-slice", "concatenate", "transpose", "convert",
}  # fmt: skip
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
    "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\([^\n]*\) )?(?:-> [^\n]*)?\{$", re.MULTILINE)
_SHAPE = re.compile(r"\b(pred|[a-z]+[0-9]+[a-z0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(r"\b(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_SOURCE = re.compile(r'op_name="([^"]*)"')
_OPCODE = re.compile(r" = (\(.*?\)|[^ ]+) ([a-z][\w\-]*)\(")


@dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Args:
        kind: one of `KINDS`.
        bytes: that one device sends, as a ring of the group does it.
        group: devices that exchange with each other.
        times: how often it runs.
        source: the operation of the traced function that it came from.
        groups: all of them, or the pairs of a permutation, by the devices' places in the mesh.
    """

    kind: str
    bytes: float
    group: int
    times: int
    source: str = ""
    groups: Groups = ()

    def sent(self, per_machine: int) -> Sent:
        """What one device sends inside of its machine, and out of it; a machine has so many devices."""
        return split(self.kind, self.bytes, self.groups, per_machine)


@dataclass
class Program:
    """What was read off a program's text.

    Args:
        collectives: all of them, loops counted.
        cycles: the sum of the compiler's estimates of one device; None where it makes none.
        unknown_loops: loops whose trips are known only when they run.
        started: operations that it starts one after another: kernels of a GPU.
    """

    collectives: list[Collective] = field(default_factory=list)
    cycles: float | None = None
    unknown_loops: int = 0
    started: int = 0

    @property
    def bytes(self) -> float:
        """Sent by one device in all."""
        return sum(c.bytes * c.times for c in self.collectives)

    @property
    def count(self) -> int:
        """Collectives in all."""
        return sum(c.times for c in self.collectives)


def read(text: str, *, unknown: int = 1) -> Program:
    """Read the text of a compiled program.

    Args:
        text: `compiled.as_text()`.
        unknown: how often a loop runs whose trips are known only when it runs.
    """
    computations, entry = _computations(text)
    program = Program(cycles=0.0 if _CYCLES.search(text) is not None else None)
    seen: dict[str, Collective] = {}
    _walk(entry, computations, 1, program, seen, unknown, counting=True)
    program.collectives = list(seen.values())
    return program


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """({name: its lines}, the name of the entry)."""
    found: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if line.endswith("{") and (start := _COMPUTATION.match(line)):
            name = start[2]
            found[name] = []
            if start[1]:
                entry = name
        elif line.startswith("}"):
            name = ""
        elif name:
            found[name].append(line)
    return found, entry


def _walk(
    name: str,
    computations: dict[str, list[str]],
    times: int,
    program: Program,
    seen: dict[str, Collective],
    unknown: int,
    *,
    counting: bool,
) -> None:
    for line in computations.get(name, ()):
        operation = _OPCODE.search(line)
        if operation is None:
            continue
        shape, opcode = operation.groups()
        cycles = _CYCLES.search(line)
        if cycles is not None:
            program.cycles = (program.cycles or 0.0) + times * int(cycles[1])
        kind = opcode.removesuffix("-start")
        program.started += times * (counting and (opcode in _STARTED or kind in KINDS))
        if kind in KINDS:
            size, groups = _nbytes(shape, started=opcode.endswith("-start") and kind != "all-reduce"), read_groups(line)
            group = len(groups[0]) if groups and kind != "collective-permute" else 1
            if group > 1 or kind == "collective-permute":
                # what a TPU's compiler spreads over several operations (begun, carried on, done) stands in each of them
                channel = _CHANNEL.search(line) if program.cycles is not None else None
                key = f"{channel[1]} in {times}" if channel is not None else f"{name} {len(seen)}"
                source, sent = _SOURCE.search(line), ring_bytes(kind, size, group)
                seen[key] = Collective(kind, sent, group, times, source[1] if source else "", groups)
            continue
        inside = times
        if opcode == "while":
            trips = _trips(line, computations)
            program.unknown_loops += trips is None
            inside *= unknown if trips is None else trips
        for called in _called(line):
            _walk(called, computations, inside, program, seen, unknown, counting=counting and opcode not in _STARTED)


def _trips(line: str, computations: dict[str, list[str]]) -> int | None:
    """How often a loop runs: as the compiler says, or as its condition `counter < constant` does (from 0 in ones)."""
    said = _TRIPS.search(line)
    if said is not None:
        return int(said[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    lines = computations.get(condition[1], []) if condition is not None else []
    root = next((text for text in lines if text.lstrip().startswith("ROOT") and "direction=LT" in text), "")
    for operand in re.findall(r"%([\w.\-]+)", root.partition("compare(")[2].partition(")")[0]):
        for text in lines:
            number = re.match(rf"\s*%{re.escape(operand)} = [su]32\[\]\S* constant\((\d+)\)", text)
            if number is not None:
                return int(number[1])
    return None


def _called(line: str) -> Iterator[str]:
    yield from _CALLED.findall(line)
    for branches in _BRANCHES.findall(line):
        yield from (name.strip().lstrip("%") for name in branches.split(","))


def _nbytes(shape: str, *, started: bool) -> float:
    """Of a result. What is begun asynchronously names its operands first, then its results."""
    # numbers without dims are the contexts of a transfer
    arrays = [(dtype, dims) for dtype, dims in _SHAPE.findall(shape) if dims or not started]
    sizes = [_BYTES.get(dtype, 1) * math.prod(int(n) for n in dims.split(",") if n) for dtype, dims in arrays]
    return float(sum(sizes[len(sizes) // 2 :] if started and len(sizes) % 2 == 0 else sizes))
