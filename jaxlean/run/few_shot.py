"""What a model does with a few examples and no training: the baseline that one should beat before paying for training.

A language model has them in its prompt (`data/shots.py`). An encoder takes the mean vector of a label's examples for
its prototype, and gives a text the label whose prototype is nearest by the cosine (Snell et al., arXiv 1703.05175,
section 2.3, on frozen vectors); without examples the prototype is the vector of the label's name (zero-shot).
"""

import re
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from jaxlean import tree
from jaxlean.config import RunConfig
from jaxlean.data.dedupe import normalise
from jaxlean.data.labelled import LabelEncoder, Labelled
from jaxlean.data.loader import held_out_rows, training_rows
from jaxlean.data.shots import shot_rows
from jaxlean.data.tokenize import Counts, Ragged
from jaxlean.errors import ConfigError, DataError
from jaxlean.hub.load import Model
from jaxlean.run.evaluate import Evaluator, compare, prepared, print_evaluation
from jaxlean.run.image import image_of
from jaxlean.run.losses import loss_of
from jaxlean.run.scores import label_scores
from jaxlean.run.summary import Evaluation
from jaxlean.run.texts import embedder, vectors_of

Row = tuple[Labelled, str]
# Of more training rows so many are drawn to choose from.
_POOL = 50_000


class FewShot(Protocol):
    """Measures a model on the held-out rows, with examples. As text it says which those are."""

    def __call__(self, model: Model, trainable: tree.Tree, frozen: tree.Tree) -> Evaluation:
        """As of `run.evaluate.Evaluator`; `shots` is the mean number of examples (of a row; of a label)."""
        ...


def evaluate_few_shot(config: RunConfig, *, adapter: Path | None = None, answers: Path | None = None) -> Evaluation:
    """`jaxlean evaluate --shots K`: measure a model with `eval.shots` examples, and print what was found.

    Args, errors: as of `run.evaluate.evaluate` and `few_shot_of`.
    """
    if config.eval.shots and not config.data.train:
        raise ConfigError("examples come from training data, and none is named", where="data.train")
    if config.task in ("tag", "embed"):
        raise ConfigError(f"--shots is for task: generate and classify, not for {config.task}")
    config, model, tokenizer, mesh = prepared(config, adapter, answers)
    if answers is not None:  # before examples are chosen: a completion must have room
        config = config.model_copy(update={"eval": config.eval.model_copy(update={"exact_match": True})})
    few_shot = few_shot_of(config, model, tokenizer, mesh)
    print(few_shot)
    if answers is not None and isinstance(few_shot, InPrompt):
        found = few_shot.loss({}, model.params)
        found["exact_match"] = compare(few_shot.answers(model), answers)
    else:
        found = few_shot(model, {}, model.params)
    print_evaluation(found)
    return found


def few_shot_of(config: RunConfig, model: Model, tokenizer: Any, mesh: jax.sharding.Mesh) -> FewShot:
    """What measures a model with `eval.shots` examples.

    Args:
        config: resolved; `data`, `eval` and `seed` count.
        model: with its head and adapters.
        tokenizer: the model's.
        mesh: the rows of a batch are split over it.

    Raises:
        ConfigError: a model of images, or labels without names.
        DataError: no example may be used, a row that cannot be read.
    """
    if config.task == "generate":
        return InPrompt(config, model, tokenizer, mesh)
    if image_of(model) is not None:
        raise ConfigError("eval.shots is of texts, and this is a model of images", where=config.model.path)
    return Prototypes(config, tokenizer, mesh, vocab_size=model.config.vocab_size)


class InPrompt(Evaluator):
    """A language model with examples in its prompt. Args, errors: as of `few_shot_of`."""

    def __init__(self, config: RunConfig, model: Model, tokenizer: Any, mesh: jax.sharding.Mesh):
        vocab_size = model.config.vocab_size
        longest = model.config.max_position_embeddings
        self._chosen = (
            shot_rows(config, tokenizer, longest=longest, vocab_size=vocab_size) if config.eval.shots else None
        )
        loss = loss_of(config, model, mesh)
        super().__init__(config, tokenizer, loss, mesh, vocab_size=vocab_size, shots=self._chosen)

    def loss(self, trainable: tree.Tree, frozen: tree.Tree) -> Evaluation:
        shots = float(self._chosen.shots.mean()) if self._chosen is not None else 0.0
        return {**super().loss(trainable, frozen), "shots": shots}

    def __str__(self) -> str:
        return str(self._chosen) if self._chosen is not None else "zero-shot: the held-out rows, without examples"


