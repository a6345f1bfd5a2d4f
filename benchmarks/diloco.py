"""What fewer exchanges between replicas do to the loss, and how many bytes they spare: `train.sync: diloco`.

    python benchmarks/diloco.py [--quick] [--out DIR] [--steps 300] [--seeds 3] [--replicas 4] [--text FILE] [--lora]

Every run is `jaxlean finetune` on devices that the host is split into, with the overrides in `ARMS` and nothing else
changed: for a seed all see the same rows in the same order. All parameters of the quickstart's base train (with --lora
its adapter) on the quickstart's rows. With --text a model of 0.2 million parameters is pre-trained on the lines of that
file first, in common steps, and trained further on them in each arm, as in the paper.

`sent_bytes` are those that one device sends for a step, read off the compiled programs: all that crosses the axis
`data` in the step, and of the exchange between rounds a share for each step of a round. The loss is that of held-out
rows; `against_step` is the median over seeds of the difference to a run of common steps with the same seed, its spread
the largest difference less the smallest.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report import median, publish

CONFIGS = Path(__file__).parent.parent / "configs"
STEP = "every step"
PLAIN_MEAN = ["train.diloco.outer_learning_rate=1", "train.diloco.outer_momentum=0"]
# name -> (steps of a round, what is exchanged, what else)
ARMS: dict[str, tuple[int, str, list[str]] | None] = {
    STEP: None,
    "every 10, int8": (10, "int8", []),
    "every 50, float32": (50, "none", []),
    "every 50, int8": (50, "int8", []),
    "every 50, int8, plain mean": (50, "int8", PLAIN_MEAN),
    "every 100, int8": (100, "int8", []),
}
COLUMNS = {
    "exchange": "", "seeds": "", "steps": ",", "sent_bytes": ",.0f", "times_fewer": ",.1f", "train_loss": ".4f",
    "held_out_loss": ".4f", "held_out_spread": ".4f", "against_step": "+.4f", "against_step_spread": ".4f",
}  # fmt: skip


def load_arm(arm: str | None, given: argparse.Namespace, more: Sequence[str] = ()) -> Any:
    """The config of an arm; of None the one that --text pre-trains its model with."""
    from jaxlean.config import load

    replicas, quickstart = given.replicas, CONFIGS / "quickstart"
    found = [
        f"mesh.host_devices={replicas}", f"mesh.data={replicas}", f"train.max_steps={given.steps}",
        f"train.logging_steps={max(given.steps // 60, 1)}", f"train.save_steps={given.steps}",
        "train.save_total_limit=1", "eval.exact_match=false", "eval.before=false", "eval.eval_steps=null",
        "report.tensorboard=false", "report.progress=false",
    ]  # fmt: skip
    if given.text is None:
        found += ["train.per_device_train_batch_size=2", "data.max_length=128"]
        found += [] if given.lora else ["lora=null", "train.learning_rate=1e-3"]
        if given.quick:
            found += [
                f"data.train=[{{path: {quickstart / 'train.jsonl'}, limit: 200}}]",
                f"data.eval=[{{path: {quickstart / 'heldout.jsonl'}, limit: 32}}]",
            ]
    else:
        found += [
            f"data.train={given.text}", "data.eval_fraction=0.05", "data.max_length=64", "data.on_long=truncate",
            "data.shuffle=true", "train.per_device_train_batch_size=4", "train.optim=adamw", "train.adam_beta2=0.99",
            "train.weight_decay=0", f"model.tokenizer={quickstart / 'base'}",
        ]  # fmt: skip
        found += ["train.learning_rate=1e-3", "model.architecture=null", f"model.path={given.base}"]
    if arm is None:
        sizes = {
            "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16,
        }  # fmt: skip
        found = [text for text in found if not text.startswith(("model.architecture", "model.path"))]
        found += [f"model.architecture.{name}={size}" for name, size in sizes.items()] + ["train.learning_rate=5e-3"]
    how = ARMS[arm] if arm is not None else None
    if how is not None:
        every, compression, rest = how
        found += ["train.sync=diloco", f"train.diloco.every={min(every, given.steps // 2)}", *rest]
        found += [f"train.diloco.compression={compression}"]
    return load(CONFIGS / ("quickstart.yaml" if given.text is None else "pretrain_tiny.yaml"), [*found, *more])


def sent_bytes(arm: str, given: argparse.Namespace) -> float:
    """By one device for a step, from the HLO of the programs that a run of the arm takes."""
    from jaxlean.run.job import outline
    from jaxlean.run.rounds import Rounds
    from jaxlean.xla import hlo
    from jaxlean.xla.mesh import make_mesh

    config = load_arm(arm, given)
    made = outline(config, make_mesh(config.mesh), length=config.data.max_length, num_steps=given.steps)
    step = made.build("none").trace(*made.arguments).lower().compile()
    return hlo.read(step.as_text() or "").bytes + Rounds(config, made.outer, made.state, given.steps).sent_bytes


def run(arm: str | None, seed: int, given: argparse.Namespace, output: Path) -> dict[str, Any]:
    """One run: its loss at each logged step, and on the held-out rows at the end."""
    from jaxlean.run.finetune import finetune

    with contextlib.redirect_stdout(io.StringIO()):
        summary = finetune(load_arm(arm, given, [f"seed={seed}", f"output_dir={output}"]))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {
        "exchange": arm, "seed": seed, "seeds": f"seed {seed}", "steps": given.steps,
        "train_loss": summary["train_loss"], "held_out_loss": summary["eval_after"]["loss"],
        "train_seconds": summary["train_seconds"],
        "curve": [(line["step"], line["loss"]) for line in lines if "loss" in line],
    }  # fmt: skip


def summarised(rows: Sequence[Mapping[str, Any]], sent: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row for each arm: bytes, and medians and spreads over its seeds."""
    base = {row["seed"]: row["held_out_loss"] for row in rows if row["exchange"] == STEP}
    found = []
    for arm in ARMS:
        own = [row for row in rows if row["exchange"] == arm]
        losses = [row["held_out_loss"] for row in own]
        apart = [row["held_out_loss"] - base[row["seed"]] for row in own]
        found.append({
            "exchange": arm, "seeds": f"median of {len(own)}", "steps": own[0]["steps"], "sent_bytes": sent[arm],
            "times_fewer": sent[STEP] / sent[arm], "train_loss": median([row["train_loss"] for row in own]),
            "held_out_loss": median(losses), "held_out_spread": max(losses) - min(losses),
            "against_step": median(apart), "against_step_spread": max(apart) - min(apart),
        })  # fmt: skip
    return found


