import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxlean.config import RunConfig, build
from jaxlean.data.columns import items, label_ids, label_name, resolve
from jaxlean.errors import ConfigError, DataError, UserError


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., RunConfig]:
    def make(task: str, rows: list[dict[str, Any]], **data: Any) -> RunConfig:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return build({"task": task, "data": {"train": str(file), **data}})

    return make


def test_generate_is_left_alone() -> None:
    config = RunConfig()
    assert resolve(config) is config


@pytest.mark.parametrize(
    ("task", "row", "text", "label"),
    [
        ("classify", {"text": "a", "category": "x"}, "text", "category"),
        ("classify", {"id": 1, "sentence": "a", "label": "x"}, "sentence", "label"),
        ("classify", {"text": "a", "text_pair": "b", "label": "x"}, ["text", "text_pair"], "label"),
        ("classify", {"premise": "a", "hypothesis": "b", "label": "x"}, ["premise", "hypothesis"], "label"),
        ("tag", {"tokens": ["a"], "ner_tags": ["x"]}, "tokens", "ner_tags"),
        ("embed", {"anchor": "a", "positive": "b"}, ["anchor", "positive"], None),
    ],
)
def test_columns_are_recognised(
    config: Callable[..., RunConfig], task: str, row: dict[str, Any], text: Any, label: str | None
) -> None:
    other = row | ({label: ["y"] if task == "tag" else "y"} if label else {})
    data = resolve(config(task, [row, other])).data
    assert (data.text_column, data.label_column) == (text, label)
    assert data.labels == (["x", "y"] if label else None)
    assert data.packing == (task != "embed")


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("classify", {"text": "a", "sentence": "b", "label": "x"}, "holds the text"),
        ("classify", {"body": "a", "label": "x"}, "data.text_column=NAME"),
        ("classify", {"text": "a", "label": "x", "intent": "y"}, "label; intent could be meant"),
        ("tag", {"tokens": ["a"], "ner_tags": ["x"], "pos_tags": ["x"]}, "holds the list of tags"),
        ("embed", {"text": "a"}, "data.text_column=[anchor,positive]"),
    ],
)
def test_what_is_not_clear_is_an_error(config: Callable[..., RunConfig], task: str, row: Any, said: str) -> None:
    with pytest.raises(DataError, match="it is not clear which column") as error:
        resolve(config(task, [row]))
    assert said in str(error.value)
    assert "rows.jsonl" in str(error.value)


def test_labels_are_sorted_by_value_where_they_are_numbers(config: Callable[..., RunConfig]) -> None:
    rows = [{"text": "a", "label": n} for n in (10, 9, 2.0, 9)]
    assert resolve(config("classify", rows)).data.labels == ["2", "9", "10"]
    assert resolve(config("classify", [{"text": "a", "label": n} for n in "ba"])).data.labels == ["a", "b"]


def test_labels_of_a_head_or_of_the_config_win(config: Callable[..., RunConfig]) -> None:
    rows = [{"text": "a", "label": "b"}, {"text": "a", "label": "c"}]
    assert resolve(config("classify", rows), ["c", "b", "a"]).data.labels == ["c", "b", "a"]
    assert resolve(config("classify", rows, labels=["b", "c"]), ["x", "y"]).data.labels == ["b", "c"]


def test_rows_to_be_judged_need_no_column_of_labels(config: Callable[..., RunConfig]) -> None:
    data = resolve(config("classify", [{"text": "a"}]), ["x", "y"], labelled=False).data
    assert (data.text_column, data.label_column, data.labels) == ("text", None, ["x", "y"])
    with pytest.raises(DataError, match="holds the label"):
        resolve(config("classify", [{"text": "a"}]), labelled=False)


def test_one_label_only_is_an_error(config: Callable[..., RunConfig]) -> None:
    with pytest.raises(DataError, match="one label only") as error:
        resolve(config("classify", [{"text": "a", "label": "x"}] * 2))
    assert "label='x' in every row" in str(error.value)


def test_a_row_without_a_label_is_named(config: Callable[..., RunConfig]) -> None:
    with pytest.raises(DataError, match="has no label") as error:
        resolve(config("classify", [{"text": "a", "label": "x"}, {"text": "b", "label": " "}]))
    assert "rows.jsonl:2" in str(error.value)


def test_a_column_that_is_not_there(config: Callable[..., RunConfig]) -> None:
    with pytest.raises(DataError, match=r"data\.label_column: there is no column 'categry'") as error:
        resolve(config("classify", [{"text": "a", "category": "x"}], label_column="categry"))
    assert "did you mean 'category'?" in str(error.value)


def test_no_data() -> None:
    with pytest.raises(ConfigError, match="no data"):
        resolve(build({"task": "classify"}))


def test_label_ids() -> None:
    find = label_ids(["no", "yes"], "answer")
    assert [find(value, "f:1") for value in ("yes", " no ", 1, "0")] == [1, 0, 1, 0]
    with pytest.raises(DataError, match="in the column 'answer' that the model does not have") as error:
        find("yess", "f:7")
    assert "f:7" in str(error.value)
    assert "did you mean 'yes'?" in str(error.value)
    for value in (2, -1):
        with pytest.raises(DataError, match="does not have"):
            find(value, "f:1")
    # names that are numbers are names, and no ids
    assert label_ids(["1", "2"], "answer")(1, "f:1") == 0
    with pytest.raises(DataError, match="does not have"):
        label_ids(["1", "2"], "answer")(0, "f:1")


def test_a_label_is_one_value() -> None:
    assert [label_name(value, "c", "f:1") for value in (3.0, 2.5, True, "x ")] == ["3", "2.5", "True", "x"]
    with pytest.raises(DataError, match="several labels"):
        label_name(["a", "b"], "c", "f:1")


def test_lists_may_be_json() -> None:
    assert items({"tags": '["O", "B"]'}, "tags", "f:1") == ["O", "B"]
    for value in ("O B", [], None, 3):
        with pytest.raises(DataError, match="one entry a word") as error:
            items({"tags": value}, "tags", "f:3")
        assert '"ner_tags": ["B-PER", "O"]' in str(error.value)
        assert "f:3" in str(error.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"task": "clasify"}, "task"),
        ({"task": "tag", "data": {"text_column": ["a", "b"]}}, "one column"),
        ({"task": "classify", "data": {"text_column": ["a", "b", "c"]}}, "two columns at most"),
        ({"task": "classify", "data": {"labels": ["a", "a"]}}, "twice"),
        ({"task": "classify", "data": {"labels": ["a"]}}, "two labels or more"),
        ({"task": "classify", "data": {"streaming": True}, "train": {"max_steps": 1}}, "reads all rows"),
        ({"task": "classify", "eval": {"exact_match": True}}, "metrics of its own"),
        ({"task": "embed", "train": {"per_device_train_batch_size": 3}}, "even"),
        ({"task": "embed", "train": {"label_smoothing_factor": 0.1}}, "not for task: embed"),
    ],
)
def test_settings_that_exclude_each_other(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        build(values)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "task"),
    [("SEQ_CLS", "classify"), ("text-classification", "classify"), ("TOKEN_CLS", "tag"), ("ner", "tag"),
     ("feature_extraction", "embed"), ("CAUSAL_LM", "generate")],
)  # fmt: skip
def test_other_names_of_tasks(name: str, task: str) -> None:
    assert build({"task": name}).task == task
