"""Rows -> what each is to a model: laid out and packed as in training, one jitted step, shard by shard."""

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxlean.config import RunConfig
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.work import Arrays, Work
from jaxlean.data import columns
from jaxlean.data.epochs import Mix, Steps
from jaxlean.data.format import recogniser
from jaxlean.data.labelled import LabelEncoder
from jaxlean.data.tokenize import Counts, Encoder, Ragged, Tokens
from jaxlean.errors import ConfigError, ModelError

# A shard is what a process that is killed has to do again.
_ROWS = 1024


def learned_from(corpus: Corpus, alive: np.ndarray, score: str) -> RunConfig:
    """The config that a model of these rows is loaded and trained by, labels included.

    Args:
        corpus: the rows.
        alive: bool [rows of the corpus]; labels that only other rows have are none.
        score: what the model is for.

    Raises:
        ConfigError: no model, or a task whose rows have no score of this name.
        DataError: the labels cannot be read.
    """
    config = corpus.config
    check_model(config, score)
    if config.task == "generate":
        return config
    from jaxlean.run.job import head_labels

    # the corpus is read without labels; they are those of the model's head, or all that the rows have
    open_ = config.model_copy(update={"data": config.data.model_copy(update={"labels": config.data.labels or None})})
    known = head_labels(open_)
    if known is None and open_.data.labels is None:
        known = _labels(corpus, alive)
    return columns.resolve(open_, known)


def _labels(corpus: Corpus, alive: np.ndarray) -> list[str]:
    task, column = corpus.config.task, corpus.config.data.label_column
    assert column is not None, "of a corpus with labels"
    names: set[str] = set()
    for item in corpus.items(np.flatnonzero(alive)):
        names.update(columns.labels_of(item.row, task, column, item.origin))
    return columns.in_order(names, column, ", ".join(source.path for source in corpus.sources))


def check_model(config: RunConfig, score: str) -> None:
    """That there is a model, and something to be right or wrong about.

    Raises:
        ConfigError: as of `learned_from`.
    """
    if config.model.path is None:
        raise ConfigError(f"{score} is what rows are to a model, and none is named", fix="model.path=FOLDER")
    if config.task == "embed":
        raise ConfigError(
            f"{score} needs something that is right or wrong, and task: embed has no labels",
            where="curate.steps", fix="semantic_duplicates and diversity: k_center need none",
        )  # fmt: skip


def scores_of(
    corpus: Corpus,
    alive: np.ndarray,
    config: RunConfig,
    work: Work,
    *,
    name: str,
    adapter: Path | None = None,
    alone: bool = False,
) -> dict[str, np.ndarray]:
    """What each row is to a model.

    Args:
        corpus: the rows.
        alive: bool [rows of the corpus].
        config: as of `learned_from`.
        work: of the step.
        name: of the shards' files.
        adapter: PEFT folder.
        alone: without the prompt: only what is learned is read (task: generate), and of that the same tokens count.

    Returns:
        `loss` (mean cross entropy of the row's tokens or labels that are learned, nats) and `error` (mean norm of the
        error vectors), and where `alone` is set `loss_alone`; float32 [rows of the corpus], NaN where there is none.

    Raises:
        ModelError: a classifier without an adapter whose files have no head for these labels.
    """
    model = _Judge(config, adapter, alone)
    keys = ["loss", "error", *(["loss_alone"] if alone else [])]
    found = {key: np.full(len(corpus), np.nan, np.float32) for key in keys}
    for numbers, part in work.shards(model, corpus, alive, name=name, rows=_ROWS, here=True):
        for key in keys:
            found[key][numbers] = part[key]
    return found


