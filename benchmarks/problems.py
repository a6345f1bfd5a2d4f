"""The text that compressed models are calibrated and measured on: GSM8K, whose two files share no problem."""

import json
import re
from pathlib import Path


def problems(file: Path) -> list[str]:
    """Each row of gsm8k_train.jsonl or gsm8k_test.jsonl as text: the question, then the answer as it is read."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [f"{row['question']}\n{re.sub('<<[^>]*>>', '', row['answer'])}\n" for row in rows]
