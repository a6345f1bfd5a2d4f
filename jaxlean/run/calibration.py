"""The rows that pruning and quantization learn from: the first of the training data, packed full."""

import math
from typing import Any

import numpy as np

from jaxlean.config import RunConfig
from jaxlean.data.loader import train_batches
from jaxlean.errors import ConfigError, DataError

_INPUTS = ("tokens", "segments", "positions", "token_types")


def calibration_batches(config: RunConfig, tokenizer: Any, *, vocab_size: int) -> list[dict[str, np.ndarray]]:
    """The batches, as `compress.walk` takes them.

    Args:
        config: resolved; `data.train` and `calibration` count, and the seed that shuffles.
        tokenizer: of the model.
        vocab_size: of the model.

    Returns:
        int32 [rows, length] arrays by name, all of one shape.

    Raises:
        ConfigError: no data are named.
        DataError: they make fewer rows than asked for.
    """
    wanted = config.calibration
    if config.data.train is None:
        raise ConfigError(
            "there are no calibration rows: data.train is not set", fix="data.train=FILE, of texts like those to come"
        )
    length = min(wanted.max_length, int(getattr(tokenizer, "model_max_length", wanted.max_length)))
    # a row that training took may be longer than these: its beginning is as good; and nothing is learned, so nothing
    # must be left to learn
    long = {"on_long": "truncate", "train_on": "all"} if config.data.on_long != "drop" else {}
    data = config.data.model_copy(update={"packing": True, "max_length": length, "curriculum": None, **long})
    rows = min(wanted.batch_size, wanted.num_rows)
    num = math.ceil(wanted.num_rows / rows)
    steps = num if config.data.streaming else None
    train = config.train.model_copy(update={"num_train_epochs": 1.0, "max_steps": steps})
    settings = config.model_copy(update={"data": data, "train": train})
    batches = train_batches(settings, tokenizer, rows_per_step=rows, vocab_size=vocab_size)
    try:
        if not config.data.streaming and batches.stats.sequences < wanted.num_rows:
            raise DataError(
                "the data make too few calibration rows", where="data.train",
                got=f"{batches.stats.sequences:,} of {batches.length:,} tokens",
                wanted=f"{wanted.num_rows:,}, as calibration.num_rows says",
                fix=f"more data, a smaller calibration.max_length, or calibration.num_rows={batches.stats.sequences}",
            )  # fmt: skip
        found = []
        for number in range(num):
            batch = {name: np.array(x) for name, x in next(batches).items() if name in _INPUTS}
            batch["segments"][wanted.num_rows - number * rows :] = 0  # of the last batch; which is padding
            found.append(batch)
        return found
    finally:
        batches.close()
