"""`semantic_duplicates`: rows that say the same in other words; of each group one stays (`jaxlean.data.semantic`)."""

import numpy as np

from jaxlean.config.selection import SemanticDuplicatesSection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found, one_reason
from jaxlean.curate.vectors import vectors_of
from jaxlean.curate.work import Work
from jaxlean.data.semantic import duplicates


def semantic_duplicates(corpus: Corpus, alive: np.ndarray, settings: SemanticDuplicatesSection, work: Work) -> Found:
    """Rows whose vector is like that of a row that stays: cosine above 1 - epsilon, which is the value shown."""
    rows = np.flatnonzero(alive)
    vectors = vectors_of(corpus, alive, settings.vectors, work)
    groups = None
    if corpus.config.task in ("classify", "tag") and not settings.across_labels:
        groups = np.unique([words.label for words in corpus.words(rows)], return_inverse=True)[1]
    kept = duplicates(
        vectors, epsilon=settings.epsilon, num_clusters=settings.num_clusters, groups=groups, seed=corpus.config.seed
    )
    dropped = np.flatnonzero(kept != np.arange(len(rows)))
    value = np.einsum("ij,ij->i", vectors[dropped], vectors[kept[dropped]])
    return one_reason(rows[dropped], "the same in other words", of=rows[kept[dropped]], value=value)
