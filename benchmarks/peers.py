"""The same LoRA job in jaxlean and in torch + transformers + PEFT: tokens/s, peak memory, time to the first step.

    python benchmarks/peers.py [--quick] [--out DIR] [--shape 135m] [--batch 4] [--length 512] [--steps 20]
    python benchmarks/peers.py --gpu [--quick] [--out DIR]

Both read one folder of files: a random Llama in bfloat16, an adapter of rank 16 on all linear layers, the batches.
Optimizer (AdamW, constant rate, gradients clipped at 1), order of the batches and dtype are the same, every system runs
in a process of its own, one after the other, and their losses must agree. The first step, which compiles, is reported
apart; the others are the repeats. `pip install -e '.[peers]'` brings torch and PEFT; --torch names another Python that
has them. --gpu: Llama-3.2-1B and Llama-3.1-8B shapes, batch x 2048, bfloat16, PEFT also with torch.compile; the whole
takes less than 8 minutes on one H100. With --quick it is the dry run of that, with tiny shapes on whatever is there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import peers_job
from report import median, publish

from jaxlean.cost.flops import model_flops_utilisation

HERE = Path(__file__).parent
# On CPU a layer's MLP and attention are dear to compute again and memory is cheap: everything but the sums and norms.
KEPT = ["query", "key", "value", "context", "attention_lse", "attention_out", "gate", "up", "lora_low"]
# Largest difference of two losses of one step, relative: rounding, which grows from step to step.
AGREE = {"float32": 2e-4, "bfloat16": 5e-3}
# Dense bfloat16 products a second, by a part of the device's name (the vendor's data sheets).
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "L40S": 362e12}
COLUMNS = {
    "shape": "", "batch": "d", "dtype": "", "system": "", "tokens_per_second": ",.0f", "spread": ".0%",
    "speedup": ".2f", "peak_memory_gb": ".2f", "memory_share": ".2f", "first_step_seconds": ".1f", "mfu": ".1%",
    "loss_difference": ".1e", "failed": "",
}  # fmt: skip


@dataclass(frozen=True)
class System:
    """One column of the comparison: a script and its flags; `steps` fewer than the job's, where it is slow."""

    name: str
    script: str
    flags: tuple[str, ...] = ()
    steps: int | None = None


def systems(gpu: bool, cores: int) -> list[System]:
    """What is compared; the first is PEFT as people start it, to which all others are set in relation."""
    peft, ours = "peers_torch.py", "peers_jaxlean.py"
    if gpu:
        return [
            System("PEFT", peft),
            System("PEFT, torch.compile", peft, ("--compile",)),
            System("PEFT, checkpointing", peft, ("--checkpointing",)),
            System("jaxlean", ours, ("--remat", "auto")),
            System("jaxlean, remat full", ours, ("--remat", "full")),
        ]
    host = ("--host-devices", str(cores))
    return [
        System("PEFT", peft),
        System("PEFT, adapter in dtype", peft, ("--adapter-dtype", "compute"), 5),
        System("PEFT, checkpointing", peft, ("--checkpointing",), 5),
        System("jaxlean", ours, ("--remat", json.dumps(KEPT), *host)),
        System("jaxlean, one device", ours, ("--remat", json.dumps(KEPT)), 5),
        System("jaxlean, remat full", ours, ("--remat", "full", *host), 5),
    ]


