"""Calibration rows: the first sequences of the training data, packed as training packs them."""

import math
from typing import Any

from jaxlean.compress.walk import Batch
from jaxlean.config import RunConfig
from jaxlean.data.loader import train_batches
from jaxlean.errors import DataError
from jaxlean.hub.load import Model

_TAKEN = ("tokens", "segments", "positions", "token_types")


def calibration(config: RunConfig, model: Model, tokenizer: Any, *, num_rows: int, key: str) -> list[Batch]:
    """Batches of calibration rows, all of one shape, as `compress.walk` takes them.

    Args:
        config: resolved; its `data` and `seed` say which rows, `eval.per_device_eval_batch_size` how many at a time.
        model: whose tokens they are.
        tokenizer: the model's.
        num_rows: sequences.
        key: of the config, that says how many; for the message.

    Raises:
        DataError: there are fewer, or anything is wrong with the data.
    """
    rows = min(config.eval.per_device_eval_batch_size, num_rows)
    num = math.ceil(num_rows / rows)
    train = config.train.model_copy(
        update={"num_train_epochs": 1.0, "max_steps": num if config.data.streaming else None}
    )
    taken = config.model_copy(update={"train": train})
    batches = train_batches(taken, tokenizer, rows_per_step=rows, vocab_size=model.config.vocab_size)
    try:
        if not config.data.streaming and batches.stats.sequences < num_rows:
            raise DataError(
                "too few calibration rows", where="data.train",
                got=f"{batches.stats.sequences:,} sequences of {batches.length:,} tokens",
                wanted=f"{num_rows:,} ({key})", fix=f"more data, a smaller data.max_length, or a smaller {key}",
            )  # fmt: skip
        found: list[Batch] = []
        for number in range(num):
            batch = {name: x for name, x in next(batches).items() if name in _TAKEN}
            beyond = (number + 1) * rows - num_rows
            if beyond > 0:
                batch["segments"] = batch["segments"].copy()
                batch["segments"][rows - beyond :] = 0  # which is padding
            found.append(batch)
        return found
    finally:
        batches.close()
