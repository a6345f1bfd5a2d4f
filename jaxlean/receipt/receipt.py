"""`jaxlean receipt RUN`: what each cut in force saved, against the same run without it.

    read        config.yaml and summary.json of the run
    cuts        which are in force, and the run without each (`cuts.py`)
    compile     the step of each on the devices that are here: memory and FLOPs, exact (`programs.py`)
    calibrate   a few steps of each over the run's own rows, in turns: seconds
    account     what the run would have taken and cost without each, and without all of them
    write       receipt.json in the run's folder, and the table

Nothing is taken from a paper: where something was not measured, there is no number.
"""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jaxlean.config import RunConfig, load
from jaxlean.cost.phases import COMPILE, DATA_WAIT, EVALUATION, STEP
from jaxlean.cost.price import Price, lookup
from jaxlean.errors import RunError
from jaxlean.receipt.cuts import ALL, Cut, in_force, program_without
from jaxlean.receipt.programs import Program, calibrate, compile_programs, rows_of_run
from jaxlean.receipt.show import show
from jaxlean.run.environment import versions
from jaxlean.run.score_files import read_score, scored_steps
from jaxlean.run.units import show_bytes, show_seconds, show_usd
from jaxlean.xla.mesh import split_host
from jaxlean.xla.remat_auto import device_budget

if TYPE_CHECKING:
    from rich.console import Console

FILE = "receipt.json"
FORMAT = 1
_RUN = "the run"
_BATCHES = 4


def receipt(run: Path, *, rounds: int = 3, measure: bool = True, console: "Console | None" = None) -> dict[str, Any]:
    """Make a run's receipt, write it into its folder and print it.

    Args:
        run: its folder.
        rounds: turns of three steps that each program is calibrated by.
        measure: run the steps; else only what the compiler says is in the receipt.
        console: default: rich's on stdout.

    Returns:
        what `receipt.json` holds.

    Raises:
        UserError: no run there, one that trained no step, data or a base that is gone, other devices than the run's.
    """
    from rich.console import Console

    console = console if console is not None else Console()
    config, summary = _read(run)
    split_host(config.mesh.host_devices)
    _check_devices(run, summary)
    cuts = in_force(config, summary)
    programs = [cut for cut in cuts if cut.kind == "program"]

    batches, length, num_steps = rows_of_run(config, num=_BATCHES)

    configs = {_RUN: config} | {cut.name: program_without(config, [cut]) for cut in programs}
    if len(programs) > 1:
        configs[ALL] = program_without(config, programs)
    remat = summary.get("remat") or config.train.remat
    policies = {name: (remat if found.train.remat == config.train.remat else "none") for name, found in configs.items()}
    capacity = device_budget()
    console.print(f"compiling {len(configs)} programs: the run's step, and without each cut", highlight=False)
    said, made = compile_programs(configs, policies, length=length, capacity=capacity)
    if measure:
        console.print(f"calibrating: {rounds} turns of 3 steps each", highlight=False)
        calibrate(said, made, batches, rounds=rounds)

    price = lookup(summary["device_kind"], summary["num_devices"], config.cost)
    account = _Account(summary, price, num_steps, said[_RUN])
    told = {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": str(run),
        "versions": versions(),
        "device_kind": summary["device_kind"],
        "num_devices": summary["num_devices"],
        "calibration": {"rounds": rounds if measure else 0, "steps": said[_RUN].step_seconds},
        "cuts": [_line(cut, said, account, config, run) for cut in cuts],
    }
    told["total"] = _total(told["cuts"], said, account, programs, capacity)
    _write(run / FILE, told)
    show(told, console)
    return told


