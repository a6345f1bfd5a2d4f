"""EfficientNet checkpoints: kernels and paddings of all kinds, gates of several widths, both poolings."""

from pathlib import Path

import pytest

CASES = sorted(folder.name for folder in (Path(__file__).parents[2] / "golden").glob("efficientnet_*"))


@pytest.mark.parametrize("case", CASES)
def test_golden(case, image_parity, image_round_trip):
    image_parity(case)
    image_round_trip(case)


def test_all_cases_are_there():
    assert len(CASES) == 3
