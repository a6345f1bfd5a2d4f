"""What fewer bits cost in quality and give in size and speed, of a trained model on text it was not calibrated on.

    python benchmarks/quantization.py --data DIR [--base FOLDER] [--group-size 128] [--work DIR] [--out DIR] [--quick]
                                      [--rows 128] [--held-out 64] [--max-length 512] [--tokens 128] [--repeats 5]
                                      [--max-error 0.05] [--only REGEX] [--torch PYTHON]

`--data` holds gsm8k_train.jsonl, of which are calibration rows, and gsm8k_test.jsonl, of which is the perplexity.
`--base` is a folder with a model (benchmarks/smollm2.py makes one of SmolLM2-135M); default: the quickstart's.

    quality  perplexity of each scheme and method, and its change; bytes of the files, beside the same in bfloat16, and
             of the quantized matrices alone; `kept`: linear layers that stay wide, being more than --max-error off
    speed    tokens a second of greedy generation at 1 and 16 rows, the model in bfloat16, in float32, and in W8A8 over
             both, in turn, so that a busy machine is busy for all of them; medians, and the largest less the smallest
    torch    with --torch (a Python that has torch, transformers and compressed-tensors): on how many of 20 prompts
             transformers gives the very tokens that jaxlean gives, 32 after each; `apart`: where they part, by how
             much the logits of the two tokens differ, at most, in standard deviations of the logits there

What is in --work is not made again.
"""

import argparse
import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from greedy import compare
from problems import problems
from report import median, publish

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart" / "base"
COLUMNS = {
    "what": "", "perplexity": ".4f", "change_percent": "+.3f", "bytes": ",", "smaller": ".2f",
    "matrices_smaller": ".2f", "kept": "", "seconds": ".0f", "rows": "", "tokens_s": ",.1f",
    "spread": ".1%", "speedup": ".2f", "equal_prompts": "", "apart": ".3f",
}  # fmt: skip


def hows(args: argparse.Namespace) -> dict[str, Any]:
    """Every row of the table: its name and folder -> how the model is quantized."""
    from jaxlean.compress.quantize import SCHEMES, How, Scheme

    group_size = args.group_size
    four = Scheme(4, group_size, activations=False)
    found = {
        "w8a8 rtn": How(SCHEMES["w8a8"]),
        "w8a8 rtn smoothed": How(SCHEMES["w8a8"], alpha=None),
        "w8a8 gptq smoothed": How(SCHEMES["w8a8"], "gptq", alpha=None),
        f"w8a8 gptq smoothed, at most {args.max_error:.0%} off": How(
            SCHEMES["w8a8"], "gptq", alpha=None, max_error=args.max_error
        ),
        "w8a16 rtn": How(SCHEMES["w8a16"]),
        "w8a16 gptq": How(SCHEMES["w8a16"], "gptq"),
        f"w4a16 g{group_size} rtn": How(four),
        f"w4a16 g{group_size} gptq": How(four, "gptq"),
        f"w4a16 g{group_size} awq": How(four, "awq"),
    }
    return {name: how for name, how in found.items() if re.search(args.only, name)}


