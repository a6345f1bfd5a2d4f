"""DeepSeek-V3 checkpoints: sigmoid scores and their correction, groups, both kinds of rope, a further layer."""

from pathlib import Path

import pytest

CASES = sorted(folder.name for folder in (Path(__file__).parents[2] / "golden").glob("deepseekv3_*"))


@pytest.mark.parametrize("case", CASES)
def test_golden(case, parity, round_trip, token_by_token):
    parity(case)
    round_trip(case)
    token_by_token(case)


def test_all_cases_are_there():
    assert len(CASES) == 3
