"""Every mesh of eight devices: is the training the same, how long does a step take, and would the planner have known?

    python benchmarks/meshes.py [--quick] [--out DIR] [--devices 8] [--steps 8] [--only NAME]

Five jobs (LoRA, all weights, int8 and NF4 bases, long sequences; all packed, one accumulated) run by `finetune` on one
device and on every mesh of so many that divides them, over the same sequences a step. A row says how far its losses are
from those of one device, what a step took and what was predicted. Then `mesh: auto` chooses (by estimate, and by a few
steps of those in front), and the table says at which place its mesh came in. The fastest lie closer together than one
run's steps: they, and the chosen one, run twice more, in turn, and the median of a mesh's runs counts. On CPU the
devices are the host's cores, split; on accelerators those that are there.
"""

import argparse
import json
import multiprocessing
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import median, publish

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
LARGE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4}
# name -> (shape, what the config says, sequences of a step)
JOBS: dict[str, tuple[dict[str, int], dict[str, Any], int]] = {
    "lora": (SMALL, {"lora": {"r": 16}, "data": {"max_length": 128}}, 16),
    "full": (SMALL, {"lora": None, "data": {"max_length": 128}}, 16),
    "int8": (LARGE, {"lora": {"r": 16}, "data": {"max_length": 128}, "model": {"quantization": "int8"}}, 16),
    "nf4, accumulated": (
        SMALL,
        {"lora": {"r": 16}, "data": {"max_length": 128}, "model": {"quantization": "nf4"},
         "train": {"gradient_accumulation_steps": 2}},
        32,
    ),
    # fewer sequences than devices: these or the matrices must be split
    "long": (SMALL, {"lora": {"r": 16}, "data": {"max_length": 1024}, "train": {"remat": "full"}}, 2),
}  # fmt: skip
# So many of the fastest run so many times more.
FOREMOST, AGAIN = 6, 2
COLUMNS = {
    "job": "", "mesh": "", "loss": ".6f", "loss_difference": ".1e", "step_seconds": ".3f", "predicted_seconds": ".3f",
    "place": "", "chosen": "",
}  # fmt: skip


def rows_of_text(file: Path, number: int, seed: int = 0) -> None:
    """Made-up instructions: of many lengths, so that packing has something to do."""
    draw = random.Random(seed)
    words = [f"{a}{b}" for a in ("re", "un", "in", "con", "dis") for b in ("port", "form", "tract", "sent", "vert")]
    with file.open("w") as out:
        for _ in range(number):
            said = " ".join(draw.choices(words, k=draw.randint(2, 14)))
            told = " ".join(draw.choices(words, k=draw.randint(1, 12)))
            out.write(json.dumps({"prompt": said, "completion": told}) + "\n")


def base(shape: dict[str, int], folder: Path) -> None:
    """A Llama of that shape with drawn weights, written as others write theirs."""
    from jaxlean.hub.load import initial
    from jaxlean.hub.write import write_model

    architecture = {
        "model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 4096,
        "max_position_embeddings": 4096, "tie_word_embeddings": True, **shape,
    }  # fmt: skip
    model = initial(architecture, "float32", tokenizer=str(CONFIGS / "quickstart" / "base"))
    write_model(model, folder)


def config_of(name: str, folder: Path, steps: int, mesh: dict[str, int], devices: int) -> dict[str, Any]:
    """The job on a mesh, over the same sequences a step as on every other."""
    shape, told, rows = JOBS[name]
    train = told.get("train", {})
    shards = mesh.get("data", 1) * mesh.get("fsdp", 1)
    return {
        **told,
        "output_dir": str(folder / "run"),
        "compilation_cache": False,
        "model": {
            "path": str(folder / f"base-{shape['hidden_size']}"),
            "tokenizer": str(CONFIGS / "quickstart" / "base"), "dtype": "float32", **told.get("model", {}),
        },
        "data": {"train": str(folder / "train.jsonl"), "on_long": "truncate", **told["data"]},
        "train": {
            "max_steps": steps, "logging_steps": 1, "learning_rate": 1e-3, "save_steps": steps, **train,
            "per_device_train_batch_size": rows // shards // train.get("gradient_accumulation_steps", 1),
        },
        "mesh": {**mesh, "host_devices": devices},
        "report": {"progress": False},
    }  # fmt: skip


def run_one(name: str, folder: Path, steps: int, mesh: dict[str, int], devices: int) -> dict[str, Any]:
    """Train, and read what the run wrote."""
    import contextlib
    import io

    from jaxlean.config import build
    from jaxlean.run.finetune import finetune

    config = build(config_of(name, folder, steps, mesh, devices))
    with contextlib.redirect_stdout(io.StringIO()):
        summary = finetune(config, overwrite=True)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return {
        "losses": [line["loss"] for line in lines if "loss" in line],
        "step_seconds": summary["measured_step_seconds"],
        "runs": [summary["measured_step_seconds"]],
        "predicted_seconds": summary["predicted_step_seconds"],
    }


def meshes(name: str, devices: int) -> list[dict[str, int]]:
    """Every mesh that divides the job."""
    _, told, rows = JOBS[name]
    parts = told.get("train", {}).get("gradient_accumulation_steps", 1)
    found = []
    for data in range(1, devices + 1):
        for fsdp in range(1, devices + 1):
            for context in range(1, devices + 1):
                tensor, left = divmod(devices, data * fsdp * context)
                if not left and tensor and rows // parts % (data * fsdp) == 0:
                    found.append({"data": data, "fsdp": fsdp, "context": context, "tensor": tensor})
    return found