class _Judge:
    """(corpus, numbers of rows) -> arrays of them; the model is loaded with the first."""

    def __init__(self, config: RunConfig, adapter: Path | None, alone: bool) -> None:
        self._config, self._adapter, self._alone = config, adapter, alone

    def __call__(self, corpus: Corpus, numbers: np.ndarray) -> Arrays:
        made = list(self._tokens(corpus, numbers))
        if not self._alone:
            return self._score(made)
        # given the prompt and alone, the same tokens count
        pairs = [None if one is None else without_prompt(one, self._encoder.prefix) for one in made]
        given = self._score([None if pair is None else pair[0] for pair in pairs])
        alone = self._score([None if pair is None else pair[1] for pair in pairs])
        return given | {"loss_alone": alone["loss"]}

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any, Any]:
        """(model, its mesh, the jitted scores)."""
        import jax

        from jaxlean.models.layout import layout_on
        from jaxlean.run.evaluate import loaded
        from jaxlean.run.generate import chat_template
        from jaxlean.train.classify import label_logits
        from jaxlean.train.example_scores import completion_scores, label_scores
        from jaxlean.train.loss import chunk_budget
        from jaxlean.xla.compile import use_cache
        from jaxlean.xla.mesh import make_mesh, split_host

        config = self._config
        split_host(config.mesh.host_devices)
        use_cache(config.compilation_cache)
        mesh = make_mesh(config.mesh.model_copy(update={"auto": False}))
        model = loaded(config, mesh, self._adapter)
        if "tokens" not in model.config.inputs:
            raise ConfigError("scores are of rows of text", where=config.model.path, got=model.family.model_type)
        if self._adapter is None and model.drawn:
            raise ModelError(
                f"the model has no head for task: {config.task} with these labels: it would only guess",
                where=config.model.path, fix="`adapter: FOLDER` of the step, or el2n, which learns the labels first",
            )  # fmt: skip
        template = chat_template(config.model)
        if template is not None:
            model.tokenizer.chat_template = template
        if config.task == "generate":
            budget = chunk_budget(config.train.loss_chunk_bytes, mesh.size, model.config.vocab_size)
            scores = completion_scores(model.graph, model.config, logits_bytes=budget, layout=layout_on(mesh))
        else:
            scores = label_scores(label_logits(model.graph, config.task, layout=layout_on(mesh)))
        return model, mesh, jax.jit(scores)

    @functools.cached_property
    def _encoder(self) -> Any:
        model, data = self._loaded[0], self._config.data
        if self._config.task != "generate":
            return LabelEncoder(self._config, model.tokenizer, vocab_size=model.config.vocab_size)
        return Encoder(
            model.tokenizer, max_length=data.max_length, on_long=data.on_long, train_on=data.train_on,
            vocab_size=model.config.vocab_size,
        )  # fmt: skip

    def _tokens(self, corpus: Corpus, numbers: np.ndarray) -> Iterator[Tokens | None]:
        """Tokens of each row; None of one that is dropped for its length."""
        encoder, data = self._encoder, self._config.data
        readers: dict[int, Any] = {}

        def examples() -> Iterator[tuple[Any, str]]:
            for item in corpus.items(numbers):
                if item.source not in readers:
                    source, first = corpus.sources[item.source], list(corpus.first(item.source))
                    if isinstance(encoder, LabelEncoder):
                        readers[item.source] = encoder.reader(first, source.path)
                    else:
                        chat = data.chat and encoder.template is not None
                        readers[item.source] = recogniser(first, source, data, chat=chat)
                yield readers[item.source](item.row, item.origin), item.origin

        yield from encoder.encode(examples(), Counts())

    def _score(self, made: list[Tokens | None]) -> Arrays:
        from jaxlean.run.rows import OwnRows
        from jaxlean.xla.mesh import num_batch_shards
        from jaxlean.xla.spread import fetch

        found = {key: np.full(len(made), np.nan, np.float32) for key in ("loss", "error")}
        kept = [i for i, tokens in enumerate(made) if tokens is not None]
        if not kept:
            return found
        model, mesh, scores = self._loaded
        examples = Ragged.of(tokens for tokens in made if tokens is not None)
        at_once = self._config.eval.per_device_eval_batch_size * num_batch_shards(mesh)
        own = OwnRows(mesh, at_once)
        mix, length = Mix([len(kept)], None, 0, shuffle=False), self._config.data.max_length
        steps = Steps(examples, mix, rows=at_once, packing=True, length=length)
        for number in range(len(steps)):
            sums = [fetch(x) for x in scores(model.params, own.whole_on_devices(steps[number]))]
            loss, error, num = sums
            for row in range(at_once):
                for segment, i in enumerate(steps.row(number * at_once + row), 1):
                    if num[row, segment]:
                        found["loss"][kept[int(i)]] = loss[row, segment] / num[row, segment]
                        found["error"][kept[int(i)]] = error[row, segment] / num[row, segment]
        return found


def without_prompt(tokens: Tokens, prefix: list[int]) -> tuple[Tokens, Tokens] | None:
    """An example as it is, and what is learned of it alone, so that the same tokens carry loss in both.

    Args:
        tokens: of the whole example.
        prefix: what the tokenizer puts before a text (BOS), or nothing: then the first token that is learned has none
            before it when it is alone, and counts in neither.

    Returns:
        None where no token is left that counts.
    """
    ids, learned = tokens.input_ids, tokens.loss_mask
    start = int(learned.argmax())
    if learned[start:].all() and start <= max(len(prefix), 1):  # plain text: it has no prompt
        return tokens, tokens
    counted = learned.copy()
    if not prefix:
        counted[np.flatnonzero(learned)[:1]] = False
    if not counted.any():
        return None
    alone = np.concatenate([np.array(prefix, np.int32), ids[learned]])
    mask = np.concatenate([np.zeros(len(prefix), bool), counted[learned]])
    return replace(tokens, loss_mask=counted), Tokens(alone, mask, tokens.origin)
