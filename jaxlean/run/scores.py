"""Quality of labels and vectors, as numbers: accuracy, F1 of labels, F1 of spans, retrieval. numpy alone.

What they are called and how they are counted is as in scikit-learn (`accuracy_score`, `f1_score`), seqeval (its default
mode) and sentence-transformers (`InformationRetrievalEvaluator`).
"""

from collections.abc import Sequence

import numpy as np

# Rows of similarities that are held at a time.
_BLOCK = 1024
Span = tuple[str, int, int]  # what it is, its first item, the one after its last


def label_scores(wanted: np.ndarray, got: np.ndarray) -> dict[str, float]:
    """Accuracy, and F1 of each label averaged over the labels that occur: alike, and by how often they are wanted.

    Args:
        wanted, got: int [n], label ids.

    >>> label_scores(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2]))["accuracy"]
    0.75
    """
    num = int(max(wanted.max(), got.max())) + 1
    right = np.bincount(wanted[wanted == got], minlength=num)
    times_wanted, times_got = np.bincount(wanted, minlength=num), np.bincount(got, minlength=num)
    both = times_wanted + times_got
    f1 = 2 * right / np.maximum(both, 1)
    return {
        "accuracy": float(right.sum() / len(wanted)),
        "macro_f1": float(f1[both > 0].mean()),
        "weighted_f1": float((f1 * times_wanted).sum() / len(wanted)),
    }


def span_scores(wanted: Sequence[Sequence[str]], got: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of spans, all kinds together: a span is right if kind, start and end are.

    Args:
        wanted, got: of each text, a tag a word: B-X, I-X, O (also E-, S- of IOBES, and tags of other names, each of
            which is a kind by itself).
    """
    right = num_wanted = num_got = 0
    for ours, theirs in zip(wanted, got, strict=True):
        one, other = spans(ours), spans(theirs)
        right += len(one & other)
        num_wanted += len(one)
        num_got += len(other)
    precision, recall = right / num_got if num_got else 0.0, right / num_wanted if num_wanted else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def spans(tags: Sequence[str]) -> set[Span]:
    """The spans of a text's tags, as conlleval finds them: I-X after anything but B-X or I-X starts one too.

    >>> sorted(spans(["B-PER", "I-PER", "O", "I-LOC"]))
    [('LOC', 3, 4), ('PER', 0, 2)]
    """
    found: set[Span] = set()
    kind, start, before = "", 0, "O"
    for at, tag in enumerate([*tags, "O"]):
        place, name = _parts(tag)
        ends = before in ("E", "S") or place in ("B", "S", "O") or name != kind
        if before != "O" and ends:
            found.add((kind, start, at))
        if place != "O" and (before == "O" or ends):
            kind, start = name, at
        before = place
    return found


def _parts(tag: str) -> tuple[str, str]:
    """(place in a span, kind) of a tag."""
    place, dash, name = tag.partition("-")
    if tag == "O":
        return "O", ""
    return (place, name) if dash and place in ("B", "I", "E", "S") else ("I", tag)


def retrieval_scores(anchors: np.ndarray, positives: np.ndarray) -> dict[str, float]:
    """Whether each anchor's own positive is the nearest of all, and the mean of 1 / its place among them.

    Positives that are as near come after it: texts that occur twice do no harm.

    Args:
        anchors, positives: float32 [n, hidden], unit vectors.
    """
    ranks = []
    for start in range(0, len(anchors), _BLOCK):
        similar = anchors[start : start + _BLOCK] @ positives.T
        own = similar[np.arange(len(similar)), start + np.arange(len(similar))]
        ranks.append(1 + (similar > own[:, None] + 1e-6).sum(axis=1))
    rank = np.concatenate(ranks)
    return {"accuracy": float((rank == 1).mean()), "mrr": float((1 / rank).mean())}