def _read(run: Path) -> tuple[RunConfig, dict[str, Any]]:
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        config = load(run / "config.yaml", [])
    except FileNotFoundError as error:
        raise RunError(
            "no finished run there",
            where=run,
            wanted=f"{Path(error.filename).name} in it",
            fix="output_dir of finetune",
        ) from None
    except (OSError, ValueError) as error:
        raise RunError("the run's summary cannot be read", where=run, got=error) from error
    if not summary.get("steps") or not summary.get("measured_step_seconds"):
        raise RunError(
            "a receipt is of steps that were measured", where=run, got=f"{summary.get('steps', 0)} steps",
            fix="finish the run, or choose another",
        )  # fmt: skip
    return config, summary


def _check_devices(run: Path, summary: Mapping[str, Any]) -> None:
    here = jax.devices()
    got, wanted = (here[0].device_kind, len(here)), (summary["device_kind"], summary["num_devices"])
    if got[0] != wanted[0] or got[1] < wanted[1]:
        raise RunError(
            "a receipt is made on the devices of the run, whose steps it times", where=run,
            got=f"{got[1]} x {got[0]}", wanted=f"{wanted[1]} x {wanted[0]}",
            fix="make it there; jaxlean plan is for others",
        )  # fmt: skip


class _Account:
    """What the run took, and what it would have taken.

    Args:
        summary: of the run.
        price: by which it was paid.
        num_steps: that its data and settings make.
        own: its step as it was compiled and calibrated now.
    """

    def __init__(self, summary: Mapping[str, Any], price: Price, num_steps: int, own: Program):
        self.price, self.num_steps, self.own = price, num_steps, own
        self.seconds: float = summary["seconds"]
        phases = summary.get("phases") or {}
        # waiting for data is no matter of the program
        self.in_steps: float = phases.get(STEP, summary["train_seconds"])
        self.steps: int = summary["steps"]
        self.evaluating: float = phases.get(EVALUATION, 0.0)
        self.compiling: float = phases.get(COMPILE, summary.get("compile_seconds", 0.0))
        self.waiting: float = phases.get(DATA_WAIT, 0.0)
        self.kwh: float | None = summary.get("kwh")

    def kwh_of(self, seconds: float) -> float | None:
        """Of a run so long, at the run's own power."""
        return None if self.kwh is None else self.kwh * seconds / self.seconds

    def usd(self, seconds: float) -> float | None:
        """Of a run so long."""
        return self.price.usd(seconds, self.kwh_of(seconds))

    def with_program(self, other: Program) -> float | None:
        """Seconds of the run with another program's steps: its own, times how much longer these took side by side."""
        ours, theirs = self.own.seconds, other.seconds
        return None if not ours or theirs is None else self.seconds + self.in_steps * (theirs / ours - 1)

    def with_steps(self, steps: float) -> float:
        """Seconds of the run with another number of steps."""
        return self.seconds + (self.in_steps + self.waiting) * (steps / self.steps - 1)


def _pair(ours: float | None, without: float | None, source: str) -> dict[str, Any] | None:
    return None if ours is None or without is None else {"with": ours, "without": without, "source": source}


def _line(cut: Cut, said: Mapping[str, Program], account: _Account, config: RunConfig, run: Path) -> dict[str, Any]:
    line: dict[str, Any] = {
        "number": cut.number, "cut": cut.name, "kind": cut.kind, "settings": list(cut.settings),
        "without": cut.typed_without, "memory_bytes": None, "flops": None, "seconds": None, "kwh": None, "usd": None,
        "note": cut.note,
    }  # fmt: skip
    usd = account.usd(account.seconds)
    without: float | None = None
    source = ""
    if cut.kind == "program":
        other = said[cut.name]
        if other.refused:
            return line | {"note": f"there is no such run without it: {other.refused}"}
        line["memory_bytes"] = _pair(account.own.memory_bytes, other.memory_bytes, "compiled")
        line["flops"] = _pair(account.own.flops, other.flops, "compiled")
        without, source = account.with_program(other), "timed"
        if not other.fits:
            line["note"] = "without it the step does not fit on these devices"
    elif cut.kind == "steps":
        without, source = _other_steps(cut, account, config), "counted"
    elif cut.kind == "seconds":
        without, source = _other_seconds(cut, account, run), "measured"
    elif cut.kind == "price":
        demand = _on_demand(config, account)
        line["usd"] = _pair(usd, demand, "price table")
        return line
    line["seconds"] = _pair(account.seconds, without, source)
    if without is not None:
        line["usd"] = _pair(usd, account.usd(without), source)
        line["kwh"] = _pair(account.kwh, account.kwh_of(without), f"{source}, at the run's power")
    return line


