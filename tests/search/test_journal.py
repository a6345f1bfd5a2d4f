"""The study's file outlives whoever writes it."""

import json
import subprocess
import sys
import time

import optuna
import pytest

from jaxlean.search import journal
from jaxlean.search.journal import Journal


def study(file):
    storage = optuna.storages.JournalStorage(Journal(file))
    return optuna.create_study(storage=storage, study_name="s", load_if_exists=True)


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("torn", [b'{"op_code":4,"wor', b"x" * 9000, b"{"])
def test_half_a_line_is_cut_off_before_the_next_is_written(tmp_path, torn):
    file = tmp_path / "study.journal"
    study(file).ask()
    before = lines(file)
    with file.open("ab") as out:
        out.write(torn)
    again = study(file)
    assert len(again.trials) == 1
    again.tell(again.ask(), 0.5)
    assert lines(file)[: len(before)] == before
    assert [t.state.name for t in study(file).trials] == ["RUNNING", "COMPLETE"]


def test_one_who_reads_while_another_repairs_is_not_confused(tmp_path):
    file = tmp_path / "study.journal"
    first = study(file)
    first.ask()
    with file.open("ab") as out:
        out.write(b'{"half')
    second = study(file)  # has seen nothing of the half line
    first.ask()
    second.ask()
    assert [t.number for t in second.trials] == [t.number for t in first.trials] == [0, 1, 2]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "study.journal"
    own = study(file)
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        own.ask()
    assert file.read_bytes() == before
    monkeypatch.undo()
    assert study(file).ask().number == 0


def test_the_lock_of_a_killed_worker_is_taken_away(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "GRACE_SECONDS", 3)
    file = tmp_path / "study.journal"
    study(file)
    code = f"import sys; from optuna.storages.journal import JournalFileSymlinkLock as L; L({str(file)!r}).acquire()"
    subprocess.run([sys.executable, "-c", code], check=True)  # ends without letting go
    started = time.monotonic()
    assert study(file).ask().number == 0
    assert time.monotonic() - started > 2
