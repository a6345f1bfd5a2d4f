"""The rows that pruning and quantization learn from: the first of the training data, packed full."""

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
    data = config.data.model_copy(update={"packing": True, "max_length": length, "curriculum": None})
    train = config.train.model_copy(update={"num_train_epochs": 1.0, "max_steps": None})
    rows = min(wanted.batch_size, wanted.num_rows)
    settings = config.model_copy(update={"data": data, "train": train})
    found: list[dict[str, np.ndarray]] = []
    with_rows = 0
    batches = train_batches(settings, tokenizer, rows_per_step=rows, vocab_size=vocab_size)
    try:
        for batch in batches:
            with_rows += int((batch["segments"] > 0).any(axis=-1).sum())
            found.append({name: np.asarray(batch[name]) for name in _INPUTS if name in batch})
            if with_rows >= wanted.num_rows:
                return found
    finally:
        batches.close()
    raise DataError(
        "the data make too few calibration rows", where="data.train",
        got=f"{with_rows} of {length} tokens", wanted=f"{wanted.num_rows}, as calibration.num_rows says",
        fix=f"more data, or calibration.num_rows={max(with_rows, 1)}",
    )  # fmt: skip
