"""The planner graded: memory and time of a step as predicted, before anything was allocated, and as measured.

    python benchmarks/plan_accuracy.py [--quick] [--out DIR] [--length 512] [--steps 3]

For each configuration (models x remat x microbatch x LoRA, full or int8 base) a process of its own makes the job's step
of shapes alone, compiles it, and says what it will take. Then it draws weights of those shapes and trains. Measured on
CPU is the highest resident memory of the process while it trains, less what it had before there was an array; on GPU
and TPU the device's own peak. Rows are `fits` if the prediction is within what the device has, and `ran` if it did.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import median, publish

SHAPES = {
    "8m": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4,
           "num_key_value_heads": 2, "vocab_size": 8192},
    "35m": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
            "num_key_value_heads": 4, "vocab_size": 16_384},
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3, "vocab_size": 49_152},
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"r": 16}, "model": {"dtype": "bfloat16"}},
    "full": {"lora": None, "model": {"dtype": "float32"}},
    "int8": {"lora": {"r": 16}, "model": {"dtype": "bfloat16", "quantization": "int8"}},
}
# (model, remat, microbatch, kind)
CASES = [
    *[("8m", remat, rows, kind) for remat in ("none", "full", "attention") for rows in (4, 16)
      for kind in ("lora", "full")],
    *[("35m", remat, rows, kind) for remat in ("none", "full", "mlp", "nested") for rows in (2, 8)
      for kind in ("lora", "int8")],
    *[("35m", remat, 4, "full") for remat in ("none", "full", "dots")],
    *[("135m", remat, 2, kind) for remat in ("full", "mlp") for kind in ("lora", "int8")],
    ("135m", "none", 1, "lora"), ("135m", "full", 1, "full"),
]  # fmt: skip
COLUMNS = {
    "model": "", "kind": "", "remat": "", "rows": "", "predicted_gb": ".3f", "measured_gb": ".3f",
    "memory_error": "+.1%",
    "predicted_seconds": ".3f", "measured_seconds": ".3f", "time_error": "+.0%", "fits": "", "ran": "",
}  # fmt: skip


def run(
    case: tuple[str, str, int, str], length: int, steps: int, said: Callable[[Any], None] = lambda fits: None
) -> dict[str, Any]:
    """Predict, say whether it fits, then train."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxlean import tree
    from jaxlean.config import build
    from jaxlean.cost.memory import peak_memory_bytes
    from jaxlean.run.job import outline, tokens_at_a_time
    from jaxlean.run.predict import here, step_seconds, workspace
    from jaxlean.xla.mesh import make_mesh
    from jaxlean.xla.remat_auto import device_budget, needed_bytes

    name, remat, rows, kind = case
    with tempfile.TemporaryDirectory() as folder:
        shape = {"model_type": "llama", "max_position_embeddings": 2048, "tie_word_embeddings": True, **SHAPES[name]}
        (Path(folder) / "config.json").write_text(json.dumps(shape))
        how = KINDS[kind]
        config = build({
            "model": {"path": folder, **how["model"]}, "lora": how["lora"],
            "train": {"per_device_train_batch_size": rows, "remat": remat}, "data": {"train": "unread"},
        })  # fmt: skip
        mesh = make_mesh()
        made = outline(config, mesh, length=length)
    traced = made.build(remat).trace(*made.arguments)
    compiled = traced.lower().compile()
    tokens = tokens_at_a_time(config, made.rows, length, mesh)
    hidden = made.model.config.hidden_size
    predicted = needed_bytes(compiled) + workspace(jax.default_backend(), hidden, tokens=tokens)
    took = step_seconds(compiled, traced.jaxpr.jaxpr, here(list(mesh.devices.flat)))
    fits = predicted <= device_budget(mesh.devices.flat)
    said(fits)  # before it may fail
    del traced

    on_cpu = jax.default_backend() == "cpu"
    before = resident() if on_cpu else 0
    random = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        # by numpy: the programs that jax would compile for it would count as memory of the step
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jax.device_put(
                (0.02 * random.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype), leaf.sharding
            )
        return jax.device_put(np.ones(leaf.shape, leaf.dtype), leaf.sharding)

    def zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)

    state = jax.tree.map(zeros, made.state)
    state = state._replace(trainable=jax.tree.map(draw, made.state.trainable))
    frozen = jax.tree.map(draw, made.frozen)
    batch = jax.tree.map(draw, made.batch)
    jax.block_until_ready((state, frozen, batch))
    forget_peak()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        state, _ = compiled(state, frozen, batch)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
    measured = peak() - before if on_cpu else peak_memory_bytes()
    assert tree.flatten(state.trainable)
    return {
        "model": name, "kind": kind, "remat": remat, "rows": rows, "predicted_gb": predicted / 1e9,
        "measured_gb": measured / 1e9, "memory_error": predicted / measured - 1, "predicted_seconds": took.total,
        "measured_seconds": median(seconds[1:] or seconds),
        "time_error": took.total / median(seconds[1:] or seconds) - 1, "fits": fits, "ran": True,
    }  # fmt: skip


