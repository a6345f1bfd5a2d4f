"""What a search found: a line a trial, the table at its end, trials.jsonl, summary.json, best.yaml, a picture."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlean import config as settings
from jaxlean.config import RunConfig, SearchSection
from jaxlean.config.search import SMALL
from jaxlean.errors import RunError
from jaxlean.run.metrics import to_json
from jaxlean.run.units import show_bytes, show_count, show_number, show_percent, show_seconds, show_usd
from jaxlean.search.space import values

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from rich.console import Console

_SHOWN = 10
_BEST = re.compile(r"best(-\d+)?\.yaml")

# What is kept beside a trial (`study.note`).
_NOTES = ("steps", "num_steps", "seconds", "usd", "quality", "refused", "again", "worker")


def row_of(trial: "FrozenTrial", search: SearchSection) -> dict[str, Any]:
    """A line of trials.jsonl."""
    attributes = trial.user_attrs
    state = "refused" if attributes.get("refused") else trial.state.name.lower()
    if state == "pruned":
        state = "diverged" if attributes.get("diverged") else "too dear" if attributes.get("too_dear") else state
    found = dict(zip(search.objectives, trial.values, strict=True)) if trial.state.name == "COMPLETE" else {}
    return {
        "number": trial.number,
        "state": state,
        "params": values(search.space, trial.params),
        "values": found,
        "rungs": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
        **{name: attributes.get(name) for name in _NOTES},
    }


def line_of(row: Mapping[str, Any], num_steps: int, best: float | None, objective: str) -> str:
    """What is printed when a trial ends."""
    said = (row["quality"] or {}).get(objective)
    found = row["values"].get(objective, said)
    usd = f", {show_usd(row['usd'])}" if row["usd"] is not None else ""
    state = row["state"] if row["state"] != "complete" else "done"
    where = f" at step {row['steps']}" if (row["steps"] or 0) < num_steps else ""
    against = f" (best {show_number(best)})" if best is not None else ""
    params = " ".join(f"{path.rsplit('.', 1)[-1]}={_short(value)}" for path, value in row["params"].items())
    unknown = "not measured yet" if row["state"] == "too dear" else "not a number"
    quality = f"{objective} {show_number(found)}" if found is not None else unknown
    return f"trial {row['number']}: {state}{where}, {quality}{against}, {show_seconds(row['seconds'])}{usd}: {params}"


def summarise(
    config: RunConfig,
    rows: Sequence[Mapping[str, Any]],
    best: Sequence[int],
    *,
    num_steps: int,
    of_worker: dict[str, Any],
    setup_usd: float = 0.0,
) -> dict[str, Any]:
    """What summary.json holds.

    Args:
        rows: `row_of` every trial.
        best: numbers of the best.
        num_steps: of a whole trial.
        of_worker: what the process itself knows: `compiled`, `trials_here`, `seconds_here`, `members` ...
        setup_usd: what all workers have paid for no trial in particular.
    """
    ran = [row for row in rows if row["seconds"] is not None]  # those that were lost have cost something too
    steps = sum(row["steps"] or 0 for row in ran)
    seconds = sum(row["seconds"] for row in ran)
    usd = [row["usd"] for row in ran if row["usd"] is not None]
    spent = sum(usd) if len(usd) == len(ran) else None
    pruned = [row for row in ran if row["state"] == "pruned"]
    saved = sum((row["num_steps"] or num_steps) - (row["steps"] or 0) for row in pruned)
    states = {state: sum(row["state"] == state for row in rows) for state in sorted({row["state"] for row in rows})}
    by_number = {row["number"]: row for row in rows}
    kept = ("number", "params", "values", "quality", "usd", "seconds")
    found = [{key: by_number[number][key] for key in kept} for number in best]
    return {
        "status": "completed",
        "objectives": list(config.search.objectives),
        "trials": sum(row["state"] != "fail" for row in ran),
        "states": states,
        "best": found,
        "steps": steps,
        "steps_without_pruning": steps + saved,
        "steps_saved": saved,
        "seconds": seconds,
        "usd": spent + setup_usd if spent is not None else None,
        "usd_setup": setup_usd,
        "usd_saved": spent * saved / steps if spent is not None and steps else None,
        "random_trials_of_this_budget": steps / num_steps,
        **of_worker,
        "compiles_per_trial": of_worker["compiled"] / max(of_worker["trials_here"], 1),
    }


def write(path: Path, content: str) -> None:
    """Write a file whole, or not at all.

    Raises:
        RunError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError("the search's report cannot be written", where=path, got=error) from error


