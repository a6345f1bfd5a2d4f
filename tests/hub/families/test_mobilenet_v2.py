"""MobileNetV2 checkpoints: TensorFlow's padding and torch's, strides turned into dilations, a stem that expands."""

from pathlib import Path

import pytest

CASES = sorted(folder.name for folder in (Path(__file__).parents[2] / "golden").glob("mobilenetv2_*"))


@pytest.mark.parametrize("case", CASES)
def test_golden(case, image_parity, image_round_trip):
    image_parity(case)
    image_round_trip(case)


def test_all_cases_are_there():
    assert len(CASES) == 3
