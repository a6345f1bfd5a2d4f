"""What each remat policy costs in time and takes in memory, and whether `auto` finds the best one that fits.

    python benchmarks/remat.py [--quick] [--out DIR] [--shape tiny|135m|1b] [--batch 4] [--length 512] [--full]
    python benchmarks/remat.py --calibrate benchmarks/results/remat.json ...

One training step (LoRA r 16 on all linear layers, or all parameters with --full; AdamW) of a Llama with random weights,
under every policy: XLA's memory analysis and the peak that was measured, each in a process of its own, FLOPs computed a
second time, and the largest batch that fits into `--memory`, by compiling only. Then `auto` with a budget of 2x, 1.5x
and 1.1x the least that any policy takes. Then the time of a step, of all of them in turn. --calibrate fits the rates of
`jaxlean.xla.remat_auto` to the rows of earlier results.
"""

import argparse
import contextlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from report import median, publish

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.config import LoraSection
from jaxlean.cost.memory import memory_source, peak_memory_bytes
from jaxlean.models.attention import choose as attention_for
from jaxlean.models.build import abstract
from jaxlean.models.cpu import hold
from jaxlean.models.decoder import ACTIVATIONS, DecoderConfig
from jaxlean.train.loss import chunk_budget
from jaxlean.train.objective import objective
from jaxlean.train.step import init_state, make_step
from jaxlean.xla.compile import use_cache
from jaxlean.xla.precision import compute_dtype, parameter_dtype
from jaxlean.xla.remat import POLICIES, scan_layers
from jaxlean.xla.remat_auto import choose, device_budget, needed_bytes
from jaxlean.xla.work import count, kept_bytes

SHAPES = {
    "tiny": DecoderConfig(vocab_size=2048, hidden_size=128, intermediate_size=384, num_layers=12, num_heads=4,
                          num_kv_heads=2, head_dim=32, tie_embeddings=True),
    "135m": DecoderConfig(vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_layers=30, num_heads=9,
                          num_kv_heads=3, head_dim=64, tie_embeddings=True),
    "1b": DecoderConfig(vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_layers=16, num_heads=32,
                        num_kv_heads=8, head_dim=64, tie_embeddings=True),
}  # fmt: skip
FACTORS = (2.0, 1.5, 1.1)
# Sets of names beside the named policies: what --calibrate tells the parts of a step apart by.
EXTRA = [
    ["context"], ["gate", "up"], ["attention_in", "attention_out", "mlp_in"],
    ["query", "key", "value", "context", "gate", "up"],
    ["query", "key", "value", "context", "attention_lse", "attention_out", "gate", "up", "lora_low"],
]  # fmt: skip
COLUMNS = {
    "policy": "", "step_seconds": ".3f", "spread": ".0%", "tokens_per_second": ",.0f", "needed_gb": ".3f",
    "temp_gb": ".3f", "peak_gb": ".3f", "recomputed_gflop": ",.0f", "recomputed": ".1%", "largest_batch": ",d",
    "budget_gb": ".3f", "chose": "", "against_best": "+.1%",
}  # fmt: skip
Job = dict[str, Any]


def prepare(job: Job, rows: int) -> tuple[Callable[[Any], Any], tuple[Any, ...]]:
    """(policy -> the jitted step, its arguments as shapes) for a batch of so many rows."""
    config, dtype = job["shape"], compute_dtype(job["dtype"])
    trains = (lambda path: True) if job["full"] else lora.is_adapter
    held = parameter_dtype(dtype, trains)
    _, params = abstract(config)
    if not job["full"]:
        section = LoraSection(r=16)
        params = jax.eval_shape(
            lambda p: lora.add(p, lora.targets(p, "all-linear"), section, jax.random.key(0)), params
        )
    params = tree.map_with_path(lambda path, x: jax.ShapeDtypeStruct(x.shape, held(path)), params)
    backend = attention_for("auto", platform=jax.default_backend(), dtype=dtype, head_dim=config.head_dim)
    graph, _ = abstract(config, params, dtype=dtype, attention=backend)
    trainable, frozen = tree.split(params, trains)
    transform = optax.adamw(1e-4)
    state = jax.eval_shape(lambda t: init_state(t, transform), trainable)
    kinds = {"tokens": jnp.int32, "loss_mask": jnp.bool_, "segments": jnp.int32, "positions": jnp.int32}
    batch = {name: jax.ShapeDtypeStruct((1, rows, job["length"]), kind) for name, kind in kinds.items()}

    def build(policy: Any) -> Any:
        scan = scan_layers(policy, ACTIVATIONS)
        budget = chunk_budget("auto", 1, config.vocab_size)
        return make_step(objective(graph, config, logits_bytes=budget, scan=scan), transform)

    return build, (state, jax.eval_shape(hold, frozen), batch)


