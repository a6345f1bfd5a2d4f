"""Each format that `jaxlean export` writes of a fine-tuned run: its size, and whether others read the same from it.

    python benchmarks/exports.py RUN --torch PYTHON [--rows 20] [--tokens 48] [--group-size 64] [--work DIR] [--out DIR]

RUN is the output_dir of a finished run with data.eval, such as runs/quickstart. PYTHON has torch, transformers and
compressed-tensors. The prompts are those of the first rows of data.eval, as training has them.

    equal_prompts  on how many of them transformers gives the very tokens that jaxlean gives for the same folder
    apart          where they part: by how much the logits of the two tokens differ there, at most, in standard
                   deviations of the logits
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from greedy import compare
from report import publish

FORMATS = ("hf", "w8a8", "w8a16", "w4a16")
COLUMNS = {"format": "", "bytes": ",", "smaller": ".2f", "seconds": ".0f", "equal_prompts": "", "apart": ".3f"}


def measure(args: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    from jaxlean import config as settings
    from jaxlean import load
    from jaxlean.data.loader import eval_examples

    config = settings.load(args.run / "config.yaml")
    found: list[dict[str, Any]] = []
    for form in FORMATS:
        folder, started = work / form, time.perf_counter()
        command = [sys.executable, "-m", "jaxlean", "export", str(args.run), str(folder), "--format", form]
        more = [f"quantize.group_size={args.group_size}"] if form == "w4a16" else []
        subprocess.run([*command, *more], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        model = load(folder, "float32")
        prompts = [prompt for prompt, *_ in eval_examples(config, model.tokenizer)[: args.rows]]
        row = {"format": form, "bytes": size, "seconds": seconds}
        found.append({**row, **compare(args.torch, model, folder, prompts, args.tokens)})
        print(found[-1], flush=True)
    for row in found:
        row["smaller"] = found[0]["bytes"] / row["bytes"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--torch", type=Path, required=True, help="a Python with torch and compressed-tensors")
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=48, help="after each prompt")
    parser.add_argument("--group-size", type=int, default=64, help="of w4a16; it must divide the quickstart's inputs")
    parser.add_argument("--work", type=Path, help="empty folder for the exports; default: one that is deleted")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, args.work or Path(folder))
    config = {"run": args.run.name, "rows": args.rows, "tokens": args.tokens, "group_size": args.group_size}
    publish("exports", config, rows, COLUMNS, args.out)


if __name__ == "__main__":
    main()
