"""What pruning costs in quality and gives in speed, of a trained model on text that it was not calibrated on.

    python benchmarks/pruning.py --data DIR [--base FOLDER] [--work DIR] [--out DIR] [--quick] [--seeds 0 1 2]
                                 [--rows 64] [--held-out 64] [--max-length 512] [--heal-steps 200] [--repeats 7]

`--data` holds gsm8k_train.jsonl, of which are calibration and healing, and gsm8k_test.jsonl: of it is the perplexity.
`--base` is a folder with a model (benchmarks/smollm2.py makes one of SmolLM2-135M); default: the quickstart's.

    zeros       at 50 % and at 2 of 4: magnitude, Wanda, SparseGPT; for each seed other calibration rows
    structured  25 % fewer parameters, by neurons with and without least squares, and by whole layers: perplexity at
                once and after healing with LoRA, beside the base that has learned the same rows in the same way; then
                tokens a second of the forward pass (all logits) and of generation, the models in turn, so that a
                busy machine is busy for all of them

Perplexity and speed are medians over seeds and repeats; `spread` is largest less smallest, of speeds as a share of the
median. What is in --work is not made again.
"""

import argparse
import contextlib
import gc
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from problems import problems
from report import median, publish

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart" / "base"
SHARE = 0.75
STRUCTURED: dict[str, dict[str, Any]] = {
    "neurons": {"method": "neurons", "params": SHARE},
    "neurons, no least squares": {"method": "neurons", "params": SHARE, "compensate": False},
    "layers": {"method": "layers", "params": SHARE},
}
COLUMNS = {
    "what": "", "pattern": "", "params": ",", "perplexity": ".2f", "spread": ".2f", "healed": ".2f",
    "forward_tokens_s": ",.0f", "forward_spread": ".1%", "forward_speedup": ".2f",
    "generated_tokens_s": ",.1f", "generated_spread": ".1%", "generated_speedup": ".2f",
}  # fmt: skip


def make_rows(args: argparse.Namespace) -> None:
    """A problem a row."""
    for name in ("train", "test"):
        rows = problems(args.data / f"gsm8k_{name}.jsonl")
        text = "".join(json.dumps({"text": row}) + "\n" for row in rows)
        (args.work / f"{name}.jsonl").write_text(text, encoding="utf-8")


def config_of(args: argparse.Namespace, model: Path, **more: Any) -> dict[str, Any]:
    """What all arms share."""
    held_out = {"path": str(args.work / "test.jsonl"), "limit": args.held_out}
    return {
        "model": {"path": str(model), "dtype": args.dtype},
        "data": {
            "train": str(args.work / "train.jsonl"), "eval": [held_out], "max_length": args.max_length,
            "on_long": "truncate", "train_on": "all",
        },
        "calibration": {"num_rows": args.rows, "max_length": args.max_length},
        "eval": {"per_device_eval_batch_size": 8},
        "report": {"tensorboard": False, "progress": False},
        **more,
    }  # fmt: skip


def pruned(args: argparse.Namespace, name: str, settings: Mapping[str, Any], seed: int) -> tuple[Path, dict[str, Any]]:
    """(the folder, what is said of it); made where it is not there yet."""
    from jaxlean.config import build
    from jaxlean.run.prune import prune

    folder = args.work / f"{name.replace(' ', '_').replace(',', '')}-{seed}"
    if not (folder / "pruning.json").exists():
        config = config_of(args, args.base, prune=settings, seed=seed)
        with contextlib.redirect_stdout(io.StringIO()):
            prune(build(config), output=folder)
    return folder, json.loads((folder / "pruning.json").read_text(encoding="utf-8"))


