"""How many trials one program should train side by side: what fits, and what it gains.

A small step leaves a GPU idle: its kernels take as long to start as to run. Members share the start, and the reading of
the base. A CPU, and a device that computes all the time, gain nothing, and more members only delay what is learned from
the first ones. So the work of several is counted in their trace (`xla.work`), and what it would take is read off the
same rates that the planner uses (`run.predict`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from jaxlean.config import RunConfig
from jaxlean.run.predict import Machine, here, of_program
from jaxlean.search.program import Program
from jaxlean.xla import hlo
from jaxlean.xla.remat_auto import say_bytes
from jaxlean.xla.work import count, kept_bytes

_MOST = 32
# Twice the members are worth it where they take so much less time each.
_GAIN = 0.9


@dataclass(frozen=True)
class Members:
    """What was reckoned.

    Args:
        chosen: members.
        rows: (members, seconds of a step for each of them, bytes of a step) of each number that was looked at.
        budget: bytes of the device.
    """

    chosen: int
    rows: tuple[tuple[int, float, int], ...]
    budget: int

    def __str__(self) -> str:
        tried = ", ".join(
            f"{members}: {each * 1e3:.1f} ms each, {say_bytes(needed)}" for members, each, needed in self.rows
        )
        return f"members: {self.chosen} ({self.why}); a step of {tried}, of {say_bytes(self.budget)}"

    @property
    def why(self) -> str:
        """The reason, in words."""
        seconds = {members: each for members, each, _ in self.rows}
        if self.chosen > 1:
            return f"{seconds[1] / seconds[self.chosen]:.1f} times as many steps as one by one"
        fit = max((members for members, _, needed in self.rows if needed <= self.budget), default=1)
        return "the device is busy with one" if len(self.rows) > 1 and fit > 1 else "no room for more"


def advise(
    one: Program,
    program: Callable[[int], Program],
    mesh: jax.sharding.Mesh,
    config: RunConfig,
    *,
    machine: Machine | None = None,
) -> Members:
    """How many members to train side by side.

    Args:
        one: compiled, of one member.
        program: of so many members, not compiled.
        mesh: of one device.
        config: `cost.hardware` counts.
        machine: that it is compiled for; default: this one.
    """
    assert one.needed is not None
    assert one.compiled is not None
    machine = machine if machine is not None else here(list(mesh.devices.flat), config.cost.hardware)
    compiled = hlo.read(one.compiled.as_text() or "")
    frozen = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(one.frozen))  # which may be shapes alone

    def seconds(members: int) -> float:
        jaxpr = (one if members == 1 else program(members)).trace().jaxpr.jaxpr
        # as many kernels, each with more to do
        return of_program(machine, count(jaxpr), kept_bytes(jaxpr), compiled, None).total / members

    rows, chosen = [(1, seconds(1), one.needed)], 1
    while chosen * 2 <= _MOST:
        members = chosen * 2
        needed = frozen + members * (one.needed - frozen)
        rows.append((members, seconds(members), needed))
        if needed > one.budget or rows[-1][1] > _GAIN * rows[-2][1]:
            break
        chosen = members
    return Members(chosen, tuple(rows), one.budget)
