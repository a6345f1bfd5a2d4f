"""The cuts, each alone: quality, seconds, memory and dollars of one job on this machine.

    python benchmarks/cuts.py --work DIR [--rows 4000] [--seeds 0 1 2] [--quick] [--out DIR]

The job: `configs/quickstart.yaml`, customer messages to JSON, as good as *full fine-tuning* makes the base in an epoch
of --rows rows. Full fine-tuning is in float32 with AdamW, 32 rows a step, each row padded to 128 tokens (the longest
has 119), plain attention, all logits at once, an evaluation four times on the way: what people start from. Each arm
is that with one cut. All are `jaxlean` commands, `overrides` is what an arm adds.

Quality first: an arm trains for ever shorter shares of the epoch, each with its own whole schedule and three seeds,
and the shortest whose median of bits per byte, on 300 held-out rows, is no worse than the worst seed of full
fine-tuning counts (found by bisection; bits per byte, because new tokens change what a token is). An arm that is
worse at the whole epoch has that length and says `no`. `exact_match` is the share of held-out completions that are
right word for word.

Then the bill: the commands of every arm at its length, from start to end with imports, compiling and what comes before
training (pruning, curating), in turns of --turn seconds, the others stopped, so that a machine that is slower for a
while is so for all; a round for each seed. `seconds` are those in which an arm ran. `memory_mb` is what a process held
beyond its start while it trained. `usd` is seconds times a class of memory, the power of two of MB that holds it, at
what accelerators cost for a GB and an hour (an L4's price over its memory: cards of 16 to 80 GB cost $0.02 to 0.04):
a job that needs half the memory runs on a card of half the price. `usd_here` is seconds at this machine's price.
`against` is the arm that `cheaper` compares with: usd of that one over its own.

What is in --work is not made again: the same command goes on where it was stopped.
"""

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import median, publish
from turns import in_turns

ROOT = Path(__file__).parent.parent
TASK = ROOT / "configs" / "quickstart"
REFERENCE = "full fine-tuning, float32"
SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)
ROWS_A_STEP = 32
FULL = (
    "lora=null", "model.dtype=float32", "model.attention=plain", "train.remat=none", "train.loss_chunk_bytes=null",
    "data.packing=false", "data.max_length=128", f"train.per_device_train_batch_size={ROWS_A_STEP}",
    "train.learning_rate=1e-3", "eval.mode=sync", "compilation_cache=false", "report.tensorboard=false",
    "report.progress=false", "cost.ledger=false", "train.logging_steps=10",
)  # fmt: skip
LORA = ("lora={r: 32, lora_alpha: 64, target_modules: all-linear}", "train.learning_rate=3e-3")
PACKED = ("data.packing=true", "data.max_length=512", "train.per_device_train_batch_size=5")  # 34 rows
FUSED = ("model.attention=auto", "train.loss_chunk_bytes=auto")
NEW_TOKENS = ("model.new_tokens=auto", "model.new_tokens_init=mean", "model.num_new_tokens=300")
CURRICULUM = ("data.curriculum={difficulty: length, order: easy_first, pacing: competence}",)
COLUMNS = {
    "cut": "", "arm": "", "epoch": ".3f", "steps": ",", "bits_per_byte": ".4f", "as_good": "", "exact_match": ".1%",
    "seconds": ",.0f", "spread": ".0%", "memory_mb": ",.0f", "usd": ".6f", "usd_here": ".6f", "cheaper": ".2f",
    "against": "",
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """A way to do the job.

    Args:
        cut: which of the twelve.
        overrides: added to those of full fine-tuning.
        before: commands of jaxlean that make its base or rows, given the folder for what they write, and what is
            added to the overrides then.
        verb: that trains.
        environment: of its processes.
        against: the arm that its cost is compared with.
        longest: share of an epoch that it may take.
    """

    cut: str
    overrides: Sequence[str] = ()
    before: "Callable[[Path, argparse.Namespace], tuple[list[list[str]], list[str]]] | None" = None
    verb: str = "finetune"
    environment: tuple[tuple[str, str], ...] = ()
    against: str = REFERENCE


def pruned(folder: Path, given: argparse.Namespace) -> tuple[list[list[str]], list[str]]:
    """Three quarters of the base's parameters."""
    smaller = folder / "pruned"
    return [["prune", "configs/prune.yaml", "--output", str(smaller)]], [f"model.path={smaller}"]


def curated(folder: Path, given: argparse.Namespace) -> tuple[list[list[str]], list[str]]:
    """Without near duplicates, and half of the rest: those that the base knows least, but for the strangest."""
    steps = "[near_duplicates, loss, {keep: {fraction: 0.5, by: loss, drop_highest: 0.02}}]"
    command = [
        "curate", "configs/quickstart.yaml", f"data.train={rows_of(given)}", "curate={steps: " + steps + "}",
        f"output_dir={folder / 'curated'}",
    ]  # fmt: skip
    return [command], [f"data.train={folder / 'curated'}"]


def rows_of(given: argparse.Namespace) -> str:
    """The training rows."""
    return "{path: " + str(TASK / "train.jsonl") + f", limit: {given.rows}" + "}"


ARMS: dict[str, Arm] = {
    REFERENCE: Arm(""),
    "LoRA": Arm("2", LORA),
    "warm-start embeddings of 300 new tokens": Arm("3", NEW_TOKENS),
    "gradient checkpointing": Arm("4", ("train.remat=full",)),
    "fused attention and loss": Arm("5", FUSED),
    "bfloat16": Arm("5", ("model.dtype=bfloat16",)),
    "pruned to 75 %": Arm("6", before=pruned),
    "curriculum": Arm("7", CURRICULUM),
    "two devices of a core": Arm(
        "10",
        ("mesh.data=2", f"train.per_device_train_batch_size={ROWS_A_STEP // 2}"),
        environment=(("XLA_FLAGS", "--xla_force_host_platform_device_count=2"),),
    ),
    "asynchronous evaluation": Arm("11", ("eval.mode=async",)),
    "curated rows": Arm("12", before=curated),
    "packing": Arm("-", PACKED),
    "gradient accumulation": Arm("-", ("train.per_device_train_batch_size=4", "train.gradient_accumulation_steps=8")),
}


# ---- the runs


def commands(name: str, share: float, seed: int, output: Path, given: argparse.Namespace) -> list[list[str]]:
    """What an arm types, one after another; the last trains and leaves its result in `output`."""
    arm = ARMS[name]
    steps = max(round(share * given.rows / ROWS_A_STEP), 4)
    before, added = ([], []) if arm.before is None else arm.before(output.parent / f"{output.name}-before", given)
    train = [
        arm.verb, "configs/quickstart.yaml", f"output_dir={output}", f"seed={seed}", f"data.train={rows_of(given)}",
        *FULL, f"train.max_steps={steps}", f"train.save_steps={steps}", f"eval.eval_steps={max(steps // 4, 1)}",
        f"eval.max_examples={given.examples}", *arm.overrides, *added,
    ]  # fmt: skip
    return [[sys.executable, "-m", "jaxlean", *command] for command in [*before, train]]


def environment_of(name: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)} | dict(ARMS[name].environment)


