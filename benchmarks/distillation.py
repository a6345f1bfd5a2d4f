"""A student of at most half of its teacher's size: taught by it, and by the task alone, at equal steps.

    python benchmarks/distillation.py [--base FOLDER] [--params 0.5] [--epochs 1] [--seeds 3] [--quick] [--out DIR]

The teacher is the base, fine-tuned on the quickstart task (configs/quickstart) with the adapter of quickstart.yaml. The
student is the teacher pruned to --params of its parameters by neurons of its MLPs, those that do least on the task's
rows (`jaxlean prune`); `as it starts` is what it makes of the held-out rows then. Every arm starts from the same
weights, sees the same batches and takes the same steps: `task alone` is `jaxlean finetune`; `cached` learns what the
teacher expects at each token, from the cache; `hidden states` learns that and each layer's hidden states from the
running teacher (`distill.match`). `of_teacher` is an arm's exact match on held-out rows as a share of the teacher's.

What a cached step costs is measured apart: both steps with their batches, as a run takes them, in turns of ten, so that
whatever else the machine does meets both; `step_cost` is the median over the turns of cached over plain.

With --out each run is kept in a folder of its own, and left out when the command is given again: it can be cut off.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import median, publish

CONFIGS = Path(__file__).parent.parent / "configs"
TURN = 10
# What each arm's `distill` has beside the teacher; None: there is none.
ARMS: dict[str, dict[str, Any] | None] = {
    "task alone": None,
    "cached": {"cache": True},
    "hidden states": {"alpha": 0.5, "match": {"hidden": 1.0, "hidden_loss": "mse"}},
}
COLUMNS = {
    "arm": "", "seed": "", "parameters": ",", "steps": ",", "exact_match": ".1%", "of_teacher": ".1%",
    "held_out_loss": ".4f", "step_seconds": ".3f", "train_seconds": ".0f", "step_cost": ".3f",
}  # fmt: skip


def values(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What every run has."""
    quick = given.quick
    return {
        "output_dir": str(folder),
        "data": {
            "train": str(CONFIGS / "quickstart" / "train.jsonl"), "eval": str(CONFIGS / "quickstart" / "heldout.jsonl"),
            "max_length": 192,
        },
        "train": {
            "learning_rate": 3e-3, "adam_beta2": 0.99, "warmup_ratio": 0.05, "per_device_train_batch_size": 8,
            "logging_steps": 20, "save_total_limit": 1, "num_train_epochs": given.epochs,
            **({"max_steps": 4, "logging_steps": 2} if quick else {}),
        },
        "eval": {
            "exact_match": not quick, "max_new_tokens": 64, "per_device_eval_batch_size": 64, "before": False,
            **({"max_examples": 32} if quick else {}),
        },
        "report": {"tensorboard": False, "progress": False},
    }  # fmt: skip


def run(given: argparse.Namespace, folder: Path, **sections: Any) -> dict[str, Any]:
    """The summary of a run, which is left out where it is there already."""
    from jaxlean.config import build
    from jaxlean.run.finetune import finetune

    done = folder / "summary.json"
    if done.exists() and json.loads(done.read_text())["status"] == "completed":
        return json.loads(done.read_text())
    config = values(given, folder)
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section} if isinstance(section, dict) else section
    with contextlib.redirect_stdout(io.StringIO()):
        return finetune(build(config), overwrite=folder.exists())


def student_of(given: argparse.Namespace, adapter: Path, work: Path) -> dict[str, Any]:
    """What pruning.json says of the student as it starts; made where it is not there yet."""
    from jaxlean.config import build
    from jaxlean.run.prune import prune

    if not (work / "student").exists():
        config = values(given, work / "student") | {
            "model": {"path": str(given.base)}, "prune": {"method": "neurons", "params": given.params},
            "calibration": {"num_rows": 64, "max_length": 192},
        }  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            prune(build(config), output=work / "student", adapter=adapter)
    return json.loads((work / "student" / "pruning.json").read_text())


