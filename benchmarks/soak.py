"""Whether a long run stays what it is: killed again and again it ends in the same bytes, and its memory does not grow.

    python benchmarks/soak.py [--quick] [--out DIR] [--steps 2000] [--kills 20] [--save-steps 50] [--seed 0]

The quickstart's job (2 million parameters, LoRA) with short sequences. One process takes all steps undisturbed: its
resident memory (VmRSS) is read whenever a checkpoint has reached the disk, and a line is fitted to what is read after
the first tenth of the steps, in which caches fill, and before the last one; its slope is bytes in 1,000 steps, with its
standard error. Then the same run is killed (SIGKILL) at so many random moments, half of them at a random step and some
time after it, the others at a random time after the start of the process, whatever it does then, and gone on with by
--resume each time. At the end adapter, counts and every line of the metrics are compared with the undisturbed run's.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report import publish

ROOT = Path(__file__).parent.parent
COLUMNS = {
    "process": "", "killed_at": ",", "resumed_at": ",", "lost_steps": ",", "seconds": ".1f", "saves": ",",
    "rss_start_mb": ".1f", "rss_end_mb": ".1f", "slope_bytes_per_1000_steps": "+,.0f", "slope_error": ",.0f",
}  # fmt: skip
COMPARED = ("status", "steps", "tokens", "total_tokens", "train_loss")


class Process:
    """`jaxlean finetune` under way: what it has told, and what memory it holds."""

    def __init__(self, run: Path, given: argparse.Namespace):
        overrides = [
            f"output_dir={run}", f"train.max_steps={given.steps}", f"train.save_steps={given.save_steps}",
            "train.per_device_train_batch_size=2", "data.max_length=128", "train.logging_steps=5", "data.eval=null",
            "report.progress=false",
        ]  # fmt: skip
        command = [sys.executable, "-m", "jaxlean", "finetune", "configs/quickstart.yaml", *overrides, "--resume"]
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        )  # fmt: skip
        self.step, self.said = 0, ""
        self.resumed_at: int | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said = (self.said + line)[-4000:]
            if found := re.match(r"step (\d+)/", line):
                self.step = int(found[1])
            elif found := re.match(r"resumed at step (\d+) of", line):
                self.step = self.resumed_at = int(found[1])
            elif line.startswith("no checkpoint to resume from"):
                self.resumed_at = 0

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def rss(self) -> int | None:
        """Resident bytes; None of a process that has ended."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return None
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) * 1024 if found else None

    def end(self) -> None:
        self.process.wait()
        self._reader.join()
        if self.process.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(f"exit code {self.process.returncode}: {self.said}")