def rows_of(texts: Sequence[str], tokenizer: Any, num: int, length: int) -> np.ndarray:
    """int32 [num, length]: the texts end to end, cut into rows; fewer where they are shorter."""
    ids = tokenizer("\n".join(texts[: num * length // 16 + 1]), add_special_tokens=False)["input_ids"]
    num = min(num, len(ids) // length)
    return np.asarray(ids[: num * length], np.int32).reshape(num, length)


def perplexity(model: Any, rows: np.ndarray, at_once: int = 4) -> float:
    """Of all tokens but each row's first."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def losses(logits: Any, tokens: Any) -> Any:
        found = jax.nn.log_softmax(logits[:, :-1], axis=-1)
        return -jnp.take_along_axis(found, tokens[:, 1:, None], axis=-1).sum()

    total = sum(float(losses(model(part), part)) for part in np.array_split(rows, -(-len(rows) // at_once)))
    return math.exp(total / (rows.size - len(rows)))


def matrix_bytes(params: Any) -> tuple[int, int]:
    """(bytes of the quantized matrices with their scales, of the same in bfloat16)."""
    from jaxlean import codec, tree

    held = [leaves for leaves in codec.kernels(tree.flatten(params)).values() if "kernel" not in leaves]
    return sum(x.nbytes for leaves in held for x in leaves.values()), sum(2 * math.prod(codec.shape(x)) for x in held)


def quality(args: argparse.Namespace) -> list[dict[str, Any]]:
    from jaxlean import load
    from jaxlean.compress.quantize import quantize
    from jaxlean.hub.write import write_model

    model = load(args.base, "float32")
    first, second = (problems(args.data / f"gsm8k_{part}.jsonl") for part in ("train", "test"))
    calibration = rows_of(first, model.tokenizer, args.rows, args.max_length)
    held_out = rows_of(second, model.tokenizer, args.held_out, args.max_length)
    batch = 8
    calibration = calibration[: len(calibration) // batch * batch]
    positions = np.tile(np.arange(args.max_length, dtype=np.int32), (batch, 1))
    more = {"segments": np.ones_like(positions), "positions": positions}
    batches = [{"tokens": calibration[i : i + batch], **more} for i in range(0, len(calibration), batch)]
    folder = args.work / "bfloat16"
    if not folder.exists():
        write_model(model, folder, dtype="bfloat16")
    wide = size(folder)
    before = perplexity(model, held_out)
    half = perplexity(load(folder, "bfloat16"), held_out)
    found: list[dict[str, Any]] = [
        {"what": "float32", "perplexity": before},
        {"what": "bfloat16", "perplexity": half, "change_percent": 100 * (half / before - 1), "bytes": wide},
    ]
    for name, how in hows(args).items():
        folder, seconds, kept = folder_of(args, name), None, None
        if not folder.exists():
            started = time.perf_counter()
            small, rows = quantize(model, how, batches if how.needs_data else ())
            seconds, kept = time.perf_counter() - started, sum(row.kept for row in rows)
            write_model(small, folder, dtype="bfloat16")
        small = load(folder, "float32")  # what others load is what is measured
        own = perplexity(small, held_out)
        packed, of_them = matrix_bytes(small.params)
        found.append(
            {
                "what": name, "perplexity": own, "change_percent": 100 * (own / before - 1), "bytes": size(folder),
                "smaller": wide / size(folder), "matrices_smaller": of_them / packed, "kept": kept, "seconds": seconds,
            }
        )  # fmt: skip
        print(json.dumps(found[-1]), flush=True)
    return found


def folder_of(args: argparse.Namespace, name: str) -> Path:
    """Of a quantized model."""
    return args.work / re.sub("[^a-z0-9]+", "_", name)


def size(folder: Path) -> int:
    """Bytes of the tensors."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def speed(args: argparse.Namespace) -> list[dict[str, Any]]:
    from jaxlean import load
    from jaxlean.run.generate import generate

    eight = folder_of(args, "w8a8 rtn")
    models = {
        "bfloat16": load(args.base, "bfloat16"), "float32": load(args.base, "float32"),
        "w8a8, else bfloat16": load(eight, "bfloat16"), "w8a8, else float32": load(eight, "float32"),
    }  # fmt: skip
    found = []
    for rows in (1, 16):
        random = np.random.default_rng(rows)
        prompts = [random.integers(5, models["bfloat16"].config.vocab_size, 32).tolist() for _ in range(rows)]
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for repeat in range(args.repeats + 1):
            for name, model in models.items():
                started = time.perf_counter()
                new = generate(model, prompts, max_new_tokens=args.tokens, stop=[], batch_size=rows)
                assert sum(map(len, new)) == rows * args.tokens
                if repeat:  # the first one compiles
                    seconds[name].append(time.perf_counter() - started)
        for name, each in seconds.items():
            speeds = [rows * args.tokens / own for own in each]
            middle = median(speeds)
            # of one turn with the same turn's: what slows the machine down slows both
            turns = [base / own for own, base in zip(each, seconds["bfloat16"], strict=True)]
            found.append(
                {
                    "what": f"generate, {name}", "rows": rows, "tokens_s": middle, "speedup": median(turns),
                    "spread": (max(speeds) - min(speeds)) / middle, "tokens_s_each": speeds, "speedup_each": turns,
                }
            )  # fmt: skip
    return found


def with_torch(args: argparse.Namespace) -> list[dict[str, Any]]:
    from jaxlean import load

    texts, num, found = problems(args.data / "gsm8k_test.jsonl"), 8 if args.quick else 32, []
    for name in hows(args):
        folder = folder_of(args, name)
        model = load(folder, "float32")
        prompts = rows_of(texts, model.tokenizer, 20, 24).tolist()
        found.append({"what": f"as in transformers, {name}", **compare(args.torch, model, folder, prompts, num)})
        print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with gsm8k_train.jsonl and gsm8k_test.jsonl")
    parser.add_argument("--base", type=Path, default=QUICKSTART)
    parser.add_argument("--group-size", type=int, default=None, help="of w4a16; default: 128, the quickstart's base 64")
    parser.add_argument("--work", type=Path, default=Path("work_quantization"), help="folder for the models")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="few rows and tokens: the same path in under a minute")
    parser.add_argument("--rows", type=int, default=128, help="calibration rows")
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128, help="generated a row")
    parser.add_argument("--repeats", type=int, default=5, help="of each generation; 0: speed is not measured")
    parser.add_argument("--max-error", type=float, default=0.05, help="above it a layer stays wide in one of the rows")
    parser.add_argument("--only", default="", help="regex of the schemes' names")
    parser.add_argument("--torch", type=Path, help="a Python with torch, transformers and compressed-tensors")
    args = parser.parse_args()
    if args.group_size is None:
        args.group_size = 64 if args.base == QUICKSTART else 128
    if args.quick:
        args.rows, args.held_out, args.max_length, args.tokens, args.repeats = 8, 4, 64, 8, 1
    args.work.mkdir(parents=True, exist_ok=True)
    rows = quality(args) + (speed(args) if args.repeats else []) + (with_torch(args) if args.torch else [])
    config = {
        "base": args.base.name if args.base != QUICKSTART else "quickstart", "group_size": args.group_size,
        "rows": args.rows, "held_out": args.held_out, "max_length": args.max_length, "tokens": args.tokens,
        "repeats": args.repeats, "max_error": args.max_error,
    }  # fmt: skip
    publish("quantization", config, rows, COLUMNS, args.out)


if __name__ == "__main__":
    main()