def _other_steps(cut: Cut, account: _Account, config: RunConfig) -> float | None:
    if not cut.without:  # stopped early
        return account.with_steps(account.num_steps)
    *_, steps = rows_of_run(program_without(config, [cut]), num=0)
    return account.with_steps(account.steps * steps / account.num_steps)


def _other_seconds(cut: Cut, account: _Account, run: Path) -> float | None:
    if cut.number == 11:
        folder = run / "evaluations"
        took = [found.seconds for step in scored_steps(folder) if (found := read_score(folder, step)) is not None]
        return account.seconds + sum(took) if took else None
    return account.seconds + max(account.own.compile_seconds - account.compiling, 0.0)


def _on_demand(config: RunConfig, account: _Account) -> float | None:
    """What the same seconds cost on demand."""
    other = config.cost.model_copy(update={"pricing": "on_demand", "usd_per_hour": None})
    device = jax.devices()[0]
    return lookup(device.device_kind, jax.device_count(), other).usd(account.seconds)


def _total(
    lines: Sequence[Mapping[str, Any]], said: Mapping[str, Program], account: _Account, programs: Sequence[Cut],
    capacity: int,
) -> dict[str, Any]:  # fmt: skip
    """The run against the same run without any cut that a step or their number shows."""
    other = said.get(ALL) or (said[programs[0].name] if len(programs) == 1 else account.own)
    seconds = account.with_program(other)
    names = [cut.name for cut in programs]
    for line in lines:
        found = line["seconds"]
        if seconds is None or found is None or line["kind"] not in ("steps", "seconds"):
            continue
        names.append(line["cut"])
        # other steps are steps of the other program; what was measured beside them is not
        if line["kind"] == "steps":
            seconds *= found["without"] / found["with"]
        else:
            seconds += found["without"] - found["with"]
    total: dict[str, Any] = {
        "usd": account.usd(account.seconds), "seconds": account.seconds, "kwh": account.kwh,
        "memory_bytes": account.own.memory_bytes, "memory_bytes_without": other.memory_bytes or None,
        "cuts": names, "usd_without": None, "seconds_without": None, "kwh_without": None, "usd_without_where": None,
    }  # fmt: skip
    if other.refused:
        return total | {"sentence": f"without all its cuts there is no such run: {other.refused}"}
    if not names:
        return total | {"sentence": "no cut of this run shows in its steps, so there is nothing to compare it with"}
    if not other.fits:
        return total | {
            "sentence": f"without its cuts this job would not fit on these devices: {show_bytes(other.memory_bytes)} "
            f"of {show_bytes(capacity)}; jaxlean plan says what it takes elsewhere"
        }
    if seconds is None:
        return total | {"sentence": "the steps were not run (--no-calibrate), so nothing is said of dollars"}
    usd = account.usd(seconds)
    total |= {"seconds_without": seconds, "usd_without": usd, "kwh_without": account.kwh_of(seconds),
              "usd_without_where": "these devices"}  # fmt: skip
    cost = (
        f"have taken {show_seconds(seconds)}; it took {show_seconds(account.seconds)}"
        if usd is None
        else f"have cost {show_usd(usd)}; it cost {show_usd(total['usd'])}"
    )
    return total | {"sentence": f"on these devices, without {', '.join(names)}, this job would {cost}"}


def _write(file: Path, told: Mapping[str, Any]) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(part, file)
    except OSError as error:
        raise RunError("the receipt cannot be written", where=file, got=error.strerror) from None
