"""A folder that is whole or not there."""

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
    (tmp_path / "out.new").mkdir()  # of a process that was killed
    (tmp_path / "out.new" / "old").touch()
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
