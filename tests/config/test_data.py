from typing import Any

import pytest

from jaxlean import config


@pytest.mark.parametrize("given", ["a.jsonl", {"path": "a.jsonl"}, ["a.jsonl"], [{"path": "a.jsonl"}]])
@pytest.mark.parametrize("key", ["train", "eval", "dataset", "datasets"])
def test_a_path_is_a_source(given: Any, key: str) -> None:
    data = config.build({"data": {key: given}}).data
    (source,) = (data.eval if key == "eval" else data.train) or []
    assert (source.path, source.split, source.format) == ("a.jsonl", "train", "auto")


def test_sources_are_a_list_of_paths_and_of_settings() -> None:
    train = config.build({"data": {"train": ["a.jsonl", {"path": "b.csv", "weight": 2, "type": "alpaca"}]}}).data.train
    assert [(source.path, source.weight, source.format) for source in train or []] == [
        ("a.jsonl", None, "auto"), ("b.csv", 2.0, "alpaca"),
    ]  # fmt: skip
