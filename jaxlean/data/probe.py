"""How well labels follow from vectors: each row judged by a logistic regression on the others. scikit-learn."""

import numpy as np

from jaxlean.errors import ConfigError

# Of unit vectors with tens of labels: weak enough that a class of a hundred rows gets a shape of its own.
_STRENGTH = 20.0


def held_out_probabilities(vectors: np.ndarray, labels: np.ndarray, *, folds: int = 5, seed: int = 0) -> np.ndarray:
    """Probabilities of each row's labels, from the rows of the other folds.

    Args:
        vectors: float32 [rows, hidden], unit vectors.
        labels: int [rows], 0 and up.
        folds: parts of the rows, each with its share of every label.
        seed: of the parts.

    Returns:
        float32 [rows, labels]. A label that only one fold has is not known to the others: probability 0 there.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise ConfigError("a probe needs scikit-learn", fix="pip install 'jaxlean[curate]'") from None
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # label by label, so that each goes round the folds
    part = np.empty(len(labels), np.int64)
    part[order] = np.arange(len(labels)) % folds
    found = np.zeros((len(labels), int(labels.max()) + 1), np.float32)
    for fold in range(folds):
        own, others = part == fold, part != fold
        if not own.any():
            continue
        known = np.unique(labels[others])
        if len(known) < 2:  # there is nothing to tell apart
            found[np.ix_(own, known)] = 1.0
            continue
        probe = LogisticRegression(C=_STRENGTH, max_iter=150, tol=1e-3).fit(vectors[others], labels[others])
        found[np.ix_(own, known)] = probe.predict_proba(vectors[own])
    return found


def error_norms(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """EL2N (arXiv 2107.07075): the norm of probabilities minus the label's one-hot vector.

    Args:
        probabilities: [rows, labels].
        labels: int [rows].

    Returns:
        float32 [rows], between 0 and the square root of 2.

    >>> error_norms(np.array([[1.0, 0.0], [0.25, 0.75]]), np.array([0, 0])).round(3)
    array([0.   , 1.061], dtype=float32)
    """
    error = np.array(probabilities, np.float32)
    error[np.arange(len(labels)), labels] -= 1.0
    return np.asarray(np.linalg.norm(error, axis=1))
