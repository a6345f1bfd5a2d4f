"""Planted duplicates of five kinds in real data: which `jaxlean curate` finds, and what it takes for one wrongly.

    pip install '.[curate]'
    python benchmarks/dedupe.py --banking banking77_train.csv --gsm8k gsm8k_train.jsonl [--quick] [--out DIR]
                                [--seeds 0 1 2] [--model FOLDER]

Three sets of 2,000 rows, drawn anew with each seed: banking77's messages (11 words), GSM8K's questions (45 words), and
messages made of configs/quickstart/wordings.json. To each come 5 x 200 duplicates of rows of its own, shuffled in:

    exact            the same text
    case             in other letters: upper, lower, title
    punctuation      marks lost, doubled or added, spaces doubled
    one word         one word in the place of another
    paraphrase       wordings: another frame of the same request with the same values. The others: contractions written
                     out and words replaced by synonyms (a table here), three at least, and an opening put before

    recall           of a kind: planted rows that are one with the row they came from, or with another copy of it
    precision        of all rows left out, those whose `duplicate_of` is of their own family
    natural          rows of the set itself that are left out without anything planted: the data's own duplicates, or
                     mistakes; they count against precision too

False merges, on all rows, where labels say what must not be merged: of the rows left out, the share that has another
label (banking77; the labels are not shown to the step) or another final answer (GSM8K) than the row kept for it.

`semantic` is `semantic_duplicates` over the vectors of --model, an encoder; its threshold, 1 - epsilon, is of cosines.
"""

import argparse
import csv
import importlib.util
import json
import random
import re
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from report import publish

import jaxlean
from jaxlean import config as settings
from jaxlean.config import RunConfig, StepSection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found
from jaxlean.curate.steps import find
from jaxlean.curate.work import Processes, Work

COLUMNS = {
    "data": "", "step": "", "threshold": ".2f", "exact": ".1%", "case": ".1%", "punctuation": ".1%", "one_word": ".1%",
    "paraphrase": ".1%", "precision": ".1%", "spread": ".1%", "natural": ".1f", "left_out": ",.0f", "false": ".1%",
}  # fmt: skip
VECTOR = "vector"
KINDS = ("exact", "case", "punctuation", "one_word", "paraphrase")
ROOT = Path(__file__).parent.parent
_SYNONYMS = {
    "want": "would like", "need": "have", "help": "assist", "get": "receive", "buy": "purchase", "bought": "purchased",
    "many": "numerous", "money": "cash", "card": "bank card", "why": "for what reason", "tell": "let me know",
    "find": "locate", "show": "display", "start": "begin", "each": "every", "total": "overall", "if": "supposing",
    "how": "in what way", "has": "owns", "makes": "produces", "gives": "hands", "will": "is going to", "can": "could",
    "could": "can", "still": "even now", "because": "since", "but": "however", "also": "as well", "only": "just",
    "about": "regarding", "change": "modify", "charged": "billed", "account": "bank account", "yet": "so far",
    "day": "single day", "week": "single week", "much": "a great deal", "then": "after that", "more": "additional",
    "don't": "do not", "isn't": "is not", "i'm": "i am", "it's": "it is", "haven't": "have not", "didn't": "did not",
    "doesn't": "does not", "i've": "i have", "what's": "what is", "can't": "cannot", "that's": "that is",
    "was": "had been", "the": "that", "my": "our", "what": "which", "is": "happens to be", "to": "in order to",
}  # fmt: skip
_OPENINGS = ("Hello, ", "A question: ", "Please tell me: ", "Hi there. ", "I wonder, ")


def banking(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(opened)]


def gsm8k(file: Path) -> list[dict[str, str]]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{"text": row["question"], "label": row["answer"].rpartition("#### ")[2]} for row in rows]


