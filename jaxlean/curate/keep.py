"""`keep`: which of the rows that are left are trained on, by a score, spread over the data, in a mix of sources."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlean.config.selection import KeepSection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found
from jaxlean.curate.vectors import vectors_of
from jaxlean.curate.work import Work
from jaxlean.data.clusters import k_means
from jaxlean.data.columns import need
from jaxlean.data.sample import choose, in_band, merit, mixed
from jaxlean.errors import ConfigError, DataError, did_you_mean

REASONS = ("no score", "outside the limits of the score", "not chosen")


def keep(corpus: Corpus, alive: np.ndarray, settings: KeepSection, work: Work) -> Found:
    """Leave out all but the chosen rows (`jaxlean.data.sample`).

    Raises:
        ConfigError: a score, or a source of the mix, that is not there.
        DataError: a column that is no number, a negative score to draw by, nothing within the limits.
    """
    rows, seed = np.flatnonzero(alive), corpus.config.seed
    score = None if settings.by is None else _score(corpus, rows, settings.by, work)
    why = np.full(len(rows), REASONS.index("not chosen"), np.int16)
    allowed = np.ones(len(rows), bool)
    if score is not None:
        allowed = in_band(
            score, drop_highest=settings.drop_highest, drop_lowest=settings.drop_lowest, at_least=settings.at_least,
            at_most=settings.at_most, seed=seed,
        )  # fmt: skip
        why[~allowed] = REASONS.index("outside the limits of the score")
        why[np.isnan(score)] = REASONS.index("no score")
    within = np.flatnonzero(allowed)
    if not len(within):
        assert score is not None
        has = score[~np.isnan(score)]
        raise DataError(
            f"no row is left within the limits of {settings.by!r}", where="curate.steps: keep",
            got=f"{len(rows)} rows, of which {len(has)} have a score"
            + (f", from {has.min():.4g} to {has.max():.4g}" if len(has) else ""),
        )  # fmt: skip
    merits = None
    if score is not None:
        if settings.order == "draw" and (score[within] < 0).any():
            raise DataError(
                f"{settings.by!r} has negative scores, in proportion to which nothing can be drawn",
                where="curate.steps: keep", got=f"{score[within].min():.4g}", fix="order: draw_log, or highest",
            )  # fmt: skip
        merits = merit(score[within], settings.order, seed=seed)
    parts, numbers, notes = _shares(corpus, rows[within], settings, len(rows))
    diverse = _Diverse(corpus, rows[within], settings, work)
    chosen = [
        part[choose(num, len(part), merits=None if merits is None else merits[part], seed=seed, **diverse.of(part))]
        for part, num in zip(parts, numbers, strict=True)
        if num
    ]
    dropped = np.ones(len(rows), bool)
    dropped[within[np.concatenate(chosen)]] = False
    value = None if score is None else score[dropped].astype(np.float32)
    return Found(rows[dropped], why[dropped], REASONS, value=value, notes=notes)


def check_by(corpus: Corpus, name: str | None, scores: Sequence[str]) -> None:
    """That there is what rows are chosen by.

    Args:
        corpus: whose columns count, where no score has the name.
        name: `keep.by`.
        scores: of the steps before.

    Raises:
        ConfigError: neither a score nor a column of each source.
    """
    if name is None or name in scores:
        return
    for number, source in enumerate(corpus.sources):
        first = list(corpus.first(number))
        if name not in first:
            raise ConfigError(
                "keep.by is neither a score of a step before nor a column", where=f"curate.steps: keep, {source.path}",
                got=name, wanted=f"scores: {', '.join(scores) or 'none'}; columns: {', '.join(first)}",
                fix=did_you_mean(name, [*scores, *first]),
            )  # fmt: skip


def check_mix(corpus: Corpus, mix: Mapping[str, float] | None) -> None:
    """That the mix has each source once, and no other.

    Raises:
        ConfigError: it has not.
    """
    if mix is None:
        return
    names = [source.path for source in corpus.sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            "keep.mix cannot tell two sources of one path from each other", where="curate.steps: keep", got=twice,
            fix="keep from each alone, with another output_dir, and mix in a second run; or copy one to another path",
        )  # fmt: skip
    unknown = next((name for name in mix if name not in names), None)
    if unknown is not None:
        raise ConfigError(
            "keep.mix names a source that is not in data.train", got=unknown, fix=did_you_mean(unknown, names)
        )
    missing = [name for name in names if name not in mix]
    if missing:
        raise ConfigError(
            "keep.mix has no weight for a source", got=missing[0], fix="give it one, or leave it out of data.train"
        )


def check_diversity(corpus: Corpus, settings: KeepSection) -> None:
    """That there are labels where they are asked for.

    Raises:
        ConfigError: there are none.
    """
    if settings.diversity == "labels" and corpus.config.task != "classify":
        raise ConfigError(
            "diversity: labels is for task: classify", where="curate.steps: keep",
            got=f"task: {corpus.config.task}", fix="diversity: clusters, or k_center",
        )  # fmt: skip


def _shares(
    corpus: Corpus, rows: np.ndarray, settings: KeepSection, num_alive: int
) -> tuple[list[np.ndarray], list[int], dict[str, Any]]:
    """(places in `rows` of each source, the rows that it gives, what the report should say)."""
    num = settings.count
    if settings.fraction is not None:
        num = max(1, round(settings.fraction * num_alive))
    notes: dict[str, Any] = {}
    if num is not None and num > len(rows):
        notes["fewer than asked for"] = f"{len(rows)} of {num} rows are there"
        num = len(rows)
    if settings.mix is None:
        return [np.arange(len(rows))], [len(rows) if num is None else num], notes
    check_mix(corpus, settings.mix)
    names = [source.path for source in corpus.sources]
    source = corpus.source_of(rows)
    parts = [np.flatnonzero(source == i) for i in range(len(names))]
    empty = next((name for name, part in zip(names, parts, strict=True) if not len(part)), None)
    if empty is not None and num is None:
        raise DataError("a source of keep.mix has no row left, so that no number keeps the shares", where=empty)
    weights = np.array([settings.mix[name] for name in names])
    given, out = mixed(np.array([len(part) for part in parts]), weights, num)
    for i in np.flatnonzero(out):
        wanted = round(weights[i] / weights.sum() * int(given.sum()))
        notes[f"{names[i]} ran out"] = f"{given[i]:,} rows where its share is {wanted:,}; the other sources give more"
    notes |= {f"rows of {name}": int(count) for name, count in zip(names, given, strict=True)}
    return parts, given.tolist(), notes


class _Diverse:
    """What `choose` is told of rows, so that what it chooses is diverse."""

    def __init__(self, corpus: Corpus, rows: np.ndarray, settings: KeepSection, work: Work) -> None:
        self._groups: np.ndarray | None = None
        self._vectors: np.ndarray | None = None
        check_diversity(corpus, settings)
        if settings.diversity == "labels":
            names = [words.label for words in corpus.words(rows)]
            self._groups = np.unique(names, return_inverse=True)[1]
        elif settings.diversity != "none":
            alive = np.zeros(len(corpus), bool)
            alive[rows] = True
            self._vectors = vectors_of(corpus, alive, settings.vectors, work)
            if settings.diversity == "clusters":
                self._groups = k_means(self._vectors, settings.num_clusters, seed=corpus.config.seed)[0]
                self._vectors = None

    def of(self, part: np.ndarray) -> dict[str, Any]:
        """Of some of the rows."""
        groups, vectors = self._groups, self._vectors
        return {
            "groups": None if groups is None else groups[part],
            "vectors": None if vectors is None else vectors[part],
        }


def _score(corpus: Corpus, rows: np.ndarray, name: str, work: Work) -> np.ndarray:
    """[rows] float64: of a step before, or of a column."""
    if name in work.scores:
        return np.asarray(work.scores[name][rows], np.float64)
    check_by(corpus, name, list(work.scores))
    found = np.empty(len(rows))
    for i, item in enumerate(corpus.items(rows)):
        need([name], item.row, corpus.sources[item.source].path, "keep.by")
        value = item.row[name]
        try:
            found[i] = np.nan if value is None or value == "" else float(value)
        except (TypeError, ValueError):
            raise DataError(
                f"the column {name!r} is no number", where=item.origin, got=repr(value)[:80], wanted="a score",
            ) from None  # fmt: skip
    return found
