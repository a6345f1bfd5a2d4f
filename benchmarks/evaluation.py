"""What evaluation costs a step: none, in the loop, by a process with a core of its own, and by one that shares a core.

    python benchmarks/evaluation.py [--steps 200] [--every 20] [--repeats 3] [--cores 0 1] [--quick] [--out DIR]

Every run is `jaxlean finetune configs/quickstart.yaml` on one core, in a process of its own, and only `eval.mode`
changes. The evaluator is `jaxlean evaluate --watch`, started beside it and pinned to the second core, or to the same
one (with `nice 10`, as training starts its own, and with none). Arms are interleaved: a round takes each once, in turn
another first, so that a machine that warms up or is busy for a while does so for all.

`step_seconds` is the run's time in training steps over their number: what hands a snapshot over is in it, a `sync`
evaluation is not, which training waits for; `seconds_a_step` is what passed between two steps, that wait included.
`against_none` compares `step_seconds` with that of the same round without evaluation. Beside the medians stands the
spread: the largest less the smallest. `same` says whether each score is, to the last bit, the one of that step in the
loop.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import median, publish

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
    "arm": "", "repeats": "", "step_seconds": ".4f", "spread": ".4f", "against_none": "+.2%",
    "against_none_spread": ".2%", "seconds_a_step": ".4f", "scored": "", "skipped": "", "same": "",
}  # fmt: skip


def start(command: Sequence[str], core: int, log: Path) -> subprocess.Popen[bytes]:
    """A process on one core."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxlean", *command], cwd=ROOT, env=environment, stdout=out, stderr=out,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )  # fmt: skip
    return process


def run(arm: str, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run of an arm."""
    mode, apart, nice = ARMS[arm]
    folder.mkdir(parents=True)
    output, log = folder / "run", folder / "log"
    output.mkdir()
    training = start(
        [
            "finetune", "configs/quickstart.yaml", f"output_dir={output}", f"train.max_steps={given.steps}",
            f"train.save_steps={given.steps}", "train.logging_steps=10", f"eval.eval_steps={given.every}",
            f"eval.mode={mode}", "eval.evaluators=0", "eval.exact_match=false", "eval.before=false",
            f"eval.max_examples={given.examples}", "report.tensorboard=false", "report.progress=false",
        ],
        given.cores[0], log,
    )  # fmt: skip
    evaluator = None
    if mode == "async":
        core = given.cores[1] if apart else given.cores[0]
        evaluator = start(["evaluate", "--watch", str(output), "--nice", str(nice)], core, folder / "evaluator")
    try:
        if training.wait():
            raise RuntimeError(log.read_text())
    finally:
        training.kill()
        if evaluator is not None:
            try:
                evaluator.wait(30)
            except subprocess.TimeoutExpired:
                evaluator.kill()
                evaluator.wait()
    summary = json.loads((output / "summary.json").read_text())
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    counts = summary["evaluations"] or {}
    return {
        "step_seconds": summary["train_seconds"] / summary["steps"],
        "seconds_a_step": (steps[-1]["seconds"] - steps[0]["seconds"]) / (steps[-1]["step"] - steps[0]["step"]),
        "scores": {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line},
        "scored": counts.get("scored"),
        "skipped": counts.get("skipped"),
        "load": os.getloadavg()[0],
    }


def row_of(arm: str, found: list[dict[str, Any]], without: list[dict[str, Any]], wanted: dict[int, float]) -> Any:
    """A line of the table."""
    times = [one["step_seconds"] for one in found]
    against = [one / other["step_seconds"] - 1 for one, other in zip(times, without, strict=True)]
    scores = [(step, loss) for one in found for step, loss in one["scores"].items()]
    return {
        "arm": arm, "repeats": len(found), "step_seconds": median(times), "spread": max(times) - min(times),
        "against_none": median(against), "against_none_spread": max(against) - min(against),
        "seconds_a_step": median([one["seconds_a_step"] for one in found]),
        "scored": found[-1]["scored"], "skipped": found[-1]["skipped"],
        "same": all(wanted[step] == loss for step, loss in scores) if scores else None,
        "runs": found,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20, help="steps between evaluations")
    parser.add_argument("--examples", type=int, default=200, help="held-out rows")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs=2, default=[0, 1], help="of training; of the evaluator")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="none, sync and these")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.quick:
        given.steps, given.every, given.examples, given.repeats = 12, 4, 16, 1
        given.arms = ["async, own core"] if given.arms == list(ARMS) else given.arms
    arms = list(dict.fromkeys(["none", "sync", *given.arms]))
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as work:
        for repeat in range(given.repeats):
            turn = repeat % len(arms)
            for arm in [*arms[turn:], *arms[:turn]]:
                started = time.perf_counter()
                found[arm].append(run(arm, given, Path(work) / f"{repeat}-{arms.index(arm)}"))
                print(f"round {repeat + 1}, {arm}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    wanted = found["sync"][0]["scores"]
    rows = [row_of(arm, found[arm], found["none"], wanted) for arm in arms]
    settings = {key: getattr(given, key) for key in ("steps", "every", "examples", "repeats", "cores")}
    publish("evaluation", {"config": "configs/quickstart.yaml"} | settings, rows, COLUMNS, given.out)


if __name__ == "__main__":
    main()