def plot(rows: Sequence[Mapping[str, Any]], summary: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Loss curves (median over seeds), and the held-out loss of every seed against the bytes of a step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, (curves, price) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for row in summary:
        own = [other for other in rows if other["exchange"] == row["exchange"]]
        steps = [step for step, _ in own[0]["curve"]]
        losses = np.median([[loss for _, loss in other["curve"]] for other in own], axis=0)
        (line,) = curves.plot(steps, losses, label=row["exchange"], linewidth=1)
        held = [other["held_out_loss"] for other in own]
        price.scatter([row["sent_bytes"]] * len(held), held, color=line.get_color(), label=row["exchange"])
    curves.set(xlabel="step", ylabel="training loss, mean of the replicas", yscale="log", title="Loss")
    price.set(xlabel="bytes that a device sends for a step", ylabel="held-out loss", xscale="log", title="Its price")
    price.legend(title="exchange")
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 steps, one seed, 2 replicas: the same code in a minute")
    parser.add_argument("--out", type=Path, help="folder for diloco.json and diloco.png")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--text", type=Path, help="pre-train on this file, and train on it")
    parser.add_argument("--lora", action="store_true", help="train the quickstart's adapter, not all parameters")
    given = parser.parse_args()
    if given.quick:
        given.steps, given.seeds, given.replicas = 4, 1, 2

    from jaxlean.xla.compile import use_cache
    from jaxlean.xla.mesh import split_host

    name = "diloco_lora" if given.lora else "diloco" if given.text is None else "diloco_text"
    config = {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()}
    out = given.out.resolve() if given.out is not None else None
    given.text = given.text.resolve() if given.text is not None else None
    os.chdir(CONFIGS.parent)  # the config's paths are meant from there
    split_host(given.replicas)
    use_cache(True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="jaxlean-diloco-") as temporary:
        folder = Path(temporary)
        if given.text is not None:
            given.base = folder / "base" / "model"
            base = run(None, 0, given, folder / "base")
            config["base_held_out_loss"] = base["held_out_loss"]
            print(f"base: held-out loss {base['held_out_loss']:.4f}", flush=True)
        sent = {arm: sent_bytes(arm, given) for arm in ARMS}
        for seed in range(given.seeds):
            for number, arm in enumerate(ARMS):
                rows.append(run(arm, seed, given, folder / f"{number}-{seed}"))
                print(f"{arm}, seed {seed}: held-out loss {rows[-1]['held_out_loss']:.4f}", flush=True)
            summary = summarised(rows, sent)
            publish(name, config | {"seeds": seed + 1}, [*summary, *rows], COLUMNS, out)
            if out is not None:
                plot(rows, summary, out / f"{name}.png")


if __name__ == "__main__":
    main()
