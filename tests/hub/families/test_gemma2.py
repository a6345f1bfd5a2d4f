"""Gemma 2 checkpoints: soft caps, norms after each branch, windows in turn."""

from pathlib import Path

import pytest

CASES = sorted(folder.name for folder in (Path(__file__).parents[2] / "golden").glob("gemma2_*"))


@pytest.mark.parametrize("case", CASES)
def test_golden(case, parity, round_trip, token_by_token):
    parity(case)
    round_trip(case)
    token_by_token(case)


def test_all_cases_are_there():
    assert len(CASES) == 3
