"""Where the vectors of new tokens start: warm, from what the model knows, and not from noise.

A tokenizer that has seen no law cuts `estoppel` into four pieces. As a token of its own it needs a row in the
embedding, and the fewer steps that row has to travel, the cheaper is the run. Four starts, from the rows of old tokens:

    mean         of the pieces that the term was cut into
    focus        of old tokens that are used alike: weights from similarities in another space, which has all of them
                 (FOCUS, arXiv 2305.14481, section 2)
    procrustes   vectors from elsewhere, turned into the model's space by the rotation that brings those of the tokens
                 that both know closest to the model's rows
    random       normal, with the old rows' mean and standard deviation: the control

All are functions of arrays, computed in float64. An output head that is not tied has rows of its own and gets its start
from those, in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlean.errors import ConfigError

Array = np.ndarray
# Looked at by `focus` at a time; each costs 8 bytes, and sparsemax a few times that.
_SIMILARITIES = 4_000_000


def mean_of_pieces(rows: Array, pieces: Sequence[Sequence[int]]) -> Array:
    """The mean of the old pieces' rows.

    Args:
        rows: [old, hidden].
        pieces: of each new token, the rows of the tokens that it was cut into before.

    Returns:
        float64 [new, hidden].
    """
    return np.stack([np.asarray(rows[list(own)], np.float64).mean(axis=0) for own in pieces])


def random(mean: Array, std: Array, num: int, seed: int) -> Array:
    """Rows drawn from a normal distribution.

    Args:
        mean, std: [hidden], of the old rows.
        num: how many.
        seed: of the drawing.

    Returns:
        float64 [num, hidden].
    """
    drawn = np.random.default_rng(seed).standard_normal((num, len(mean)))
    return np.asarray(mean, np.float64) + np.asarray(std, np.float64) * drawn


def focus(rows: Array, old: Array, new: Array) -> Array:
    """A weighted mean of old rows for each new token: FOCUS (arXiv 2305.14481, section 2, eq. 1 to 3).

    The weights are the sparsemax of the cosine similarities, so that tokens that are unlike count for nothing at all.

    Args:
        rows: [old, hidden] of the model.
        old: [old, dims], the same tokens in the space that similarities are taken in.
        new: [new, dims], the new tokens there.

    Returns:
        float64 [new, hidden].
    """
    old, new = _unit(old), _unit(new)
    found = np.empty((len(new), rows.shape[1]))
    at_once = max(1, _SIMILARITIES // max(len(old), 1))
    for start in range(0, len(new), at_once):
        weights = sparsemax(new[start : start + at_once] @ old.T)
        used = np.flatnonzero(weights.any(axis=0))  # few: what is unlike has no weight
        found[start : start + at_once] = weights[:, used] @ np.asarray(rows[used], np.float64)
    return found


def sparsemax(scores: Array) -> Array:
    """The point of the simplex that is nearest to each row (arXiv 1602.02068, algorithm 1).

    >>> sparsemax(np.array([[0.5, 0.4, -1.0]]))
    array([[0.55, 0.45, 0.  ]])
    """
    ranked = -np.sort(-np.asarray(scores, np.float64), axis=-1)
    above = np.cumsum(ranked, axis=-1) - 1.0
    count = np.arange(1, ranked.shape[-1] + 1)
    support = (ranked * count > above).sum(axis=-1, keepdims=True)
    threshold = np.take_along_axis(above, support - 1, axis=-1) / support
    return np.maximum(scores - threshold, 0.0)


@dataclass(frozen=True)
class Similarity:
    """`y = (x - centre) @ rotation * scale + shift`, from one space into another.

    Args:
        centre: [from].
        rotation: [from, to], whose rows or columns, whichever are fewer, are orthonormal.
        scale: of lengths.
        shift: [to].
    """

    centre: Array
    rotation: Array
    scale: float
    shift: Array

    def __call__(self, x: Array) -> Array:
        """[..., from] -> float64 [..., to]."""
        return (np.asarray(x, np.float64) - self.centre) @ self.rotation * self.scale + self.shift


def procrustes(x: Array, y: Array) -> Similarity:
    """The rotation (or reflection), scale and shift that bring points closest to others, in squared distance.

    With X and Y centred and X'Y = U S V', the rotation is U V' (Schoenemann 1966) and the scale tr(S) / |X V|^2
    (Schoenemann and Carroll 1970). Where X has more dims than Y, the rotation drops some: it is then the one of
    orthonormal columns under which the points agree best (the largest tr(R'X'Y)), with the scale that is best for it.

    Args:
        x: [points, from].
        y: [points, to], the same points.

    Raises:
        ConfigError: fewer points than dims, so that many rotations would do as well.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    least = min(x.shape[1], y.shape[1]) + 1  # one is lost to the shift
    if len(x) < least:
        raise ConfigError(
            "too few tokens have a vector in both spaces to turn one into the other",
            got=f"{len(x)}, of vectors of {x.shape[1]} numbers and rows of {y.shape[1]}",
            wanted=f"{least} or more",
            fix="vectors of more words, or of fewer numbers each; or model.new_tokens_init=mean",
        )
    centre, shift = x.mean(axis=0), y.mean(axis=0)
    x, y = x - centre, y - shift
    u, _, vt = np.linalg.svd(x.T @ y, full_matrices=False)
    rotation = u @ vt
    turned = x @ rotation
    size = float(np.square(turned).sum())
    return Similarity(centre, rotation, float((turned * y).sum()) / size if size else 0.0, shift)


def _unit(x: Array) -> Array:
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30)
