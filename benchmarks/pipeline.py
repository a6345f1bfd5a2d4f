"""Would pipeline stages pay? Compiled steps of fsdp and tensor meshes on several machines against the best that a
pipelined program could do.

    python benchmarks/pipeline.py [--quick] [--out DIR] [--only NAME,NAME]

Both sides are the planner's: XLA compiles jaxlean's own step for cards that are not here, its collectives are read with
their trip counts, and `run/predict.py` says how long a step takes.

    without stages   the fastest mesh that fits. What crosses machines goes over the network.
    with stages      the same step compiled for one machine, which holds each layer in turn: a stage does its share of
                     that. To it come the bubble and what stages send each other; nothing else is counted (all stages
                     are as long as each other, memory is shared evenly, no second program, no scheduling):

                         seconds = machine / S  +  (S - 1) * microbatch / S / v  +  sends * v

                     with v = 1 for 1F1B and 4 for interleaved stages; `ideal` has no bubble at all, and `free` is 1F1B
                     where exchanges inside of a machine cost nothing. Machines that are left over are copies, which
                     add up their gradients once a step.

Break-even is the network under which stages gain 5 %.

Sources: Narayanan et al. 2021 (arXiv:2104.04473) for 1F1B and interleaved stages, Qi et al. 2024 (arXiv:2401.10241) for
zero bubble. Needs `pip install 'jaxlean[plan]'`.
"""

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from report import publish

from jaxlean.config import build
from jaxlean.models.block_attention import SCOPE
from jaxlean.plan.candidate import Candidate
from jaxlean.plan.target import Target, devices_of, missing, parse
from jaxlean.platform import written_for
from jaxlean.run import predict
from jaxlean.run.job import outline
from jaxlean.run.predict import Machine
from jaxlean.xla import hlo
from jaxlean.xla.groups import Sent, ring_bytes
from jaxlean.xla.mesh import AXES, ROWS, make_mesh
from jaxlean.xla.remat_auto import needed_bytes
from jaxlean.xla.work import as_one_kernel, count, kept_bytes

LLAMA = {"model_type": "llama", "vocab_size": 128_256, "max_position_embeddings": 8192, "num_key_value_heads": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {**LLAMA, "vocab_size": 1024, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8,
             "num_attention_heads": 8},
    "8B": {**LLAMA, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
           "num_attention_heads": 32},
    "70B": {**LLAMA, "hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80,
            "num_attention_heads": 64},
    "405B": {**LLAMA, "hidden_size": 16_384, "intermediate_size": 53_248, "num_hidden_layers": 126,
             "num_attention_heads": 128},
}  # fmt: skip
# Microbatches of the compiled step: a prime that no number of layers is a multiple of, so that what runs once a
# microbatch can be told from what runs once a step.
PARTS = 131
CHUNKS = 4  # of a stage, interleaved
EVERY = 100  # DiLoCo: steps between exchanges
SCHEDULES = ("1F1B", "interleaved", "ideal", "free")
GAIN = 1.05  # less is not worth a second program
RATES = tuple(0.1 * 2 ** (n / 2) for n in range(21))  # GB/s


@dataclass(frozen=True)
class Case:
    """A job on a cluster.

    Args:
        name: of the case.
        model: key of `SHAPES`.
        lora: adapters of rank 16, or all parameters.
        target: cards.
        rows, length: sequences of a step, and their tokens.
        meshes: (sizes by axis, sequences of a device's microbatch, form of the frozen base) to compile without stages.
        inside: likewise, for the machine whose work stages share.
    """

    name: str
    model: str
    lora: bool
    target: str
    rows: int
    length: int
    meshes: tuple[tuple[dict[str, int], int, str], ...]
    inside: tuple[tuple[dict[str, int], int, str], ...]


INSIDE = (({"fsdp": 8}, 1, "none"), ({"fsdp": 8}, 4, "none"), ({"tensor": 8}, 1, "none"))
FULL_70B = tuple((mesh, rows, "none") for mesh, rows in (
    ({"fsdp": 64}, 1), ({"fsdp": 64}, 4), ({"fsdp": 32, "tensor": 2}, 4), ({"fsdp": 8, "tensor": 8}, 4)))  # fmt: skip
