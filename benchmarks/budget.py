"""How far runs with a random limit pass it, and whether each can be resumed to the same bytes.

    python benchmarks/budget.py [--runs 20] [--steps 60] [--seed 0] [--quick] [--out DIR]

The quickstart for --steps steps with an evaluation and a checkpoint each ten, once without limits; then --runs runs,
each with `cost.max_hours`, `max_usd` or `max_kwh` drawn between 5 % and 95 % of what that one used: limits fall into
loading and compiling, steps, evaluations, the writing. `used` is what a stopped run's summary says, `over` how much of
it is beyond the limit in seconds of the run (negative: it left before), `over_steps` the same in its steps, and
`process` what passed by the clock of this script from the start of the process to its end, interpreter and exit
included, beyond the limit. `steps` is where it stopped. `same` says whether the run, resumed without a limit, ends with
the adapter of the run that was never stopped, to the last byte.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import publish

ROOT = Path(__file__).parent.parent
LIMITS = {"hours": "max_hours", "usd": "max_usd", "kwh": "max_kwh"}
EXIT_BUDGET = 3
COLUMNS = {
    "run": "", "limit": "", "most": ".3e", "used": ".3e", "over": "+.2f", "over_steps": "+.1f", "process": "+.2f",
    "status": "", "exit": "", "steps": "", "same": "",
}  # fmt: skip


def run(output: Path, given: argparse.Namespace, *more: str) -> tuple[int, float, str]:
    """(exit status, seconds, what it said) of the quickstart."""
    command = [
        sys.executable, "-m", "jaxlean", "finetune", "configs/quickstart.yaml", f"output_dir={output}",
        f"train.max_steps={given.steps}", "train.save_steps=10", "train.logging_steps=1", "eval.eval_steps=10",
        "eval.max_examples=64", "eval.exact_match=false", "report.tensorboard=false", "report.progress=false",
        "cost.ledger=false", f"compilation_cache={output.parent / 'compiled'}", *more,
    ]  # fmt: skip
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    return done.returncode, time.monotonic() - start, done.stdout + done.stderr


def summary_of(output: Path) -> dict[str, Any]:
    file = output / "summary.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def used_of(summary: dict[str, Any], limit: str) -> float:
    return summary["seconds"] / 3600 if limit == "hours" else summary[limit]


def measure(work: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each limited run."""
    for name in ("first", "whole"):  # the first fills the compilation cache
        code, _, said = run(work / name, given)
        if code != 0:
            sys.exit(said)
    whole, wanted = summary_of(work / "whole"), (work / "whole" / "adapter" / "adapter_model.safetensors").read_bytes()
    dice, rows = random.Random(given.seed), []
    for number in range(given.runs):
        limit = list(LIMITS)[number % len(LIMITS)]
        most = dice.uniform(0.05, 0.95) * used_of(whole, limit)
        output = work / str(number)
        code, seconds, said = run(output, given, f"cost.{LIMITS[limit]}={most!r}")
        summary = summary_of(output)
        row = {"run": number, "limit": LIMITS[limit], "most": most, "exit": code, "status": summary.get("status")}
        if summary:
            used = used_of(summary, limit)
            a_second = used / summary["seconds"]  # of the limited quantity
            row |= {"used": used, "over": (used - most) / a_second, "steps": summary["steps"]}
            if summary["measured_step_seconds"]:
                row["over_steps"] = row["over"] / summary["measured_step_seconds"]
            row["process"] = seconds - most / a_second
        if code == EXIT_BUDGET:
            again, _, told = run(output, given, "--resume", f"cost.{LIMITS[limit]}=null")
            adapter = output / "adapter" / "adapter_model.safetensors"
            row["same"] = again == 0 and adapter.read_bytes() == wanted
            said += told
        row["said"] = said[-1500:]
        rows.append(row)
        print(json.dumps({key: value for key, value in row.items() if key != "said"}), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the limits")
    parser.add_argument("--quick", action="store_true", help="three runs of 20 steps")
    parser.add_argument("--out", type=Path, help="folder for budget.json")
    given = parser.parse_args()
    if given.quick:
        given.runs, given.steps = 3, 20
    with tempfile.TemporaryDirectory(prefix="jaxlean-budget-") as folder:
        rows = measure(Path(folder), given)
    publish("budget", {key: getattr(given, key) for key in ("runs", "steps", "seed")}, rows, COLUMNS, given.out)


if __name__ == "__main__":
    main()
