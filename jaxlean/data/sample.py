"""Intelligent data sampling: which rows of a dataset to train on, when not all are worth it. numpy.

A row has a score from somewhere else: how hard it is for a model (loss, EL2N), how much a model has yet to learn from
it (IFD, learnability), how like a target it is (importance), or a column of the data. Three questions remain:

    in_band     which rows are not to be chosen at all? The hardest few per cent are often labelled wrongly.
    mixed       how many rows does each source give?
    choose      which ones? By score or drawn in proportion to it; alone, or so that they cover the data: as many of
                each label or cluster, or each far from the others (`diversity`).

Of the hardest rows many are alike, some are wrong, and a short run does not get through them: `diversity`, and
drawing in proportion to difficulty instead of taking the top, are against that. benchmarks/sampling.py measures it.
"""

from typing import Literal

import numpy as np

from jaxlean.data.diversity import balanced, k_center
from jaxlean.data.shares import shares

Order = Literal["highest", "lowest", "draw", "draw_log"]


def in_band(
    score: np.ndarray,
    *,
    drop_highest: float = 0.0,
    drop_lowest: float = 0.0,
    at_least: float | None = None,
    at_most: float | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Whether each row may be chosen.

    Args:
        score: [rows]; a row whose score is NaN may not.
        drop_highest, drop_lowest: shares of the rows that have a score.
        at_least, at_most: limits of the score itself.
        seed: of which rows with the same score go first.

    Returns:
        bool [rows].
    """
    allowed = ~np.isnan(score)
    order = np.random.default_rng(seed).permutation(len(score))
    order = order[np.argsort(score[order], kind="stable")][: int(allowed.sum())]  # NaN is sorted last
    allowed[order[: round(drop_lowest * len(order))]] = False
    allowed[order[len(order) - round(drop_highest * len(order)) :]] = False
    if at_least is not None:
        allowed &= score >= at_least
    if at_most is not None:
        allowed &= score <= at_most
    return allowed


def mixed(sizes: np.ndarray, weights: np.ndarray, num: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """How many rows each source gives, by sampling without replacement.

    Args:
        sizes: int [sources], rows that each has.
        weights: [sources], positive, their shares of what is chosen.
        num: rows of all together; where a source runs out, the others give more. None: as many as there can be while
            every share is as it was asked for.

    Returns:
        (int64 [sources], the rows of each; bool [sources], which have run out: they give less than their share).
    """
    part = np.asarray(weights, np.float64) / np.sum(weights)
    if num is None:
        # of the scarcest source all; rounded down, or it would run out by the rounding
        return np.floor(part * (np.asarray(sizes) / part).min() + 1e-9).astype(np.int64), np.zeros(len(part), bool)
    num = min(num, int(np.sum(sizes)))
    given = shares(sizes, num, part)
    return given, (given == sizes) & (given < np.floor(part * num))


def merit(score: np.ndarray, order: Order, *, seed: int = 0) -> np.ndarray:
    """What rows are preferred by: the largest first.

    Args:
        score: [rows].
        order: `highest` and `lowest`: by the score; `draw`: at random, without replacement, with a probability in
            proportion to the score, which is not negative; `draw_log`: the score is the logarithm of that.
        seed: of the drawing, by Gumbel noise: the largest sums are a sample (arXiv 1903.06059).

    Returns:
        float64 [rows].
    """
    score = np.asarray(score, np.float64)
    if order in ("highest", "lowest"):
        return score if order == "highest" else -score
    with np.errstate(divide="ignore"):  # a score of 0 is never drawn before another
        log_weight = np.log(score) if order == "draw" else score
    return log_weight + np.random.default_rng(seed).gumbel(size=len(score))


def choose(
    num: int,
    rows: int,
    *,
    merits: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    vectors: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """The rows to train on.

    Args:
        num: rows to choose.
        rows: that there are.
        merits: [rows], the largest are preferred (`merit`); default: at random, or by `vectors` alone.
        groups: int [rows]: as many of each group as of the others (labels, clusters).
        vectors: float32 [rows, hidden]: each next row is the one for which distance to those before times rank of its
            merit is largest (k-center greedy).
        seed: of what is random.

    Returns:
        int64 [num], ascending.
    """
    assert groups is None or vectors is None, "one kind of diversity"
    if vectors is not None:
        rank = None
        if merits is not None:  # between 0 and 1: distances count alike whatever the scale of the score
            _, at, times = np.unique(merits, return_inverse=True, return_counts=True)
            rank = ((np.cumsum(times) - (times - 1) / 2) / rows)[at]  # equals share theirs
        return np.sort(k_center(vectors, num, score=rank, seed=seed))
    if groups is None:
        groups = np.zeros(rows, np.int64)
    return balanced(groups, num, score=merits, seed=seed)
