"""Folders of images."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from jaxlean.data.image_folder import image_folder, is_image_folder, undecoded
from jaxlean.data.images import open_image
from jaxlean.errors import DataError


@pytest.fixture
def make(tmp_path: Path):
    """Write tiny images, each in a colour of its own, and give the folder."""

    def write(*names: str) -> Path:
        for i, name in enumerate(names):
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (3, 2), (i, 2 * i, 3 * i)).save(file)
        return tmp_path

    return write


def test_a_folder_for_each_class(make):
    folder = make("dog/b.png", "cat/z.jpg", "cat/a.PNG", "cat/deep/c.png")
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / "cat" / ".hidden.png").write_bytes(b"")
    rows = image_folder(folder)
    assert [(Path(row["image"]).name, row["label"]) for row in rows] == [
        ("a.PNG", "cat"), ("c.png", "cat"), ("z.jpg", "cat"), ("b.png", "dog"),
    ]  # fmt: skip
    assert rows.origin(3) == str(folder / "dog" / "b.png")
    assert open_image(rows[3]["image"], origin=rows.origin(3)).size == (3, 2)
    assert is_image_folder(folder)


def test_it_reads_what_datasets_reads(make, monkeypatch, tmp_path):
    import datasets

    folder = make("train/dog/b.png", "train/cat/a.png", "test/cat/c.png")
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )
    ours = image_folder(folder, "train")
    names = theirs.features["label"].names
    assert names == ["cat", "dog"]
    for mine, row in zip(ours, undecoded(theirs), strict=True):
        assert mine["label"] == names[row["label"]]
        assert isinstance(row["image"], dict)
        one, other = open_image(mine["image"], origin=""), open_image(row["image"], origin="")
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("split", ["train", "training"])
def test_splits_by_their_names(make, split):
    folder = make("train/dog/b.png", "val/cat/c.png")
    assert [row["label"] for row in image_folder(folder, split)] == ["dog"]
    assert [row["label"] for row in image_folder(folder, "validation")] == ["cat"]
    with pytest.raises(DataError, match="no such split") as caught:
        image_folder(folder, "test")
    assert "train, validation" in str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_list_of_images(make, kind):
    folder = make("one.png", "sub/two.png")
    lines = [{"file_name": "sub/two.png", "text": "hers"}, {"file_name": "one.png", "text": "his"}]
    text = (
        "".join(json.dumps(line) + "\n" for line in lines)
        if kind == "jsonl"
        else "file_name,text\n" + "".join(f"{line['file_name']},{line['text']}\n" for line in lines)
    )
    (folder / f"metadata.{kind}").write_text(text)
    rows = image_folder(folder)
    assert [row["text"] for row in rows] == ["hers", "his"]
    assert rows[0] == {"image": str(folder / "sub" / "two.png"), "text": "hers"}
    assert rows.origin(1).endswith(f"metadata.{kind}:{2 if kind == 'jsonl' else 3}")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../b.png", "", None])
def test_a_list_reaches_nothing_outside(make, name):
    folder = make("one.png")
    (folder / "metadata.jsonl").write_text(
        json.dumps({"file_name": "one.png"}) + "\n" + json.dumps({"file_name": name})
    )
    rows = image_folder(folder)
    assert rows[0]
    with pytest.raises(DataError, match=r"metadata\.jsonl:2"):
        _ = rows[1]


def test_what_is_no_image_folder(make, tmp_path):
    with pytest.raises(DataError, match="holds no image"):
        image_folder(tmp_path)
    assert not is_image_folder(tmp_path)
    assert not is_image_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="without a label") as caught:
        image_folder(make("cat/a.png", "stray.png"))
    assert "stray.png" in str(caught.value)


def test_a_column_that_datasets_decodes_is_left_packed():
    import datasets

    out = io.BytesIO()
    Image.new("RGB", (3, 2)).save(out, "PNG")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    dataset = datasets.Dataset.from_dict({"image": [{"bytes": out.getvalue(), "path": None}], "label": [1]}, features)
    (row,) = undecoded(dataset)
    assert row["image"]["bytes"] == out.getvalue()