def undisturbed(run: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One process for all steps, and its memory at each save."""
    process, samples = Process(run, given), []
    known: set[str] = set()
    while process.alive:
        try:
            there = {folder.name for folder in (run / "checkpoints").iterdir() if folder.name.isdecimal()}
        except OSError:
            there = set()
        for name in sorted(there - known, key=int):
            if (rss := process.rss) is not None:
                samples.append((int(name), rss))
        known |= there
        time.sleep(0.02)
    process.end()
    row: dict[str, Any] = {"process": "undisturbed", "seconds": time.monotonic() - process.started}
    return row | {"saves": len(samples), "rss": samples, **slope(samples, given.steps)}


def fitted(samples: Sequence[tuple[int, int]], steps: int) -> list[tuple[int, int]]:
    """Those that follow the first tenth, without that of the last step: while it is read the result is written."""
    return [sample for sample in samples if steps / 10 < sample[0] < steps]


def slope(samples: Sequence[tuple[int, int]], steps: int) -> dict[str, float]:
    """Least squares over `fitted`: bytes in 1,000 steps, and the slope's standard error."""
    import numpy as np

    later = np.array(fitted(samples, steps), np.float64)
    if len(later) < 3:
        return {}
    x, y = later[:, 0] / 1000, later[:, 1]
    b, a = np.polyfit(x, y, 1)
    rest = y - (a + b * x)
    error = np.sqrt(np.sum(rest**2) / (len(x) - 2) / np.sum((x - x.mean()) ** 2))
    found = {"slope_bytes_per_1000_steps": float(b), "slope_error": float(error)}
    return found | {"rss_start_mb": float(y[0]) / 1e6, "rss_end_mb": float(y[-1]) / 1e6}


def killed(run: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The same run, killed at random moments: a row for each process."""
    draw = random.Random(given.seed)
    steps = sorted(draw.sample(range(1, given.steps), given.kills))
    rows: list[dict[str, Any]] = []
    for number, target in enumerate(steps):
        process = Process(run, given)
        by_step, later = number % 2 == 0, draw.uniform(0.0, 0.3)
        after = draw.uniform(0.5, 12.0)
        while process.alive:
            done = process.step >= target if by_step else time.monotonic() - process.started >= after
            if done:
                time.sleep(later)
                break
            time.sleep(0.002)
        process.process.kill()
        process.end()
        rows.append({"process": f"kill {number + 1}", "killed_at": process.step, "resumed_at": process.resumed_at,
                     "seconds": time.monotonic() - process.started})  # fmt: skip
        if process.process.returncode == 0:
            raise SystemExit(f"the run ended before kill {number + 1}: fewer kills, or more steps")
        print(f"kill {number + 1} of {given.kills}: at step {process.step}", flush=True)
    process = Process(run, given)
    process.end()
    rows.append(
        {"process": "the last one", "resumed_at": process.resumed_at, "seconds": time.monotonic() - process.started}
    )
    went_on: int | None = None
    for row in reversed(rows):  # some were killed before they went on from anywhere
        if "killed_at" in row and went_on is not None:
            row["lost_steps"] = max(row["killed_at"] - went_on, 0)
        went_on = row["resumed_at"] if row["resumed_at"] is not None else went_on
    return rows


def differences(run: Path, whole: Path) -> list[str]:
    """What of a run is not what it is of the undisturbed one."""
    found = []
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        if (run / name).read_bytes() != (whole / name).read_bytes():
            found.append(name)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, whole)]
    found += [key for key in COMPARED if summaries[0][key] != summaries[1][key]]
    lines = [[json.loads(line) for line in (folder / "metrics.jsonl").open()] for folder in (run, whole)]
    told = [[(line["step"], line["loss"], line["grad_norm"], line["tokens"]) for line in every] for every in lines]
    return found + (["metrics.jsonl"] if told[0] != told[1] else [])


def plot(rows: Sequence[Mapping[str, Any]], steps: int, file: Path) -> None:
    """Memory at each save, with the line that was fitted; and where the other run was killed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    whole = rows[0]
    samples = np.array(whole["rss"], np.float64)
    figure, (memory, kills) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    memory.plot(samples[:, 0], samples[:, 1] / 1e6, ".", label="at each save")
    if "slope_bytes_per_1000_steps" in whole:
        later = np.array(fitted(whole["rss"], steps), np.float64)
        line = np.polyval(np.polyfit(later[:, 0], later[:, 1], 1), later[:, 0])
        label = f"{whole['slope_bytes_per_1000_steps'] / 1e6:+.2f} ± {whole['slope_error'] / 1e6:.2f} MB in 1,000 steps"
        memory.plot(later[:, 0], line / 1e6, label=label)
    memory.set(xlabel="step", ylabel="resident memory, MB", ylim=(0, samples[:, 1].max() / 1e6 * 1.15), title="Memory")
    memory.legend()
    for number, row in enumerate(rows[1:]):
        start = row["resumed_at"] or 0
        kills.plot([start, max(row.get("killed_at", steps), start)], [number, number], "-o", markersize=3)
    kills.set(xlabel="step", ylabel="process", title="From where each process went on, and to where it came")
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 steps, 2 kills, a checkpoint each 5")
    parser.add_argument("--out", type=Path, help="folder for soak.json and soak.png")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--save-steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.quick:
        given.steps, given.kills, given.save_steps = 60, 2, 5
    with tempfile.TemporaryDirectory(prefix="jaxlean-soak-") as temporary:
        whole, run = Path(temporary) / "whole", Path(temporary) / "run"
        rows = [undisturbed(whole, given)]
        print(f"undisturbed: {rows[0]['seconds']:.0f} s", flush=True)
        rows += killed(run, given)
        differ = differences(run, whole)
    config = {"steps": given.steps, "kills": given.kills, "save_steps": given.save_steps, "seed": given.seed}
    config |= {"bit_equal": not differ, "differences": differ}
    publish("soak", config, rows, COLUMNS, given.out)
    print("bit for bit as the undisturbed run" if not differ else f"NOT as the undisturbed run: {differ}")
    if given.out is not None:
        plot(rows, given.steps, given.out / "soak.png")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
