"""What evaluation costs a step: none, in the loop, by a process with a core of its own, and by one that shares a core.

    python benchmarks/evaluation.py [--steps 300] [--every 10] [--examples 300] [--turn 5] [--cores 0 1] [--quick]
                                    [--out DIR]

Every run is `jaxlean finetune configs/quickstart.yaml` on one core, in a process of its own, and only `eval.mode`
changes. The evaluator is `jaxlean evaluate --watch`, started beside it and pinned to the second core, or to the same
one (with `nice 10`, as training starts its own, and with none). A score takes longer than the steps between two
snapshots, so that the evaluator is never idle: the hardest case.

All runs go on at once, in turns of --turn seconds, the others stopped with their evaluators: a machine that is slower
for a while is so for all. Seconds are those in which a run had its turn. `step_seconds` is what passes between two
steps, all that evaluation costs included, in the median over blocks of --block steps (the first, which compiles, left
out); `against_none` compares each block with the same steps of the run without evaluation: median, and beside it
`low` and `high`, the quartiles. `busy` is the processor time of the evaluator over that time; `same` says whether each
score is, to the last bit, the one of that step in the loop.
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

from report import median, publish
from turns import take_turns

ROOT = Path(__file__).parent.parent
# name -> (eval.mode, whether the evaluator has the second core, its niceness)
ARMS: dict[str, tuple[str, bool, int]] = {
    "none": ("none", False, 0),
    "sync": ("sync", False, 0),
    "async, own core": ("async", True, 10),
    "async, shared core, nice 10": ("async", False, 10),
    "async, shared core, nice 0": ("async", False, 0),
}
COLUMNS = {
    "arm": "", "blocks": "", "step_seconds": ".4f", "against_none": "+.2%", "low": "+.2%", "high": "+.2%",
    "busy": ".2f", "scored": "", "skipped": "", "same": "",
}  # fmt: skip


class Run:
    """A training run of an arm, and its evaluator.

    Args:
        arm: of ARMS.
        folder: for what it writes; made.
    """

    def __init__(self, arm: str, given: argparse.Namespace, folder: Path):
        mode, apart, nice = ARMS[arm]
        self.output, self.log = folder / "run", folder / "log"
        self.output.mkdir(parents=True)
        self.ends: dict[int, float] = {}  # step -> running seconds when its line was there
        self.evaluator_seconds: dict[int, float] = {}  # step -> the evaluator's processor time by then
        self._read = 0
        self.processes = [self._start([
            "finetune", "configs/quickstart.yaml", f"output_dir={self.output}", f"train.max_steps={given.steps}",
            f"train.save_steps={given.steps}", "train.logging_steps=1", f"eval.eval_steps={given.every}",
            f"eval.mode={mode}", "eval.evaluators=0", "eval.exact_match=false", "eval.before=false",
            f"eval.max_examples={given.examples}", "report.tensorboard=false", "report.progress=false",
        ], given.cores[0])]  # fmt: skip
        if mode == "async":
            watch = ["evaluate", "--watch", str(self.output), "--nice", str(nice)]
            core = given.cores[1] if apart else given.cores[0]
            self.processes.append(self._start(watch, core, self.processes[0].pid))

    def _start(self, command: Sequence[str], core: int, group: int = 0) -> "subprocess.Popen[bytes]":
        """A process on one core."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        with self.log.open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "jaxlean", *command], cwd=ROOT, env=environment, stdout=out, stderr=out,
                process_group=group, preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )  # fmt: skip

    def look(self, running: float) -> None:
        """Note the steps whose lines came."""
        metrics = self.output / "metrics.jsonl"
        if not metrics.exists() or metrics.stat().st_size == self._read:
            return
        with metrics.open("rb") as lines:
            lines.seek(self._read)
            for raw in lines:
                if not raw.endswith(b"\n"):
                    break
                self._read += len(raw)
                line = json.loads(raw)
                if "loss" in line:
                    self.ends[line["step"]] = running
                    if len(self.processes) > 1:
                        self.evaluator_seconds[line["step"]] = processor_seconds(self.processes[1].pid)

    def blocks(self, steps: int, block: int) -> list[float]:
        """Seconds of a step in each block, without the first."""
        ends = range(block, steps + 1, block)
        return [(self.ends[end] - self.ends[end - block]) / block for end in ends[1:]]

    def scores(self) -> dict[int, float]:
        lines = [json.loads(line) for line in (self.output / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def row_of(arm: str, run: Run, without: Run, wanted: dict[int, float], given: argparse.Namespace) -> dict[str, Any]:
    """A line of the table."""
    took, other = run.blocks(given.steps, given.block), without.blocks(given.steps, given.block)
    against = [one / base - 1 for one, base in zip(took, other, strict=True)]
    quartiles = statistics.quantiles(against, n=4, method="inclusive") if len(against) > 1 else [against[0]] * 3
    summary, scores = json.loads((run.output / "summary.json").read_text()), run.scores()
    counts, used = summary["evaluations"] or {}, run.evaluator_seconds
    return {
        "arm": arm, "blocks": len(took), "step_seconds": median(took), "against_none": quartiles[1],
        "low": quartiles[0], "high": quartiles[2],
        "busy": (used[given.steps] - used[given.block]) / (run.ends[given.steps] - run.ends[given.block])
        if used else None,
        "scored": counts.get("scored"), "skipped": counts.get("skipped"),
        "same": all(wanted[step] == loss for step, loss in scores.items()) if scores else None,
        "seconds_of_blocks": took, "scores": scores,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=10, help="steps between evaluations")
    parser.add_argument("--examples", type=int, default=300, help="held-out rows")
    parser.add_argument("--block", type=int, default=20, help="steps that are timed as one; a multiple of --every")
    parser.add_argument("--turn", type=float, default=5.0, help="seconds that one run has, the others stopped")
    parser.add_argument("--cores", type=int, nargs=2, default=[0, 1], help="of training; of the evaluator")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="none, sync and these")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.quick:
        given.steps, given.every, given.examples, given.block = 12, 4, 16, 4
        given.arms = ["async, own core"] if given.arms == list(ARMS) else given.arms
    every_core = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {given.cores[1]})  # this process looks on from where no training is
    with tempfile.TemporaryDirectory() as work:
        runs: dict[str, Run] = {}
        try:
            for number, arm in enumerate(dict.fromkeys(["none", "sync", *given.arms])):
                runs[arm] = Run(arm, given, Path(work) / str(number))
                os.killpg(runs[arm].processes[0].pid, signal.SIGSTOP)
            take_turns(
                {arm: run.processes for arm, run in runs.items()}, {arm: run.log for arm, run in runs.items()},
                seconds=given.turn, look=lambda arm, running: runs[arm].look(running),
            )  # fmt: skip
        finally:
            for run in runs.values():
                for process in run.processes:
                    process.kill()
        wanted = runs["sync"].scores()
        rows = [row_of(arm, run, runs["none"], wanted, given) for arm, run in runs.items()]
    os.sched_setaffinity(0, every_core)
    settings = {key: getattr(given, key) for key in ("steps", "every", "examples", "block", "turn", "cores")}
    publish("evaluation", {"config": "configs/quickstart.yaml"} | settings, rows, COLUMNS, given.out)


if __name__ == "__main__":
    main()
