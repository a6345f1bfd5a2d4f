"""A folder that is whole or not there."""

from pathlib import Path

import pytest

from jaxlean.errors import RunError
from jaxlean.run.staging import staged


def test_it_appears_at_the_end(tmp_path):
    folder = tmp_path / "deep" / "out"
    with staged(folder) as part:
        part.mkdir()
        (part / "file").write_text("x")
        assert not folder.exists()
    assert (folder / "file").read_text() == "x"
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_what_fails_leaves_nothing(tmp_path):
    (tmp_path / ".out.new").mkdir()  # of a process that was killed
    (tmp_path / ".out.new" / "old").touch()
    with pytest.raises(ZeroDivisionError), staged(tmp_path / "out") as part:
        assert not part.exists()
        part.mkdir()
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(RunError, match="the output folder is not empty"), staged(tmp_path / "out"):
        raise AssertionError("not begun")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="the output folder is a file"), staged(tmp_path / "file"):
        raise AssertionError("not begun")
    assert (tmp_path / "out" / "mine").exists()


def test_a_folder_that_cannot_be_made_anew_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty")
    for folder, words in ((Path("."), "the current one"), (tmp_path / "link", "a link"), (Path("/"), "a mount point")):
        with pytest.raises(RunError, match=f"the output folder is {words}"), staged(folder):
            raise AssertionError("not begun")


def test_a_folder_of_a_like_name_stays(tmp_path):
    (tmp_path / "out.new").mkdir()
    (tmp_path / "out.new" / "mine").touch()
    with staged(tmp_path / "out") as part:
        part.mkdir()
    assert (tmp_path / "out.new" / "mine").exists()


def test_two_processes_that_write_the_same_folder(tmp_path):
    with staged(tmp_path / "out") as part:
        part.mkdir()
        (part / "mine").touch()
        with pytest.raises(RunError, match="another process is writing there"), staged(tmp_path / "out"):
            raise AssertionError("not begun")
        assert (part / "mine").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]
