"""Does it pay to begin with easy rows? Steps to the held-out loss at which random order ends: `data.curriculum`.

    python benchmarks/curriculum.py --task quickstart [--steps 400] [--seeds 3] [--arms NAME ...] [--quick] [--out DIR]
    python benchmarks/curriculum.py --task gsm8k --train gsm8k_train.jsonl --test gsm8k_test.jsonl ...

Every run is `jaxlean finetune` with the settings in `ARMS` and nothing else changed. quickstart: the adapter of
configs/quickstart.yaml, its sequences twice as long and half as many a step, since rows of like length fill them badly
otherwise. gsm8k: a Llama of a million parameters from zero, all of which train, next token, over a BPE of
2,048 tokens trained on the training file.

The learning rate is constant after the warm-up. Under one that falls to zero most of the gain comes at the end,
whatever the order, and no arm could reach early what random order reaches there. `--decay` asks the other way round:
with a cosine each arm has its own budget, and what it reaches in 80 % of the steps is put against what random order
reaches in 60, 80 and 100 %.

`saved` is the share of steps fewer that an arm needed to come to the loss at which random order, with the same seed,
ended; a negative number says that it had not come there by its end, and by how much earlier random order was where
it ended. Held-out losses are means of three evaluations one after the other (each 5 % of the run), so that a lucky one
is no gain. `loss` is a column here, measured once: of the quickstart by its base; of gsm8k, which starts from zero, by
a model trained in random order on another seed for a third of the steps. Those seconds are `scoring_seconds`.

With --out each run is kept in a file of its own, and left out when the command is given again: it can be cut off.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from report import publish

CONFIGS = Path(__file__).parent.parent / "configs"
RANDOM = "random order"
# name -> the section data.curriculum; None: no curriculum
ARMS: dict[str, dict[str, Any] | None] = {
    RANDOM: None,
    "length": {"difficulty": "length"},
    "rarity": {"difficulty": "rarity"},
    "loss": {"difficulty": "column", "column": "loss"},
    "length, linear": {"difficulty": "length", "pacing": "linear"},
    "length, step": {"difficulty": "length", "pacing": "step"},
    "length, root": {"difficulty": "length", "pacing": "root"},
    "length, mild": {"difficulty": "length", "start": 0.5, "until": 0.3, "floor": 0.3},
    "loss, mild": {"difficulty": "column", "column": "loss", "start": 0.5, "until": 0.3, "floor": 0.3},
    "length, no floor": {"difficulty": "length", "floor": 0.0},
    "length, slow": {"difficulty": "length", "until": 0.9, "pacing": "linear"},
    "loss, slow": {"difficulty": "column", "column": "loss", "until": 0.9, "pacing": "linear"},
    "length, hard first": {"difficulty": "length", "order": "hard_first"},
    "rarity, hard first": {"difficulty": "rarity", "order": "hard_first"},
    "loss, hard first": {"difficulty": "column", "column": "loss", "order": "hard_first"},
    "random scores": {"difficulty": "length", "order": "random"},
}
COLUMNS = {
    "arm": "", "seeds": "", "steps": ",", "held_out_loss": ".4f", "spread": ".4f", "against_random": "+.4f",
    "against_random_spread": ".4f", "saved": "+.1%", "saved_spread": ".1%",
}  # fmt: skip
REFERENCE_SEED = 1000
EVALUATIONS = 20
MODEL = {
    "model_type": "llama", "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "initializer_range": 0.05, "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}  # fmt: skip


def values(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The config that all arms share."""
    steps = given.steps
    rest: dict[str, Any] = {
        "report": {"tensorboard": False, "progress": False},
        "data": {"train": str(work / "train.jsonl"), "packing": True},
    }
    train = {
        "max_steps": steps, "warmup_steps": max(steps // 20, 1), "logging_steps": max(steps // EVALUATIONS, 1),
        "lr_scheduler_type": "cosine" if given.decay else "constant", "save_steps": steps, "save_total_limit": 1,
        "adam_beta2": 0.99,
    }  # fmt: skip
    rest["eval"] = {"before": False, "per_device_eval_batch_size": 16, "eval_steps": max(steps // EVALUATIONS, 1)}
    if given.task == "quickstart":
        rest["model"] = {"path": str(CONFIGS / "quickstart" / "base")}
        rest["data"] |= {"eval": str(CONFIGS / "quickstart" / "heldout.jsonl"), "max_length": 384}
        rest["lora"] = {"r": 32, "lora_alpha": 64, "target_modules": "all-linear"}
        rest["train"] = train | {"learning_rate": 3e-3 if given.decay else 1e-3, "per_device_train_batch_size": 4}
    else:
        rest["model"] = {"architecture": MODEL, "tokenizer": str(work / "tokenizer"), "dtype": "float32"}
        rest["data"] |= {"eval": str(work / "test.jsonl"), "max_length": 512, "on_long": "drop", "train_on": "all"}
        rest["lora"] = None
        rest["train"] = train | {"learning_rate": 3e-3, "weight_decay": 0.05, "per_device_train_batch_size": 4}
    rest["eval"]["max_examples"] = 32 if given.quick else 150
    return rest


def prepare(given: argparse.Namespace, work: Path) -> float:
    """Rows with the column `loss`, and of gsm8k a tokenizer; returns the seconds of scoring."""
    import jax

    from jaxlean.config import SourceSection, build
    from jaxlean.data.loader import encoded
    from jaxlean.data.tokenize import Counts, Ragged
    from jaxlean.hub.load import load
    from jaxlean.run.row_losses import row_losses
    from jaxlean.xla.mesh import make_mesh

    done = work / "scoring.json"
    if done.exists():
        return float(json.loads(done.read_text())["seconds"])
    work.mkdir(parents=True, exist_ok=True)
    if given.task == "quickstart":
        rows = read(CONFIGS / "quickstart" / "train.jsonl")
    else:
        rows, test = map(read, (given.train, given.test))
        make_tokenizer([row["question"] + "\n" + row["answer"] for row in rows], work / "tokenizer")
        write(work / "test.jsonl", [as_pair(row) for row in test[: 32 if given.quick else 80]])
        rows = [as_pair(row) for row in rows]
    rows = rows[:300] if given.quick else rows
    write(work / "train.jsonl", rows)
    start = time.perf_counter()
    short = argparse.Namespace(**vars(given) | {"steps": max(given.steps // 3, 2)})
    config = build(values(short, work) | {"output_dir": str(work / "reference"), "seed": REFERENCE_SEED})
    path = config.model.path
    if path is None:
        train(config)
        path = str(work / "reference" / "model")
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    model = load(path, config.model.dtype, mesh, tokenizer=config.model.tokenizer)
    source = SourceSection(path=str(work / "train.jsonl"))
    examples = Ragged.of(encoded(config, source, model.tokenizer, Counts(), len(rows)))
    losses = row_losses(config, model, examples, mesh)
    seconds = time.perf_counter() - start
    write(work / "train.jsonl", [row | {"loss": float(loss)} for row, loss in zip(rows, losses, strict=True)])
    done.write_text(json.dumps({"seconds": seconds}))
    return seconds


def make_tokenizer(texts: Sequence[str], folder: Path) -> None:
    """The quickstart's kind of tokenizer, trained on these texts."""
    from transformers import PreTrainedTokenizerFast

    sys.path.insert(0, str(CONFIGS / "quickstart"))
    make = importlib.import_module("make_tokenizer")
    made = PreTrainedTokenizerFast(
        tokenizer_object=make.train(list(texts)), eos_token=make.END_OF_TEXT, pad_token=make.PAD
    )
    made.save_pretrained(str(folder))


def as_pair(row: Mapping[str, str]) -> dict[str, str]:
    return {"prompt": row["question"] + "\n", "completion": row["answer"]}


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train(config: Any) -> tuple[dict[str, Any], list[tuple[int, float]]]:
    """(summary, held-out loss after each so many steps) of a run."""
    from jaxlean.run.finetune import finetune

    with contextlib.redirect_stdout(io.StringIO()):
        summary = finetune(config, overwrite=True)
    lines = read(Path(config.output_dir) / "metrics.jsonl")
    found = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line and line["step"]}
    return summary, sorted(found.items())


def run(arm: str, seed: int, given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One run, or what an earlier command has kept of it."""
    from jaxlean.config import build

    slug = arm.replace(", ", "-").replace(" ", "_")
    kept = work / f"{slug}-{given.steps}{'-decay' if given.decay else ''}-{seed}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    config = values(given, work) | {"seed": seed}
    config["data"] = config["data"] | {"curriculum": ARMS[arm]}
    with tempfile.TemporaryDirectory(prefix="jaxlean-curriculum-") as folder:
        summary, curve = train(build(config | {"output_dir": folder}))
    found = {
        "arm": arm, "seed": seed, "seeds": f"seed {seed}", "steps": given.steps, "curve": curve,
        "held_out_loss": smoothed(curve)[-1][1], "final_loss": summary["eval_after"]["loss"],
        "seconds": summary["seconds"], "train_seconds": summary["train_seconds"],
    }  # fmt: skip
    kept.write_text(json.dumps(found))
    print(f"{arm}, seed {seed}: {found['held_out_loss']:.4f}, {found['seconds']:.0f} s", flush=True)
    return found


def smoothed(curve: Sequence[Sequence[float]], width: int = 3) -> list[tuple[float, float]]:
    """Means of `width` evaluations, at the step of the one in the middle."""
    points = np.asarray(curve, np.float64)
    width = min(width, len(points))
    kernel = np.ones(width) / width
    return list(zip(*(np.convolve(points[:, i], kernel, "valid").tolist() for i in (0, 1)), strict=True))


def reached(curve: Sequence[Sequence[float]], loss: float) -> float | None:
    """The first step at which a smoothed curve is down at a loss, between evaluations on the line; None: never."""
    points = smoothed(curve)
    for (step, high), (after, low) in zip([points[0], *points], points, strict=False):
        if low <= loss:
            return after if high <= low else after - (loss - low) / (high - low) * (after - step)
    return None


def saved(own: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> float:
    """Share of steps fewer than random order to where it ends; below 0: how much earlier it was at this arm's end."""
    target = smoothed(base)[-1]
    step = reached(own, target[1])
    if step is not None:
        return 1 - step / target[0]
    end = smoothed(own)[-1]
    return (reached(base, end[1]) or target[0]) / end[0] - 1


def summarised(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each arm: means over its seeds, and spreads (largest less smallest)."""
    base = {row["seed"]: row for row in rows if row["arm"] == RANDOM}
    found = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm and row["seed"] in base]
        losses = [row["held_out_loss"] for row in own]
        apart = [row["held_out_loss"] - base[row["seed"]]["held_out_loss"] for row in own]
        shares = [saved(row["curve"], base[row["seed"]]["curve"]) for row in own]
        found.append({
            "arm": arm, "seeds": f"mean of {len(own)}", "steps": own[0]["steps"], "held_out_loss": np.mean(losses),
            "spread": np.ptp(losses), "against_random": np.mean(apart), "against_random_spread": np.ptp(apart),
            "saved": np.mean(shares), "saved_spread": np.ptp(shares),
        })  # fmt: skip
    return [{key: x.item() if isinstance(x, np.generic) else x for key, x in row.items()} for row in found]


def plot(rows: Sequence[Mapping[str, Any]], summary: Sequence[Mapping[str, Any]], file: Path, title: str) -> None:
    """Held-out loss less that of random order at the same step (mean over seeds), and steps saved, each seed a dot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(19, 6), layout="constrained")
    base = {row["seed"]: row for row in rows if row["arm"] == RANDOM}
    for number, row in enumerate(summary):
        own = [other for other in rows if other["arm"] == row["arm"] and other["seed"] in base]
        curves = np.array([smoothed(other["curve"]) for other in own])
        against = np.array([smoothed(base[other["seed"]]["curve"]) for other in own])
        style = {"label": row["arm"], "linewidth": 2.5 if row["arm"] == RANDOM else 1.2,
                 "color": "black" if row["arm"] == RANDOM else plt.cm.tab20(number % 20)}  # fmt: skip
        axes[0].plot(curves[0, :, 0], curves[:, :, 1].mean(0), **style)
        axes[1].plot(curves[0, :, 0], (curves - against)[:, :, 1].mean(0), **style)
        shares = [100 * saved(other["curve"], base[other["seed"]]["curve"]) for other in own]
        axes[2].scatter(shares, [number] * len(shares), color=style["color"])
    axes[0].set(xlabel="step", ylabel="held-out loss", title=f"{title}: loss")
    axes[1].set(xlabel="step", ylabel="less random order", title="Difference to random order")
    axes[1].set_ylim(*np.clip(axes[1].get_ylim(), -0.3, 0.3))
    axes[2].axvline(20, color="green", linestyle="--", label="target: 20 % fewer steps")
    axes[2].axvline(0, color="black", linewidth=0.8)
    axes[2].set(xlabel="% of steps fewer to where random order ends", title="Steps saved, each seed")
    axes[2].set_yticks(range(len(summary)), [row["arm"] for row in summary])
    axes[2].invert_yaxis()
    axes[0].legend(fontsize=8)
    axes[2].legend(fontsize=8)
    figure.savefig(file, dpi=110)


def with_decay(given: argparse.Namespace, arms: Sequence[str], work: Path) -> list[dict[str, Any]]:
    """Runs with budgets of their own: random order at 60, 80 and 100 %, the others at 80 and 100 %."""
    rows = []
    for seed in range(given.seeds):
        for arm in arms:
            for share in (0.6, 0.8, 1.0) if arm == RANDOM else (0.8, 1.0):
                own = argparse.Namespace(**vars(given) | {"steps": round(share * given.steps)})
                rows.append(run(arm, seed, own, work))
    return rows


def by_budget(rows: Sequence[Mapping[str, Any]], full: int) -> list[dict[str, Any]]:
    """A row for each arm and budget, against random order with the whole budget."""
    base = {row["seed"]: row["final_loss"] for row in rows if row["arm"] == RANDOM and row["steps"] == full}
    found = []
    for arm, steps in dict.fromkeys((row["arm"], row["steps"]) for row in rows):
        own = [row for row in rows if (row["arm"], row["steps"]) == (arm, steps) and row["seed"] in base]
        losses = [row["final_loss"] for row in own]
        apart = [row["final_loss"] - base[row["seed"]] for row in own]
        found.append({
            "arm": arm, "seeds": f"mean of {len(own)}", "steps": steps, "held_out_loss": float(np.mean(losses)),
            "spread": float(np.ptp(losses)), "against_random": float(np.mean(apart)),
            "against_random_spread": float(np.ptp(apart)),
        })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["quickstart", "gsm8k"], default="quickstart")
    parser.add_argument("--quick", action="store_true", help="6 steps, one seed, three arms: the same code in a minute")
    parser.add_argument("--out", type=Path, help="folder for curriculum_TASK.json, .png, and what is kept of each run")
    parser.add_argument("--steps", type=int, default=400, help="of random order")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS], metavar="NAME", help=", ".join(ARMS))
    parser.add_argument("--decay", action="store_true", help="a cosine, and 80 %% of the steps against 100 %%")
    parser.add_argument("--train", type=Path, help="gsm8k_train.jsonl")
    parser.add_argument("--test", type=Path, help="gsm8k_test.jsonl")
    given = parser.parse_args()
    if given.quick:
        given.steps, given.seeds, given.arms = 6, 1, [RANDOM, "length", "loss"]
    if given.task == "gsm8k" and not (given.train and given.test):
        parser.error("--task gsm8k needs --train FILE and --test FILE")

    from jaxlean.xla.compile import use_cache

    use_cache(True)
    config = {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()}
    name = f"curriculum_{given.task}{'_decay' if given.decay else ''}"
    out = given.out.resolve() if given.out is not None else None
    for key in ("train", "test"):
        setattr(given, key, getattr(given, key) and getattr(given, key).resolve())
    os.chdir(CONFIGS.parent)
    arms = [RANDOM, *(arm for arm in given.arms if arm != RANDOM)]
    with tempfile.TemporaryDirectory(prefix="jaxlean-curriculum-") as temporary:
        work = (out if out is not None and not given.quick else Path(temporary)) / f"runs_{given.task}"
        config["scoring_seconds"] = prepare(given, work)
        config["sections"] = {arm: ARMS[arm] for arm in arms}
        if given.decay:
            rows = with_decay(given, arms, work)
            publish(name, config, [*by_budget(rows, given.steps), *rows], COLUMNS, out)
            return
        rows = []
        for seed in range(given.seeds):
            for arm in arms:
                rows.append(run(arm, seed, given, work))
            summary = summarised(rows)
            publish(name, config | {"seeds": seed + 1}, [*summary, *rows], COLUMNS, out)
            if out is not None:
                plot(rows, summary, out / f"{name}.png", given.task)


if __name__ == "__main__":
    main()
