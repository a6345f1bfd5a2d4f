from typing import Any

import numpy as np
import pytest

from jaxlean.curate import learnability as module


def test_it_is_what_the_run_takes_off_the_loss(corpus_of: Any, run_step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`test_el2n.py` has a real run; here its losses are planted."""
    losses = {"before": np.array([2.0, 5.0, 0.1], np.float32), "after": np.array([0.5, 4.9, 0.1], np.float32)}
    asked = []

    def scores_of(*_: Any, name: str, adapter: Any = None) -> dict[str, np.ndarray]:
        asked.append((name, adapter))
        return {"loss": losses[name]}

    monkeypatch.setattr(module, "scores_of", scores_of)
    monkeypatch.setattr(module, "short_run", lambda *_: "adapter")
    corpus = corpus_of([{"text": str(i)} for i in range(3)], model={"path": "base"})
    found = run_step(corpus, {"learnability": None})
    np.testing.assert_allclose(found.scores["learnability"], [1.5, 0.1, 0.0], atol=1e-6)
    np.testing.assert_allclose(found.scores["loss"], losses["after"])
    assert sorted(asked, key=lambda pair: pair[0]) == [("after", "adapter"), ("before", None)]
    assert len(found.rows) == 0
