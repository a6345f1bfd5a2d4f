"""`exact_duplicates`: rows that say the same, but for case, spacing and marks; the first stays."""

import numpy as np

from jaxlean.config.curation import ExactDuplicatesSection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found, one_reason
from jaxlean.curate.work import Arrays, Work
from jaxlean.data.dedupe import key, normalise, repeated


def exact_duplicates(corpus: Corpus, alive: np.ndarray, settings: ExactDuplicatesSection, work: Work) -> Found:
    """Rows whose normalised text stood in the corpus before.

    Two texts are taken for one only where they are one after normalisation: compared are hashes of 128 bits.
    A text with two labels (tasks classify, tag) stays with both unless `across_labels`; the report counts such texts.
    """
    numbers, keys, said = [], [], []
    for rows, found in work.shards(_keys, corpus, alive, settings):
        numbers.append(rows)
        keys.append(found["keys"])
        said.append(found["said"])
    all_rows = np.concatenate(numbers)
    texts, labelled = np.concatenate(said), np.concatenate(keys)
    rows, of = repeated(texts if settings.across_labels else labelled)
    # of each text the first of every label, and of those again the texts that are left twice
    once = np.delete(texts, repeated(labelled)[0], axis=0)
    with_two_labels = len(np.unique(repeated(once)[1]))
    notes = {"texts that stand there with several labels": with_two_labels} if with_two_labels else {}
    return one_reason(all_rows[rows], "the same text", of=all_rows[of], notes=notes)


def _keys(corpus: Corpus, numbers: np.ndarray, settings: ExactDuplicatesSection) -> Arrays:
    """`said`: keys of what rows say; `keys`: of that with the label. [n, 2] uint64 each."""
    said, labelled = [], []
    for words in corpus.words(numbers):
        text = normalise(words.prompt if settings.over == "prompt" else words.text, settings.ignore)
        said.append(key(text))
        labelled.append(key(f"{words.label}\n{text}") if words.label else said[-1])
    return {
        name: np.frombuffer(b"".join(found), np.uint64).reshape(-1, 2)
        for name, found in (("said", said), ("keys", labelled))
    }