class Prototypes:
    """An encoder's frozen vectors, and the nearest label.

    Args:
        config: resolved; its `data`, `eval` and `seed`.
        tokenizer: the model's.
        mesh: the rows of a batch are split over it.
        vocab_size: rows of the model's embedding.

    Raises:
        ConfigError: without examples, labels that have no names.
        DataError: no training row may be used, a row that cannot be read.
    """

    def __init__(self, config: RunConfig, tokenizer: Any, mesh: jax.sharding.Mesh, *, vocab_size: int):
        self._config, self._mesh, self._wanted = config, mesh, config.eval.shots or 0
        self._labels = config.data.labels or []
        encoder = LabelEncoder(config, tokenizer, vocab_size=vocab_size)
        rows = list(held_out_rows(config, tokenizer))
        self._held, self._right = _encoded(rows, encoder)
        if not len(self._right):
            raise DataError("no held-out row is left", where="data.eval")
        self._leaked = 0
        chosen = self._chosen(rows, tokenizer) if self._wanted else self._names()
        if not self._wanted and encoder.typed:
            encoder.typed = False  # a name is one text
        self._shown, self._of = _encoded(chosen, encoder)

    def __call__(self, model: Model, trainable: tree.Tree, frozen: tree.Tree) -> Evaluation:
        plain = embedder(model.with_params(tree.merge(trainable, frozen)))
        settings = self._config.eval, self._config.data
        how = {"rows": settings[0].per_device_eval_batch_size, "max_length": settings[1].max_length}
        shown, held = (vectors_of(texts, plain, self._mesh, **how) for texts in (self._shown, self._held))
        got = nearest_label(held, shown, self._of)
        scores = label_scores(self._right, got)
        return {**scores, "examples": len(got), "shots": self._shots}  # type: ignore[typeddict-item]

    @property
    def _shots(self) -> float:
        return len(self._of) / len(set(self._of.tolist())) if self._wanted else 0.0

    def __str__(self) -> str:
        num = f"of each of {len(self._labels):,} labels, for {len(self._right):,} held-out rows"
        if not self._wanted:
            return f"zero-shot: the name {num}"
        said = f"few-shot: {self._wanted} examples {num}"
        times = np.bincount(self._of, minlength=len(self._labels))
        for what, many in (("fewer", (times > 0) & (times < self._wanted)), ("none", times == 0)):
            said += f"; {int(many.sum()):,} have {what}" if many.any() else ""
        return said + (f"; {self._leaked:,} training rows are not used: they are held out" if self._leaked else "")

    def _names(self) -> list[Row]:
        names = [re.sub(r"[\W_]+", " ", label).strip() for label in self._labels]
        if any(not name or name.isdecimal() for name in names):
            raise ConfigError(
                "eval.shots: 0 takes labels by their names, and these have none", where="data.labels",
                got=", ".join(self._labels[:6]), fix="eval.shots=1 or more, or name the labels",
            )  # fmt: skip
        return [(Labelled((name,), i), f"the label {self._labels[i]!r}") for i, name in enumerate(names)]

    def _chosen(self, rows: list[Row], tokenizer: Any) -> list[Row]:
        """Up to so many examples of each label, drawn by the seed; none whose text is held out, in whatever letters."""

        def key(row: Row) -> tuple[str, ...]:
            return tuple(map(normalise, row[0].texts))

        held = set(map(key, rows))
        every = list(training_rows(self._config, tokenizer, most=_POOL))
        pool = [row for row in every if key(row) not in held]
        self._leaked = len(every) - len(pool)
        order = np.random.default_rng([self._config.seed, len(pool)]).permutation(len(pool))
        chosen: list[Row] = []
        times = np.zeros(len(self._labels), np.int64)
        for i in order:
            label = pool[i][0].label
            if times[label] < self._wanted:
                times[label] += 1
                chosen.append(pool[i])
        if not chosen:
            raise DataError(
                "no training row can stand as an example", where="data.train",
                got=f"{len(every):,} rows, all of whose texts are held-out ones",
                fix="other training data, or no eval.shots",
            )  # fmt: skip
        return chosen


def nearest_label(vectors: np.ndarray, shown: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int [n]: the label whose prototype is nearest by the cosine, of those that have an example.

    Args:
        vectors: float32 [n, hidden].
        shown: float32 [examples, hidden].
        labels: int [examples], the label of each.

    >>> nearest_label(np.array([[1.0, 0.2]]), np.array([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0]]), np.array([0, 4, 0]))
    array([4])
    """
    there = np.unique(labels)
    prototypes = np.stack([_unit(shown[labels == label]).mean(axis=0) for label in there])
    return there[(_unit(vectors) @ _unit(prototypes).T).argmax(axis=1)]


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _encoded(rows: list[Row], encoder: LabelEncoder) -> tuple[Ragged, np.ndarray]:
    """(tokens, label of each text), without the rows that are dropped for their length."""
    tokens = [tokens for tokens in encoder.encode(rows, Counts()) if tokens is not None]
    return Ragged.of(tokens), np.array([one.more["labels"].max() for one in tokens], np.int64)
