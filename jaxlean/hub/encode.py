"""Texts -> what an encoder says of each: its vector, or the logits of its labels."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlean.errors import ModelError

# Lengths are rounded up to a multiple: a program is compiled for each.
_STEP = 32


def encode(model: Any, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None) -> np.ndarray:
    """Run an encoder over texts.

    Args:
        model: an encoder that embeds or classifies, with its tokenizer.
        texts: in any order; texts of like length are put into a batch.
        batch_size: texts at a time.
        max_length: tokens of a text, what is beyond is cut; default: what the model was made for.

    Returns:
        float32 [texts, hidden] or [texts, labels].

    Raises:
        ModelError: the model says nothing of whole texts.
    """
    if getattr(model.config, "head", None) not in ("embed", "classify"):
        raise ModelError(
            "encode is of models that embed or classify", where=model.folder, got=model.family.model_type,
            fix="load an encoder, with task='embed' or task='classify'",
        )  # fmt: skip
    longest = min(max_length or model.max_length, model.config.max_position_embeddings)
    read = model.tokenizer(list(texts), truncation=True, max_length=longest, padding=False)["input_ids"]
    order = sorted(range(len(read)), key=lambda i: -len(read[i]))
    out: np.ndarray | None = None
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        length = min(-(-max(len(read[i]) for i in chosen) // _STEP) * _STEP, longest)
        tokens = np.full((batch_size, length), model.tokenizer.pad_token_id or 0, np.int32)
        segments = np.zeros((batch_size, length), np.int32)
        for row, i in enumerate(chosen):
            tokens[row, : len(read[i])], segments[row, : len(read[i])] = read[i], 1
        found = np.asarray(model(tokens, segments=jnp.asarray(segments)))[: len(chosen), 0]
        out = np.empty((len(read), found.shape[-1]), np.float32) if out is None else out
        out[chosen] = found
    return out if out is not None else np.empty((0, model.config.hidden_size), np.float32)
