"""Greedy tokens by transformers, in another Python that has torch; and where jaxlean's part from them.

Run by itself: `python greedy.py MODEL PROMPTS NUM OUT`. PROMPTS is a JSON list of lists of token ids; OUT becomes one
of the versions and of what follows each prompt: NUM tokens, whatever they are.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Tokens = Sequence[Sequence[int]]


def compare(python: Path, model: Any, folder: Path, prompts: Tokens, num: int) -> dict[str, Any]:
    """What transformers says after each prompt beside what jaxlean says, `num` tokens after each.

    Args:
        python: has torch, transformers and what the model needs.
        model: of jaxlean, loaded from `folder` in float32.
        folder: with the model.
        prompts: token ids.
        num: of new tokens.

    Returns:
        `equal_prompts`, on how many all tokens are the same; `apart`, where they are not by how much the logits of the
        first two tokens that differ are apart, at most, in standard deviations of the logits there; `versions`.
    """
    from jaxlean.run.generate import generate

    with tempfile.TemporaryDirectory() as work:
        asked, answers = Path(work) / "prompts.json", Path(work) / "answers.json"
        asked.write_text(json.dumps(prompts), encoding="utf-8")
        command: Sequence[Any] = [python, Path(__file__).resolve(), folder, asked, num, answers]
        subprocess.run([str(word) for word in command], check=True, stderr=subprocess.DEVNULL)
        other = json.loads(answers.read_text(encoding="utf-8"))
    ours = generate(model, prompts, max_new_tokens=num, stop=[], batch_size=1)
    gaps = [
        _apart(model, prompt, mine, theirs)
        for prompt, mine, theirs in zip(prompts, ours, other["tokens"], strict=True)
        if mine != theirs
    ]
    equal = f"{len(prompts) - len(gaps)} of {len(prompts)}"
    return {"equal_prompts": equal, "apart": max(gaps, default=None), "versions": other["versions"]}


def _apart(model: Any, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int]) -> float:
    at = next(i for i, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)
    logits = np.asarray(model(np.asarray([[*prompt, *ours[:at]]], np.int32)))[0, -1]
    return float(abs(logits[ours[at]] - logits[theirs[at]]) / logits.std())


def main(folder: str, prompts: str, num: str, out: str) -> None:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    settings = {"do_sample": False, "max_new_tokens": int(num), "min_new_tokens": int(num), "eos_token_id": None}
    found = []
    for prompt in json.loads(Path(prompts).read_text(encoding="utf-8")):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            whole = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)
        found.append(whole[0, len(prompt) :].tolist())
    used = {"torch": torch.__version__, "transformers": transformers.__version__}
    Path(out).write_text(json.dumps({"tokens": found, "versions": used}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