def fill(job: Job, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arrays for `prepare`'s shapes: small random weights, random tokens, everything learned."""
    state, frozen, batch = shapes

    @jax.jit
    def draw(key: jax.Array) -> Any:
        leaves, treedef = jax.tree.flatten((state.trainable, frozen))
        keys = jax.random.split(key, len(leaves))
        # a step is handed its frozen parameters as `hold` makes them
        dtypes = [jnp.bfloat16 if x.dtype == jnp.uint16 else x.dtype for x in leaves]
        drawn = [0.02 * jax.random.normal(k, x.shape, d) for k, x, d in zip(keys, leaves, dtypes, strict=True)]
        return jax.tree.unflatten(treedef, drawn)

    trainable, frozen = draw(jax.random.key(0))
    shape = batch["tokens"].shape
    tokens = jax.random.randint(jax.random.key(1), shape, 0, job["shape"].vocab_size, jnp.int32)
    mask = jnp.broadcast_to(jnp.arange(shape[-1]) > 0, shape)
    positions = jnp.broadcast_to(jnp.arange(shape[-1], dtype=jnp.int32), shape)
    batch = {"tokens": tokens, "loss_mask": mask, "segments": jnp.ones(shape, jnp.int32), "positions": positions}
    return jax.jit(lambda t: init_state(t, optax.adamw(1e-4)))(trainable), hold(frozen), batch


def first_steps(job: Job, compiled: Any, shapes: tuple[Any, ...]) -> dict[str, Any]:
    """Two steps, for the peak of memory after them."""
    state, frozen, batch = jax.block_until_ready(fill(job, shapes))
    forget_peak()
    before = peak_memory_bytes()
    for _ in range(2):
        state, metrics = compiled(state, frozen, batch)
    loss = float(metrics.loss)
    assert np.isfinite(loss)
    return {"loss": loss, "peak_bytes": peak_memory_bytes(), "peak_before_bytes": before,
            "peak_source": memory_source()}  # fmt: skip


def forget_peak() -> None:
    """Let a process's peak begin anew, so that it is the steps' and not that of compiling (proc_pid_clear_refs(5)).

    What the compiler has freed and the allocator kept is still in it. An accelerator counts its own memory, in which
    nothing is compiled.
    """
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def time_in_turn(job: Job) -> dict[str, Any]:
    """Seconds of a step under each of `job["policies"]`, a step of each in turn, so many rounds.

    In one process, and in turn step by step: a machine that slows down for a minute slows down all of them.
    """
    use_cache(job["cache"])
    build, shapes = prepare(job, job["batch"])
    compiled = {name: build(policy).lower(*shapes).compile() for name, policy in job["policies"].items()}
    state, frozen, batch = jax.block_until_ready(fill(job, shapes))
    times: dict[str, Any] = {name: {"seconds": [], "cpu_seconds": []} for name in compiled}
    for number in range(job["rounds"] + 1):
        for name, step in compiled.items():
            start, own = time.perf_counter(), time.process_time()
            state, metrics = step(state, frozen, batch)
            float(metrics.loss)
            if number:  # the first is the warm-up
                times[name]["seconds"].append(time.perf_counter() - start)
                # on CPU: where another process took a core away, a step took longer but worked no longer
                times[name]["cpu_seconds"].append(time.process_time() - own)
        print(f"round {number} of {job['rounds']}", flush=True)
    return times


def temp_bytes(compiled: Any) -> int:
    """What XLA puts between the arguments and the results of a compiled step."""
    return int(compiled.memory_analysis().temp_size_in_bytes)


def measure(job: Job) -> dict[str, Any]:
    """A policy: counted, compiled, run."""
    use_cache(job["cache"])
    build, shapes = prepare(job, job["batch"])
    traced = build(job["policy"]).trace(*shapes)
    work, jaxpr = count(traced.jaxpr.jaxpr), traced.jaxpr.jaxpr
    compiled = traced.lower().compile()
    return {
        "needed_bytes": needed_bytes(compiled), "temp_bytes": temp_bytes(compiled), "kept_bytes": kept_bytes(jaxpr),
        "flops": dict(work.flops), "product_bytes": work.product_bytes, "elements": work.elements,
        "platform": jax.default_backend(), **first_steps(job, compiled, shapes),
    }  # fmt: skip


def measure_auto(job: Job) -> dict[str, Any]:
    """`auto` with a budget: what it chose, run."""
    use_cache(job["cache"])
    build, shapes = prepare(job, job["batch"])
    choice = choose(build, shapes, job["budget"], ACTIVATIONS)
    print(choice)
    tried = [[policy if isinstance(policy, str) else list(policy), size] for policy, size in choice.tried]
    return {
        "chose": choice.policy if isinstance(choice.policy, str) else " ".join(choice.policy), "tried": tried,
        "policy_chosen": choice.policy,
        "needed_bytes": choice.needed, "temp_bytes": temp_bytes(choice.compiled),
        "recomputed": choice.recomputed, "choose_seconds": choice.seconds, **first_steps(job, choice.compiled, shapes),
    }  # fmt: skip


def largest_batch(job: Job) -> int:
    """The most rows whose step fits into `job["memory"]`, found by compiling: memory is nearly linear in rows."""
    use_cache(job["cache"])
    sizes: dict[int, int] = {}

    def size(rows: int) -> int:
        if rows not in sizes:
            build, shapes = prepare(job, rows)
            try:
                sizes[rows] = needed_bytes(build(job["policy"]).lower(*shapes).compile())
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                sizes[rows] = 2 * job["memory"]
        return sizes[rows]

    fits, not_ = 0, 1 << 20
    guess = job["batch"]
    while not_ - fits > 1:
        if size(guess) <= job["memory"]:
            fits = guess
        else:
            not_ = guess
        known = sorted(sizes)
        other = known[0] if len(known) > 1 else max(guess // 2, 1)
        each = (size(guess) - size(other)) / (guess - other) if guess != other else size(guess) / guess
        guess = int(guess + (job["memory"] - size(guess)) / max(each, 1))
        guess = min(max(guess, fits + 1), not_ - 1)
        if guess == fits + 1 and not_ - fits > 2 and fits in sizes and fits + 1 in sizes:
            guess = (fits + not_) // 2
    return fits


def alone(function: Callable[[Job], Any], job: Job) -> Any:
    """The result of a function in a process of its own."""
    with CONTEXT.Pool(1) as pool:
        return pool.apply(function, (job,))


# The server has imported everything and started nothing: a child's peak is its own.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["jax", "flax.nnx", "optax", "jaxlean.train.step", "jaxlean.adapt.lora"])


def table(policies: dict[str, dict[str, Any]], autos: dict[str, dict[str, Any]], tokens: int) -> list[dict[str, Any]]:
    """The raw numbers with what follows from them.

    A step's seconds are those of the median round, as fast as this row was against all rows of its round: so a machine
    that slows down for some rounds changes no order.
    """
    least = min(sum(row["flops"].values()) for row in policies.values())
    rows = []
    for name, row in policies.items():
        flops = sum(row["flops"].values())
        more = {"recomputed_gflop": (flops - least) / 1e9, "recomputed": 1 - least / flops}
        rows.append({"policy": name, **row, **more})
    rows += [{"policy": name, **row, "budget_gb": row["budget"] / 1e9} for name, row in autos.items()]
    rounds = np.mean([row["seconds"] for row in rows], axis=0)
    for row in rows:
        shares = np.asarray(row["seconds"]) / rounds
        share = median(shares.tolist())
        step = share * median(rounds.tolist())
        row |= {
            "step_seconds": step, "spread": float(shares.max() - shares.min()) / share,
            "tokens_per_second": tokens / step, "needed_gb": row["needed_bytes"] / 1e9,
            "temp_gb": row["temp_bytes"] / 1e9, "peak_gb": row["peak_bytes"] / 1e9,
        }  # fmt: skip
    named = [row for row in rows if row["policy"] in POLICIES]
    for row in rows:
        if "budget" in row:
            fitting = [other for other in named if other["needed_bytes"] <= row["budget"]]
            best = min(fitting, key=lambda other: other["step_seconds"])
            row |= {"best_named": best["policy"], "against_best": row["step_seconds"] / best["step_seconds"] - 1}
    return rows


def plot(rows: list[dict[str, Any]], title: str, file: Path) -> None:
    """Memory against step time: the policies, their Pareto front, `auto` at its budgets."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(8, 5))
    named = [row for row in rows if "budget" not in row]
    front: list[dict[str, Any]] = []
    for row in sorted(named, key=lambda row: (row["needed_gb"], row["step_seconds"])):
        if not front or row["step_seconds"] < front[-1]["step_seconds"]:
            front.append(row)
    axes.step([r["needed_gb"] for r in front], [r["step_seconds"] for r in front], where="post", color="0.7", zorder=0)
    for kind, style in (("policy", {"color": "C0"}), ("auto", {"color": "C3", "marker": "*", "s": 140})):
        chosen = [row for row in rows if ("budget" in row) == (kind == "auto")]
        axes.scatter([r["needed_gb"] for r in chosen], [r["step_seconds"] for r in chosen], label=kind, **style)
    for row in rows:
        if "budget" in row:
            axes.axvline(row["budget_gb"], color="C3", linewidth=0.6, linestyle=":", zorder=0)
    axes.set(xlabel="memory of the step, GB (XLA's analysis); dotted: auto's budgets", ylabel="seconds a step",
             title=title, xscale="log")  # fmt: skip
    axes.margins(x=0.12, y=0.15)
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%.3g"))
    axes.xaxis.set_minor_formatter(ticker.FormatStrFormatter("%.3g"))
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.legend(loc="best")
    figure.tight_layout()
    _label(axes, rows)
    figure.savefig(file, dpi=150)


def _label(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Each point's name, at the first place beside it where no other name or point is."""
    from matplotlib.transforms import Bbox

    at = axes.transData.transform([(row["needed_gb"], row["step_seconds"]) for row in rows])
    taken: list[Any] = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in at]
    spots = [(x, y) for y in (-10, 6, -21, 17, -32, 28) for x in (6, -6)]
    for row in sorted(rows, key=lambda row: row["needed_gb"]):
        for x, y in spots:
            text = axes.annotate(
                row["policy"], (row["needed_gb"], row["step_seconds"]), fontsize=8, textcoords="offset points",
                xytext=(x, y), ha="left" if x > 0 else "right", color="C3" if "budget" in row else "0.2",
            )  # fmt: skip
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
            if (x, y) != spots[-1]:
                text.remove()
        taken.append(box)


def calibrate(files: list[Path], elements: float | None) -> None:
    """Print the rates that explain the measured times best, platform by platform, and how well they do.

    Args:
        files: results, best with --extra.
        elements: a rate of other operations to take as given: rows often do not tell them from the products' bytes.
    """
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    rows = [row | {"file": file.name} for file in files for row in json.loads(file.read_text())["rows"]]
    for platform in sorted({row["platform"] for row in rows if "flops" in row}):
        chosen = [row for row in rows if row.get("platform") == platform]
        dtypes = sorted({dtype for row in chosen for dtype in row["flops"]})
        names = [*dtypes, "product_bytes", "kept_bytes", "elements"]
        features = np.array([[({**row, **row["flops"]}).get(name, 0.0) for name in names] for row in chosen])
        seconds = np.array([row["step_seconds"] for row in chosen])
        given = features[:, -1] / elements if elements else np.zeros(len(chosen))
        free = features[:, :-1] if elements else features
        # relative errors: each row's time is 1
        scale = free.max(axis=0)
        found, _ = nnls(free / scale / seconds[:, None], 1 - given / seconds)
        rates = scale / np.maximum(found, 1e-9)
        print(platform, {name: f"{rate:.3g}" for name, rate in zip(names, rates, strict=False)})
        explained = free @ (1 / rates) + given
        print(f"  rms {np.sqrt(np.mean((explained / seconds - 1) ** 2)):.1%}")
        for row, told in zip(chosen, explained, strict=True):
            print(f"  {row['file']} {row['policy']:>45} measured {row['step_seconds']:.3f} explained {told:.3f}")


def shape_of(args: argparse.Namespace) -> DecoderConfig:
    shape = SHAPES["tiny" if args.quick and args.shape is None else args.shape or "135m"]
    changes = {"num_layers": args.layers, "hidden_size": args.hidden, "intermediate_size": args.intermediate,
               "num_heads": args.heads, "num_kv_heads": args.kv_heads, "vocab_size": args.vocab}  # fmt: skip
    return replace(shape, **{key: value for key, value in changes.items() if value is not None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model, few steps, one budget")
    parser.add_argument("--out", type=Path, help="folder for remat.json and remat.png")
    parser.add_argument("--shape", choices=SHAPES)
    for name in ("layers", "hidden", "intermediate", "heads", "kv-heads", "vocab"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int)
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--full", action="store_true", help="train all parameters, not an adapter")
    parser.add_argument("--memory", type=float, help="GB for the largest batch; default: what the device has")
    parser.add_argument("--rounds", type=int, help="steps of each policy that are timed, in turn; default 6")
    parser.add_argument("--extra", action="store_true", help="some sets of names too, to calibrate by")
    parser.add_argument("--calibrate", type=Path, nargs="+", metavar="JSON")
    parser.add_argument("--elements", type=float, help="with --calibrate: a rate to take as given")
    args = parser.parse_args()
    if args.calibrate:
        return calibrate(args.calibrate, args.elements)
    with tempfile.TemporaryDirectory() as cache:
        job: Job = {
            "shape": shape_of(args), "batch": args.batch, "length": args.length or (256 if args.quick else 512),
            "dtype": args.dtype, "full": args.full, "rounds": args.rounds or (3 if args.quick else 6), "cache": cache,
        }  # fmt: skip
        platform = alone(_platform, job)
        settings: dict[str, Any] = {name: name for name in POLICIES if name != "auto"}
        if platform != "cpu":
            settings["offload gate up"] = {"save": ["query", "key", "value", "context"], "offload": ["gate", "up"]}
        settings |= {" ".join(names): names for names in EXTRA} if args.extra else {}
        policies: dict[str, dict[str, Any]] = {}
        for name, policy in settings.items():
            policies[name] = alone(measure, job | {"policy": policy})
            print(f"{name}: {policies[name]['needed_bytes'] / 1e9:.3f} GB", flush=True)
        least = min(row["needed_bytes"] for name, row in policies.items() if name in POLICIES)
        autos: dict[str, dict[str, Any]] = {}
        for factor in FACTORS[1:2] if args.quick else FACTORS:
            budget = int(factor * least)
            autos[f"auto {factor}x"] = {"budget": budget, **alone(measure_auto, job | {"budget": budget})}
        chosen = {name: row.pop("policy_chosen") for name, row in autos.items()}
        for name, times in alone(time_in_turn, job | {"policies": settings | chosen}).items():
            (policies if name in policies else autos)[name].update(times)
        memory = int(args.memory * 1e9) if args.memory else alone(_memory, job)
        if args.quick:
            memory = 2 * least
        for name in ("none", "full") if args.quick else [name for name in settings if name in POLICIES]:
            policies[name]["largest_batch"] = alone(largest_batch, job | {"policy": settings[name], "memory": memory})
            print(f"{name}: {policies[name]['largest_batch']} rows fit into {memory / 1e9:.2f} GB", flush=True)
    rows = table(policies, autos, job["batch"] * job["length"])
    config = {**job, "shape": vars(job["shape"]) | {"rope": str(job["shape"].rope)}, "largest_batch_memory": memory}
    publish("remat", {k: v for k, v in config.items() if k != "cache"}, rows, COLUMNS, args.out)
    if args.out is not None:
        name = "all parameters" if args.full else "LoRA r 16"
        title = f"{args.shape or ('tiny' if args.quick else '135m')}, {name}, {job['batch']} x {job['length']}"
        plot(rows, f"{title}, {args.dtype}, {platform}", args.out / "remat.png")


def _platform(job: Job) -> str:
    return jax.default_backend()


def _memory(job: Job) -> int:
    return device_budget()


if __name__ == "__main__":
    main()
