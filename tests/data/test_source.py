import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jaxlean.config import SourceSection
from jaxlean.data import source as module
from jaxlean.data.source import open_rows, stream_rows
from jaxlean.errors import DataError

if TYPE_CHECKING:
    import datasets

ROWS = [{"text": f"row {i}", "n": i} for i in range(5)]


def write(path: Path, text: str | bytes) -> SourceSection:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return SourceSection(path=str(path))


def as_jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    saved.save_to_disk(str(tmp_path / "both"))
    saved["train"].save_to_disk(str(tmp_path / "one"))
    for name in ("both", "one"):
        assert list(open_rows(SourceSection(path=str(tmp_path / name)))) == ROWS
    with pytest.raises(DataError, match="no such split"):
        open_rows(SourceSection(path=str(tmp_path / "both"), split="trian"))


@pytest.fixture
def features(tmp_path: Path) -> "datasets.Dataset":
    """An image that is none, a class, and classes of words; the last row has no class."""
    import datasets

    classes = datasets.ClassLabel(names=["3 stars", "1 star"])
    features = datasets.Features({"image": datasets.Image(), "label": classes, "tags": datasets.List(classes)})
    rows = [{"image": {"bytes": b"broken", "path": None}, "label": n, "tags": [1, max(n, 0)]} for n in (1, 0, -1)]
    return datasets.Dataset.from_list(rows, features=features)


def test_classes_have_their_names_and_images_stay_packed(
    features: "datasets.Dataset", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    datasets.disable_progress_bars()
    features.save_to_disk(str(tmp_path / "saved"))
    found = list(open_rows(SourceSection(path=str(tmp_path / "saved"))))
    assert [row["label"] for row in found] == ["1 star", "3 stars", -1]
    assert [row["tags"] for row in found] == [["1 star", "1 star"], ["1 star", "3 stars"], ["1 star", "3 stars"]]
    assert found[0]["image"] == {"bytes": b"broken", "path": None}

    streamed = features.remove_columns("image").to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *path, **how: streamed)
    assert [row["label"] for _, row, _ in stream_rows(SourceSection(path="some/where"))] == ["1 star", "3 stars", -1]


def test_a_folder_of_files_goes_by_split(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000.jsonl", as_jsonl(ROWS[:2]))
    write(tmp_path / "data" / "train-00001.jsonl", as_jsonl(ROWS[2:4]))
    write(tmp_path / "valid.jsonl", as_jsonl(ROWS[4:]))
    rows = open_rows(SourceSection(path=str(tmp_path)))
    assert list(rows) == ROWS[:4]
    assert rows.read(1, 3) == ROWS[1:3]
    assert rows.origin(3).endswith("train-00001.jsonl:2")
    assert list(open_rows(SourceSection(path=str(tmp_path), split="validation"))) == ROWS[4:]
    with pytest.raises(DataError, match="no such split"):
        open_rows(SourceSection(path=str(tmp_path), split="test"))


def test_a_folder_without_split_names_is_taken_whole(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", as_jsonl(ROWS[:2]))
    write(tmp_path / "b.jsonl", as_jsonl(ROWS[2:]))
    assert list(open_rows(SourceSection(path=str(tmp_path)))) == ROWS


def test_limit(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", as_jsonl(ROWS))
    assert list(open_rows(source.model_copy(update={"limit": 2}))) == ROWS[:2]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_empty(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="empty"):
        open_rows(write(tmp_path / name, ""))


def test_nothing_there(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", "{}")
    with pytest.raises(DataError, match=r"no such file(.|\n)*did you mean 'train\.jsonl'"):
        open_rows(SourceSection(path=str(tmp_path / "trian.jsonl")))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no data file"):
        open_rows(SourceSection(path=str(tmp_path / "none")))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_that_cannot_be_reached_says_so(streaming: bool) -> None:
    source = SourceSection(path="nobody/nothing")
    with pytest.raises(DataError, match=r"nobody/nothing(.|\n)*network"):
        list(stream_rows(source)) if streaming else open_rows(source)


def test_a_hub_dataset_is_streamed_and_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(path: str, name: str | None, *, split: str, streaming: bool) -> object:
        assert (path, name, split) == ("some/where", None, "train")
        dataset = datasets.Dataset.from_list(ROWS)
        return dataset.to_iterable_dataset() if streaming else dataset

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = SourceSection(path="some/where")
    assert list(open_rows(source)) == ROWS
    assert [(i, row) for i, row, _ in stream_rows(source, 2)] == list(enumerate(ROWS))[2:]
    limited = source.model_copy(update={"limit": 3})
    assert [row for _, row, _ in stream_rows(limited, 1)] == ROWS[1:3]


def test_a_local_file_is_streamed_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 2)
    source = write(tmp_path / "a.jsonl", as_jsonl(ROWS))
    for start in range(6):
        found = list(stream_rows(source, start))
        assert [(i, row) for i, row, _ in found] == list(enumerate(ROWS))[start:]
        assert [origin.rpartition(":")[2] for *_, origin in found] == [str(i + 1) for i in range(start, 5)]
