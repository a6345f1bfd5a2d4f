"""What a model says of each of many texts: they are packed, judged in batches, and taken apart again."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxlean import tree
from jaxlean.data.batches import sequence_length
from jaxlean.data.epochs import Mix, Steps
from jaxlean.data.tokenize import Ragged
from jaxlean.errors import ModelError
from jaxlean.hub.load import Model
from jaxlean.hub.sentence import Sentence, read_sentence
from jaxlean.models.encoder import EncoderConfig
from jaxlean.models.layout import layout_on
from jaxlean.models.linear import Dropout
from jaxlean.run.rows import OwnRows
from jaxlean.train.classify import encode, label_logits
from jaxlean.xla.mesh import num_batch_shards
from jaxlean.xla.spread import fetch

# (parameters, batch) -> {what: of each row of the batch}
Say = Callable[[tree.Tree, Any], dict[str, jax.Array]]


class Said(NamedTuple):
    """What is said of one text.

    Attributes:
        number: of the text among the examples.
        batch: what is said of the batch that it lies in: arrays of [rows, ...].
        row: of the batch.
        at: int [n], the places of the row that have one of its labels.
        labels: int [n], these.
    """

    number: int
    batch: dict[str, np.ndarray]
    row: int
    at: np.ndarray
    labels: np.ndarray


def judged(
    examples: Ragged, say: Say, params: tree.Tree, mesh: jax.sharding.Mesh, *, rows: int, packing: bool, max_length: int
) -> Iterator[Said]:
    """What a model says of each text, in the order in which they are packed.

    Args:
        examples: tokens with `labels`, at a text's first token or at that of each word.
        say: jitted.
        params: of the model.
        mesh: the rows of a batch are split over it.
        rows: of a batch, on each device.
        packing: several texts a row.
        max_length: of a packed row.
    """
    at_once = rows * num_batch_shards(mesh)
    length = sequence_length(examples, packing, max_length)
    steps = Steps(examples, Mix([len(examples)], None, 0, shuffle=False), rows=at_once, packing=packing, length=length)
    own = OwnRows(mesh, at_once)
    for number in range(len(steps)):
        batch = steps[number]
        says = {name: fetch(x) for name, x in say(params, own.whole_on_devices(batch)).items()}
        for row in range(at_once):
            for segment, i in enumerate(steps.row(number * at_once + row), 1):
                at = np.flatnonzero((batch["segments"][row] == segment) & (batch["labels"][row] >= 0))
                yield Said(int(i), says, row, at, batch["labels"][row][at])


def embedder(model: Model) -> Model:
    """An encoder without its classifier: what it makes of a text is a vector, pooled as its files say.

    Adapters stay. (Where nothing is said, the mean of all tokens, as sentence-transformers has it: it tells texts apart
    better than the first token of an encoder that nobody trained for that.)

    Raises:
        ModelError: the model is no encoder of text.
    """
    if not isinstance(model.config, EncoderConfig):
        raise ModelError(
            "vectors of texts need an encoder of text", where=model.folder, got=model.family.model_type,
            fix="a model of BERT's kind (`jaxlean models` lists them)",
        )  # fmt: skip
    said = read_sentence(model.folder) if model.folder is not None else Sentence()
    config = replace(model.config, head="embed", pooling=said.pooling, normalize=said.normalize)
    params = {name: leaves for name, leaves in model.params.items() if name != "classifier"}
    return replace(model, config=config, params=params).with_params(params)


def text_vectors(model: Model, mesh: jax.sharding.Mesh) -> Say:
    """`vectors` float32 [rows, length, hidden] of an `embedder`; a text's stands at its first token."""
    layout = layout_on(mesh)

    @jax.jit
    def say(params: tree.Tree, batch: Any) -> dict[str, jax.Array]:
        module = nnx.merge(model.graph, params).lay_out(layout)
        return {"vectors": module.pool(encode(module, batch, None, jax.lax.scan), batch["segments"])}

    return say


def text_probabilities(model: Model, mesh: jax.sharding.Mesh, *, dropout: float = 0.0, key: int = 0) -> Say:
    """`probabilities` float32 [rows, length, labels] of a classifier; a text's stand at its first token.

    Args:
        model: of `task: classify`.
        mesh: as of `judged`.
        dropout: share of an adapter's inputs that is left out, as in training: with it each call of another `key` is
            a draw from what the adapter might have become (Gal and Ghahramani, arXiv 1506.02142, section 3).
        key: of the draws; every batch has its own.
    """
    logits, number = label_logits(model.graph, "classify", layout=layout_on(mesh)), itertools.count()

    @jax.jit
    def probabilities(params: tree.Tree, batch: Any, draw: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits(params, batch, Dropout(dropout, draw) if dropout else None), axis=-1)

    def say(params: tree.Tree, batch: Any) -> dict[str, jax.Array]:
        draw = jax.random.fold_in(jax.random.key(key), next(number))
        return {"probabilities": probabilities(params, batch, draw)}

    return say


def vectors_of(examples: Ragged, model: Model, mesh: jax.sharding.Mesh, *, rows: int, max_length: int) -> np.ndarray:
    """float32 [texts, hidden]: the vector of each text, whose label stands at its first token. Args as of `judged`.

    Args:
        model: an `embedder`.
    """
    found = np.full((len(examples), model.config.hidden_size), np.nan, np.float32)
    say = text_vectors(model, mesh)
    for said in judged(examples, say, model.params, mesh, rows=rows, packing=True, max_length=max_length):
        found[said.number] = said.batch["vectors"][said.row, said.at[0]]
    return found