def quality(name: str, share: float, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """The summary of a run, which is made where it is not there yet."""
    output = given.work / "quality" / name.replace(" ", "-").replace("%", "") / f"{share:.3f}-{seed}"
    file = output / "summary.json"
    if not file.exists():
        for command in commands(name, share, seed, output, given):
            whole = [*command, "eval.exact_match=true", "--overwrite"] if command[3] == ARMS[name].verb else command
            done = subprocess.run(whole, cwd=ROOT, env=environment_of(name), capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"{shlex.join(whole)}: exit {done.returncode}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")
    summary: dict[str, Any] = json.loads(file.read_text())
    after = summary["eval_after"]
    print(f"{name}, {share:.3f} epoch, seed {seed}: {after['bits_per_byte']:.4f} bits per byte, "
          f"{after['exact_match']:.1%}", flush=True)  # fmt: skip
    return summary


def bits(summaries: Sequence[dict[str, Any]]) -> list[float]:
    return [summary["eval_after"]["bits_per_byte"] for summary in summaries]


def shortest(name: str, target: float, given: argparse.Namespace) -> tuple[float, bool]:
    """(share of an epoch, whether it is as good as the target there) of an arm, by bisection."""
    good = lambda share: median(bits([quality(name, share, seed, given) for seed in given.seeds])) <= target  # noqa: E731
    if not good(SHARES[-1]):
        return SHARES[-1], False
    low, high = -1, len(SHARES) - 1  # SHARES[low] is too short, SHARES[high] is enough
    while high - low > 1:
        middle = (low + high) // 2
        if good(SHARES[middle]):
            high = middle
        else:
            low = middle
    return SHARES[high], True


def bill(lengths: dict[str, float], seed: int, given: argparse.Namespace) -> dict[str, float]:
    """Seconds of each arm's commands, in turns."""
    folder = given.work / "bill" / str(seed)
    file = folder / "seconds.json"
    asked = {name: f"{share:.3f}" for name, share in lengths.items()}
    if file.exists() and (found := json.loads(file.read_text()))["lengths"] == asked:
        return found["seconds"]
    folder.mkdir(parents=True, exist_ok=True)
    typed = {}
    for name, share in lengths.items():
        output = folder / name.replace(" ", "-").replace("%", "")
        lines = [[*command, "--overwrite"] if command[3] in ("finetune", "curate", "distill") else command
                 for command in commands(name, share, seed, output, given)]  # fmt: skip
        variables = {"PYTHONPATH": str(ROOT)} | dict(ARMS[name].environment)
        assigned = " ".join(f"{key}={shlex.quote(value)}" for key, value in variables.items())
        clean = f"rm -rf {shlex.quote(str(output.parent / f'{output.name}-before'))}"
        script = " && ".join([f"cd {shlex.quote(str(ROOT))}", clean, f"export {assigned}", *map(shlex.join, lines)])
        typed[name] = ["sh", "-c", script]
    seconds: dict[str, float] = {}
    names = [name for name in typed if name != REFERENCE]
    for first in range(0, len(names), given.at_once):  # full fine-tuning is in each group, which is compared with it
        group = [REFERENCE, *names[first : first + given.at_once]]
        took = in_turns({name: typed[name] for name in group}, folder, seconds=given.turn)
        scale = seconds.setdefault(REFERENCE, took[REFERENCE]) / took[REFERENCE]
        seconds |= {name: took[name] * scale for name in group[1:]}
    file.write_text(json.dumps({"lengths": asked, "seconds": seconds}))
    return seconds


# ---- the table


def usd_per_gb_hour() -> float:
    """What accelerators' memory costs: an L4's price over its memory, of configs/hardware.yaml."""
    from jaxlean.cost.hardware import of_target

    card = of_target("l4")
    assert card.usd_per_hour is not None
    assert card.memory_gb is not None
    return card.usd_per_hour / card.memory_gb


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each arm."""
    arms = [name for name in ARMS if name in given.arms or name == REFERENCE]
    full = [quality(REFERENCE, 1.0, seed, given) for seed in given.seeds]
    target = max(bits(full))
    lengths, reached = {REFERENCE: 1.0}, {REFERENCE: True}
    for name in arms[1:]:
        lengths[name], reached[name] = shortest(name, target, given)
    seconds = {seed: bill(lengths, seed, given) for seed in given.seeds}
    price = usd_per_gb_hour()
    rows = []
    for name in arms:
        runs = [quality(name, lengths[name], seed, given) for seed in given.seeds]
        took = [seconds[seed][name] for seed in given.seeds]
        memory = median([run["measured_memory_bytes"] for run in runs])
        held = 2 ** math.ceil(math.log2(memory / 1e6)) * 1e6
        rows.append({
            "cut": ARMS[name].cut, "arm": name, "overrides": " ".join(ARMS[name].overrides), "epoch": lengths[name],
            "steps": runs[0]["steps"], "bits_per_byte": median(bits(runs)), "as_good": "yes" if reached[name] else "no",
            "exact_match": median([run["eval_after"]["exact_match"] for run in runs]), "seconds": median(took),
            "spread": (max(took) - min(took)) / median(took), "memory_mb": memory / 1e6, "class_mb": held / 1e6,
            "usd": median(took) / 3600 * held / 1e9 * price,
            "usd_here": median([s * run["usd"] / run["seconds"] for s, run in zip(took, runs, strict=True)]),
            "against": ARMS[name].against if name != REFERENCE else "",
            "runs": [{"seconds": s, "summary": run} for s, run in zip(took, runs, strict=True)],
        })  # fmt: skip
    cost = {row["arm"]: row["usd"] for row in rows}
    for row in rows:
        if row["against"] in cost:
            row["cheaper"] = cost[row["against"]] / row["usd"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs, which are kept")
    parser.add_argument("--rows", type=int, default=4000, help="training rows, at most 10,000")
    parser.add_argument("--examples", type=int, default=300, help="held-out rows, at most 300")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="beside full fine-tuning")
    parser.add_argument("--turn", type=float, default=10.0, help="seconds that one arm has, the others stopped")
    parser.add_argument("--at-once", type=int, default=6, help="arms in turns at a time: each holds about a GB")
    parser.add_argument("--quick", action="store_true", help="256 rows, one seed, LoRA alone")
    parser.add_argument("--out", type=Path, help="folder for cuts.json and cuts.png")
    given = parser.parse_args()
    if given.quick:
        given.rows, given.examples, given.seeds, given.arms = 256, 16, [0], ["LoRA"]
    given.work = given.work.resolve()
    rows = measure(given)
    config = {key: getattr(given, key) for key in ("rows", "examples", "seeds", "turn", "at_once")}
    publish("cuts", config | {"full fine-tuning": FULL}, rows, COLUMNS, given.out)


if __name__ == "__main__":
    main()
