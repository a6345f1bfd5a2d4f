"""Texts -> what a model says of each: an encoder's vector, the logits of its labels, or the mean of hidden states."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlean.errors import ModelError
from jaxlean.models.pooling import segment_mean

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

    def run(tokens: np.ndarray, segments: np.ndarray) -> np.ndarray:
        return np.asarray(model(tokens, segments=jnp.asarray(segments)))[:, 0]

    found = _by_length(model.tokenizer, texts, run, batch_size, longest)
    return found if found is not None else np.empty((0, model.config.hidden_size), np.float32)


def mean_states(model: Any, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None) -> np.ndarray:
    """The mean of a text's hidden states, as the last layer leaves them: a vector of a model that was made for none.

    Args:
        model: a decoder (or an encoder, whatever it was saved for), with its tokenizer.
        texts: in any order.
        batch_size: texts at a time.
        max_length: tokens of a text, what is beyond is cut; default: 512, or what the model was made for.

    Returns:
        float32 [texts, hidden].
    """
    longest = min(max_length or 512, model.config.max_position_embeddings)

    def run(tokens: np.ndarray, segments: np.ndarray) -> np.ndarray:
        return np.asarray(_mean(model.graph, model.params, jnp.asarray(tokens), jnp.asarray(segments)))

    found = _by_length(model.tokenizer, texts, run, batch_size, longest)
    return found if found is not None else np.empty((0, model.config.hidden_size), np.float32)


@partial(jax.jit, static_argnums=0)
def _mean(graph: nnx.GraphDef, params: Any, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    hidden = nnx.merge(graph, params).hidden(tokens, segments=segments)
    return segment_mean(hidden, segments)[:, 0]


def _by_length(
    tokenizer: Any,
    texts: Sequence[str],
    run: Callable[[np.ndarray, np.ndarray], np.ndarray],
    batch_size: int,
    longest: int,
) -> np.ndarray | None:
    """What `run` says of (tokens, segments) [batch_size, length], for each text; None where there is none."""
    read = tokenizer(list(texts), truncation=True, max_length=longest, padding=False)["input_ids"]
    order = sorted(range(len(read)), key=lambda i: -len(read[i]))
    out: np.ndarray | None = None
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        length = min(-(-max(len(read[i]) for i in chosen) // _STEP) * _STEP, longest)
        tokens = np.full((batch_size, length), tokenizer.pad_token_id or 0, np.int32)
        segments = np.zeros((batch_size, length), np.int32)
        for row, i in enumerate(chosen):
            tokens[row, : len(read[i])], segments[row, : len(read[i])] = read[i], 1
        found = run(tokens, segments)[: len(chosen)]
        out = np.empty((len(read), found.shape[-1]), np.float32) if out is None else out
        out[chosen] = found
    return out