def name_of(mesh: dict[str, int]) -> str:
    return " ".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1) or "one device"


def alone(name: str, folder: Path, steps: int, devices: int) -> list[dict[str, Any]]:
    """On one device."""
    return [{"job": name, "mesh": "one device", **run_one(name, folder, steps, {"data": 1}, 1)}]


def spread(name: str, folder: Path, steps: int, devices: int) -> list[dict[str, Any]]:
    """On every mesh, and what the planner chooses."""
    from jaxlean.config import build
    from jaxlean.errors import ConfigError
    from jaxlean.plan.local import choose_mesh

    rows: list[dict[str, Any]] = []
    for mesh in meshes(name, devices):
        try:
            one = run_one(name, folder, steps, mesh, devices)
            rows.append({"job": name, "mesh": name_of(mesh), "sizes": mesh, **one})
        except ConfigError as error:
            rows.append({"job": name, "mesh": name_of(mesh), "refused": error.what})
        print(rows[-1], flush=True)
    told = config_of(name, folder, steps, {}, devices)
    told["mesh"] = {"auto": True, "host_devices": devices}
    chosen = choose_mesh(build(told), rows=JOBS[name][2]).mesh
    wanted = name_of({axis: getattr(chosen, axis) for axis in ("data", "fsdp", "context", "tensor")})
    ran = sorted((row for row in rows if "losses" in row), key=lambda row: row["step_seconds"])
    for _ in range(AGAIN):
        for row in (row for place, row in enumerate(ran) if place < FOREMOST or row["mesh"] == wanted):
            row["runs"] += run_one(name, folder, steps, row["sizes"], devices)["runs"]
    for row in ran:
        row["step_seconds"] = median(row["runs"])
    for place, row in enumerate(sorted(ran, key=lambda row: row["step_seconds"]), 1):
        row.update(place=f"{place} of {len(ran)}", chosen="chosen" if row["mesh"] == wanted else "")
    return rows


def work(what: Callable[..., list[dict[str, Any]]], given: tuple[Any, ...], result: Any) -> None:
    result.put(what(*given))


def in_process(what: Callable[..., list[dict[str, Any]]], *given: Any) -> list[dict[str, Any]]:
    """In a process of its own: jax counts a host's devices once."""
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    process = context.Process(target=work, args=(what, given, result))
    process.start()
    while process.is_alive() and result.empty():
        process.join(0.5)
    if result.empty():
        raise SystemExit(f"{given[0]}: the process ended with code {process.exitcode}")
    return result.get()


def bases(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    for shape in {JOBS[name][0]["hidden_size"]: JOBS[name][0] for name in names}.values():
        base(shape, folder / f"base-{shape['hidden_size']}")
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one job on two devices")
    parser.add_argument("--out", type=Path, help="folder for meshes.json and .png")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", choices=JOBS)
    given = parser.parse_args()
    names = [given.only] if given.only else list(JOBS)[:1] if given.quick else list(JOBS)
    devices, steps = (2, 6) if given.quick else (given.devices, given.steps)
    out = given.out.resolve() if given.out is not None else None
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows_of_text(folder / "train.jsonl", 4000)
        in_process(bases, folder, names)
        for name in names:
            (one,) = in_process(alone, name, folder, steps, devices)
            own = in_process(spread, name, folder, steps, devices)
            for row in (one, *own):
                if "losses" in row:
                    row["loss"] = row["losses"][-1]
                    row["loss_difference"] = max(
                        abs(a / b - 1) for a, b in zip(row["losses"], one["losses"], strict=True)
                    )
            rows += [one, *own]
    config = {"devices": devices, "steps": steps, "jobs": {name: JOBS[name] for name in names}}
    publish("meshes", config, rows, COLUMNS, out)
    for name in names:
        own = [row for row in rows if row["job"] == name and "losses" in row]
        chosen = next((row for row in own if row.get("chosen")), None)
        worst = max(row["loss_difference"] for row in own)
        ran = [row for row in own if row.get("place")]
        fastest = min(ran, key=lambda row: row["step_seconds"])
        guessed = min(ran, key=lambda row: row["predicted_seconds"])
        print(f"{name}: losses differ by at most {worst:.1e} over {len(own) - 1} meshes; chosen: "
              + (f"{chosen['mesh']}, place {chosen['place']}" if chosen else "a mesh that did not run")
              + f"; by the estimate of its compiled step alone: {guessed['mesh']}, place {guessed['place']}"
              + f"; the fastest: {fastest['mesh']}, median of all "
              + f"{median([row['step_seconds'] for row in own]):.3f} s")  # fmt: skip
    if out is not None:
        plot(rows, names, out / "meshes.png")


def plot(rows: list[dict[str, Any]], names: list[str], file: Path) -> None:
    """Predicted against measured step time, a picture a job; the chosen mesh is ringed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 4), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        own = [row for row in rows if row["job"] == name and row.get("place")]
        axis.scatter([r["step_seconds"] for r in own], [r["predicted_seconds"] for r in own], s=22)
        for row in own:
            if row["chosen"]:
                at = [row["step_seconds"]], [row["predicted_seconds"]]
                axis.scatter(*at, s=140, facecolors="none", edgecolors="C3")
        ends = [min(r["step_seconds"] for r in own), max(r["step_seconds"] for r in own)]
        axis.plot(ends, ends, color="gray", linewidth=1)
        axis.set(title=name, xlabel="measured seconds a step", ylabel="predicted seconds a step")
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
