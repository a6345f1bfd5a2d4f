"""BERT checkpoints: positions and types learned, norms of sums, labels through the pooler; old names, no prefix."""

from pathlib import Path

import pytest

CASES = sorted(folder.name for folder in (Path(__file__).parents[2] / "golden").glob("bert_*"))


@pytest.mark.parametrize("case", CASES)
def test_golden(case, parity, round_trip):
    parity(case)
    round_trip(case)


def test_all_cases_are_there():
    assert len(CASES) == 4
