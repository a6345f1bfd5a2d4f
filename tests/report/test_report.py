"""`jaxlean report`: a file is written whole, over an earlier report and over nothing else."""

import os
import re

import pytest

from jaxlean.errors import RunError
from jaxlean.report.report import report


def test_one_run(made, tmp_path):
    file = tmp_path / "out.html"
    said = report([made("a")], file)
    assert re.fullmatch(rf"report of a: {re.escape(str(file))} \(\d+(\.\d)? KiB\)", said)
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_several_runs(made, tmp_path):
    assert report([made("a"), made("b")], tmp_path / "out.html").startswith("report of 2 runs: ")


def test_a_report_takes_the_place_of_an_earlier_one_at_once(made, tmp_path, monkeypatch):
    file = tmp_path / "out.html"
    report([made("a")], file)
    before = file.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(RunError, match="the report cannot be written") as error:
            report([made("b")], file)
    assert "No space left" in str(error.value)
    assert file.read_text() == before
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.html"]
    report([tmp_path / "b"], file)
    assert "<h1>b</h1>" in file.read_text()


@pytest.mark.parametrize("content", ["", "mine", "<html><!-- jaxlean report --></html>", "x" * 5000])
def test_a_file_that_is_no_report_stays(made, tmp_path, content):
    file = tmp_path / "notes.html"
    file.write_text(content)
    with pytest.raises(RunError) as error:
        report([made("a")], file)
    assert "is no report, and would be replaced" in str(error.value)
    assert "--output names another file" in str(error.value)
    assert file.read_text() == content


@pytest.mark.parametrize(
    ("where", "words"),
    [("none/out.html", "the folder of --output is not there"), ("a", "--output is a folder")],
)
def test_a_place_where_no_file_can_be(made, tmp_path, where, words):
    folder = made("a")
    with pytest.raises(RunError, match=words) as error:
        report([folder], tmp_path / where)
    assert "fix:" in str(error.value)


def test_nothing_is_written_where_a_folder_is_no_run(made, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="this folder holds no run"):
        report([made("a"), tmp_path / "empty"], tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


def test_the_command(made, cli, tmp_path):
    folder, file = made("a"), tmp_path / "out.html"
    code, said, _ = cli("report", folder, "-o", file)
    assert (code, said.startswith("report of a: ")) == (0, True)
    assert "<h1>a</h1>" in file.read_text()
    code, _, said = cli("report", tmp_path / "nothing", "-o", file)
    assert code == 2
    assert "there is no such run" in said
