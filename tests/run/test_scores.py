import numpy as np
import pytest

from jaxlean.run.scores import label_scores, retrieval_scores, span_scores, spans


def test_labels_against_counting() -> None:
    rng = np.random.default_rng(0)
    wanted, got = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    wanted[wanted == 3] = 1  # got but never wanted: it counts, with an F1 of 0
    f1, weights = [], []
    for label in range(5):
        right = sum(1 for w, g in zip(wanted, got, strict=True) if w == g == label)
        precision, recall = right / max((got == label).sum(), 1), right / max((wanted == label).sum(), 1)
        f1.append(2 * precision * recall / (precision + recall) if right else 0.0)
        weights.append((wanted == label).mean())
    found = label_scores(wanted, got)
    assert found["accuracy"] == pytest.approx((wanted == got).mean())
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    assert found["weighted_f1"] == pytest.approx(np.dot(f1, weights))


def test_labels_as_scikit_learn_has_them() -> None:
    """The example of f1_score's documentation: [0, 1, 2, 0, 1, 2] against [0, 2, 1, 0, 0, 1]."""
    found = label_scores(np.array([0, 1, 2, 0, 1, 2]), np.array([0, 2, 1, 0, 0, 1]))
    assert found["macro_f1"] == pytest.approx(0.26, abs=0.01)
    assert found["weighted_f1"] == pytest.approx(0.26, abs=0.01)


def test_labels_that_do_not_occur_do_not_count() -> None:
    assert label_scores(np.array([0, 7]), np.array([0, 7]))["macro_f1"] == 1.0


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ("B-A I-A O B-B", {("A", 0, 2), ("B", 3, 4)}),
        ("I-A I-A B-A I-B", {("A", 0, 2), ("A", 2, 3), ("B", 3, 4)}),
        ("O I-A O", {("A", 1, 2)}),
        ("B-A E-A S-A S-B O", {("A", 0, 2), ("A", 2, 3), ("B", 3, 4)}),
        ("B-A I-B I-B", {("A", 0, 1), ("B", 1, 3)}),
        ("O O", set()),
        ("B-X-Y I-X-Y", {("X-Y", 0, 2)}),
    ],
)
def test_spans(tags: str, wanted: set[tuple[str, int, int]]) -> None:
    assert spans(tags.split()) == wanted


def test_spans_as_seqeval_has_them() -> None:
    """The example of its README, whose f1 is 0.50."""
    wanted = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    got = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert span_scores(wanted, got) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert span_scores([["O"]], [["O"]]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert span_scores([["B-A", "B-B"]], [["B-A", "O"]])["precision"] == 1.0


def test_retrieval_against_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxlean.run.scores._BLOCK", 7)
    rng = np.random.default_rng(0)
    positives = rng.normal(size=(30, 4)).astype(np.float32)
    anchors = (positives + 0.7 * rng.normal(size=positives.shape)).astype(np.float32)
    anchors, positives = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (anchors, positives))
    places = [1 + list(np.argsort(-(positives @ anchor))).index(i) for i, anchor in enumerate(anchors)]
    assert max(places) > 1
    found = retrieval_scores(anchors, positives)
    assert found["accuracy"] == pytest.approx(np.mean([place == 1 for place in places]))
    assert found["mrr"] == pytest.approx(np.mean([1 / place for place in places]))


def test_equal_positives_do_no_harm() -> None:
    assert retrieval_scores(np.ones((3, 1)), np.ones((3, 1))) == {"accuracy": 1.0, "mrr": 1.0}
