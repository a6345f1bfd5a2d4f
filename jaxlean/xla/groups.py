"""Which devices exchange with which, as HLO writes it, and what of an exchange leaves a machine.

    {{0,1},{2,3}}                                   the groups themselves
    [2,4]<=[4,2]T(1,0)                              0 to 7 in the shape 4 x 2, transposed, cut into 2 groups of 4
    mesh['a'=2,'b'=4], device_ids=(...) {'b'}       devices that differ in nothing but their place along b

A device is its place in the program's mesh; machines hold so many devices each, one after the other.

Groups exchange in rings, as NCCL has them: as many at once as the group has devices in each machine, each ring leaving
the machine by another device. Of what a device sends, one such part therefore crosses, and the rest stays inside.
Sources: openxla/xla, `xla/hlo/ir/collective_device_list.cc` and `mesh_and_axis.cc`; NVIDIA/nccl,
`src/graph/tuning.cc` (a ring's steps between machines are one fewer than the machines).
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Groups = tuple[tuple[int, ...], ...]

_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[0-9,{} ]*\})\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=(\[[0-9,]+\](?:T\([0-9,]+\))?)")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}")


@dataclass(frozen=True)
class Sent:
    """What one device sends in an exchange; where devices differ, the one that sends most out of its machine.

    Args:
        inside: bytes to others of its machine.
        across: bytes to other machines.
        crossings: steps between machines, one after the other.
    """

    inside: float
    across: float = 0.0
    crossings: int = 0


def read_groups(line: str) -> Groups:
    """The groups of a collective, or the pairs of a permutation; none where the line names none."""
    if listed := _LISTED.search(line):
        return tuple(tuple(int(n) for n in part.split(",")) for part in re.findall(r"\{([0-9, ]+)\}", listed[1]))
    if iota := _IOTA.search(line):
        return _tuples(_iota(iota[3]).reshape(int(iota[1]), int(iota[2])))
    if mesh := _MESH.search(line):
        return _of_mesh(mesh[1], mesh[2], mesh[3])
    return ()


def along(sizes: Mapping[str, int], names: Iterable[str]) -> Groups:
    """The groups of a mesh that exchange over some of its axes.

    Args:
        sizes: devices along each axis, in the mesh's order.
        names: of the axes.
    """
    return _along(tuple(sizes.values()), frozenset(dim for dim, axis in enumerate(sizes) if axis in set(names)))


def ring_bytes(kind: str, size: float, group: int) -> float:
    """Bytes that one device sends in a ring of so many, for a result of `size` bytes on it.

    Source: NVIDIA/nccl-tests, `doc/PERFORMANCE.md`.
    """
    share = (group - 1) / group
    match kind:
        case "all-reduce":
            return 2 * size * share
        case "reduce-scatter":
            return size * (group - 1)
        case "collective-permute":
            return size
    return size * share


def split(kind: str, sent: float, groups: Groups, per_machine: int) -> Sent:
    """What of an exchange stays inside of a machine, and what leaves it.

    Args:
        kind: one of `xla.hlo.KINDS`.
        sent: bytes that one device sends in all.
        groups: as `read_groups` finds them.
        per_machine: devices of a machine.
    """
    return max((_of_group(kind, sent, group, per_machine) for group in groups), key=lambda s: s.across,
               default=Sent(sent))  # fmt: skip


@lru_cache
def _along(sizes: tuple[int, ...], chosen: frozenset[int]) -> Groups:
    order = sorted(range(len(sizes)), key=lambda dim: dim in chosen)
    devices = np.arange(math.prod(sizes)).reshape(sizes).transpose(order)
    return _tuples(devices.reshape(-1, math.prod(sizes[dim] for dim in chosen)))


@lru_cache
def _places(group: tuple[int, ...], per_machine: int) -> tuple[int, int]:
    """(machines that a group is on, devices of it on the one with the fewest)."""
    found = Counter(device // per_machine for device in group)
    return len(found), min(found.values())


def _of_group(kind: str, sent: float, group: tuple[int, ...], per_machine: int) -> Sent:
    machines, fewest = _places(group, per_machine)
    if machines == 1:
        return Sent(sent)
    if kind == "all-to-all":  # to each other device as much, with no ring
        across = sent * (len(group) - fewest) / (len(group) - 1)
        return Sent(sent - across, across, 1)
    return Sent(sent - sent / fewest, sent / fewest, (machines - 1) * (2 if kind == "all-reduce" else 1))


def _of_mesh(axes: str, device_ids: str | None, used: str) -> Groups:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)}
    devices = np.arange(math.prod(sizes.values()))
    if device_ids:
        listed = re.fullmatch(r"[0-9, ]+", device_ids)
        devices = np.asarray([int(n) for n in device_ids.split(",")]) if listed else _iota(device_ids)
    # 'b':(2)4 is a part of b: the dim in the middle, where b is cut into [2, 4, rest]; b may have several parts
    parts = re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", used)
    shape: list[int] = []
    chosen: list[int] = []
    for name, size in sizes.items():
        done = 1
        for before, part in sorted((int(b or 1), int(n or size)) for axis, b, n in parts if axis == name):
            chosen.append(len(shape) + 1)
            shape += [before // done, part]
            done = before * part
        shape.append(size // done)
    rest = [dim for dim in range(len(shape)) if dim not in chosen]
    groups = devices.reshape(shape).transpose([*rest, *chosen])
    return _tuples(groups.reshape(-1, math.prod(shape[dim] for dim in chosen)))


def _iota(text: str) -> np.ndarray:
    """`[4,2]T(1,0)` -> 0 to 7 in that shape, its dims in that order, flat."""
    dims, *order = (tuple(int(n) for n in part.split(",")) for part in re.findall(r"[\[(]([0-9,]+)[\])]", text))
    devices = np.arange(math.prod(dims)).reshape(dims)
    return (devices.transpose(order[0]) if order else devices).reshape(-1)


def _tuples(groups: np.ndarray) -> Groups:
    return tuple(tuple(int(device) for device in group) for group in groups)
