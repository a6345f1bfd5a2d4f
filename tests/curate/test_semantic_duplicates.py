from typing import Any

import numpy as np


def rows_of(labels: list[str]) -> list[dict[str, Any]]:
    """Three directions, two rows along each, nearly the same."""
    vectors = np.repeat(np.eye(3), 2, axis=0) + np.array([[0, 0.05, 0]] * 6) * (np.arange(6) % 2)[:, None]
    return [
        {"text": f"text {i}", "label": label, "v": vector.tolist()}
        for i, (label, vector) in enumerate(zip(labels, vectors, strict=True))
    ]


STEP = {"semantic_duplicates": {"epsilon": 0.02, "num_clusters": 1, "vectors": {"column": "v"}}}


def test_of_each_group_one_row_stays_and_says_whose_duplicate(corpus_of: Any, run_step: Any) -> None:
    found = run_step(corpus_of(rows_of(["a"] * 6)), STEP)
    assert {frozenset((int(row), int(of))) for row, of in zip(found.rows, found.of, strict=True)} == {
        frozenset((0, 1)), frozenset((2, 3)), frozenset((4, 5)),
    }  # fmt: skip
    assert found.counts() == {"the same in other words": 3}
    assert (found.value > 0.98).all()
    assert (found.value <= 1.0 + 1e-6).all()


def test_rows_with_different_labels_stay_unless_asked(corpus_of: Any, run_step: Any) -> None:
    corpus = corpus_of(rows_of(["a", "a", "a", "b", "b", "b"]), task="classify")
    assert len(run_step(corpus, STEP).rows) == 2
    assert (
        len(run_step(corpus, {"semantic_duplicates": STEP["semantic_duplicates"] | {"across_labels": True}}).rows) == 3
    )
