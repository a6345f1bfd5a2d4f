"""What `jaxlean inspect` shows of a curriculum: what is available when, and the easiest and the hardest rows."""

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxlean.config import RunConfig
from jaxlean.data.curriculum import Curriculum
from jaxlean.data.loader import train_batches

_SHOWN_PHASES = 10
_SHOWN_LETTERS = 200


def show_curriculum(config: RunConfig, tokenizer: Any, num_examples: int, console: Console) -> None:
    """Print the phases of a run on one device, and the rows at both ends of the order.

    Args:
        config: resolved, with `data.curriculum`.
        tokenizer: the model's.
        num_examples: rows shown of each end.
        console: where to print.

    Raises:
        DataError: anything wrong with the data, the column of difficulties included.
    """
    section = config.data.curriculum
    assert section is not None
    if section.difficulty == "loss":
        console.print("rows are ordered by the base's loss, which jaxlean finetune measures before it trains")
        return
    rows = config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps
    batches = train_batches(config, tokenizer, rows_per_step=rows)
    steps = batches.steps
    assert steps is not None, "texts in memory"
    curriculum = steps.mix
    assert isinstance(curriculum, Curriculum)
    console.print(f"{curriculum}; {len(steps):,} steps")
    console.print(_phases(curriculum))
    order = np.concatenate([part.rows for part in curriculum.parts])
    order = order[np.argsort(curriculum.scores[order], kind="stable")]
    for name, chosen in (("easiest", order[:num_examples]), ("hardest", order[::-1][:num_examples])):
        for row in chosen.tolist():
            ids = np.concatenate([steps.examples[row * steps.group + i][0] for i in range(steps.group)])
            text = tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False).replace("\n", " ")
            line = Text(f"{name} ({curriculum.scores[row]:,.4g}): ", style="dim")
            line.append(text[:_SHOWN_LETTERS] + (" ..." if len(text) > _SHOWN_LETTERS else ""), style="not dim")
            console.print(line, soft_wrap=True)


def _phases(curriculum: Curriculum) -> Table:
    table = Table(title="a run in phases", title_justify="left")
    for name in ("of the run", "available", "drawn", "difficulty: 10 %", "50 %", "90 %"):
        table.add_column(name, justify="right")
    num = curriculum.num_phases
    for p in np.unique(np.linspace(0, num - 1, min(num, _SHOWN_PHASES)).round().astype(int)).tolist():
        drawn = curriculum.scores[curriculum.epoch(p)]
        there = sum(map(len, curriculum.available(p)))
        marks = np.percentile(drawn, [10, 50, 90], method="nearest") if len(drawn) else []
        table.add_row(
            f"{p / num:.0%}", f"{there:,} rows ({there / len(curriculum.scores):.0%})", f"{len(drawn):,}",
            *(f"{mark:,.4g}" for mark in marks),
        )  # fmt: skip
    return table
