"""Qwen3-MoE checkpoints: normalised weights, dense layers between, a window."""

from pathlib import Path

import pytest

CASES = sorted(folder.name for folder in (Path(__file__).parents[2] / "golden").glob("qwen3moe_*"))


@pytest.mark.parametrize("case", CASES)
def test_golden(case, parity, balance_parity, round_trip, token_by_token):
    parity(case)
    balance_parity(case)
    round_trip(case)
    token_by_token(case)


def test_all_cases_are_there():
    assert len(CASES) == 3
