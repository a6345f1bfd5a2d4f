"""Trials per hour: a process each, one process with one program, members side by side; and Hyperband against random.

    python benchmarks/search.py [--trials 32] [--steps 81] [--members 8] [--seeds 5] [--part rates|budget|all]
                                [--pool 64] [--quick] [--out DIR]

rates: the quickstart's search (configs/quickstart_search.yaml) under Hyperband, five ways: `process` is a `jaxlean
finetune` for each trial, as people search today, which compiles, as jax does unless it is told otherwise; `process,
cache` takes its programs from a compilation cache, empty at first, from the second trial on; `program` shares base,
rows and one compiled step, in which adapters are as wide as the widest; `program, own ranks` has a step for each rank
(search.pad_ranks=false); `members` trains so many trials side by side. All draw the same trials (`search.sampler:
random`, one seed), so that they differ in nothing else; the best of each is told. They run in turns of --turn seconds,
the others stopped, and `seconds` are those in which a way was running, from the start of its first process to the end
of its last: a machine that is slower for a while is so for all. `step_ms` is measured apart, in turns of one step of
each program: milliseconds of one trial.

budget: --pool trials drawn at random run to their end; for each seed a search by TPE and Hyperband takes --trials, and
one by TPE and ASHA. Of a pool of N trials with k as good as the search's best, random search needs (N + 1) / (k + 1)
whole trials to find one, over all orders of the pool (k = 0: at least N + 1). `share` is the steps of the whole search
over the steps of these, `share_to_best` those up to its best trial; 1/3 is the target.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from report import median, publish
from turns import in_turns

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart_search.yaml"
RATES = {
    "way": "", "trials": "", "complete": "", "steps": ",", "seconds": ",.0f", "trials_per_hour": ",.1f",
    "compiled": "", "best_loss": ".4f", "best_trial": "", "step_ms": ",.1f",
}  # fmt: skip
BUDGET = {
    "pruner": "", "seed": "", "best_loss": ".4f", "steps": ",", "steps_to_best": ",", "as_good_in_pool": "",
    "random_steps": ",.0f", "share": ".2f", "share_to_best": ".2f",
}  # fmt: skip


def overrides_of(folder: Path, given: argparse.Namespace) -> list[str]:
    """What all searches here have in common."""
    return [
        f"output_dir={folder}", f"search.num_trials={given.trials}", f"train.max_steps={given.steps}",
        "report.tensorboard=false", "report.progress=false", f"compilation_cache={folder.parent / 'compiled'}",
        *(["eval.max_examples=16"] if given.quick else []),
    ]  # fmt: skip


def search(folder: Path, given: argparse.Namespace, *overrides: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(summary, rows of trials) of a search; left out where it is there already."""
    from jaxlean.config import load
    from jaxlean.search.search import search as run

    if not (folder / "summary.json").exists():
        config = load(CONFIG, [*overrides_of(folder, given), *overrides])
        with contextlib.redirect_stdout(io.StringIO()):
            run(config)
    rows = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    return json.loads((folder / "summary.json").read_text()), rows