def write_all(
    folder: Path, config: RunConfig, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], picture: bool
) -> None:
    """trials.jsonl, summary.json, best.yaml (of several objectives best-0.yaml ...) and search.png."""
    write(folder / "trials.jsonl", "".join(json.dumps(to_json(row)) + "\n" for row in rows))
    write(folder / "summary.json", json.dumps(to_json(summary), indent=2, allow_nan=False) + "\n")
    best = summary["best"]
    names = ["best"] if len(best) == 1 else [f"best-{place}" for place in range(len(best))]
    for name, found in zip(names, best, strict=True):
        write(folder / f"{name}.yaml", best_yaml(config, found, folder / name))
    for old in best_files(folder):
        if old.stem not in names:
            old.unlink(missing_ok=True)  # another worker may end as well
    if picture and any(row["steps"] for row in rows):
        from jaxlean.search.picture import draw

        draw(rows, config.search, [found["number"] for found in best], folder / "search.png")


def best_files(folder: Path) -> list[Path]:
    """Those that a search wrote; not what somebody made of them under another name."""
    return [file for file in folder.glob("best*.yaml") if _BEST.fullmatch(file.name)]


def best_yaml(config: RunConfig, found: Mapping[str, Any], output_dir: Path) -> str:
    """A config that `jaxlean finetune` runs as it is; it opens with its command and what the trial found."""
    own = settings.with_values(config, found["params"] | {"output_dir": str(output_dir)})
    own = own.model_copy(update={"search": SearchSection()})
    values = ", ".join(f"{name} {_value(name, value)}" for name, value in found["values"].items())
    head = f"# jaxlean finetune {output_dir}.yaml\n# Trial {found['number']} of a search: {values}.\n"
    return head + settings.dump(own)


def print_table(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], console: "Console") -> None:
    """The best trials, and what the search took and saved."""
    from rich.table import Table

    objectives = summary["objectives"]
    best = {found["number"] for found in summary["best"]}
    done = [row for row in rows if row["state"] == "complete"]
    sign = 1 if objectives[0] in SMALL else -1
    done.sort(key=lambda row: (row["number"] not in best, sign * row["values"][objectives[0]]))
    table = Table("trial", *objectives, *(["settings"]), header_style="bold")
    for row in done[: max(_SHOWN, len(best))]:
        params = " ".join(f"{path}={_short(value)}" for path, value in row["params"].items())
        mark = "*" if row["number"] in best else ""
        table.add_row(f"{row['number']}{mark}", *(_value(name, row["values"][name]) for name in objectives), params)
    if done:
        console.print(table)
    total = summary["steps_without_pruning"]
    cost = Table(show_header=False)
    cost.add_column(style="bold")
    cost.add_column(overflow="fold")
    states = ", ".join(f"{number} {state}" for state, number in summary["states"].items())
    cost.add_row("trials", f"{summary['trials']} ({states})")
    saved = show_percent(summary["steps_saved"] / total if total else None)
    usd = f", {show_usd(summary['usd_saved'])}" if summary["usd_saved"] is not None else ""
    cost.add_row("steps", f"{show_count(summary['steps'])} of {show_count(total)}: pruning saved {saved}{usd}")
    cost.add_row(
        "at random", f"the same steps would have been {summary['random_trials_of_this_budget']:.1f} whole trials"
    )
    where = "in this process" if summary["isolation"] == "program" else "processes"
    cost.add_row("compiles per trial", f"{summary['compiles_per_trial']:.2f} ({summary['compiled']} {where})")
    cost.add_row("seconds", f"{show_seconds(summary['seconds'])} in trials, of all workers")
    setup = f", {show_usd(summary['usd_setup'])} of it for loading and compiling" if summary["usd_setup"] else ""
    cost.add_row(
        "cost", f"{show_usd(summary['usd'])}{setup}" if summary["usd"] is not None else "- (set cost.usd_per_hour)"
    )
    console.print(cost)


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in ("bytes", "memory_bytes"):
        return show_bytes(value)
    if name == "usd":
        return show_usd(value)
    return show_seconds(value) if name == "seconds" else show_number(value)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
