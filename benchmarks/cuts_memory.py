"""One cut after another on one model: what each does to memory and speed.

    python benchmarks/cuts_memory.py [--quick] [--out DIR] [--shape 135m] [--batch 4] [--length 512] [--steps 4]

Every row is `jaxlean finetune` of a random Llama with the overrides of all rows up to it, in a process of its own with
nothing cached, so the column `override` is what a user adds to a config. The first row trains every parameter in
float32. Tokens/s are the run's own (compilation apart). `step` is what a step takes on one device by XLA's analysis:
parameters, optimizer, activations. `peak` is what was measured: of the device where it counts that itself, on CPU of
the whole process, in which Python, its packages and the compiler take half a GB.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import peers_job
from report import median, publish

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart"
BASELINE = ("lora=null", "model.dtype=float32", "train.loss_chunk_bytes=null", "train.remat=none")
# (cut, what is added to the overrides before)
CUTS = (
    ("full fine-tune, float32", ()),
    ("bfloat16", ("model.dtype=bfloat16",)),
    ("chunked loss", ("train.loss_chunk_bytes=auto",)),
    ("remat", ("train.remat=full",)),
    ("LoRA r 16", ("lora={}",)),
    ("int8 base", ("model.quantization=int8",)),
    ("NF4 base", ("model.quantization=nf4",)),
)
COLUMNS = {
    "cut": "", "override": "", "tokens_per_second": ",.0f", "spread": ".0%", "step_gb": ".2f",
    "of_first": ".1%", "peak_memory_gb": ".2f", "peak_of_first": ".1%", "train_loss": ".3f",
}  # fmt: skip


def run(base: Path, output: Path, overrides: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """One run; its summary."""
    settings = [
        f"model.path={base}", f"model.tokenizer={QUICKSTART / 'base'}", f"data.train={QUICKSTART / 'train.jsonl'}",
        "data.eval_fraction=0", f"data.max_length={args.length}", "data.train_on=all", "data.chat=false",
        f"train.per_device_train_batch_size={args.batch}", f"train.max_steps={args.steps}", "train.logging_steps=1",
        f"train.save_steps={args.steps}", "train.learning_rate=1e-5", "compilation_cache=false",
        "report.tensorboard=false", "report.progress=false", f"output_dir={output}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "jaxlean", "finetune", str(base.parent / "defaults.yaml"), *settings, *overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(overrides)}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return json.loads((output / "summary.json").read_text())


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each cut: the median over rounds, which are taken in turn."""
    found: dict[str, list[dict[str, Any]]] = {cut: [] for cut, _ in CUTS}
    with tempfile.TemporaryDirectory(prefix="jaxlean-cuts-") as folder:
        base = Path(folder) / "base"
        peers_job.write_base(base, args.shape)
        (Path(folder) / "defaults.yaml").write_text("{}\n")  # of jaxlean; all settings are overrides
        for number in range(args.rounds):
            overrides = list(BASELINE)
            for cut, added in CUTS:
                overrides += added
                summary = run(base, Path(folder) / f"{cut}-{number}", overrides, args)
                found[cut].append(summary)
                print(f"{cut}: {summary['tokens_per_second']:,.0f} tokens/s, "
                      f"{summary['peak_memory_bytes'] / 1e9:.2f} GB", flush=True)  # fmt: skip
    rows = []
    for cut, added in CUTS:
        own = found[cut]
        speeds = [summary["tokens_per_second"] for summary in own]
        peak = median([summary["peak_memory_bytes"] for summary in own])
        rows.append({
            "cut": cut, "override": " ".join(added), "tokens_per_second": median(speeds),
            "spread": (max(speeds) - min(speeds)) / median(speeds), "peak_memory_bytes": peak,
            "step_memory_bytes": own[0]["predicted_memory_bytes"],
            "step_gb": own[0]["predicted_memory_bytes"] / 1e9,
            "peak_memory_gb": peak / 1e9, "train_loss": own[0]["train_loss"], "runs": own,
        })  # fmt: skip
    for row in rows:
        row["of_first"] = row["step_memory_bytes"] / rows[0]["step_memory_bytes"]
        row["peak_of_first"] = row["peak_memory_bytes"] / rows[0]["peak_memory_bytes"]
    return rows


def plot(rows: list[dict[str, Any]], title: str, file: Path) -> None:
    """Memory and speed, cut after cut."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (memory, speed) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained", sharey=True)
    names = [row["cut"] if number == 0 else f"+ {row['cut']}" for number, row in enumerate(rows)]
    memory.barh(names, [row["peak_memory_gb"] for row in rows], color="0.8", label="peak of the process or device")
    memory.barh(names, [row["step_gb"] for row in rows], color="C0", label="the step, by XLA's analysis")
    for number, row in enumerate(rows):
        memory.text(row["peak_memory_gb"], number, f" {row['step_gb']:.2f} ({row['of_first']:.0%})", va="center")
    memory.legend(loc="lower right")
    speed.barh(names, [row["tokens_per_second"] for row in rows], color="C1")
    memory.set(xlabel="memory, GB", title=title)
    memory.margins(x=0.25)
    speed.set(xlabel="tokens/s")
    memory.invert_yaxis()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, 2 steps, one round")
    parser.add_argument("--out", type=Path, help="folder for cuts_memory.json and cuts_memory.png")
    parser.add_argument("--shape", choices=peers_job.SHAPES, default="135m")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    if args.quick:
        args.shape, args.length, args.steps, args.rounds = "tiny", 128, 2, 1
    rows = measure(args)
    config = {key: value for key, value in vars(args).items() if key != "out"} | {"baseline": BASELINE}
    publish("cuts_memory", config, rows, COLUMNS, args.out)
    if args.out is not None:
        plot(rows, f"{args.shape}, {args.batch} x {args.length}", args.out / "cuts_memory.png")


if __name__ == "__main__":
    main()
