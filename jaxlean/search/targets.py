"""`jaxlean search --targets`: how many trials one program would train side by side on hardware that is not here.

The step that trials share is compiled for one device of each target, as `jaxlean plan` compiles a run's, and
`members.advise` reckons with it. Each target has a process of its own, which a compiler may crash:
`python -m jaxlean.search.targets`, the question on stdin, the answer on stdout, JSON both.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from jaxlean.config import RunConfig, build
from jaxlean.config.read import told
from jaxlean.cost.price import num_vcpus
from jaxlean.errors import ConfigError, UserError
from jaxlean.plan.plan import describe
from jaxlean.plan.search import for_platform
from jaxlean.plan.target import Target, devices_of, missing, parse
from jaxlean.plan.workers import ENVIRONMENT
from jaxlean.search.members import Members, advise
from jaxlean.search.space import check

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Advice:
    """Of one target.

    Args:
        target: its name.
        members: what was reckoned; None where it could not be.
        note: why not, or what stands in for what.
        usd_per_hour: of one device; None where the table has no price.
    """

    target: str
    members: Members | None
    note: str = ""
    usd_per_hour: float | None = None


def advise_targets(
    config: RunConfig, targets: Sequence[str], *, parallel: int | None = None, limit_seconds: float = 600.0
) -> tuple[list[Advice], int]:
    """(the advice for each target, in order; steps of a whole trial).

    Args:
        config: the search's. What it searches beyond the arguments of the step (a batch size) is as it stands in it.
        targets: of one device each, as `plan.target.parse` reads them.
        parallel: processes at a time; default: one a core.
        limit_seconds: that one target may take.

    Raises:
        UserError: no such target, a search whose trials share no program, or files that cannot be read.
    """
    from jaxlean.search.in_process import cannot_share

    check(config)
    reason = cannot_share(config)
    if reason is not None:
        raise ConfigError("trials of this search are processes of their own, and share no program", got=reason)
    known = [parse(text, config.cost.hardware) for text in targets]
    for target in known:
        if math.prod(target.shape) > 1:
            raise ConfigError(
                "a program trains its members on one device, and a search starts a worker for each", got=target.name,
                wanted=f"{target.name.partition(':')[0]}{':1x1' if target.platform == 'tpu' else ''}",
            )  # fmt: skip
    work = describe(config)
    questions = [
        {"target": target.name, "config": told(config), "length": work.length, "hardware": config.cost.hardware}
        for target in known
    ]
    with ThreadPoolExecutor(max(1, min(parallel or os.cpu_count() or 1, len(known)))) as pool:
        answers = list(pool.map(lambda question: _ask(question, limit_seconds), questions))
    return [_read(target, answer) for target, answer in zip(known, answers, strict=True)], work.num_steps


def print_advice(found: Sequence[Advice], num_steps: int, console: "Console") -> None:
    """A row for each target."""
    from rich.table import Table

    from jaxlean.run.units import show_bytes, show_usd

    table = Table(header_style="bold")
    table.add_column("target", no_wrap=True)
    for name in ("members", "ms alone", "ms each", "gain", "memory", "USD/trial"):
        table.add_column(name, justify="right", no_wrap=True)
    notes: dict[str, list[str]] = {}
    for each in found:
        if each.note:
            notes.setdefault(each.note, []).append(each.target)
        if each.members is None:
            table.add_row(each.target, *["-"] * 6)
            continue
        if each.members.chosen == 1:
            notes.setdefault(each.members.why, []).append(each.target)
        rows = {members: (seconds, needed) for members, seconds, needed in each.members.rows}
        (alone, _), (seconds, needed) = rows[1], rows[each.members.chosen]
        hourly = each.usd_per_hour
        usd = show_usd(hourly * seconds * num_steps / 3600) if hourly is not None else "-"
        table.add_row(
            each.target, str(each.members.chosen), f"{alone * 1e3:,.2f}", f"{seconds * 1e3:,.2f}",
            f"{alone / seconds:.1f}x", show_bytes(needed), usd,
        )  # fmt: skip
    console.print(table)
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    for note, targets in notes.items():
        say(f"{', '.join(targets)}: {note}")
    say(
        f"ms: of a trial's step; a whole trial is {num_steps:,} steps. Estimated from the compiled step: a search that "
        "is started there reckons anew (search.members=auto)"
    )


def advise_here(question: dict[str, Any]) -> dict[str, Any]:
    """The answer for one target; in a process of its own, since what jax loads for it stays.

    Args:
        question: {target, config, length, hardware}.
    """
    import jax

    from jaxlean.models.block_attention import SCOPE
    from jaxlean.platform import written_for
    from jaxlean.run.job import base, resolved
    from jaxlean.search.in_process import highest_rank
    from jaxlean.search.inputs import constants
    from jaxlean.search.program import Program
    from jaxlean.xla.mesh import make_mesh
    from jaxlean.xla.work import as_one_kernel

    target = parse(question["target"], question["hardware"])
    lacking = missing(target)
    if lacking is not None:
        return {"note": lacking}
    config, note = for_platform(build(question["config"]), target, bounded=False)
    if config.train.memory_budget is None:
        config.train.memory_budget = target.capacity
    with written_for(target.platform), as_one_kernel(SCOPE) if note else nullcontext():
        mesh = make_mesh(devices=devices_of(target)[:1])
        config = resolved(config)
        model = base(config, mesh, shapes=True)
        names = [*constants(config, list(config.search.space)), "learning_rate"]

        def program(members: int) -> Program:
            return Program(
                config, model, mesh, names=names, rank=highest_rank(config, config), length=question["length"],
                members=members,
            )  # fmt: skip

        one = program(1)
        try:
            if not one.compile():
                return {"note": f"does not fit: a step takes {one.needed:,} bytes of {one.budget:,}"}
            return {"members": asdict(advise(one, program, mesh, config, machine=target.machine)), "note": note}
        except jax.errors.JaxRuntimeError as error:
            return {"note": f"the compiler failed: {str(error).splitlines()[0]}"}


def _ask(question: dict[str, Any], limit: float) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "jaxlean.search.targets"], input=json.dumps(question), capture_output=True,
            text=True, timeout=limit, env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"note": f"the compiler took more than {limit:.0f} s"}
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or [""]
        return {"note": f"the compiler's process ended (exit code {done.returncode}): {last[0][:200]}"}
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _read(target: Target, answer: dict[str, Any]) -> Advice:
    found = answer.get("members")
    members = None
    if found is not None:
        members = Members(found["chosen"], tuple((m, s, b) for m, s, b in found["rows"]), found["budget"])
    hourly = target.device.usd_per_hour
    if hourly is not None and target.device.per == "vcpu":
        hourly *= num_vcpus()
    return Advice(target.name, members, answer.get("note", ""), hourly)


def main() -> None:
    """Read the question, print the answer."""
    # stdout is for the answer alone; what libraries print goes to stderr
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        answer = advise_here(json.loads(sys.stdin.read()))
    except UserError as error:
        answer = {"note": str(error).splitlines()[0]}
    out.write(json.dumps(answer))
    out.flush()


if __name__ == "__main__":
    main()
