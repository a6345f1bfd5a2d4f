import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from jaxlean.config import RunConfig, build
from jaxlean.data.tokenize import Tokens
from jaxlean.errors import ConfigError, DataError
from jaxlean.run.inspect import inspect, rendered


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a character, with a ChatML template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(c) for c in range(10, 127)]
    core = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(["</s>", "<|im_start|>", "<|im_end|>", *letters])}, "?")
    )
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


def config(folder: Path, num_rows: int = 20, **data: Any) -> RunConfig:
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps({"prompt": "ab" * i, "completion": "c"}) + "\n" for i in range(1, num_rows + 1)))
    return build({"data": {"train": str(file), **data}, "train": {"max_steps": 1}})


def shown(run: RunConfig, tokenizer: Any, num_examples: int = 2, *, colour: bool = False) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=120, force_terminal=colour, color_system="standard" if colour else None, highlight=False
    )
    inspect(run, num_examples, tokenizer=tokenizer, console=console)
    return out.getvalue()


def test_learned_tokens_are_marked_and_coloured(tmp_path: Path, tokenizer: Any) -> None:
    run = config(tmp_path)
    text = shown(run, tokenizer)
    assert f"{run.data.train[0].path}:2: " in text
    assert "<|im_start|>user\nabab<|im_end|>\n<|im_start|>assistant\n«c<|im_end|>»\n" in text
    assert text.count("«") == 2, "as many examples as asked for"
    assert "\x1b[1;32m«c<|im_end|>»\x1b[0m" in shown(run, tokenizer, colour=True)


def test_statistics(tmp_path: Path, tokenizer: Any) -> None:
    text = shown(config(tmp_path, max_length=128), tokenizer)
    # Row i has 2i letters, the completion's one, and 21 of the template.
    lengths = 2 * np.arange(1, 21) + 1 + 21
    assert f"20 rows, {lengths.sum():,} tokens, 40 of them learned" in text
    assert "no row is longer than data.max_length (128)" in text
    cells = [cell.strip() for line in text.splitlines() if line.startswith("│") for cell in line.strip("│").split("│")]
    assert cells == ["24", "34", "44", "54", "60", "62", "62", f"{lengths.mean():.1f}"]
    # The 860 tokens need at least 7 sequences of 128; best-fit decreasing finds 8.
    assert "20 sequences of 64 = 1,280 tokens; with packing: 8 of 128 = 1,024 tokens, 20.0% fewer" in " ".join(
        text.split()
    )


def test_new_tokens_are_told_and_counted(tmp_path: Path, tokenizer: Any) -> None:
    run = config(tmp_path)
    run.model.new_tokens = ["abab"]
    plain, text = shown(config(tmp_path), tokenizer), shown(run, tokenizer)
    assert "new tokens: 1" in text
    assert "26 tokens, 2 learned" in plain
    assert "23 tokens, 2 learned" in text
    run.model.new_tokens, run.model.new_tokens_min_count = "auto", 1
    text = shown(run, tokenizer)
    # twenty words of 2 to 40 letters, those of one token a letter; 19 of them have 4 or more
    assert "new tokens: 19; the training texts: 440 -> 41 tokens" in text
    assert "what saves most" in text
    assert "ab" * 20 in text


@pytest.mark.parametrize(
    ("on_long", "what"), [("error", "would stop"), ("truncate", "25 tokens lost"), ("drop", "dropped")]
)
def test_rows_that_are_too_long_are_told(tmp_path: Path, tokenizer: Any, on_long: str, what: str) -> None:
    text = shown(config(tmp_path, max_length=53, on_long=on_long), tokenizer)
    assert "5 rows (25.0%) are longer than data.max_length (53)" in text
    assert what in text


def test_a_stream_is_looked_into(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxlean.run.inspect.STREAM_ROWS", 5)
    assert "the first 5 rows" in shown(config(tmp_path, streaming=True), tokenizer)


def test_a_very_long_example_says_what_is_left_out(tokenizer: Any) -> None:
    ids = np.full(1500, tokenizer.convert_tokens_to_ids("a"), np.int32)
    text = rendered(Tokens(ids, np.ones(1500, bool), "f:1"), tokenizer).plain
    assert "f:1: 1500 tokens, 1500 learned" in text
    assert text.endswith("... and 500 more tokens")


def test_what_cannot_be_inspected(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="no training data"):
        inspect(build({}), tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="no model"):
        inspect(config(tmp_path))
    run = config(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{')
    with pytest.raises(DataError, match=r"malformed JSON(.|\n)*a\.jsonl:2"):
        shown(run, tokenizer)
