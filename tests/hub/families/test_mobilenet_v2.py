"""MobileNetV2 checkpoints: TensorFlow's padding and torch's, strides turned into dilations, a stem that expands."""

from pathlib import Path

import pytest

from jaxlean.hub.families.mobilenet_v2 import FAMILY

CASES = sorted(folder.name for folder in (Path(__file__).parents[2] / "golden").glob("mobilenet*v2_*"))


@pytest.mark.parametrize("case", CASES)
def test_golden(case, convnet_parity):
    convnet_parity(FAMILY, case)


def test_all_cases_are_there():
    assert len(CASES) == 6
