"""Gemma 3 text checkpoints: two ropes, windows in groups that do not divide the layers, soft caps."""

from pathlib import Path

import pytest

CASES = sorted(folder.name for folder in (Path(__file__).parents[2] / "golden").glob("gemma3_*"))


@pytest.mark.parametrize("case", CASES)
def test_golden(case, parity, round_trip, token_by_token):
    parity(case)
    round_trip(case)
    token_by_token(case)


def test_all_cases_are_there():
    assert len(CASES) == 3