def healed(args: argparse.Namespace, model: Path, name: str, seed: int) -> float:
    """The perplexity after LoRA on the training problems."""
    from jaxlean.config import build
    from jaxlean.run.finetune import finetune

    run = args.work / f"heal-{name.replace(' ', '_').replace(',', '')}-{seed}"
    if not (run / "summary.json").exists() or json.loads((run / "summary.json").read_text())["status"] != "completed":
        config = config_of(
            args, model, output_dir=str(run), seed=seed,
            lora={"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
            train={
                "learning_rate": 1e-3, "max_steps": args.heal_steps, "per_device_train_batch_size": args.batch_size,
                "save_steps": args.heal_steps,
            },
        )  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            finetune(build({**config, "eval": {**config["eval"], "before": False}}), overwrite=True)
    return json.loads((run / "summary.json").read_text())["eval_after"]["perplexity"]


def speeds(args: argparse.Namespace, folders: Mapping[str, Path]) -> dict[str, dict[str, list[float]]]:
    """Tokens a second, the models in turn: of the forward pass, and generated."""
    from jaxlean.hub.load import load
    from jaxlean.run.generate import generate

    tokens = np.random.default_rng(0).integers(5, 2000, (args.batch_size, args.max_length), np.int32)
    prompt = [tokens[0, :32].tolist()]
    todo: dict[str, dict[str, Callable[[], int]]] = {}
    for name, folder in folders.items():
        model = load(folder, args.dtype)

        def forward(model: Any = model) -> int:
            model(tokens).block_until_ready()
            return tokens.size

        def generation(model: Any = model) -> int:
            return len(generate(model, prompt, max_new_tokens=args.new_tokens, stop=())[0])

        todo[name] = {"forward": forward, "generated": generation}
    found: dict[str, dict[str, list[float]]] = {name: {"forward": [], "generated": []} for name in folders}
    for repeat in range(args.repeats + 1):
        for name, each in todo.items():
            for what, run in each.items():
                started = time.perf_counter()
                num = run()
                if repeat:  # the first compiles
                    found[name][what].append(num / (time.perf_counter() - started))
    return found


def spread(values: Sequence[float]) -> float:
    """Largest less smallest."""
    return max(values) - min(values)


def zeros(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Part one."""
    rows: list[dict[str, Any]] = []
    for pattern in ("50 %", "2:4"):
        for method in ("magnitude", "wanda", "sparsegpt"):
            seeds = args.seeds[:1] if method == "magnitude" else args.seeds  # which needs no rows
            settings = {"method": method} | ({"pattern": pattern} if ":" in pattern else {"sparsity": 0.5})
            said = [pruned(args, f"{method}-{pattern[:2].replace(':', 'of')}", settings, seed)[1] for seed in seeds]
            found = [one["eval_after"]["perplexity"] for one in said]
            if not rows:
                was = said[0]["eval_before"]["perplexity"]
                rows.append({"what": "the base", "params": said[0]["num_params"], "perplexity": was})
            rows.append({
                "what": method, "pattern": pattern, "params": said[0]["num_params"], "perplexity": median(found),
                "spread": spread(found), "perplexities": found, "zeros": said[0]["zeros"],
            })  # fmt: skip
            gc.collect()
    return rows


def structured(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Part two."""
    rows: list[dict[str, Any]] = []
    folders = {"the base": args.base}
    for name, settings in STRUCTURED.items():
        made = [pruned(args, name, settings, seed) for seed in args.seeds]
        found = [said["eval_after"]["perplexity"] for _, said in made]
        if not rows:
            was = made[0][1]
            again = healed(args, args.base, "base", args.seeds[0])
            before = was["eval_before"]["perplexity"]
            rows.append({
                "what": "the base", "params": was["num_params_before"], "perplexity": before, "healed": again
            })  # fmt: skip
        folders[name] = made[0][0]
        rows.append({
            "what": name, "params": made[0][1]["num_params"], "perplexity": median(found), "spread": spread(found),
            "perplexities": found, "healed": healed(args, made[0][0], name, args.seeds[0]),
        })  # fmt: skip
        gc.collect()
    timed = speeds(args, folders)
    for row in rows:
        for key in ("forward", "generated"):
            values, base = timed[row["what"]][key], timed["the base"][key]
            row[f"{key}_tokens_s"] = median(values)
            row[f"{key}_spread"] = spread(values) / median(values)
            # of neighbours in time
            row[f"{key}_speedup"] = median([one / other for one, other in zip(values, base, strict=True)])
            row[f"{key}_repeats"] = values
    return rows


def main() -> None:
    """Prune, heal, time, publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", type=Path, default=QUICKSTART)
    parser.add_argument("--work", type=Path, default=Path("runs/pruning"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="a few rows, under a minute")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=64, help="calibration sequences")
    parser.add_argument("--held-out", type=int, default=256, help="held-out problems")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--heal-steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--parts", nargs="+", default=["zeros", "structured"], choices=["zeros", "structured"])
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.rows, args.held_out, args.max_length = args.seeds[:1], 8, 8, 128
        args.heal_steps, args.batch_size, args.new_tokens, args.repeats = 2, 4, 8, 2
    args.work.mkdir(parents=True, exist_ok=True)
    make_rows(args)
    rows: list[dict[str, Any]] = []
    for part in args.parts:
        rows += {"zeros": zeros, "structured": structured}[part](args)
    config = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    publish("pruning", config, rows, COLUMNS, args.out)


if __name__ == "__main__":
    main()