def _status(key: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def resident() -> int:
    """Bytes of this process in memory now."""
    from jaxlean.cost.memory import give_back

    give_back()
    return _status("VmRSS:")


def peak() -> int:
    """The most since `forget_peak`."""
    return _status("VmHWM:")


def forget_peak() -> None:
    """Linux counts the highest resident memory anew from here (proc(5), clear_refs)."""
    from jaxlean.cost.memory import give_back

    give_back()
    Path("/proc/self/clear_refs").write_text("5")


def work(case: tuple[str, str, int, str], length: int, steps: int, result: Any) -> None:
    result.put(run(case, length, steps, said=result.put))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three small configurations")
    parser.add_argument("--out", type=Path, help="folder for plan_accuracy.json and .png")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args()
    cases = CASES[:3] if given.quick else CASES
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")  # memory that an earlier case left would be counted
    for case in cases:
        result = context.Queue()
        process = context.Process(target=work, args=(case, given.length, given.steps, result))
        process.start()
        process.join()
        name, remat, number, kind = case
        fits = None if result.empty() else result.get()
        if process.exitcode:
            rows.append({"model": name, "kind": kind, "remat": remat, "rows": number, "fits": fits, "ran": False})
            continue
        rows.append(result.get())
        print(
            {key: rows[-1][key] for key in ("model", "kind", "remat", "rows", "memory_error", "time_error")}, flush=True
        )
    errors = sorted(abs(row["memory_error"]) for row in rows if row["ran"])
    times = sorted(abs(row["time_error"]) for row in rows if row["ran"])
    config = {"length": given.length, "steps": given.steps, "configurations": len(rows)}
    out = given.out.resolve() if given.out is not None else None
    publish("plan_accuracy", config, rows, COLUMNS, out)
    print(f"memory: median error {median(errors):.1%}, worst {errors[-1]:.1%}; "
          f"time: median {median(times):.0%}, worst {times[-1]:.0%}; "
          f"called fitting and failed: {sum(bool(row['fits']) and not row['ran'] for row in rows)}")  # fmt: skip
    if out is not None:
        plot(rows, out / "plan_accuracy.png")


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Predicted against measured, memory and time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    ran = [row for row in rows if row["ran"]]
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for axis, what, unit in ((axes[0], "gb", "memory, GB"), (axes[1], "seconds", "seconds a step")):
        for kind in KINDS:
            own = [row for row in ran if row["kind"] == kind]
            axis.scatter([r[f"measured_{what}"] for r in own], [r[f"predicted_{what}"] for r in own], label=kind, s=22)
        ends = [min(r[f"measured_{what}"] for r in ran), max(r[f"measured_{what}"] for r in ran)]
        axis.plot(ends, ends, color="gray", linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel=f"measured {unit}", ylabel=f"predicted {unit}")
        for along in (axis.xaxis, axis.yaxis):
            along.set_major_locator(LogLocator(subs=(1, 2, 5)))
            along.set_major_formatter("{x:g}")
            along.set_minor_formatter(NullFormatter())
        axis.legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