def run(system: System, job: Path, dtype: str, python: str) -> dict[str, Any]:
    """One system on the job; a run that fails is a row that says why."""
    interpreter = python if system.script == "peers_torch.py" else sys.executable
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    settings = json.loads((job / "job.json").read_text())
    command = [interpreter, str(HERE / system.script), str(job), "--dtype", dtype, *system.flags]
    command += ["--steps", str(min(system.steps or settings["steps"], settings["steps"]))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        out_of_memory = next((line for line in lines if "out of memory" in line.lower() or "EXHAUSTED" in line), None)
        return {"failed": "out of memory" if out_of_memory else (lines or ["no message"])[-1][:120]}
    found = json.loads(done.stdout.splitlines()[-1])
    ends = found["ends"]
    return found | {"seconds": [later - earlier for earlier, later in pairwise(ends)]}


def compare(
    job: Path, shape: str, dtype: str, chosen: Sequence[System], python: str, size: tuple[int, int]
) -> list[Any]:
    """A row for each system, the first being what the others are measured by."""
    rows: list[dict[str, Any]] = []
    for system in chosen:
        row = {"shape": shape, "batch": size[0], "length": size[1], "dtype": dtype, "system": system.name}
        row |= run(system, job, dtype, python)
        rows.append(row)
        if "failed" not in row:
            _add_figures(row, rows[0], size)
        speed = row.get("failed") or f"{row['tokens_per_second']:,.0f} tokens/s, {row['peak_memory_gb']:.2f} GB"
        print(f"{shape} {dtype} {system.name}: {speed}", flush=True)
    return rows


def _add_figures(row: dict[str, Any], first: dict[str, Any], size: tuple[int, int]) -> None:
    step = median(row["seconds"])
    row |= {
        "tokens_per_second": size[0] * size[1] / step,
        "spread": (max(row["seconds"]) - min(row["seconds"])) / step,
        "first_step_seconds": row["ends"][0],
        "peak_memory_gb": row["peak_memory_bytes"] / 1e9,
    }
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in row["device"]), None)
    if peak is not None and row["dtype"] == "bfloat16":
        row["mfu"] = model_flops_utilisation(peers_job.step_flops(row["shape"], *size), step, peak)
    if "failed" not in first:
        row["speedup"] = row["tokens_per_second"] / first["tokens_per_second"]
        row["memory_share"] = row["peak_memory_bytes"] / first["peak_memory_bytes"]
        pairs = list(zip(row["losses"], first["losses"], strict=False))
        row["loss_difference"] = max(abs(ours - theirs) / theirs for ours, theirs in pairs)
        row["losses_agree"] = row["loss_difference"] <= AGREE[row["dtype"]]


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Tokens/s against peak memory, and the loss curves: a row of the two for each shape and dtype."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(dict.fromkeys((row["shape"], row["dtype"]) for row in rows))
    figure, axes = pyplot.subplots(len(kinds), 2, figsize=(13, 4.5 * len(kinds)), layout="constrained", squeeze=False)
    for (speed, loss), kind in zip(axes, kinds, strict=True):
        own = [row for row in rows if (row["shape"], row["dtype"]) == kind and "failed" not in row]
        for number, row in enumerate(own):
            color, below = f"C{number}", "one device" in row["system"]
            star = "*" if row["system"].startswith("jaxlean") else "o"
            speed.scatter(row["peak_memory_gb"], row["tokens_per_second"], color=color, marker=star, s=110)
            speed.annotate(row["system"], (row["peak_memory_gb"], row["tokens_per_second"]), fontsize=8,
                           textcoords="offset points", xytext=(0, -16 if below else 9), ha="center")  # fmt: skip
            loss.plot(range(1, len(row["losses"]) + 1), row["losses"], color=color, label=row["system"],
                      linestyle="--" if star == "*" else "-")  # fmt: skip
        speed.set(xlabel="peak memory, GB", ylabel="tokens/s (median)", title=f"{kind[0]}, {kind[1]}")
        speed.set(xlim=(0, 1.15 * max(row["peak_memory_gb"] for row in own)))
        speed.set(ylim=(0, 1.15 * max(row["tokens_per_second"] for row in own)))
        loss.set(xlabel="step", ylabel="loss", title="Loss, same weights and batches")
        loss.legend(fontsize=8)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, few steps: the same code in two minutes")
    parser.add_argument("--gpu", action="store_true", help="the two shapes, and torch.compile")
    parser.add_argument("--out", type=Path, help="folder for peers.json and peers.png")
    parser.add_argument("--shape", choices=peers_job.SHAPES, default="135m")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtypes", nargs="+", choices=tuple(AGREE), default=["bfloat16", "float32"])
    parser.add_argument("--systems", nargs="+", help="only these, by name")
    parser.add_argument("--torch", default=sys.executable, help="the Python that has torch and PEFT")
    args = parser.parse_args()

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = [(args.shape, args.batch, args.length)]
    dtypes, steps = args.dtypes, args.steps
    if args.gpu:
        jobs, dtypes = [("1b", 8, 2048), ("8b", 2, 2048)], ["bfloat16"]
    if args.quick:
        jobs, steps = [("tiny", 4, 64) for _ in jobs[:1]], 4
    chosen = [s for s in systems(args.gpu, cores) if args.systems is None or s.name in args.systems]
    rows = []
    with tempfile.TemporaryDirectory(prefix="jaxlean-peers-") as folder:
        for shape, batch, length in jobs:
            job = Path(folder) / shape
            peers_job.prepare(job, shape, rows=batch, length=length, steps=steps, r=16, learning_rate=2e-4)
            for dtype in dtypes:
                rows += compare(job, shape, dtype, chosen, args.torch, (batch, length))
    config = {"jobs": jobs, "steps": steps, "lora_r": 16, "systems": {s.name: [s.script, *s.flags] for s in chosen}}
    name = "peers_gpu" if args.gpu else "peers"
    publish(name, config, rows, COLUMNS, args.out)
    if args.out is not None:
        plot(rows, args.out / f"{name}.png")
    disagree = [row["system"] for row in rows if row.get("losses_agree") is False]
    if disagree:
        sys.exit(f"losses do not agree: {', '.join(disagree)}")


if __name__ == "__main__":
    main()
