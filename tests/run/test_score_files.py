"""Scores as files: whole or not there, once, and the same numbers when they are read."""

import math
import os
import threading

import pytest

from jaxlean.run.score_files import Score, has_score, read_score, remove_score, scored_steps, write_score


def test_numbers_come_back_bit_for_bit(tmp_path):
    found = {"loss": 0.1 + 0.2, "perplexity": math.exp(1 / 3), "examples": 24}
    score = Score(120, "token", found, None, "process 7 on box", 1.5)
    assert write_score(tmp_path / "evaluations", score)
    assert read_score(tmp_path / "evaluations", 120) == score
    assert [file.name for file in (tmp_path / "evaluations").iterdir()] == ["120.json"]
    assert scored_steps(tmp_path / "evaluations") == [120]
    assert scored_steps(tmp_path / "nothing") == []
    assert has_score(tmp_path / "evaluations", 120)
    assert not has_score(tmp_path / "evaluations", 12)


def test_a_loss_that_is_no_number(tmp_path):
    write_score(tmp_path, Score(5, "", {"loss": math.nan}))
    assert math.isnan(read_score(tmp_path, 5).value())
    assert math.isnan(Score(5, "", {"loss": 1.0}).value("accuracy"))
    assert math.isnan(Score(5, "", None, "cut short").value())


def test_of_several_the_first_stays(tmp_path):
    start, first = threading.Barrier(8), []

    def write(number: int) -> None:
        start.wait()
        if write_score(tmp_path, Score(5, str(number), {"loss": float(number)})):
            first.append(str(number))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = first
    assert read_score(tmp_path, 5).token == winner
    remove_score(tmp_path, 5)
    remove_score(tmp_path, 5)
    assert write_score(tmp_path, Score(5, "again", None, "cut short"))
    assert read_score(tmp_path, 5).refused == "cut short"


@pytest.mark.parametrize("text", ["", '{"step": 5, "tok', "[]", '{"step": 6, "token": "", "evaluation": null}', "{}"])
def test_what_is_no_score_is_none(text, tmp_path):
    (tmp_path / "5.json").write_text(text)
    assert read_score(tmp_path, 5) is None
    assert read_score(tmp_path, 7) is None


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_text", full)
        with pytest.raises(OSError, match="No space left"):
            write_score(tmp_path, Score(5, "", {"loss": 1.0}))
    assert list(tmp_path.iterdir()) == []


def test_without_hard_links(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    assert write_score(tmp_path, Score(5, "a", {"loss": 1.0}))
    assert not write_score(tmp_path, Score(5, "b", {"loss": 2.0}))
    assert read_score(tmp_path, 5).token == "a"
    assert [file.name for file in tmp_path.iterdir()] == ["5.json"]
