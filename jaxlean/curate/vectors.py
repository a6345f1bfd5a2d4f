"""A vector for each row: an encoder's, the mean of a decoder's hidden states, or a column's. In shards, on disk."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxlean.config import RunConfig
from jaxlean.config.selection import VectorsSection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.work import Arrays, Work
from jaxlean.data.clusters import unit
from jaxlean.data.columns import need
from jaxlean.errors import ConfigError, DataError

# A shard is what a process that is killed has to do again.
_ROWS = 1024


def vectors_of(corpus: Corpus, alive: np.ndarray, settings: VectorsSection, work: Work) -> np.ndarray:
    """The vectors of the rows that are alive, made once for all steps of a config that ask for the same ones.

    Args:
        corpus: the rows.
        alive: bool [rows of the corpus].
        settings: whose vectors.
        work: of the step; the shards lie beside its folder.

    Returns:
        float32 [alive rows, hidden], unit vectors.

    Raises:
        ConfigError: neither a model nor a column.
        DataError: a column that is missing or no vector, a number that is none; with the row's place.
    """
    config = corpus.config
    if settings.column is not None:
        function = functools.partial(_from_column, settings.column)
    else:
        check_named(config, settings)
        function = functools.partial(_from_model, _Reader(config, settings))
    # rows that an earlier step left out may lie in the shards as well: they were alive when these were made
    shards = Work(work.folder.parent / f"vectors-{_key(config, settings)}", work.workers, work.progress)
    parts: list[np.ndarray] = []
    for numbers, found in shards.shards(function, corpus, alive, rows=_ROWS, here=True):
        if not len(numbers):
            continue
        rows, vectors = found["rows"], found["vectors"]
        at = np.searchsorted(rows, numbers)
        assert (rows[at] == numbers).all(), "rows only become fewer"
        _check(corpus, numbers, vectors[at])
        parts.append(unit(vectors[at]))
    sizes = {part.shape[1] for part in parts}
    if len(sizes) > 1:
        raise DataError(
            "vectors of several lengths", where=f"column {settings.column!r}", got=f"{sorted(sizes)} numbers",
            wanted="as many in every row",
        )  # fmt: skip
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def check_named(config: RunConfig, settings: VectorsSection) -> None:
    """That somebody's vectors are asked for.

    Raises:
        ConfigError: neither a model nor a column.
    """
    if settings.column is None and settings.model is None and config.model.path is None:
        raise ConfigError(
            "whose vectors? No model is named", where="model.path",
            fix="model.path, or `vectors: {model: FOLDER}` or `vectors: {column: NAME}` of the step",
        )  # fmt: skip


def check_column(corpus: Corpus, settings: VectorsSection) -> None:
    """That each source has the column.

    Raises:
        DataError: one has not.
    """
    if settings.column is not None:
        for number, source in enumerate(corpus.sources):
            need([settings.column], corpus.first(number), source.path, "vectors.column")


def _key(config: RunConfig, settings: VectorsSection) -> str:
    said = [settings.model_dump(mode="json"), config.model.model_dump(mode="json"), config.curate.text_column]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def _check(corpus: Corpus, numbers: np.ndarray, vectors: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(np.asarray(vectors, np.float32), axis=1)
    bad = np.flatnonzero(~np.isfinite(lengths))
    if len(bad):
        raise DataError(
            "a vector that is not all numbers (NaN or infinity), or too long for one",
            where=corpus.origin(int(numbers[bad[0]])),
            got=f"{len(bad)} such of {len(numbers)} rows around it",
            fix="look at that row, and at the model that the vectors are from",
        )  # fmt: skip


class _Reader:
    """Texts -> vectors; the model is loaded with the first of them."""

    def __init__(self, config: RunConfig, settings: VectorsSection) -> None:
        self._config, self._settings = config, settings

    @functools.cached_property
    def _model(self) -> Any:
        from jaxlean.hub.load import load

        named, own = self._config.model, self._settings.model
        if own is None:
            how: dict[str, Any] = {"revision": named.revision, "tokenizer": named.tokenizer}
            path, dtype = named.path, named.dtype
        else:
            how, path, dtype = {}, own, "auto"
        assert path is not None
        model = load(path, dtype, **how)
        if model.family.heads and model.config.head != "embed":  # saved for labels: its vectors are wanted
            model = load(path, dtype, task="embed", **how)
        if "tokens" not in model.config.inputs:
            raise ConfigError("vectors of texts are of a model of texts", got=model.family.model_type, where=path)
        return model

    def __call__(self, texts: list[str]) -> np.ndarray:
        from jaxlean.hub.encode import mean_states
        from jaxlean.xla.compile import use_cache

        use_cache(self._config.compilation_cache)
        longest = self._settings.max_length
        if self._model.family.heads:
            found: np.ndarray = self._model.encode(texts, max_length=longest)
            return found
        return mean_states(self._model, texts, max_length=longest)


def _from_model(read: _Reader, corpus: Corpus, numbers: np.ndarray) -> Arrays:
    texts = [words.text for words in corpus.words(numbers)]
    return {"rows": numbers, "vectors": read(texts) if texts else np.zeros((0, 0), np.float32)}


def _from_column(column: str, corpus: Corpus, numbers: np.ndarray) -> Arrays:
    found: list[np.ndarray] = []
    for item in corpus.items(numbers):
        need([column], item.row, str(Path(corpus.sources[item.source].path)), "vectors.column")
        try:
            vector = np.asarray(item.row[column], np.float32)
        except (TypeError, ValueError):
            vector = np.zeros((), np.float32)
        if vector.ndim != 1 or len(vector) == 0 or (found and len(vector) != len(found[0])):
            raise DataError(
                f"the column {column!r} holds no vector, or one of another length", where=item.origin,
                got=repr(item.row[column])[:80], wanted="a list of numbers, as many in every row",
            )  # fmt: skip
        found.append(vector)
    return {"rows": numbers, "vectors": np.stack(found) if found else np.zeros((0, 0), np.float32)}
