"""DistilBERT checkpoints: BERT without types of tokens."""

from pathlib import Path

import pytest

CASES = sorted(folder.name for folder in (Path(__file__).parents[2] / "golden").glob("distilbert_*"))


@pytest.mark.parametrize("case", CASES)
def test_golden(case, parity, round_trip):
    parity(case)
    round_trip(case)


def test_all_cases_are_there():
    assert len(CASES) == 3
