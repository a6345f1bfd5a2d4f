"""Quality of a task on held-out rows: the loss, and what the labels or vectors that come with it are worth."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlean import tree
from jaxlean.config import RunConfig
from jaxlean.data.batches import Stats
from jaxlean.data.tokenize import Ragged
from jaxlean.errors import DataError
from jaxlean.hub.load import Model
from jaxlean.run.inputs import held_out
from jaxlean.run.losses import judge_of
from jaxlean.run.rows import OwnRows
from jaxlean.run.scores import label_scores, retrieval_scores, span_scores
from jaxlean.run.summary import Evaluation
from jaxlean.train.classify import Judge
from jaxlean.train.contrast import unit
from jaxlean.train.objective import num_targets
from jaxlean.xla.mesh import num_batch_shards
from jaxlean.xla.spread import fetch


class TaskEvaluator:
    """Measures an encoder on the config's held-out rows, as often as asked, compiling once.

    Args:
        config: resolved; `data.eval` (or `data.eval_fraction`) and the `eval` section.
        model: with its head and adapters.
        tokenizer: the model's.
        mesh: the rows of a batch are split over it.

    Raises:
        DataError: there is no held-out row.
    """

    def __init__(self, config: RunConfig, model: Model, tokenizer: Any, mesh: jax.sharding.Mesh):
        self._task, self._labels = config.task, config.data.labels or []
        rows = config.eval.per_device_eval_batch_size * num_batch_shards(mesh)
        self._rows = OwnRows(mesh, rows)
        self._batches = held_out(config, model, tokenizer, rows=rows, held=self._rows.held)
        if not len(self._batches):
            raise DataError("the held-out data is empty", where="data.eval")
        self._step = make_judge_step(judge_of(config, model, mesh))

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self._batches.length

    @property
    def examples(self) -> Ragged | None:
        """The held-out rows as tokens; None where they are none."""
        return self._batches.examples

    @property
    def stats(self) -> Stats:
        """What the held-out rows became."""
        return self._batches.stats

    def loss(self, trainable: tree.Tree, frozen: tree.Tree) -> Evaluation:
        """Mean loss over every label (pair) of the held-out rows, and the task's scores: those cost nothing more."""
        total, num = 0.0, 0
        found: list[dict[str, np.ndarray]] = []
        for batch in self._batches:
            placed = self._rows.on_devices(batch)
            loss, targets, says = self._step(trainable, frozen, placed)
            total, num = total + float(loss), num + int(targets)
            found.append({name: fetch(x) for name, x in (says | {"labels": placed["labels"]}).items()})
        scores: dict[str, float]
        if self._task == "embed":
            scores = _of_pairs(found)
        elif self._task == "tag":
            scores = _of_tags(found, self._labels)
        else:
            wanted, got = _at_labels(found)
            scores = label_scores(wanted, got)
        return {"loss": total / max(num, 1), **scores, "examples": self.stats.examples, "tokens": num}  # type: ignore[typeddict-item]

    def __call__(self, model: Model, trainable: tree.Tree, frozen: tree.Tree) -> Evaluation:
        """As `loss`. (`model` is what the evaluation of a decoder generates with.)"""
        return self.loss(trainable, frozen)


def make_judge_step(judge: Judge) -> jax.stages.Wrapped:
    """The jitted `(trainable, frozen, batch) -> (summed loss, labels it is of, {what: of each row})`.

    What is said of the rows: `best` and `probability` [rows, length] of each position's likeliest label, `segments`; or
    `vectors` [rows, hidden].
    """

    @jax.jit
    def step(trainable: tree.Tree, frozen: tree.Tree, batch: Any) -> Any:
        loss, says = judge(tree.merge(trainable, frozen), batch)
        if isinstance(says, tuple):
            rest = {"segments": batch["segments"]} if "segments" in batch else {}
            said = {"best": says[0], "probability": says[1], **rest}
        else:
            said = {"vectors": says}
        return loss, num_targets(batch), said

    return step


def _at_labels(found: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """int [n]: the labels wanted, and the ones got in their places."""
    there = [said["labels"] >= 0 for said in found]
    wanted = np.concatenate([said["labels"][at] for said, at in zip(found, there, strict=True)])
    return wanted, np.concatenate([said["best"][at] for said, at in zip(found, there, strict=True)])


def _of_tags(found: list[dict[str, np.ndarray]], names: list[str]) -> dict[str, float]:
    wanted, got = _at_labels(found)
    scores = label_scores(wanted, got)
    if not any(name[:2] in ("B-", "I-") for name in names):
        return scores  # tags of words, such as parts of speech: there are no spans
    # a text is a segment of a row
    texts: list[list[np.ndarray]] = [[], []]
    for said in found:
        for row, segments in enumerate(said["segments"]):
            for segment in range(1, int(segments.max()) + 1):
                at = (segments == segment) & (said["labels"][row] >= 0)
                texts[0].append(said["labels"][row][at])
                texts[1].append(said["best"][row][at])
    sides = [[[names[i] for i in text] for text in side] for side in texts]
    return {"accuracy": scores["accuracy"], **span_scores(*sides)}


def _of_pairs(found: list[dict[str, np.ndarray]]) -> dict[str, float]:
    vectors = np.concatenate([np.asarray(unit(jnp.asarray(said["vectors"]))) for said in found])
    there = np.concatenate([said["labels"][0::2, 0] >= 0 for said in found])
    return retrieval_scores(vectors[0::2][there], vectors[1::2][there])
