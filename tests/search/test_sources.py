"""Files that changed are noticed; a copy of them elsewhere is the same."""

import shutil

import pytest

from jaxlean.config import load, with_values
from jaxlean.errors import RunError, UserError
from jaxlean.search.sources import check_same, sources


@pytest.fixture
def elsewhere(tiny_yaml, tmp_path):
    """The tiny job's config, all of its files in another folder."""
    config = load(tiny_yaml)
    base = shutil.copytree(config.model.path, tmp_path / "base")
    for name in ("train", "eval"):
        (tmp_path / name).mkdir()
    train = shutil.copy(config.data.train[0].path, tmp_path / "train")
    held = shutil.copy(config.data.eval[0].path, tmp_path / "eval")
    return with_values(config, {"model.path": str(base), "data.train": str(train), "data.eval": str(held)})


def test_a_copy_is_the_same(tiny_yaml, elsewhere):
    found = sources(load(tiny_yaml))
    assert set(found) == {"model.path", "data.train", "data.eval"}
    assert sources(elsewhere) == found


@pytest.mark.parametrize("key", ["model.path", "data.train", "data.eval"])
def test_what_changed_is_named(elsewhere, key, tmp_path):
    before = sources(elsewhere)
    files = {
        "model.path": tmp_path / "base" / "model.safetensors",
        "data.train": elsewhere.data.train[0].path,
        "data.eval": elsewhere.data.eval[0].path,
    }
    with open(files[key], "r+b") as file:
        file.seek(-3, 2)
        last = file.read(1)
        file.seek(-3, 2)
        file.write(b"x" if last != b"x" else b"y")
    now = sources(elsewhere)
    assert [name for name in now if now[name] != before[name]] == [key]
    with pytest.raises(RunError, match=f"what {key} names has changed since the search was started"):
        check_same(before, now, "study", "--overwrite")
    check_same(before, before, "study", "")


def test_bases_that_are_searched_all_count(elsewhere, tmp_path):
    other = shutil.copytree(tmp_path / "base", tmp_path / "other")
    space = {"search.space": {"model.path": [str(tmp_path / "base"), str(other)]}}
    both = sources(with_values(elsewhere, space))["model.path"]
    (other / "config.json").write_text("{}")
    assert both != sources(with_values(elsewhere, space))["model.path"]


def test_of_what_is_not_there_yet_nothing_is_known(elsewhere, tmp_path):
    """So that whoever puts it there afterwards is not told that it has changed."""
    nowhere = with_values(elsewhere, {"data.train": str(tmp_path / "nowhere.jsonl")})
    assert set(sources(nowhere)) == {"model.path", "data.eval"}


def test_rows_that_are_searched_all_count(elsewhere, tmp_path):
    other = shutil.copy(elsewhere.data.train[0].path, tmp_path / "other.jsonl")
    space = {"search.space": {"data.train": [elsewhere.data.train[0].path, str(other)]}}
    before = sources(with_values(elsewhere, space))["data.train"]
    (tmp_path / "other.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    assert before != sources(with_values(elsewhere, space))["data.train"]


def test_from_zero_there_is_no_base(elsewhere):
    pretrained = with_values(elsewhere, {"model.path": None})
    assert set(sources(pretrained)) == {"data.train", "data.eval"}


def test_a_base_that_is_not_there_is_told(elsewhere, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        sources(with_values(elsewhere, {"model.path": str(tmp_path / "nowhere")}))
