"""Rows that say the same in other words: SemDeDup (arXiv 2303.09540), from vectors and their clusters. numpy."""

import numpy as np

from jaxlean.data.clusters import k_means

# Rows of a cluster that are compared with others at a time.
_BLOCK = 1024


def duplicates(
    vectors: np.ndarray,
    *,
    epsilon: float,
    num_clusters: int | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """For each row the one that is kept in its place: rows of one cluster whose cosine is above 1 - epsilon.

    Within a cluster the rows are gone through from the one farthest from the centre to the nearest (the paper keeps
    those with the least similarity to it); each that is like one kept already is dropped. (The published code compares
    with dropped ones as well, so that of a chain of rows, each like the next, only one is left, though its ends may
    have little in common. Here each dropped row is like the row that stands for it.) Rows in different clusters are
    never compared: that is what makes it fast.

    Args:
        vectors: float32 [rows, hidden], unit vectors (`clusters.unit`).
        epsilon: 0 drops only the same vectors; 0.05 is a cosine of 0.95.
        num_clusters: default: the square root of the rows, so that comparing costs as much as clustering.
        groups: int [rows]: rows of different groups (labels) are never duplicates. Default: one group.
        seed: of the clusters.

    Returns:
        int64 [rows]: the row itself where it is kept.
    """
    rows = len(vectors)
    labels, centres = k_means(vectors, num_clusters or max(round(rows**0.5), 1), seed=seed)
    kept_for = np.arange(rows)
    apart = np.zeros(rows, np.int64) if groups is None else groups
    order = np.lexsort((apart, labels))
    ends = np.flatnonzero((np.diff(labels[order]) != 0) | (np.diff(apart[order]) != 0)) + 1
    for members in np.split(order, ends):
        if len(members) > 1:
            near = vectors[members] @ centres[labels[members[0]]]
            members = members[np.argsort(near, kind="stable")]
            kept_for[members] = members[like_earlier(vectors[members], 1.0 - epsilon)]
    return kept_for


def like_earlier(vectors: np.ndarray, limit: float) -> np.ndarray:
    """For each vector the place of the most similar one before it that is kept, if their cosine is above the limit.

    Args:
        vectors: float32 [n, hidden], unit vectors.
        limit: cosines above it make two vectors alike. Float32 rounds; a limit of 1 means the same but for that.

    Returns:
        int64 [n]: its own place where a vector is kept.
    """
    limit = min(limit, 1.0 - 1e-6)
    found = np.arange(len(vectors))
    kept = np.zeros(0, np.int64)
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        best, nearest = np.full(len(block), -np.inf, np.float32), np.zeros(len(block), np.int64)
        for first in range(0, len(kept), _BLOCK):
            some = kept[first : first + _BLOCK]
            cosines = block @ vectors[some].T
            at = cosines.argmax(axis=1)
            value = cosines[np.arange(len(block)), at]
            better = value > best
            best[better], nearest[better] = value[better], some[at[better]]
        inside = block @ block.T
        for i in range(len(block)):
            if best[i] > limit:
                found[start + i] = nearest[i]
                continue
            later = inside[i] > best
            later[: i + 1] = False
            best[later], nearest[later] = inside[i][later], start + i
        own = np.arange(start, start + len(block))
        kept = np.concatenate([kept, own[found[own] == own]])
    return found