def stepper(config: Any) -> Callable[[int], float]:
    """A function that takes so many steps of a run, batches included, and says how long they took."""
    import jax

    from jaxlean import tree
    from jaxlean.models.cpu import hold
    from jaxlean.run import job
    from jaxlean.run.distill import Lessons
    from jaxlean.run.inputs import batches_of, tokenizer_of
    from jaxlean.run.peers import Peers
    from jaxlean.run.rows import OwnRows
    from jaxlean.train.optimizer import optimizer
    from jaxlean.xla.mesh import make_mesh

    config, mesh = job.resolved(config), make_mesh()
    model = job.base(config, mesh)
    rows = job.rows_of_step(config, mesh)
    own = OwnRows(mesh, rows, 1)
    batches = batches_of(config, model, tokenizer_of(model), rows=rows)
    lessons = None
    if config.distill is not None:
        lessons = Lessons(config, model, mesh, own, Peers(), batches, say=lambda line: None)
        lessons.prepare(None)
    trainable, frozen = tree.split(model.params, job.trains_of(config, model))
    transform = optimizer(config.train, batches.num_steps, trainable)
    state = job.first_state(config, trainable, transform, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    shapes = job.batch_shapes(config, rows, batches.length, mesh)
    frozen = hold(frozen)
    step, _ = job.compile_step(
        job.builder(config, model, mesh, transform, shardings)("none"), state, frozen, shapes
    )  # fmt: skip

    def take(num: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(num):
            batch = next(batches)
            placed = own.on_devices(batch) if lessons is None else lessons.on_devices(batch, 0, state.result, frozen)
            state, measured = step(state, frozen, placed)
        jax.block_until_ready(measured)
        return time.perf_counter() - start

    take(2)
    return take


def step_cost(given: argparse.Namespace, work: Path, model: Path, distill: dict[str, Any]) -> dict[str, Any]:
    """What a cached step takes, as a multiple of a plain one: the median over turns, and every turn."""
    from jaxlean.config import build

    turns = 2 if given.quick else 20
    steps = turns * TURN + 4
    common = {"model": {"path": str(model)}, "lora": None}
    config = values(given, work / "timed") | common
    config["train"] |= {"max_steps": steps}
    plain, cached = (stepper(build(config | more)) for more in ({}, {"distill": distill}))
    ratios, seconds = [], []
    for turn in range(turns):
        order = (plain, cached) if turn % 2 else (cached, plain)  # neither is always the second
        took = {arm: arm(TURN) for arm in order}
        ratios.append(took[cached] / took[plain])
        seconds.append((took[plain] / TURN, took[cached] / TURN))
    return {"step_cost": median(ratios), "ratios": ratios, "plain_and_cached_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=CONFIGS / "quickstart" / "base")
    parser.add_argument("--params", type=float, default=0.5, help="of the student, as a share of the teacher's")
    parser.add_argument("--epochs", type=float, default=1, help="of each student")
    parser.add_argument("--teacher-epochs", type=float, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--divergence", default="forward_kl")
    parser.add_argument("--alpha", type=float, default=0.7)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of the students, all of whose weights train")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.quick:
        given.seeds = 1

    from jaxlean.xla.compile import use_cache

    use_cache(True)
    config: dict[str, Any] = {key: str(x) if isinstance(x, Path) else x for key, x in vars(given).items()}
    out = given.out.resolve() if given.out is not None else None
    base = given.base = given.base.resolve()
    os.chdir(CONFIGS.parent)
    with tempfile.TemporaryDirectory(prefix="jaxlean-distillation-") as temporary:
        work = (out if out is not None and not given.quick else Path(temporary)) / "runs_distillation"
        work.mkdir(parents=True, exist_ok=True)
        lora = {"r": 32, "lora_alpha": 64}
        taught = run(
            given,
            work / "teacher",
            model={"path": str(base)},
            lora=lora,
            train={"num_train_epochs": given.teacher_epochs},
        )
        start = student_of(given, work / "teacher" / "adapter", work)
        student, sizes = work / "student", (start["num_params_before"], start["num_params"])
        config |= {"size": sizes[1] / sizes[0]}
        teacher = taught["eval_after"]
        rows: list[dict[str, Any]] = [
            {
                "arm": "teacher", "parameters": sizes[0], "steps": taught["steps"],
                "exact_match": teacher.get("exact_match"), "held_out_loss": teacher["loss"],
            },
            {
                "arm": "as it starts", "parameters": sizes[1], "steps": 0,
                "exact_match": start["eval_after"].get("exact_match"), "held_out_loss": start["eval_after"]["loss"],
            },
        ]  # fmt: skip
        distill = {
            "teacher": {"path": str(base), "adapter": str(work / "teacher" / "adapter")}, "alpha": given.alpha,
            "divergence": given.divergence, "temperature": given.temperature, "top_k": given.top_k,
        }  # fmt: skip
        kept = distill | {"cache": str(work / "cache")}
        for seed in range(given.seeds):
            for arm, how in ARMS.items():
                more: dict[str, Any] = {}
                if how is not None:
                    more = {"distill": kept if how.get("cache") else distill | how}
                name = f"{arm.replace(' ', '_')}_{seed}"
                found = run(
                    given, work / name, model={"path": str(student)}, lora=None, seed=seed,
                    train={"learning_rate": given.learning_rate}, **more,
                )  # fmt: skip
                after = found["eval_after"]
                match, best = after.get("exact_match"), teacher.get("exact_match")
                rows.append({
                    "arm": arm, "seed": seed, "parameters": sizes[1], "steps": found["steps"], "exact_match": match,
                    "of_teacher": match / best if match is not None and best else None,
                    "held_out_loss": after["loss"], "step_seconds": found["measured_step_seconds"],
                    "train_seconds": found["train_seconds"],
                })  # fmt: skip
            publish("distillation", config, [*rows, *means(rows)], COLUMNS, out)
        rows.append({"arm": "cached / plain step"} | step_cost(given, work, student, kept))
        publish("distillation", config, [*rows, *means(rows)], COLUMNS, out)
        if out is not None and not given.quick:
            plot(rows, out / "distillation.png")


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each arm, over its seeds."""
    found = []
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        if len(own) > 1:
            numbers = {
                key: statistics.mean(row[key] for row in own)
                for key in ("exact_match", "of_teacher", "held_out_loss", "step_seconds", "train_seconds")
                if all(row.get(key) is not None for row in own)
            }
            found.append({"arm": f"{arm}, mean", "seed": f"{len(own)} seeds"} | numbers)
    return found


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Exact match of each arm, a point a seed, beside the teacher's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2))
    arms = [arm for arm in ARMS if any(row["arm"] == arm for row in rows)]
    for place, arm in enumerate(arms):
        found = [100 * row["exact_match"] for row in rows if row["arm"] == arm and row["exact_match"] is not None]
        axes.scatter([place] * len(found), found, s=30)
    best = next(row["exact_match"] for row in rows if row["arm"] == "teacher")
    if best is not None:
        axes.axhline(100 * best, linestyle="--", color="gray", label="teacher")
        axes.axhline(97 * best, linestyle=":", color="gray", label="97 % of it")
    axes.set_xticks(range(len(arms)), arms)
    axes.set_ylabel("exact match on held-out rows, %")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