CASES = [
    Case("8B full, 16 H100", "8B", False, "h100-80gb:16", 64, 4096,
         (({"fsdp": 16}, 1, "none"), ({"fsdp": 16}, 4, "none"), ({"data": 2, "fsdp": 8}, 4, "none")), INSIDE),
    Case("70B LoRA, 16 H100", "70B", True, "h100-80gb:16", 64, 4096,
         (({"fsdp": 16}, 4, "none"), ({"data": 2, "fsdp": 8}, 4, "none")), INSIDE),
    Case("70B full, 64 H100", "70B", False, "h100-80gb:64", 256, 4096, FULL_70B, INSIDE),
    Case("405B LoRA, 32 H100", "405B", True, "h100-80gb:32", 128, 2048,
         (({"fsdp": 32}, 1, "none"), ({"fsdp": 4, "tensor": 8}, 2, "none"), ({"data": 2, "fsdp": 16}, 1, "int8"),
          ({"data": 4, "fsdp": 8}, 1, "nf4")), INSIDE),
    Case("405B full, 256 H100", "405B", False, "h100-80gb:256", 1024, 2048,
         (({"fsdp": 256}, 1, "none"), ({"fsdp": 256}, 2, "none"), ({"fsdp": 32, "tensor": 8}, 2, "none")), INSIDE),
    Case("70B full, 64 A100", "70B", False, "a100-80gb:64", 256, 4096, FULL_70B[1:2], INSIDE),
]  # fmt: skip
QUICK = [
    Case("tiny full, 16 H100", "tiny", False, "h100-80gb:16", 64, 1024, (({"fsdp": 16}, 1, "none"),),
         (({"fsdp": 8}, 1, "none"),)),
]  # fmt: skip
COLUMNS = {
    "case": "", "mesh": "", "seconds": ".2f", "exchange": ".2f", "stages": "", "microbatches": "", "1F1B": ".2f",
    "free": ".2f", "ideal": ".2f", "network": ".0f", "break_even_1F1B": ".1f", "break_even_free": ".1f",
    "break_even_ideal": ".1f", "batch_x4": ".2f", "hidden": ".2f", "diloco": ".2f",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A compiled step, for any number of microbatches.

    Args:
        mesh: its name.
        memory: bytes of one device.
        rows: sequences of a microbatch, over all devices.
        once, each: seconds of computing, of a step and of a microbatch.
        collectives: (what it sends, times a step, times a microbatch).
        trained: bytes of all that trains, in float32.
        width: bytes of one sequence's hidden states.
    """

    mesh: str
    memory: int
    rows: int
    once: float
    each: float
    collectives: tuple[tuple[Sent, float, float], ...]
    trained: float
    width: float

    def work(self, parts: float) -> float:
        """Seconds of computing."""
        return self.once + parts * self.each

    def exchange(self, machine: Machine, parts: float) -> float:
        """Seconds of exchanging that computing does not hide, by the planner."""
        total = predict.exchanges(machine, ((sent, once + parts * each) for sent, once, each in self.collectives))
        return predict.exchange(machine, **total)

    def across(self, parts: float) -> float:
        """Bytes that one device sends out of its machine."""
        return sum(sent.across * (once + parts * each) for sent, once, each in self.collectives)


def compile_step(case: Case, target: Target, mesh: dict[str, int], microbatch: int, form: str, folder: str) -> Step:
    """The step that `finetune` would run, compiled for the target."""
    from jaxlean import tree

    sizes = tuple(mesh.get(axis, 1) for axis in AXES)
    config = build({
        "model": {"path": folder, "attention": "block"}, "lora": {"r": 16} if case.lora else None,
        "data": {"train": "unread"},
    })  # fmt: skip
    devices = devices_of(target)

    def made(parts: int) -> Any:
        job = Candidate(sizes, microbatch, parts, "bfloat16", form, "full").apply(config)
        found = outline(job, make_mesh(job.mesh, devices), length=case.length)
        return found, found.build("full").trace(*found.arguments)

    def seconds(jaxpr: Any) -> float:
        rates = predict.rates_of(target.machine)
        return float(rates.seconds(count(jaxpr), kept_bytes(jaxpr))) / target.num_devices

    # attention stands for a fused kernel, as in a plan
    with written_for("gpu"), as_one_kernel(SCOPE):
        job, traced = made(PARTS)
        most, two = seconds(traced.jaxpr.jaxpr), seconds(made(2)[1].jaxpr.jaxpr)
        compiled = traced.lower().compile()
    program = hlo.read(compiled.as_text() or "", unknown=1)
    each = (most - two) / (PARTS - 2)
    return Step(
        mesh=" ".join(f"{axis}={n}" for axis, n in mesh.items()) + ("" if form == "none" else f" {form}"),
        memory=needed_bytes(compiled),
        rows=microbatch * math.prod(mesh.get(axis, 1) for axis in ROWS),
        once=two - 2 * each,
        each=each,
        collectives=tuple(
            (c.sent(target.per_machine), 0.0, c.times / PARTS) if c.times % PARTS == 0
            else (c.sent(target.per_machine), float(c.times), 0.0)
            for c in program.collectives
        ),
        trained=4.0 * sum(leaf.size for leaf in tree.flatten(job.state.trainable).values()),
        width=2.0 * case.length * SHAPES[case.model]["hidden_size"],
    )  # fmt: skip


def at(machine: Machine, rate: float | None) -> Machine:
    """The machine with another network, in GB/s a card; None leaves it."""
    if rate is None:
        return machine
    return replace(machine, device=machine.device.model_copy(update={"network_gb_per_second": rate}))


def without_stages(steps: Sequence[Step], machine: Machine, rows: int) -> tuple[float, Step] | None:
    """(seconds, step) of the fastest mesh."""
    able = [step for step in steps if rows % step.rows == 0]
    found = [(step.work(rows / step.rows) + step.exchange(machine, rows / step.rows), step) for step in able]
    return min(found, key=lambda pair: pair[0], default=None)


@dataclass(frozen=True)
class Staged:
    """A pipelined program.

    Args:
        seconds: of a step.
        stages, copies, microbatches: of the pipeline.
        step: what a machine would do that held all layers.
        work, exchange: parts of the seconds, without the bubble.
    """

    seconds: float
    stages: int
    copies: int
    microbatches: int
    step: Step
    work: float
    exchange: float


def with_stages(
    steps: Sequence[Step], machine: Machine, rows: int, schedule: str, capacity: int, parts: int | None = None
) -> Staged | None:
    """The fastest pipelined program, at best.

    Args:
        steps: compiled for one machine.
        machine: all machines.
        rows: sequences of a step.
        schedule: of `SCHEDULES`.
        capacity: bytes of a device.
        parts: only so many microbatches.
    """
    machines = machine.num_devices // machine.per_machine
    one = Machine(machine.device, machine.platform, machine.per_machine)
    chunks = CHUNKS if schedule == "interleaved" else 1
    found = []
    for step in steps:
        for stages in (n for n in range(2, machines + 1) if machines % n == 0):
            copies = machines // stages
            if rows % (copies * step.rows) or step.memory / stages > capacity:
                continue
            number = rows // (copies * step.rows)
            if parts is not None and number != parts:
                continue
            work, each, inside = step.work(number) / stages, step.each / stages, 0.0
            if schedule != "free":
                inside = step.exchange(one, number) / stages
                each += (step.exchange(one, 1) - step.exchange(one, 0)) / stages
            bubble = 0.0 if schedule == "ideal" else (stages - 1) * each / chunks
            # each card passes on its part of a microbatch, forward and backward
            size = step.rows * step.width / machine.per_machine
            sends = 2 * number * chunks
            gradients = ring_bytes("all-reduce", step.trained / machine.per_machine / stages, copies)
            inside += predict.exchange(
                machine, 0.0, sends + (copies > 1), across=sends * size + gradients, crossings=2 * (copies - 1)
            )
            found.append(Staged(work + inside + bubble, stages, copies, number, step, work, inside))
    return min(found, key=lambda staged: staged.seconds, default=None)


def break_even(lines: Sequence[dict[str, Any]], schedule: str) -> float | None:
    """GB/s of network a card under which stages gain `GAIN`; None where they never do, the fastest where always.

    Args:
        lines: seconds by network, the slowest first.
        schedule: of `SCHEDULES`.
    """
    points = [(line["network"], line["without"] / line[schedule]) for line in lines if line[schedule] is not None]
    above = [place for place, (_, gain) in enumerate(points) if gain > GAIN]
    if not above:
        return None
    if above[-1] == len(points) - 1:
        return float(points[-1][0])
    (slow, high), (fast, low) = points[above[-1]], points[above[-1] + 1]
    return slow * (fast / slow) ** (math.log(high / GAIN) / math.log(high / low))


def hidden(work: float, exchange: float, platform: str = "gpu") -> float:
    """Seconds if all that can be hidden were: the longer of computing and exchanging."""
    return max(work, exchange / (1 - predict.OVERLAP[platform]))


def diloco(inner: Sequence[Step], machine: Machine, rows: int, capacity: int) -> float | None:
    """Seconds of a step where each machine takes its own, and all exchange int8 gradients every `EVERY`."""
    machines = machine.num_devices // machine.per_machine
    one = Machine(machine.device, machine.platform, machine.per_machine)
    able = [step for step in inner if step.memory <= capacity and rows % (machines * step.rows) == 0]
    if not able:
        return None
    outer = able[0].trained / 4 / machine.per_machine
    seconds = predict.exchange(
        machine, 0.0, 1, across=ring_bytes("all-reduce", outer, machines), crossings=2 * (machines - 1)
    )
    parts = [rows / machines / step.rows for step in able]
    return min(s.work(n) + s.exchange(one, n) for s, n in zip(able, parts, strict=True)) + seconds / EVERY


def run(case: Case) -> dict[str, Any]:
    """The row of a case; `by_network` has its seconds by the network's rate."""
    target = parse(case.target)
    name = case.target.partition(":")[0]
    single = parse(f"{name}:{target.per_machine}")
    capacity = target.capacity
    assert capacity is not None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPES[case.model]))

        def compiled(which: Target, meshes: Sequence[tuple[dict[str, int], int, str]]) -> list[Step]:
            found = []
            for mesh, microbatch, form in meshes:
                start = time.perf_counter()
                found.append(compile_step(case, which, mesh, microbatch, form, folder))
                size, took = found[-1].memory / 1e9, time.perf_counter() - start
                print(f"{case.name}: {found[-1].mesh} on {which.name}, {microbatch} rows: {size:.1f} GB, {took:.0f} s",
                      flush=True)  # fmt: skip
            return found

        every = compiled(target, case.meshes)
        inner = compiled(single, case.inside)
    flat = [step for step in every if step.memory <= capacity]
    machine = target.machine
    own = without_stages(flat, machine, case.rows)
    row: dict[str, Any] = {"case": case.name, "network": machine.device.network_gb_per_second,
                           "steps": [_told(step, capacity) for step in every],
                           "machine": [_told(step, capacity) for step in inner]}  # fmt: skip
    if own is None:
        return row
    seconds, step = own
    parts = case.rows / step.rows
    row |= {"mesh": step.mesh, "seconds": seconds, "exchange": step.exchange(machine, parts),
            "across_gb": step.across(parts) / 1e9, "diloco": diloco(inner, machine, case.rows, capacity)}  # fmt: skip
    lines = []
    for rate in RATES:
        there = at(machine, rate)
        best = without_stages(flat, there, case.rows)
        assert best is not None
        line: dict[str, Any] = {"network": rate, "without": best[0], "mesh": best[1].mesh,
                                "diloco": diloco(inner, there, case.rows, capacity)}  # fmt: skip
        for schedule in SCHEDULES:
            staged = with_stages(inner, there, case.rows, schedule, capacity)
            line[schedule] = None if staged is None else staged.seconds
        lines.append(line)
    for schedule in SCHEDULES:
        staged = with_stages(inner, machine, case.rows, schedule, capacity)
        if staged is None:
            continue
        row |= {schedule: staged.seconds, f"break_even_{schedule}": break_even(lines, schedule)}
        if schedule == "1F1B":
            row |= {"stages": f"{staged.stages} x {staged.copies}", "stage_mesh": staged.step.mesh,
                    "microbatches": staged.microbatches}  # fmt: skip
        if schedule == "ideal":
            # (S - 1) / M of it is the bubble, for which there is so much room
            total, room = staged.work + staged.exchange, seconds - staged.seconds
            row["microbatches_needed"] = None if room <= 0 else (staged.stages - 1) * total / room
            row["hidden"] = hidden(staged.work, staged.exchange) / hidden(step.work(parts), row["exchange"])
    more = without_stages(flat, machine, 4 * case.rows)
    staged = with_stages(inner, machine, 4 * case.rows, "1F1B", capacity)
    if more is not None and staged is not None:
        row["batch_x4"] = staged.seconds / more[0]
    return row | {"by_network": lines}


