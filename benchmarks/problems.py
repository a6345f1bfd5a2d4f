"""The text that compressed models are calibrated and measured on: GSM8K, whose two files share no problem.

The model of 10.5M parameters in benchmarks/results, which has read none of it (2 CPU cores, two and a half hours):

    python configs/quickstart/make_corpus.py --data DIR --out corpus.jsonl
    jaxlean pretrain configs/pretrain_tiny.yaml data.train=corpus.jsonl output_dir=base10m train.learning_rate=2e-3 \\
        model.architecture.hidden_size=384 model.architecture.intermediate_size=1024 \\
        model.architecture.num_hidden_layers=6 model.architecture.head_dim=64
"""

import json
import re
from pathlib import Path


def problems(file: Path) -> list[str]:
    """Each row of gsm8k_train.jsonl or gsm8k_test.jsonl as text: the question, then the answer as it is read."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [f"{row['question']}\n{re.sub('<<[^>]*>>', '', row['answer'])}\n" for row in rows]
