from pathlib import Path
from typing import Any

import numpy as np

from jaxlean.data.importance import importance

ROWS = [{"text": text} for text in ("my card is lost", "what a sunny day", "the card was stolen", "rain again")]
TARGET = [{"text": "my card was stolen"}, {"text": "a lost card"}]


def test_it_is_that_of_the_rows_that_are_left(corpus_of: Any, run_step: Any, tmp_path: Path) -> None:
    target = corpus_of(TARGET).sources[0].path
    file = Path(target).rename(tmp_path / "target.jsonl")
    found = run_step(corpus_of(ROWS), {"importance": {"target": str(file)}}, alive=[0, 1, 2])
    assert len(found.rows) == 0
    score = found.scores["importance"]
    wanted = importance([row["text"] for row in ROWS[:3]], [row["text"] for row in TARGET])
    np.testing.assert_allclose(score[:3], wanted, rtol=1e-6)
    assert np.isnan(score[3])
    assert min(score[0], score[2]) > score[1]
