"""What fewer bits do to the loss: the quickstart's run with its base and its products in one precision after another.

    python benchmarks/precision.py [--quick] [--out DIR] [--steps 200] [--seeds 3]

Every run is `jaxlean finetune configs/quickstart.yaml` with the overrides in `VARIANTS` and nothing else changed, so
for a seed all see the same rows in the same order and start from the same adapter. The table has the median over seeds
and, as spread, the largest less the smallest. `held_out_loss` is measured as the variant itself computes it.

float8 is emulated where the hardware has none: each number is rounded as the hardware would, and the products are added
up in float32. That tells what it does to a loss, not how fast it is.
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
VARIANTS: dict[str, tuple[str, ...]] = {
    "float32": ("model.dtype=float32",),
    "bfloat16": ("model.dtype=bfloat16",),
    "int8 base": ("model.dtype=bfloat16", "model.quantization=int8"),
    "nf4 base": ("model.dtype=bfloat16", "model.quantization=nf4"),
    "int8 base, int8 products": ("model.dtype=bfloat16", "model.quantization=int8", "model.matmul=int8"),
    "nf4 base, int8 products": ("model.dtype=bfloat16", "model.quantization=nf4", "model.matmul=int8"),
    "fp8 products": ("model.dtype=bfloat16", "model.matmul=fp8"),
}
COLUMNS = {
    "variant": "", "seeds": "", "steps": ",", "base_bytes": ",", "train_loss": ".4f", "train_loss_spread": ".4f",
    "held_out_loss": ".4f", "held_out_spread": ".4f", "against_float32": "+.4f",
}  # fmt: skip


def run(variant: str, seed: int, steps: int, folder: Path, quick: bool) -> dict[str, Any]:
    """One run: its loss at each logged step, and on the held-out rows at the end."""
    from jaxlean.config import load
    from jaxlean.run.finetune import finetune

    output = folder / f"{variant.replace(' ', '_')}-{seed}"
    every = max(steps // 40, 1)
    overrides = [
        *VARIANTS[variant], f"seed={seed}", f"output_dir={output}", f"train.max_steps={steps}",
        f"train.logging_steps={every}", f"train.save_steps={steps}", "train.save_total_limit=1",
        "eval.exact_match=false", "eval.before=false", "report.tensorboard=false", "report.progress=false",
    ]  # fmt: skip
    if quick:
        data = CONFIG.parent / "quickstart"
        overrides += [
            f"data.train=[{{path: {data / 'train.jsonl'}, limit: 400}}]",
            f"data.eval=[{{path: {data / 'heldout.jsonl'}, limit: 32}}]",
        ]
    config = load(CONFIG, overrides)
    with contextlib.redirect_stdout(io.StringIO()):
        summary = finetune(config)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    curve = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    return {
        "variant": variant, "seed": seed, "seeds": f"seed {seed}", "steps": steps, "train_loss": summary["train_loss"],
        "held_out_loss": summary["eval_after"]["loss"], "curve": curve,
    }  # fmt: skip


def base_bytes(variant: str) -> int:
    """What the base of a variant is held in."""
    import jax

    from jaxlean.config import load
    from jaxlean.hub.load import load as load_model

    model = load(CONFIG, list(VARIANTS[variant])).model
    assert model.path is not None
    loaded = load_model(model.path, model.dtype, quantization=model.quantization)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))


def summarised(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each variant: medians and spreads over its seeds."""
    found: list[dict[str, Any]] = []
    for variant in VARIANTS:
        own = [row for row in rows if row["variant"] == variant]
        train, held = ([row[key] for row in own] for key in ("train_loss", "held_out_loss"))
        found.append({
            "variant": variant, "seeds": f"median of {len(own)}", "steps": own[0]["steps"],
            "base_bytes": base_bytes(variant),
            "train_loss": median(train), "train_loss_spread": max(train) - min(train),
            "held_out_loss": median(held), "held_out_spread": max(held) - min(held),
        })  # fmt: skip
        found[-1]["against_float32"] = found[-1]["held_out_loss"] - found[0]["held_out_loss"]
    return found


def plot(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Loss curves, and each variant's distance from float32's: the line is the median over seeds, the band all."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    curves = {
        variant: np.asarray([[loss for _, loss in row["curve"]] for row in rows if row["variant"] == variant])
        for variant in VARIANTS
    }
    steps = [step for step, _ in rows[0]["curve"]]
    figure, (whole, apart) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for variant, losses in curves.items():
        (line,) = whole.plot(steps, np.median(losses, axis=0), label=variant, linewidth=1)
        distance = losses - curves["float32"]  # seed by seed: the same rows
        apart.plot(steps, np.median(distance, axis=0), color=line.get_color(), label=variant, linewidth=1)
        apart.fill_between(steps, distance.min(axis=0), distance.max(axis=0), color=line.get_color(), alpha=0.12)
    whole.set(xlabel="step", ylabel="training loss", yscale="log", title="Loss")
    apart.set(xlabel="step", ylabel="loss less float32's, same rows", title="Against float32")
    whole.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 steps, one seed: the same code in a minute")
    parser.add_argument("--out", type=Path, help="folder for precision.json and precision.png")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    steps, seeds = (4, 1) if given.quick else (given.steps, given.seeds)

    import jax

    from jaxlean.errors import ConfigError
    from jaxlean.xla.precision import EMULATE_FP8, check_matmul

    try:
        check_matmul("fp8", jax.devices()[0])
        emulated = os.environ.get(EMULATE_FP8) == "1"
    except ConfigError:
        os.environ[EMULATE_FP8], emulated = "1", True
    os.chdir(CONFIG.parent.parent)  # the config's paths are meant from there
    rows = []
    with tempfile.TemporaryDirectory(prefix="jaxlean-precision-") as folder:
        for seed in range(seeds):
            for variant in VARIANTS:
                rows.append(run(variant, seed, steps, Path(folder), given.quick))
                print(f"{variant}, seed {seed}: held-out loss {rows[-1]['held_out_loss']:.4f}", flush=True)
    config = {"config": "configs/quickstart.yaml", "steps": steps, "seeds": seeds, "fp8_emulated": emulated}
    out = given.out.resolve() if given.out is not None else None
    publish("precision", config, [*summarised(rows), *rows], COLUMNS, out)
    if out is not None:
        plot(rows, out / "precision.png")


if __name__ == "__main__":
    main()
