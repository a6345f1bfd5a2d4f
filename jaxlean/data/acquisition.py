"""Which rows of an unlabelled pool are most worth a label (active learning). numpy; `data/diversity.py` covers sets.

From what a model says of each row, the higher the more its label would tell:

| | | source |
|---|---|---|
| least_confidence | 1 - p1 | Culotta and McCallum, AAAI 2005 |
| margin | 1 - (p1 - p2) | Scheffer et al., IDA 2001 |
| entropy | - sum p log p | Shannon; Settles, "Active Learning Literature Survey" (2009), section 3.1 |
| bald | H(mean p) - mean H(p), over passes with dropout | arXiv 1112.5745, eq. 2; dropout: arXiv 1703.02910 |

where p1 and p2 are the largest and the second largest probability. From vectors alone, when nothing is labelled or
little: `typical` (arXiv 2202.02794). From both: `uncertain_clusters` (arXiv 1901.05954).
"""

from collections.abc import Iterable

import numpy as np

from jaxlean.data.clusters import k_means

# Neighbours that a row's typicality is a mean over, and the most clusters (arXiv 2202.02794, section 3 and appendix).
_NEIGHBOURS, _CLUSTERS = 20, 500
# A cluster of so few rows is what lies apart, and stands for nothing (the authors' code, `MIN_CLUSTER_SIZE`).
_APART = 5
_AT_ONCE = 16_000_000  # distances
# The uncertain are so many times those to be chosen: the beta of arXiv 1901.05954.
UNCERTAIN = 5


def least_confidence(probabilities: np.ndarray) -> np.ndarray:
    """float [rows]: what the likeliest label lacks to 1.

    Args:
        probabilities: [rows, labels], each row summing to 1.

    >>> least_confidence(np.array([[0.75, 0.25, 0.0]]))
    array([0.25])
    """
    return 1 - probabilities.max(axis=1)


def margin(probabilities: np.ndarray) -> np.ndarray:
    """float [rows]: 1 less what the likeliest label is ahead of the next. Args as of `least_confidence`.

    >>> margin(np.array([[0.75, 0.25, 0.0]]))
    array([0.5])
    """
    first, second = np.partition(probabilities, -2, axis=1)[:, -2:].T[::-1]
    return 1 - (first - second)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """float [rows], in nats. Args as of `least_confidence`.

    >>> entropy(np.array([[0.5, 0.5], [1.0, 0.0]])).round(4).tolist()
    [0.6931, 0.0]
    """
    logs = np.log(np.where(probabilities > 0, probabilities, 1.0))
    return -(probabilities * logs).sum(axis=1) + 0.0


