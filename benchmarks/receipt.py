"""How right a receipt is: what it says that each cut saves, against runs that are made without the cut.

    python benchmarks/receipt.py [--steps 60] [--turn 5] [--quick] [--out DIR]

The quickstart for --steps steps, then `jaxlean receipt` of it. Every cut that is another program is then left out of a
run of its own, typed as receipt.json says. `memory` is what the receipt says that the cut saves of a step's memory
(read off the compiled programs: nothing is run for it), `measured` what the process without it held more in its steps,
and `off` the difference of the two as a share of what it held. All runs go on at once, in turns of --turn seconds, the
others stopped, so that a machine that is slower for a while is so for all: `time` is what the receipt says that the cut
saves of the steps' time, `time_measured` what the runs took: the median over blocks of ten steps, the first left out,
and the quartiles.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import publish
from turns import take_turns

ROOT = Path(__file__).parent.parent
BLOCK = 10  # steps that are timed as one
COLUMNS = {
    "cut": "", "without": "", "memory_mb": ",.1f", "measured_mb": ",.1f", "without_mb": ",.1f",
    "without_measured_mb": ",.1f", "off": "+.1%", "time": "+.1%", "time_measured": "+.1%", "low": "+.1%",
    "high": "+.1%",
}  # fmt: skip


def settings(output: Path, given: argparse.Namespace) -> list[str]:
    return [
        sys.executable, "-m", "jaxlean", "finetune", "configs/quickstart.yaml", f"output_dir={output}",
        f"train.max_steps={given.steps}", f"train.save_steps={given.steps}", "train.logging_steps=1", "data.eval=null",
        "compilation_cache=false", "report.tensorboard=false", "report.progress=false", "cost.ledger=false",
    ]  # fmt: skip


class Run:
    """A run whose steps are timed while it has its turn."""

    def __init__(self, command: Sequence[str], output: Path):
        self.output, self.log, self.ends = output, output.parent / f"{output.name}.log", dict[int, float]()
        self._read = 0
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=out, stderr=out, process_group=0
            )
        os.killpg(self.process.pid, signal.SIGSTOP)

    def look(self, running: float) -> None:
        """Note the steps whose lines came."""
        file = self.output / "metrics.jsonl"
        if not file.exists() or file.stat().st_size == self._read:
            return
        with file.open("rb") as lines:
            lines.seek(self._read)
            for raw in lines:
                if not raw.endswith(b"\n"):
                    break
                self._read += len(raw)
                self.ends[json.loads(raw)["step"]] = running

    @property
    def step_seconds(self) -> list[float]:
        return [(self.ends[end] - self.ends[end - BLOCK]) / BLOCK for end in sorted(self.ends)[2 * BLOCK - 1 :: BLOCK]]

    @property
    def memory(self) -> int:
        found: int = json.loads((self.output / "summary.json").read_text())["measured_memory_bytes"]
        return found


def measure(work: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each cut that is another program."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = work / "first"
    for command in (settings(first, given), [sys.executable, "-m", "jaxlean", "receipt", str(first)]):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(done.stdout + done.stderr)
    print(done.stdout)
    receipt = json.loads((first / "receipt.json").read_text())
    cuts = [cut for cut in receipt["cuts"] if cut["kind"] == "program"]
    runs: dict[str, Run] = {}
    try:
        runs["with all"] = Run(settings(work / "with", given), work / "with")
        for number, cut in enumerate(cuts):
            output = work / f"without-{number}"
            runs[cut["cut"]] = Run([*settings(output, given), *cut["without"]], output)
        take_turns(
            {name: [run.process] for name, run in runs.items()}, {name: run.log for name, run in runs.items()},
            seconds=given.turn, look=lambda name, running: runs[name].look(running),
        )  # fmt: skip
    finally:
        for run in runs.values():
            run.process.kill()
    whole, rows = runs["with all"], []
    for cut in cuts:
        run, said, seconds = runs[cut["cut"]], cut["memory_bytes"], cut["seconds"]
        took = [1 - ours / theirs for ours, theirs in zip(whole.step_seconds, run.step_seconds, strict=True)]
        quartiles = statistics.quantiles(took, n=4, method="inclusive") if len(took) > 1 else took * 3
        steps = json.loads((first / "summary.json").read_text())["phases"]["step"]
        saved, held = said["without"] - said["with"], run.memory - whole.memory
        rows.append({
            "cut": cut["cut"], "without": " ".join(cut["without"]), "memory_mb": saved / 1e6, "measured_mb": held / 1e6,
            "without_mb": said["without"] / 1e6, "without_measured_mb": run.memory / 1e6,
            "with_mb": said["with"] / 1e6, "with_measured_mb": whole.memory / 1e6,
            "off": (saved - held) / run.memory,
            "time": 1 - steps / (steps + seconds["without"] - seconds["with"]),
            "time_measured": quartiles[1], "low": quartiles[0], "high": quartiles[2],
            "step_seconds": run.step_seconds, "step_seconds_with": whole.step_seconds,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--turn", type=float, default=5.0, help="seconds that one run has, the others stopped")
    parser.add_argument("--quick", action="store_true", help="20 steps")
    parser.add_argument("--out", type=Path, help="folder for receipt.json")
    given = parser.parse_args()
    if given.quick:
        given.steps = 20
    with tempfile.TemporaryDirectory(prefix="jaxlean-receipt-") as folder:
        rows = measure(Path(folder), given)
    publish("receipt", {"steps": given.steps, "turn": given.turn}, rows, COLUMNS, given.out)


if __name__ == "__main__":
    main()
