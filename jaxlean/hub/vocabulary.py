"""A model with a larger vocabulary: its tables, its config and its tokenizer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxlean import tree
from jaxlean.adapt import vocabulary
from jaxlean.errors import ConfigError
from jaxlean.hub.load import Model


def resized(model: Model, size: int) -> Model:
    """The model with room for `size` tokens; one that has room for more stays as it is.

    Raises:
        ConfigError: it has no table of tokens.
    """
    if not hasattr(model.config, "vocab_size") or vocabulary.TABLE not in tree.flatten(model.params):
        raise ConfigError(
            f"new tokens need a model of text, and {model.family.model_type} has no table of tokens that could grow",
            where="model.new_tokens", fix="leave it out",
        )  # fmt: skip
    if size <= model.config.vocab_size:
        return model
    # a table's own padding token keeps its place
    other = replace(
        model,
        config=replace(model.config, vocab_size=size),
        hf_config=model.hf_config | {"vocab_size": size},
    )
    _keep_tokenizer(model, other)
    return other.with_params(vocabulary.resized(model.params, size))


def with_rows(model: Model, ids: np.ndarray, rows: Mapping[str, Any]) -> Model:
    """The model with rows for some tokens beside its tables (`adapt.vocabulary.add`); it has room for them."""
    return model.with_params(vocabulary.add(model.params, ids, rows))


def leaves_of(model: Model) -> list[str]:
    """The rows that a token has: of the embedding and, where that is a matrix of its own, of the head."""
    held = tree.flatten(model.params)
    return [leaf for leaf, (table, _) in vocabulary.TABLES.items() if table in held]


def _keep_tokenizer(model: Model, other: Model) -> None:
    if "tokenizer" in vars(model):
        vars(other)["tokenizer"] = model.tokenizer