def bald(passes: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What a row's label would tell of the model's weights: how far passes that each are sure disagree.

    Args:
        passes: probabilities [rows, labels] of each pass, every one with dropout of its own.

    Returns:
        (float [rows], in nats; the mean of the passes' probabilities [rows, labels]).
    """
    num, total, unsure = 0, np.zeros(0), np.zeros(0)
    for one in passes:
        num += 1
        exact = np.asarray(one, np.float64)
        total, unsure = (exact, entropy(exact)) if num == 1 else (total + exact, unsure + entropy(exact))
    assert num > 1, "one pass agrees with itself"
    mean = total / num
    return np.maximum(entropy(mean) - unsure / num, 0.0), mean


def typical(
    vectors: np.ndarray, num: int, *, chosen: np.ndarray | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that stand for many others, each for others than those before: TypiClust (arXiv 2202.02794, algorithm 1).

    All rows are parted into as many clusters as there will be labels (at most 500). The largest of the clusters with
    the fewest labels gives its most typical row: the one with the smallest mean distance to its 20 nearest neighbours
    in the cluster. It needs no label, so a first set is chosen like this; with many labels a model knows better.

    Rows that lie apart make clusters of their own, which would be chosen for having no label. The authors' code
    (github.com/avihu111/TypiClust, `deep-al/pycls/al/typiclust.py`) drops those of at most 5 rows. Here they come when
    the others have nothing left; and where clusters are small anyway, since few rows make many, only those count as
    apart that have at most half the rows of the mean one.

    Args:
        vectors: float32 [rows, hidden], unit vectors (`clusters.unit`), those that have labels among them.
        num: rows to choose.
        chosen: int [n], rows that have labels.
        seed: of the clusters.

    Returns:
        (int64 [num], in the order of choice, none of `chosen`; float [num], typicality: 1 / that mean distance).
    """
    taken = np.zeros(len(vectors), bool)
    taken[[] if chosen is None else chosen] = True
    free = len(vectors) - int(taken.sum())
    assert num <= free, f"{num} of {free} rows"
    groups, _ = k_means(vectors, min(int(taken.sum()) + num, _CLUSTERS), seed=seed)
    members = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    labels = np.array([int(taken[rows].sum()) for rows in members])
    sizes = np.array([len(rows) for rows in members])
    apart = sizes <= min(_APART, sizes[sizes > 0].mean() / 2)
    typicality = np.zeros(len(vectors))
    for rows in members:
        typicality[rows] = _typicality(vectors[rows])
    ranked = [rows[np.argsort(-typicality[rows], kind="stable")] for rows in members]
    left = [rows[~taken[rows]].tolist() for rows in ranked]
    out: list[int] = []
    while len(out) < num:
        group = min((g for g, rows in enumerate(left) if rows), key=lambda g: (apart[g], labels[g], -sizes[g], g))
        out.append(left[group].pop(0))
        labels[group] += 1
    return np.array(out, np.int64), typicality[out]


def _typicality(vectors: np.ndarray) -> np.ndarray:
    """float [rows]: 1 / the mean distance to the nearest others, at most 20; 0 of a row alone."""
    near = min(_NEIGHBOURS, len(vectors) - 1)
    if near == 0:
        return np.zeros(len(vectors))
    found = np.empty(len(vectors))
    at_once = max(1, _AT_ONCE // len(vectors))
    for start in range(0, len(vectors), at_once):
        block = vectors[start : start + at_once]
        squares = np.maximum(2 - 2 * block @ vectors.T, 0.0)  # of unit vectors
        squares[np.arange(len(block)), start + np.arange(len(block))] = -1.0  # itself is the first, and left out
        nearest = np.partition(squares, near, axis=1)[:, : near + 1]
        found[start : start + at_once] = np.sqrt(np.maximum(nearest, 0.0)).sum(axis=1) / near
    return 1 / np.maximum(found, 1e-6)


def uncertain_clusters(
    vectors: np.ndarray, score: np.ndarray, num: int, *, free: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Rows that a model is unsure of, and no two alike: of the most uncertain, each cluster's middle one.

    The `UNCERTAIN * num` rows with the highest score are parted into `num` clusters, and the row nearest to each
    centre is taken (Zhdanov, arXiv 1901.05954, section 3.2, without its weights). The top of a ranking alone holds many
    rows that ask the same; and a middle row is seldom the odd one out that no label helps with.

    Args:
        vectors: float32 [rows, hidden], unit vectors.
        score: float [rows], the higher the more uncertain.
        num: rows to choose.
        free: int [n], the rows to choose from; default: all.
        seed: of the clusters.

    Returns:
        int64 [num], the most uncertain first.
    """
    free = np.arange(len(vectors)) if free is None else np.asarray(free)
    assert num <= len(free), f"{num} of {len(free)} rows"
    top = free[np.argsort(-score[free], kind="stable")][: UNCERTAIN * num]
    groups, centres = k_means(vectors[top], num, seed=seed)
    near = (vectors[top] * centres[groups]).sum(axis=1)
    best = np.lexsort((-near, groups))  # cluster by cluster, in each the nearest to its centre first
    first = best[np.unique(groups[best], return_index=True)[1]]
    rest = np.setdiff1d(np.arange(len(top)), first)  # a cluster of equal rows may be empty: then the most uncertain
    picked = top[np.sort(np.concatenate([first, rest[: num - len(first)]]))]
    return picked.astype(np.int64)
