"""What the compilation cache saves at a job's second start, and what depth costs the compiler.

    python benchmarks/compile.py [--quick] [--out DIR] [--repeats 3] [--unrolled]

Starts: `jaxlean finetune` of a job, in a process of its own, up to the loss of step 1: with an empty cache folder, and
once more with what that start left there. Its seconds by phase:

    import   the interpreter, jax, jaxlean
    load     model, tokenizer, data, adapters, optimizer state
    small    the small programs that loading runs, traced and compiled (or read); not in `load`
    trace    the step: from Python to the program that XLA is given
    compile  the step: by XLA, or read from the cache
    run      step 1 itself

A row of "all" repeats has their medians. `compiling` is small + trace + compile, beside which a cache saves nothing.
`of_cold` is the median's share of that of the cold starts, `compiling_of_cold` the same of `compiling`.

Depth: seconds to trace and compile a step of the 135M Llama shape with more or fewer layers, which are scanned; with
--unrolled also as one program with every layer in it. Each in a process of its own, without a cache.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report import median, publish

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "configs" / "quickstart"
PHASES = ("import", "load", "small", "trace", "compile", "run")
LLAMA_135M = {
    "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "tie_word_embeddings": True,
    "eos_token_id": None,
}  # fmt: skip
COLUMNS = {
    "what": "", "layers": "d", "start": "", "repeats": "", "seconds": ".2f", "spread": ".0%",
    **dict.fromkeys(PHASES, ".2f"), "of_cold": ".2f", "compiling": ".2f", "compiling_of_cold": ".2f",
    "of_8_layers": ".2f",
}  # fmt: skip
Job = dict[str, Any]


# ---- in a process of its own: `python benchmarks/compile.py --child JOB`


def start(job: Job) -> dict[str, float]:
    """Seconds of each phase until step 1 is done; `job["at"]` is when the parent started this process."""
    import contextlib
    import os
    from collections import defaultdict

    import jax

    from jaxlean.config import load
    from jaxlean.run.finetune import finetune
    from jaxlean.run.meter import Meter

    imported = time.time()
    spent: dict[str, float] = defaultdict(float)  # of all programs; compiling includes reading
    kinds = {"jaxpr_trace_duration": "trace", "jaxpr_to_mlir_module_duration": "trace",
             "backend_compile_duration": "compile"}  # fmt: skip

    def heard(event: str, duration_secs: float, **_: str | int) -> None:
        if kind := kinds.get(event.rpartition("/")[2]):
            spent[kind] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(heard)
    compiling, before = Meter.compiling, dict[str, float]()

    @contextlib.contextmanager
    def step_compiling(self: Meter) -> Any:
        before.update(at=time.time(), seconds=sum(spent.values()), compile=spent["compile"])
        with compiling(self):
            yield
        before["compiled"] = time.time()

    def first_step(self: Meter, step: int, measured: Any, **when: float) -> None:
        assert float(measured.loss) > 0
        done = time.time()
        read = spent["compile"] - before["compile"]
        found = {
            "import": imported - job["at"],
            "load": before["at"] - imported - before["seconds"],
            "small": before["seconds"],
            "trace": before["compiled"] - before["at"] - read,
            "compile": read,
            "run": done - before["compiled"],
            "seconds": done - job["at"],
        }
        print(json.dumps(found), file=sys.__stdout__, flush=True)
        os._exit(0)  # what comes after step 1 is of no interest

    Meter.compiling, Meter.add = step_compiling, first_step  # type: ignore[method-assign,assignment]
    config = load(ROOT / "configs" / "quickstart.yaml", job["overrides"])
    with contextlib.redirect_stdout(sys.stderr):
        finetune(config, overwrite=True)
    raise AssertionError("step 1 ends the process")


def depth(job: Job) -> dict[str, float]:
    """Seconds to trace and to compile a step of `job["layers"]` layers; no weight is made."""
    from functools import partial

    import jax
    import jax.numpy as jnp

    from jaxlean import tree
    from jaxlean.adapt import lora
    from jaxlean.config import LoraSection, TrainSection
    from jaxlean.models.attention import choose as attention_for
    from jaxlean.models.build import abstract
    from jaxlean.models.decoder import ACTIVATIONS, DecoderConfig
    from jaxlean.train.loss import chunk_budget
    from jaxlean.train.objective import objective
    from jaxlean.train.optimizer import optimizer
    from jaxlean.train.step import init_state, make_step
    from jaxlean.xla.compile import use_cache
    from jaxlean.xla.remat import scan_layers

    use_cache(False)
    shape = DecoderConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_layers=job["layers"], num_heads=9,
        num_kv_heads=3, head_dim=64, tie_embeddings=True,
    )  # fmt: skip
    _, bare = abstract(shape)
    section = LoraSection(r=16)
    params = jax.eval_shape(lambda p: lora.add(p, lora.targets(p, "all-linear"), section, jax.random.key(0)), bare)
    backend = attention_for("auto", platform=jax.default_backend(), dtype=jnp.float32, head_dim=64)
    graph, _ = abstract(shape, params, attention=backend)
    trainable, frozen = tree.split(params, lora.is_adapter)
    transform = optimizer(TrainSection(), 100, trainable)
    scan = scan_layers("full", ACTIVATIONS)
    if job["unrolled"]:

        def scan(body: Any, carry: Any, xs: Any) -> Any:
            return jax.lax.scan(jax.checkpoint(body), carry, xs, unroll=True)

    loss = objective(graph, shape, logits_bytes=chunk_budget("auto", 1, shape.vocab_size), scan=scan)
    state = jax.eval_shape(partial(init_state, transform=transform), trainable)
    kinds = {"tokens": jnp.int32, "loss_mask": jnp.bool_, "segments": jnp.int32, "positions": jnp.int32}
    batch = {name: jax.ShapeDtypeStruct((1, 4, 512), kind) for name, kind in kinds.items()}
    jax.jit(lambda x: x + 1).lower(1.0).compile()  # the compiler itself has started
    began = time.perf_counter()
    lowered = make_step(loss, transform).lower(state, frozen, batch)
    traced = time.perf_counter()
    lowered.compile()
    done = time.perf_counter()
    return {"trace": traced - began, "compile": done - traced, "seconds": done - began}


def make_base(job: Job) -> dict[str, float]:
    """Write a base with random weights and the quickstart's tokenizer."""
    from jaxlean.hub.load import initial
    from jaxlean.hub.write import write_model

    write_model(initial(LLAMA_135M, "bfloat16", tokenizer=str(QUICKSTART / "base")), Path(job["folder"]))
    return {}


