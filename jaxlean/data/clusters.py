"""Vectors -> clusters: k-means over unit vectors, for which near means a small angle. numpy and scikit-learn."""

import warnings

import numpy as np

from jaxlean.errors import ConfigError, DataError

# Rows that are looked at at a time.
BLOCK = 8192
# As in faiss (`max_points_per_centroid`): more rows than these move the centres of a large set no further.
_ROWS_PER_CENTRE = 256


def unit(vectors: np.ndarray) -> np.ndarray:
    """Each vector divided by its length; one of length 0 stays 0.

    Args:
        vectors: [rows, hidden], of any float; may lie in a file (`np.load(mmap_mode="r")`).

    Returns:
        float32 [rows, hidden].

    Raises:
        DataError: a number that is none, with the first row that has one.
    """
    out = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[start : start + BLOCK], np.float32)
        # the squares of numbers beyond 10^19 are beyond float32
        length = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float64))[:, None]
        if not np.isfinite(length).all():
            bad = np.flatnonzero(~np.isfinite(length[:, 0]))
            raise DataError(
                "a vector that is not all numbers", where=f"row {start + int(bad[0]) + 1} of {len(vectors)}",
                got=f"NaN or infinity in {len(bad)} of rows {start + 1} to {start + len(block)}",
                fix="look at that row's text, and at the model that the vectors are from",
            )  # fmt: skip
        out[start : start + BLOCK] = block / np.where(length == 0, 1.0, length)
    return out


def k_means(vectors: np.ndarray, num: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Spherical k-means: scikit-learn's on unit vectors, its centres made unit vectors, each row to the nearest.

    The centres are found on at most 256 rows for each of them, drawn by the seed.

    Args:
        vectors: float32 [rows, hidden], unit vectors (`unit`).
        num: clusters; of fewer rows, each row is one. Where fewer rows are different, some are empty.
        seed: of the start, and of the rows drawn.

    Returns:
        (int32 [rows], the cluster of each; float32 [num, hidden], the centres).

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    num = min(num, len(vectors))
    try:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise ConfigError("clusters need scikit-learn", fix="pip install 'jaxlean[curate]'") from None
    most = num * _ROWS_PER_CENTRE
    drawn = vectors
    if len(vectors) > most:
        drawn = vectors[np.sort(np.random.default_rng(seed).choice(len(vectors), most, replace=False))]
    # one thread adds up in one order: the same centres on every machine of a kind, and after a restart
    with threadpool_limits(limits=1, user_api="openmp"), warnings.catch_warnings():
        # fewer different rows than clusters: some stay empty, as is said above
        warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)
        # a copy: KMeans takes the mean from its rows and adds it again, which would move the caller's by a rounding
        found = KMeans(num, n_init=1, max_iter=50, random_state=seed, copy_x=drawn is vectors).fit(drawn)
    centres = unit(found.cluster_centers_)
    labels = np.empty(len(vectors), np.int32)
    for start in range(0, len(vectors), BLOCK):
        labels[start : start + BLOCK] = (vectors[start : start + BLOCK] @ centres.T).argmax(axis=1)
    return labels, centres
