"""Which rows cover a set best: k-center greedy, and the same number from every cluster or label. numpy."""

import numpy as np

from jaxlean.data.clusters import BLOCK
from jaxlean.data.shares import shares

# Of k_center: rows chosen between two passes over all, and the rows that these are chosen among.
_PENDING, _CANDIDATES = 128, 2048


def k_center(
    vectors: np.ndarray,
    num: int,
    *,
    score: np.ndarray | None = None,
    chosen: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Rows, each the one that is farthest from all before it: every row then has a chosen one near it.

    The greedy rule of Sener & Savarese (arXiv 1708.00489, algorithm 1), whose largest distance is at most twice the
    least possible. It is followed exactly, though not every row is measured against each new one at once: distances
    only shrink, so a row whose last known one is below the best candidate's cannot be next.

    Args:
        vectors: float32 [rows, hidden]; distances are Euclidean (of unit vectors they order as cosines do).
        num: rows to choose, beside `chosen`.
        score: [rows], not negative: the next row is the one with the largest score * distance.
        chosen: int [n], rows that are there already: labelled ones, say.
        seed: of the first row, where there is neither `score` (then it is the row with the largest) nor `chosen`.

    Returns:
        int64 [num], in the order of choice; none is of `chosen`, and none comes twice.
    """
    rows = len(vectors)
    before = np.asarray([] if chosen is None else chosen, np.int64)
    assert num <= rows - len(np.unique(before)), f"{num} of {rows} rows, {len(before)} chosen before"
    if num == 0:
        return np.zeros(0, np.int64)
    squares = np.empty(rows, np.float32)
    for start in range(0, rows, BLOCK):
        squares[start : start + BLOCK] = np.square(vectors[start : start + BLOCK]).sum(axis=1)
    weight = np.ones(rows, np.float32) if score is None else np.asarray(score, np.float32)
    assert (weight >= 0).all(), "a score is not negative"
    gain = np.full(rows, np.inf, np.float32)  # score * distance to the nearest chosen row; -1 of a chosen one

    def near(block: np.ndarray, own: np.ndarray, centres: np.ndarray) -> np.ndarray:
        """[rows of the block]: squared distances to the nearest of the centres."""
        products = block @ vectors[centres].T
        apart = own[:, None] + squares[centres][None] - 2 * products
        return np.maximum(apart.min(axis=1), 0)

    def measure(centres: np.ndarray) -> None:
        """Take these rows into account in all gains."""
        for first in range(0, len(centres), _PENDING):
            some = centres[first : first + _PENDING]
            for start in range(0, rows, BLOCK):
                part = slice(start, min(start + BLOCK, rows))
                found = weight[part] * np.sqrt(near(vectors[part], squares[part], some))
                gain[part] = np.minimum(gain[part], found)
        gain[centres] = -1

    out: list[int] = []
    if len(before):
        measure(before)
    else:
        out.append(int(np.random.default_rng(seed).integers(rows)) if score is None else int(weight.argmax()))
        measure(np.array(out))
    while len(out) < num:
        size = min(_CANDIDATES, rows)
        order = np.argpartition(-gain, size - 1)
        among, others = np.sort(order[:size]), order[size:]
        bound = gain[others].max() if len(others) else -1.0
        own, block, lengths = gain[among], vectors[among], squares[among]
        pending: list[int] = []
        while len(out) + len(pending) < num and len(pending) < _PENDING:
            at = int(own.argmax())
            if pending and own[at] < max(bound, 0):
                break  # a row outside may be farther
            pending.append(int(among[at]))
            found = weight[among] * np.sqrt(near(block, lengths, among[at : at + 1]))
            own = np.minimum(own, found)
            own[at] = -1
        out += pending
        measure(np.array(pending))
    return np.array(out, np.int64)


def apart(vectors: np.ndarray, rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """How far each row is from the nearest of those that were there when it was chosen.

    Args:
        vectors: float32 [rows, hidden], unit vectors.
        rows: int [n], in the order of choice.
        chosen: int [m], those that were there from the start.

    Returns:
        float64 [n]; NaN of the first, where there was none.
    """
    before, found = np.concatenate([chosen, rows]), np.empty(len(rows))
    for start in range(0, len(rows), _CANDIDATES):
        own = rows[start : start + _CANDIDATES]
        cosines = vectors[own] @ vectors[before[: len(chosen) + start + len(own)]].T
        row, later = np.triu_indices(len(own))
        cosines[row, len(chosen) + start + later] = -np.inf
        found[start : start + _CANDIDATES] = np.sqrt(np.maximum(2 - 2 * cosines.max(axis=1), 0))
    return np.where(np.isfinite(found), found, np.nan)


def balanced(groups: np.ndarray, num: int, *, score: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """As many rows of each group (cluster, label) as of every other, as far as it has them: in it, the best first.

    Args:
        groups: int [rows], the group of each.
        num: rows to choose.
        score: [rows], the highest are taken first, of equal ones by the seed; default: a random order.
        seed: of the order.

    Returns:
        int64 [num], the rows, sorted.
    """
    order = np.random.default_rng(seed).permutation(len(groups))
    if score is not None:
        order = order[np.argsort(-np.asarray(score)[order], kind="stable")]
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    takes = shares(np.bincount(index, minlength=len(names)), num)
    by_group = order[np.argsort(index[order], kind="stable")]  # group by group, in each the best first
    ends = np.cumsum(np.bincount(index, minlength=len(names)))
    place = np.arange(len(groups)) - (ends - np.bincount(index, minlength=len(names)))[index[by_group]]
    return np.sort(by_group[place < takes[index[by_group]]])
