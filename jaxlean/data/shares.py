"""How many rows each of several groups gives, when so many are wanted of all together."""

import numpy as np


def shares(sizes: np.ndarray, num: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Rows of each group, in proportion to its weight; what a group has not, the others give in theirs.

    Parts of a row go to the groups with the largest rest (Hamilton's method), the first of them where rests are equal.

    Args:
        sizes: int [groups], the rows that each has.
        num: rows of all together, at most their sum.
        weights: [groups], not negative; default: alike. A group of weight 0 gives only when all others are used up.

    Returns:
        int64 [groups], each at most its size; their sum is `num`.

    >>> shares(np.array([10, 10, 1]), 9).tolist()
    [4, 4, 1]
    >>> shares(np.array([10, 10]), 8, np.array([3.0, 1.0])).tolist()
    [6, 2]
    """
    sizes = np.asarray(sizes, np.int64)
    assert 0 <= num <= sizes.sum(), f"{num} of {sizes.sum()} rows"
    weight = np.ones(len(sizes)) if weights is None else np.asarray(weights, np.float64)
    given = np.zeros(len(sizes), np.int64)
    while (left := num - int(given.sum())) > 0:
        # those with a weight first; once they are used up, the rest alike
        open_ = given < sizes
        weighted = np.where(open_, weight, 0.0)
        if weighted.sum() == 0:
            weighted = open_.astype(np.float64)
        wanted = left * weighted / weighted.sum()
        full = open_ & (weighted > 0) & (given + wanted >= sizes)
        if full.any():
            given[full] = sizes[full]
            continue
        whole = np.floor(wanted).astype(np.int64)
        largest = np.argsort(-(wanted - whole), kind="stable")[: left - int(whole.sum())]
        whole[largest] += 1
        given += whole
    return given
