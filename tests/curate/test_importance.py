from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxlean.curate import importance as step
from jaxlean.curate import work as work_module
from jaxlean.data.importance import hashed

ROWS = [{"text": text} for text in ("my card is lost", "what a sunny day", "the card was stolen", "rain again", "card")]
TARGET = [{"text": "my card was stolen"}, {"text": "a lost card"}]


def of_all_at_once(rows: list[str], target: list[str], buckets: int) -> np.ndarray:
    """The weights with all n-grams held: counts of one long array."""
    found, wanted = ([hashed(text, buckets) for text in texts] for texts in (rows, target))
    of_rows, of_target = (
        np.bincount(np.concatenate(grams), minlength=buckets) / sum(map(len, grams)) + 1e-8 for grams in (found, wanted)
    )
    return np.array([np.log(of_target[one] / of_rows[one]).sum() for one in found])


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module.Work.shards, "__kwdefaults__", work_module.Work.shards.__kwdefaults__ | {"rows": 2})


@pytest.mark.usefixtures("small_shards")
def test_it_is_that_of_the_rows_that_are_left(
    corpus_of: Any, run_step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = corpus_of(TARGET).sources[0].path
    file = Path(target).rename(tmp_path / "target.jsonl")
    given = {"importance": {"target": str(file), "buckets": 500}}
    corpus, asked = corpus_of(ROWS, curate={"processes": 1}), []
    count = step._count

    def counted(corpus: Any, numbers: np.ndarray, buckets: int) -> Any:
        asked.append(numbers.tolist())
        return count(corpus, numbers, buckets)

    monkeypatch.setattr(step, "_count", counted)
    found = run_step(corpus, given, alive=[0, 1, 2, 4])
    assert asked == [[0, 1], [2], [4]], "in shards, so that nothing of a whole corpus is held"
    assert len(found.rows) == 0
    assert set(found.scores) == set(step.SCORES)
    score = found.scores["importance"]
    left = [0, 1, 2, 4]
    wanted = of_all_at_once([ROWS[i]["text"] for i in left], [row["text"] for row in TARGET], 500)
    np.testing.assert_allclose(score[left], wanted, rtol=1e-6)
    assert np.isnan(score[3])
    assert min(score[0], score[2]) > score[1]

    run_step(corpus, given, alive=left)  # what was killed goes on, here: has nothing left to count
    assert len(asked) == 3
