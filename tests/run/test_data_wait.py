"""Devices that wait for data are told of once, with what mends it."""

import pytest

from jaxlean.config import build
from jaxlean.run.data_wait import DataWait


@pytest.mark.parametrize(
    ("data", "fix"),
    [
        ({"streaming": True}, "data.streaming=false"),
        ({"image_column": "image"}, "size that the model takes"),
        ({}, "a core of its own"),
    ],
)
def test_it_is_told_once_with_the_fix(data, fix):
    task = "classify" if "image_column" in data else "generate"
    values = {"data": {"train": "a.jsonl", **data}, "task": task, "train": {"max_steps": 9}}
    waiting = DataWait(build(values))
    assert waiting.told(20, 0.05) is None
    assert waiting.told(19, 0.9) is None
    told = waiting.told(20, 0.12)
    assert "12% of the time" in told
    assert fix in told
    assert waiting.told(21, 0.5) is None
