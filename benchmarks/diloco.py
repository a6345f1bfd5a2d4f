"""What fewer exchanges between replicas do to the loss, and how many bytes they spare: `train.sync: diloco`.

    python benchmarks/diloco.py [--quick] [--out DIR] [--steps 300] [--seeds 3] [--replicas 4] [--lora]

Every run is `jaxlean finetune configs/quickstart.yaml` (all parameters train; with --lora its adapter) on devices that
the host is split into, with the overrides in `ARMS` and nothing else changed: for a seed all see the same rows in the
same order. `sent_bytes` are those that one device sends for a step, read off the compiled programs: all that crosses
the axis `data` in the step, and of the exchange between rounds a share for each step of a round. The loss is that of the
held-out rows; `against_step` is the median over seeds of the difference to `sync: step` with the same seed, the spread
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

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
STEP = "every step"
# name -> (steps of a round, what is exchanged)
ARMS: dict[str, tuple[int, str] | None] = {
    STEP: None,
    "every 10, int8": (10, "int8"),
    "every 50, float32": (50, "none"),
    "every 50, int8": (50, "int8"),
    "every 100, int8": (100, "int8"),
}
COLUMNS = {
    "exchange": "", "seeds": "", "steps": ",", "sent_bytes": ",.0f", "times_fewer": ",.1f", "train_loss": ".4f",
    "held_out_loss": ".4f", "held_out_spread": ".4f", "against_step": "+.4f", "against_step_spread": ".4f",
}  # fmt: skip


def overrides_of(arm: str, steps: int, replicas: int, adapter: bool) -> list[str]:
    """Of the quickstart's config."""
    found = [
        f"mesh.host_devices={replicas}", f"mesh.data={replicas}", "train.per_device_train_batch_size=2",
        "data.max_length=128", f"train.max_steps={steps}",
    ]  # fmt: skip
    if not adapter:
        found += ["lora=null", "train.learning_rate=1e-3"]
    how = ARMS[arm]
    if how is not None:
        every = min(how[0], steps // 2)
        found += ["train.sync=diloco", f"train.diloco.every={every}", f"train.diloco.compression={how[1]}"]
    return found


def sent_bytes(arm: str, steps: int, replicas: int, adapter: bool) -> float:
    """By one device for a step, from the HLO of the programs that a run of the arm takes."""
    from jaxlean.config import load
    from jaxlean.run.job import outline
    from jaxlean.run.rounds import Rounds
    from jaxlean.xla import hlo
    from jaxlean.xla.mesh import make_mesh

    config = load(CONFIG, overrides_of(arm, steps, replicas, adapter))
    made = outline(config, make_mesh(config.mesh), length=128, num_steps=steps)
    step = made.build("none").trace(*made.arguments).lower().compile()
    return hlo.read(step.as_text() or "").bytes + Rounds(config, made.outer, made.state, steps).sent_bytes


def run(arm: str, seed: int, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run: its loss at each logged step, and on the held-out rows at the end."""
    from jaxlean.config import load
    from jaxlean.run.finetune import finetune

    steps = given.steps
    output = folder / f"{arm.replace(' ', '_')}-{seed}"
    overrides = [
        *overrides_of(arm, steps, given.replicas, given.lora), f"seed={seed}", f"output_dir={output}",
        f"train.logging_steps={max(steps // 60, 1)}", f"train.save_steps={steps}", "train.save_total_limit=1",
        "eval.exact_match=false", "eval.before=false", "report.tensorboard=false", "report.progress=false",
    ]  # fmt: skip
    if given.quick:
        data = CONFIG.parent / "quickstart"
        overrides += [
            f"data.train=[{{path: {data / 'train.jsonl'}, limit: 200}}]",
            f"data.eval=[{{path: {data / 'heldout.jsonl'}, limit: 32}}]",
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        summary = finetune(load(CONFIG, overrides))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {
        "exchange": arm, "seed": seed, "seeds": f"seed {seed}", "steps": steps, "train_loss": summary["train_loss"],
        "held_out_loss": summary["eval_after"]["loss"], "train_seconds": summary["train_seconds"],
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
    parser.add_argument("--lora", action="store_true", help="train the quickstart's adapter, not all parameters")
    given = parser.parse_args()
    if given.quick:
        given.steps, given.seeds, given.replicas = 4, 1, 2

    from jaxlean.xla.compile import use_cache
    from jaxlean.xla.mesh import split_host

    os.chdir(CONFIG.parent.parent)  # the config's paths are meant from there
    split_host(given.replicas)
    use_cache(True)
    sent = {arm: sent_bytes(arm, given.steps, given.replicas, given.lora) for arm in ARMS}
    rows = []
    with tempfile.TemporaryDirectory(prefix="jaxlean-diloco-") as folder:
        for seed in range(given.seeds):
            for arm in ARMS:
                rows.append(run(arm, seed, given, Path(folder)))
                print(f"{arm}, seed {seed}: held-out loss {rows[-1]['held_out_loss']:.4f}", flush=True)
    config = {
        "config": "configs/quickstart.yaml",
        "overrides": overrides_of(STEP, given.steps, given.replicas, given.lora),
    }
    out = given.out.resolve() if given.out is not None else None
    name = "diloco_lora" if given.lora else "diloco"
    summary = summarised(rows, sent)
    publish(name, config | {"seeds": given.seeds}, [*summary, *rows], COLUMNS, out)
    if out is not None:
        plot(rows, summary, out / f"{name}.png")


if __name__ == "__main__":
    main()