def rates(given: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """The five ways, with the same trials, in turns."""
    ways = {
        "process": ("search.isolation=process", "compilation_cache=false"),
        "process, cache": ("search.isolation=process",),
        "program": ("search.members=1",),
        "program, own ranks": ("search.members=1", "search.pad_ranks=false"),
        f"{given.members} members": (f"search.members={given.members}",),
    }
    folders = {way: work / way.replace(", ", "-").replace(" ", "-") for way in ways}
    commands = {
        way: [
            sys.executable, "-m", "jaxlean", "search", str(CONFIG), *overrides_of(folders[way], given),
            "search.sampler=random", *own,
        ]
        for way, own in ways.items()
    }  # fmt: skip
    seconds = in_turns(commands, work, seconds=given.turn)
    steps = step_milliseconds(given)
    found: list[dict[str, Any]] = []
    for way, folder in folders.items():
        summary = json.loads((folder / "summary.json").read_text())
        best = summary["best"][0]
        found.append({
            "way": way, "trials": summary["trials"], "complete": summary["states"]["complete"],
            "steps": summary["steps"], "seconds": seconds[way],
            "trials_per_hour": 3600 * summary["trials"] / seconds[way], "compiled": summary["compiled"],
            "best_loss": best["values"]["loss"], "best_trial": best["number"],
            "step_ms": steps.get("members" if "members" in way else way),
        })  # fmt: skip
        print(found[-1], flush=True)
    return found


def step_milliseconds(given: argparse.Namespace) -> dict[str, float]:
    """Of a trial's step alone and among members: the median over turns of one after the other."""
    import jax

    from jaxlean.config import load
    from jaxlean.run.inputs import batches_of, tokenizer_of
    from jaxlean.run.job import base, resolved
    from jaxlean.search.inputs import constants, learning_rates
    from jaxlean.search.program import Program
    from jaxlean.xla.mesh import make_mesh

    config, mesh = resolved(load(CONFIG, [f"train.max_steps={given.steps}"])), make_mesh()
    model, space = base(config, mesh), list(config.search.space)
    own = constants(config, space)
    rate = learning_rates(config, given.steps)[given.steps // 2]
    programs: dict[str, Program] = {}
    for way, members in (("program", 1), ("members", given.members)):
        program = Program(
            config, model, mesh, names=[*own, "learning_rate"], rank=32, length=config.data.max_length, members=members
        )
        program.compile()
        program.place(0, program.start(config))
        programs[way] = program
    rows = batches_of(config, model, tokenizer_of(model), rows=programs["program"].rows)
    batch = next(rows)
    took: dict[str, list[float]] = {way: [] for way in programs}
    for turn in range(3 if given.quick else 21):
        for way, program in programs.items():
            started = time.perf_counter()
            measured = program.step([batch] * program.members, [own | {"learning_rate": rate}] * program.members)
            jax.block_until_ready(measured)
            if turn:
                took[way].append((time.perf_counter() - started) / program.members)
    rows.close()
    return {way: 1000 * median(each) for way, each in took.items()}


def budget(given: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """Each rule's steps to its best, and random's to one as good."""
    _, drawn = search(
        work / "random", given, "seed=100", "search.sampler=random", "search.pruner=none",
        f"search.num_trials={given.pool}",
    )  # fmt: skip
    pool = [row["values"].get("loss", float("inf")) for row in drawn if row["steps"]]
    found: list[dict[str, Any]] = []
    for pruner, seed in product(given.pruners, range(given.seeds)):
        summary, rows = search(work / f"{pruner}-{seed}", given, f"seed={seed}", f"search.pruner={pruner}")
        best = summary["best"][0]
        as_good = sum(loss <= best["values"]["loss"] for loss in pool)
        trials = (len(pool) + 1) / (as_good + 1)
        # up to the end of the best one, and of all trials
        to_best = sum(row["steps"] or 0 for row in rows if row["number"] <= best["number"])
        found.append({
            "pruner": pruner, "seed": seed, "best_loss": best["values"]["loss"], "steps_to_best": to_best,
            "steps": summary["steps"], "as_good_in_pool": as_good, "random_steps": trials * given.steps,
            "share": summary["steps"] / trials / given.steps, "share_to_best": to_best / trials / given.steps,
        })  # fmt: skip
        print(found[-1], flush=True)
    for pruner in given.pruners:
        own = [row for row in found if row["pruner"] == pruner]
        middle = {name: median([row[name] for row in own]) for name in ("share", "share_to_best")}
        found.append({"pruner": pruner, "seed": "median", **middle})
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--steps", type=int, default=81)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pool", type=int, default=64)
    parser.add_argument("--pruners", nargs="+", default=["hyperband", "asha"])
    parser.add_argument("--turn", type=float, default=15.0, help="Seconds that one way runs, the others stopped.")
    parser.add_argument("--part", choices=("rates", "budget", "all"), default="all")
    parser.add_argument("--quick", action="store_true", help="Under a minute or two, to see that it runs.")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.quick:
        given.trials, given.steps, given.members, given.seeds, given.pool, given.turn = 2, 3, 2, 1, 3, 5.0
    settings = {name: getattr(given, name) for name in ("trials", "steps", "members", "seeds", "pool", "turn", "quick")}
    with tempfile.TemporaryDirectory() as temporary:
        work = given.out / "search" if given.out else Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if given.part in ("rates", "all"):
            publish("search_rates", settings, rates(given, work), RATES, given.out)
        if given.part in ("budget", "all"):
            publish("search_budget", settings, budget(given, work), BUDGET, given.out)


if __name__ == "__main__":
    main()