CHILDREN = {"start": start, "depth": depth, "make_base": make_base}


# ---- the parent, which imports nothing of it


def child(name: str, **job: Any) -> dict[str, float]:
    """What a function of `CHILDREN` finds in a process of its own."""
    job |= {"at": time.time()}
    command = [sys.executable, str(Path(__file__).resolve()), "--child", name, json.dumps(job)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def starts(what: str, overrides: Sequence[str], folder: Path, repeats: int) -> list[Job]:
    """Cold and warm starts of a job, in turn."""
    rows = []
    for repeat in range(1, repeats + 1):
        cache = folder / f"{what}-{repeat}"
        job = [f"output_dir={folder / 'run'}", f"compilation_cache={cache}", "data.eval=null",
               "report.progress=false", "report.tensorboard=false", *overrides]  # fmt: skip
        for kind in ("cold", "warm"):
            rows.append({"what": what, "start": kind, "repeats": f"no. {repeat}", **child("start", overrides=job)})
            print(f"{what}, {kind}: {rows[-1]['seconds']:.2f} s to step 1", flush=True)
    return rows


def summarised(rows: Sequence[Mapping[str, Any]]) -> list[Job]:
    """A row of medians for each job and kind of start, and for each depth; ratios are of medians."""
    found: list[Job] = []
    for key in dict.fromkeys((row["what"], row.get("layers"), row.get("start")) for row in rows):
        own = [row for row in rows if (row["what"], row.get("layers"), row.get("start")) == key]
        one: Job = {name: own[0][name] for name in ("what", "layers", "start") if name in own[0]}
        one["repeats"] = f"all {len(own)}"
        for name in ("seconds", *PHASES):
            if name in own[0]:
                one[name] = median([row[name] for row in own])
        one["spread"] = (max(row["seconds"] for row in own) - min(row["seconds"] for row in own)) / one["seconds"]
        if "start" in one:
            one["compiling"] = median([sum(row[name] for name in PHASES[2:5]) for row in own])
        found.append(one)
    for one in found:
        if one.get("start") == "warm":
            cold = next(row for row in found if row["what"] == one["what"] and row.get("start") == "cold")
            one["of_cold"] = one["seconds"] / cold["seconds"]
            one["compiling_of_cold"] = one["compiling"] / cold["compiling"]
        elif "layers" in one:
            least = next(row for row in found if row["what"] == one["what"])
            one["of_8_layers"] = one["seconds"] / least["seconds"]
    return found


def plot(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Left: where the seconds of a start go. Right: compile time over depth. Medians."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained", width_ratios=(3, 2))
    bars = [row for row in rows if "start" in row][::-1]  # from the top down
    names = [f"{row['what']}\n{row['start']}" for row in bars]
    told = {"small": "small programs", "trace": "trace the step", "compile": "compile or read it", "run": "run it"}
    at = [0.0] * len(bars)
    for phase, colour in zip(PHASES, ("0.75", "0.55", "C1", "gold", "C3", "C0"), strict=True):
        left.barh(names, [row[phase] for row in bars], left=at, label=told.get(phase, phase), color=colour)
        at = [before + row[phase] for before, row in zip(at, bars, strict=True)]
    for place, (row, end) in enumerate(zip(bars, at, strict=True)):
        share = f" ({row['of_cold']:.0%}; compiling {row['compiling_of_cold']:.0%})" if "of_cold" in row else ""
        left.text(end + max(at) * 0.01, place, f"{row['seconds']:.1f} s{share}", va="center", fontsize=9)
    left.set(xlabel="seconds from the start of the process to the loss of step 1", xlim=(0, 1.25 * max(at)),
             title="Starting a job: empty cache, then again")  # fmt: skip
    left.legend(loc="upper right", fontsize=8)
    for what in dict.fromkeys(row["what"] for row in rows if "layers" in row):
        own = [row for row in rows if row["what"] == what]
        right.plot([row["layers"] for row in own], [row["seconds"] for row in own], marker="o", label=what)
        for row in own:
            right.annotate(f"{row['seconds']:.1f} s", (row["layers"], row["seconds"]), fontsize=8,
                           textcoords="offset points", xytext=(0, 6), ha="center")  # fmt: skip
    right.set(xlabel="layers", ylabel="seconds to trace and compile the step", title="Depth",
              xticks=sorted({row["layers"] for row in rows if "layers" in row}))  # fmt: skip
    right.margins(0.12)
    right.set_ylim(bottom=0)
    right.legend(loc="center right")
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one job with few rows, one repeat, 8 and 64 layers once")
    parser.add_argument("--out", type=Path, help="folder for compile.json and compile.png")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--unrolled", action="store_true", help="also without a scan, once each: minutes")
    parser.add_argument("--child", nargs=2, metavar=("FUNCTION", "JOB"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        print(json.dumps(CHILDREN[given.child[0]](json.loads(given.child[1]))), flush=True)
        return
    repeats = 1 if given.quick else given.repeats
    layers = (8, 64) if given.quick else (8, 24, 64)
    jobs: dict[str, list[str]] = {"quickstart": []}
    if given.quick:
        jobs["quickstart"].append(f"data.train=[{{path: {QUICKSTART / 'train.jsonl'}, limit: 400}}]")
    rows: list[Job] = []
    with tempfile.TemporaryDirectory(prefix="jaxlean-compile-") as name:
        folder = Path(name)
        if not given.quick:
            child("make_base", folder=str(folder / "base"))
            jobs["135M"] = [
                f"model.path={folder / 'base'}", "model.dtype=bfloat16", "data.max_length=512", "lora.r=16",
                "train.per_device_train_batch_size=4", "train.remat=full",
            ]  # fmt: skip
            child("depth", layers=1, unrolled=False)  # the packages' files are in memory from here on
        for what, overrides in jobs.items():
            rows += starts(what, overrides, folder, repeats)
    for repeat in range(1, repeats + 1):
        for num in layers:
            found = child("depth", layers=num, unrolled=False)
            rows.append({"what": "layers scanned", "layers": num, "repeats": f"no. {repeat}", **found})
            print(f"{num} layers: {found['seconds']:.2f} s", flush=True)
    for num in (8, 64) if given.unrolled else ():
        rows.append({"what": "layers unrolled", "layers": num, "repeats": "no. 1",
                     **child("depth", layers=num, unrolled=True)})  # fmt: skip
        print(f"{num} layers unrolled: {rows[-1]['seconds']:.2f} s", flush=True)
    medians = summarised(rows)
    config = {"jobs": jobs, "135M": LLAMA_135M, "depth": "135M, LoRA r 16, 4 x 512, float32", "repeats": repeats}
    publish("compile", config, [*medians, *rows], COLUMNS, given.out)
    if given.out is not None:
        plot(medians, given.out / "compile.png")


if __name__ == "__main__":
    main()
