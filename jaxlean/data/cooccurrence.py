"""Vectors of tokens from which others they stand beside: similar for tokens that are used alike.

Positive pointwise mutual information of tokens within a window, with contexts smoothed by the power 0.75, and a
truncated SVD of it weighted by the root of the singular values: what skip-gram factorises, without training (Levy,
Goldberg and Dagan 2015, Improving Distributional Similarity with Lessons Learned from Word Embeddings, 2 and 3).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

WINDOW = 5
DIMS = 100
_SMOOTHING = 0.75
_BLOCK = 2_000_000  # pairs counted at a time


def token_vectors(
    rows: Iterable[Sequence[int]], num_tokens: int, *, dims: int = DIMS, window: int = WINDOW
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of tokens by their company.

    Args:
        rows: token ids of each text.
        num_tokens: of the vocabulary.
        dims: of the vectors, fewer where the texts have fewer tokens.
        window: how far a token's company reaches, to both sides; nearer tokens count for more (1 / distance).

    Returns:
        float32 [num_tokens, dims], zero for a token that has no company; int64 [num_tokens], how often each occurs.
    """
    from scipy import sparse  # type: ignore[import-untyped]

    counts = np.zeros(num_tokens, np.int64)
    total = sparse.csr_array((num_tokens, num_tokens), dtype=np.float64)
    parts: list[tuple[np.ndarray, np.ndarray, float]] = []
    waiting = 0

    def added() -> sparse.csr_array:
        left = np.concatenate([part[0] for part in parts])
        right = np.concatenate([part[1] for part in parts])
        weights = np.concatenate([np.full(len(part[0]), part[2]) for part in parts])
        return total + sparse.coo_array((weights, (left, right)), shape=total.shape).tocsr()

    for row in rows:
        ids = np.asarray(row, np.int64)
        np.add.at(counts, ids, 1)
        for distance in range(1, min(window, len(ids) - 1) + 1):
            parts.append((ids[:-distance], ids[distance:], 1.0 / distance))
            waiting += len(ids) - distance
        if waiting > _BLOCK:
            total, waiting = added(), 0
            parts.clear()
    if parts:
        total = added()
    return _factored(_information(total + total.T), dims), counts


def _information(pairs: Any) -> Any:
    """Positive pointwise mutual information of a symmetric matrix of counts, sparse."""
    from scipy import sparse

    found = sparse.coo_array(pairs)
    own = np.asarray(found.sum(axis=1)).ravel()
    context = own**_SMOOTHING
    context /= max(context.sum(), 1e-300)
    rows, columns = found.coords
    value = np.log(found.data / (own[rows] * context[columns]))
    keep = value > 0
    return sparse.csr_array((value[keep], (rows[keep], columns[keep])), shape=found.shape)


def _factored(matrix: Any, dims: int) -> np.ndarray:
    from scipy import sparse
    from scipy.sparse.linalg import svds  # type: ignore[import-untyped]

    matrix = sparse.csr_array(matrix)
    used = np.flatnonzero(np.diff(matrix.indptr))
    vectors = np.zeros((matrix.shape[0], dims), np.float32)
    dims = min(dims, len(used) - 1)
    if dims < 1:
        return vectors
    own = matrix[used][:, used]
    # the same start on every run: the solver would draw one
    u, s, _ = svds(own, k=dims, v0=np.ones(len(used)) / len(used) ** 0.5)
    vectors[used, :dims] = u * np.sqrt(s)
    return vectors