def wordings(count: int, seed: int) -> tuple[list[dict[str, str]], dict[str, str]]:
    """(messages, another wording of each): two frames of one intent with the same values."""
    spec = importlib.util.spec_from_file_location("make_task", ROOT / "configs" / "quickstart" / "make_task.py")
    assert spec is not None
    assert spec.loader is not None
    make_task = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_task)
    lists = json.loads((ROOT / "configs" / "quickstart" / "wordings.json").read_text())
    world = make_task.World("train", make_task.side(lists, "train"), seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        intent = world.pick(list(make_task.SLOTS))
        first, second = world.frame(intent), world.frame(intent)
        slots, others = (sorted(re.findall(r"{(\w+)}", frame)) for frame in (first, second))
        if not slots or slots != others or first == second:
            continue
        values = {slot: world.value(slot) for slot in slots}
        rows[first.format(**values)] = second.format(**values)
    return [{"text": text, "label": ""} for text in rows], rows


def planted(text: str, kind: str, rng: random.Random, vocabulary: list[str]) -> str:
    """A duplicate of a text, of one kind."""
    words = text.split()
    if kind == "case":
        return rng.choice([str.upper, str.lower, str.title, str.swapcase])(text)
    if kind == "punctuation":
        bare = "".join(c for c in text if c not in ".,!?'\"" or rng.random() < 0.3)
        return rng.choice([bare, text + "!!", text.replace(" ", "  "), f'"{text}"', bare + " ..."])
    if kind == "one_word":
        at = rng.choice([i for i, word in enumerate(words) if word.isalpha()] or [0])
        words[at] = rng.choice([word for word in rng.sample(vocabulary, 5) if word != words[at]])
        return " ".join(words)
    if kind == "paraphrase":
        places = [i for i, word in enumerate(words) if word.strip(string.punctuation).lower() in _SYNONYMS]
        for i in rng.sample(places, min(len(places), max(3, len(places) // 2))):
            words[i] = _SYNONYMS[words[i].strip(string.punctuation).lower()]
        return rng.choice(_OPENINGS) + " ".join(words)
    return text


class Encoded:
    """Vectors of texts, each computed once: every threshold and seed asks for the same."""

    def __init__(self, model: Path) -> None:
        self.model = jaxlean.load(model, task="embed")
        self.known: dict[str, list[float]] = {}

    def added(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows with the column VECTOR."""
        missing = sorted({row["text"] for row in rows} - self.known.keys())
        if missing:
            self.known |= dict(zip(missing, self.model.encode(missing).round(6).tolist(), strict=True))
        return [row | {VECTOR: self.known[row["text"]]} for row in rows]


def run(rows: list[dict[str, Any]], step: dict[str, Any], encoded: Encoded | None) -> Found:
    """What one step finds in rows."""
    if encoded is not None and "semantic_duplicates" in step:
        rows = encoded.added(rows)
    with tempfile.TemporaryDirectory(prefix="jaxlean-dedupe-") as scratch:
        file = Path(scratch) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        values = {
            "data": {"train": str(file)},
            "curate": {"steps": [step], "processes": 1, "text_column": "text"},
        }
        config: RunConfig = settings.build(values)
        section: StepSection = config.curate.steps[0]
        corpus = Corpus(config)
        with Processes(config) as workers:
            work = Work(Path(scratch) / "work", workers)
            work.folder.mkdir()
            return find(section.name)(corpus, np.ones(len(corpus), bool), section.settings, work)


def arms(model: Path | None) -> list[tuple[str, float | None, dict[str, Any]]]:
    """(name, threshold, step)."""
    found: list[tuple[str, float | None, dict[str, Any]]] = [("exact", None, {"exact_duplicates": {}})]
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
        found.append(("near", threshold, {"near_duplicates": {"threshold": threshold}}))
    for threshold in (0.5, 0.8):
        near = {"threshold": threshold, "unit": "words", "ngram": 3}
        found.append(("near, 3 words", threshold, {"near_duplicates": near}))
    if model is not None:
        for epsilon in (0.05, 0.1, 0.2, 0.3):
            semantic = {"epsilon": epsilon, "vectors": {"column": VECTOR}}
            found.append(("semantic", 1 - epsilon, {"semantic_duplicates": semantic}))
    return found


def measure(
    rows: list[dict[str, str]],
    paraphrase: Callable[[str], str] | None,
    step: dict[str, Any],
    seed: int,
    each: int,
    encoded: Encoded | None,
) -> dict[str, float]:
    """Recall of each kind, precision, and the rows that are left out with nothing planted."""
    rng = random.Random(seed)
    vocabulary = sorted({word for row in rows for word in row["text"].split() if word.isalpha() and len(word) > 2})
    originals = rng.sample(range(len(rows)), each * len(KINDS))
    every = [(row, number, "own") for number, row in enumerate(rows)]
    for i, number in enumerate(originals):
        kind, text = KINDS[i % len(KINDS)], rows[number]["text"]
        other = paraphrase is not None and kind == "paraphrase"
        made = paraphrase(text) if other and paraphrase is not None else planted(text, kind, rng, vocabulary)
        every.append((rows[number] | {"text": made}, number, kind))
    rng.shuffle(every)
    found = run([row for row, _, _ in every], step, encoded)
    assert found.of is not None
    family = np.array([number for _, number, _ in every])
    of_kind = {kind: {number for _, number, k in every if k == kind} for kind in KINDS}
    same = family[found.rows] == family[found.of]
    merged = set(family[found.rows[same]].tolist())
    recall = {kind: len(merged & numbers) / len(numbers) for kind, numbers in of_kind.items()}
    natural = len(run(rows, step, encoded).rows)
    return recall | {"precision": float(same.mean()) if len(same) else 1.0, "natural": natural}


def false_merges(rows: list[dict[str, str]], step: dict[str, Any], encoded: Encoded | None) -> tuple[int, float]:
    """(rows left out, the share of them whose label is another than that of the row that stays)."""
    found = run(rows, step, encoded)
    assert found.of is not None
    labels = np.array([row["label"] for row in rows])
    other = labels[found.rows] != labels[found.of]
    return len(found.rows), float(other.mean()) if len(other) else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--banking", type=Path, required=True, help="CSV with the columns text and category")
    parser.add_argument("--gsm8k", type=Path, required=True, help="JSON lines with question and answer")
    parser.add_argument("--model", type=Path, help="encoder for semantic_duplicates")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="500 rows, 50 of each kind, one seed")
    parser.add_argument("--out", type=Path, help="folder for dedupe.json and dedupe.png")
    args = parser.parse_args()
    size, each = (500, 50) if args.quick else (2000, 200)
    seeds = args.seeds[:1] if args.quick else args.seeds
    whole = {"banking77": banking(args.banking), "gsm8k": gsm8k(args.gsm8k)}
    encoded = Encoded(args.model) if args.model is not None else None
    raw: list[dict[str, Any]] = []
    for name, threshold, step in arms(args.model):
        for data in ("banking77", "gsm8k", "wordings"):
            for seed in seeds:
                if data == "wordings":
                    rows, others = wordings(size, seed)
                    paraphrase: Callable[[str], str] | None = others.__getitem__
                else:
                    texts = {row["text"]: row for row in whole[data]}
                    rows, paraphrase = random.Random(seed).sample(sorted(texts.values(), key=str), size), None
                told = measure(rows, paraphrase, step, seed, each, encoded)
                raw.append({"data": data, "step": name, "threshold": threshold, "seed": seed, **told})
    means = []
    for name, threshold, _ in arms(args.model):
        for data in ("banking77", "gsm8k", "wordings"):
            own = [row for row in raw if (row["data"], row["step"], row["threshold"]) == (data, name, threshold)]
            mean = {key: float(np.mean([row[key] for row in own])) for key in (*KINDS, "precision", "natural")}
            spread = max(max(row[kind] for row in own) - min(row[kind] for row in own) for kind in KINDS)
            means.append({"data": data, "step": name, "threshold": threshold, **mean, "spread": spread})
    arms_of_labels: list[tuple[str, float, dict[str, Any]]] = [
        (
            f"near{'' if same else ', same_numbers: false'}",
            threshold,
            {"near_duplicates": {"threshold": threshold, "same_numbers": same}},
        )
        for same in (True, False)
        for threshold in (0.5, 0.6, 0.7, 0.8, 0.9)
    ]
    arms_of_labels += [
        (name, threshold or 0.0, step) for name, threshold, step in arms(args.model) if name == "semantic"
    ]
    for data in whole:
        rows = whole[data][:: 5 if args.quick else 1]
        for name, threshold, step in arms_of_labels:
            left_out, false = false_merges(rows, step, encoded)
            means.append(
                {"data": f"{data}, all", "step": name, "threshold": threshold, "left_out": left_out, "false": false}
            )
    publish("dedupe", {"rows": size, "of_each_kind": each, "seeds": seeds, "runs": raw}, means, COLUMNS, args.out)
    if args.out is not None:
        draw(means, args.out / "dedupe.png")


def draw(means: list[dict[str, Any]], file: Path) -> None:
    """Recall of each kind, and precision, over the threshold."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharey=True, layout="constrained")
    for axis, data in zip(axes, ("banking77", "gsm8k", "wordings"), strict=True):
        rows = [row for row in means if row["data"] == data and row["step"] == "near"]
        for key in (*KINDS, "precision"):
            style = {"color": "black", "linestyle": "--"} if key == "precision" else {"marker": "o"}
            axis.plot(
                [row["threshold"] for row in rows], [row[key] for row in rows], label=key.replace("_", " "), **style
            )
        axis.set(title=data, xlabel="threshold of near_duplicates")
    axes[0].set_ylabel("recall of a kind; precision")
    axes[0].legend()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
