"""Write the golden files: small random Hugging Face checkpoints with the numbers that transformers and PEFT give.

    python tests/golden/make_golden.py [--out tests/golden] [--only gemma2]         (cases/ says which)

Needs torch, transformers and peft (`pip install -e '.[parity]'`); the tests that read the files need none of them.
The files are committed, and the same versions write the same bytes again. Everything is float32.

    <case>/config.json, model.safetensors (or shards and their index)
    <case>/expected.npz       what goes in: tokens int32 [2, T] (encoders also attention_mask and token_type_ids),
                              pixels float32 [2, height, width, channels]
                              what comes out: logits float32 [2, T, V], [2, T, classes] or [2, classes], or hidden
                              [2, T, width]; CLIP: logits_per_image [images, texts], image_embeds, text_embeds
                              for one case a family also loss float32 [], grad:<name in the file>, in its shape there,
                              and labels int32 unless the loss is of the next token (CLIP: of pairs, both ways)
                              where there are experts aux_loss float32 [] (load balancing, before its coefficient)
    adapters/<base>__<variant>/adapter_config.json, adapter_model.safetensors, and an expected.npz of the adapted model
    rope.json                 for many rope settings and lengths: inv_freq, and the factor on cos and sin

A golden file is worth what it can tell apart. So the weights are drawn large enough that each detail moves the
logits, and this script proves it: every parameter must carry gradient, and each change of the config listed under
`matters` must move a logit by more than `VISIBLE`. `noise` is the distance to the same model in float64, so that
the tests' tolerance of 1e-4 is known to be fair.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from cases import ADAPTED, CASES
from checkpoints import write_case
from peft_adapters import write_adapter
from rope_rows import write_rope
from transformers.utils import logging


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the golden files.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder that receives them")
    parser.add_argument(
        "--only", nargs="*", default=None, help="the first words of the folders to write; all if absent"
    )
    arguments = parser.parse_args()
    out = arguments.out
    first = {case.name: case.name.split("_")[0] for case in CASES}
    for name in set(arguments.only or ()) - set(first.values()):
        parser.error(f"--only {name}: no case; the first words are {', '.join(dict.fromkeys(first.values()))}")
    wanted = [case for case in CASES if arguments.only is None or first[case.name] in arguments.only]
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # the order of a sum may depend on the number of threads
    table: dict[str, dict[str, Any]] = {}
    for case in wanted:
        shutil.rmtree(out / case.name, ignore_errors=True)
        table[case.name] = write_case(case, out / case.name)
    if arguments.only is None:
        shutil.rmtree(out / "adapters", ignore_errors=True)
        table["rope.json"] = write_rope(out / "rope.json")
    for case in wanted:
        for variant in ADAPTED.get(case.name, ()):
            name = f"adapters/{case.name}__{variant}"
            shutil.rmtree(out / name, ignore_errors=True)
            table[name] = write_adapter(case, variant, out / name)

    print(f"{'golden':<34}{'KB':>7}{'|logit|':>9}{'noise':>9}{'least effect':>14}")
    for name, row in table.items():
        cells = (f"{row[key]:{form}}" if row[key] is not None else "-" for key, form in FORMATS.items())
        print(
            f"{name:<34}{row['bytes'] / 1000:>7.1f}"
            + "".join(f"{c:>{w}}" for c, w in zip(cells, (9, 9, 14), strict=True))
        )
    print(f"{'total':<34}{sum(row['bytes'] for row in table.values()) / 1000:>7.1f}")


FORMATS = {"logit": ".1f", "noise": ".0e", "effect": ".2f"}

if __name__ == "__main__":
    main()