def _told(step: Step, capacity: int) -> dict[str, Any]:
    """For JSON."""
    told = {key: getattr(step, key) for key in ("mesh", "memory", "rows", "once", "each", "trained")}
    sums = [sum(s.inside * n for s, *times in step.collectives for n in [times[k]]) for k in (0, 1)]
    outs = [sum(s.across * n for s, *times in step.collectives for n in [times[k]]) for k in (0, 1)]
    return {**told, "fits": step.memory <= capacity, "inside_bytes": sums, "across_bytes": outs}


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Speed with stages over speed without, by network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 6), layout="constrained")
    for index, row in enumerate(rows):
        for schedule, style in (("1F1B", "-"), ("ideal", ":")):
            points = [(p["network"], p["without"] / p[schedule]) for p in row["by_network"] if p[schedule]]
            if points:
                label = row["case"] if schedule == "1F1B" else None
                axis.plot(*zip(*points, strict=True), style, color=f"C{index}", label=label)
        if row.get("1F1B"):
            axis.plot(row["network"], row["seconds"] / row["1F1B"], "o", color=f"C{index}")
    axis.axhline(1, color="gray", linewidth=1)
    axis.set(xscale="log", yscale="log", xlabel="network between machines, GB/s a card (dot: the cluster's)",
             ylabel="speed with stages / speed without (1F1B; dotted: no bubble)")  # fmt: skip
    axis.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, two compilations")
    parser.add_argument("--out", type=Path, help="folder for pipeline.json and .png")
    parser.add_argument(
        "--only", help="these cases anew (comma-separated parts of names); --out keeps what it has of others"
    )
    given = parser.parse_args()
    lacking = missing(parse("h100-80gb:8"))
    if lacking is not None:
        parser.error(f"{lacking} is not installed: pip install 'jaxlean[plan]'")
    wanted = [""] if given.only is None else given.only.split(",")
    cases = QUICK if given.quick else CASES
    out = given.out.resolve() if given.out is not None else None
    rows: list[dict[str, Any]] = []
    if given.only is not None and out is not None and (out / "pipeline.json").exists():
        rows = json.loads((out / "pipeline.json").read_text())["rows"]
    for case in cases:
        if any(part in case.name for part in wanted):
            rows = [row for row in rows if row["case"] != case.name] + [run(case)]
            print(json.dumps(rows[-1]), flush=True)
    config = {"cases": [asdict(case) for case in cases], "remat": "full", "chunks": CHUNKS, "diloco_every": EVERY}
    publish("pipeline", config, rows, COLUMNS, out)
    if out is not None:
        plot([row for row in rows if "by_network" in row], out / "pipeline.png")


if __name__ == "__main__":
    main()
