"""The study's file outlives whoever writes it."""

import json
import subprocess
import sys
import time

import optuna
import pytest

from jaxlean.errors import RunError
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
    code = f"import sys; from optuna.storages.journal import JournalFileOpenLock as L; L({str(file)!r}).acquire()"
    subprocess.run([sys.executable, "-c", code], check=True)  # ends without letting go
    started = time.monotonic()
    assert study(file).ask().number == 0
    assert time.monotonic() - started > 2


def values_of(file):
    try:
        return [trial.value for trial in study(file).trials]
    except RunError as error:
        return "refused" if f"{file}:" in str(error) else str(error)


def test_a_bit_that_flips_is_noticed(tmp_path):
    file = tmp_path / "study.journal"
    own = study(file)
    for value in (0.25, 0.5):
        own.tell(own.ask(), value)
    good = file.read_bytes()
    for at in range(0, len(good), 7):  # anywhere: a number, a name, a quote, the end of a line
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        last = at > good.rindex(b"\n", 0, -1)
        # the end of the last line alone may look as if it had not been written yet
        wanted = ["refused", [0.25, None]] if last else ["refused"]
        assert values_of(file) in wanted, good[max(at - 20, 0) : at + 20]
    file.write_bytes(good)
    assert [trial.value for trial in study(file).trials] == [0.25, 0.5]


def test_who_was_stopped_while_it_wrote_harms_nobody(tmp_path, monkeypatch):
    file = tmp_path / "study.journal"
    first, second = study(file), study(file)
    fsync = journal.os.fsync

    def meanwhile(descriptor):  # the lock was taken away, and others wrote
        monkeypatch.setattr(journal.os, "fsync", fsync)
        fsync(descriptor)
        (tmp_path / "study.journal.lock").unlink()
        second.ask()

    monkeypatch.setattr(journal.os, "fsync", meanwhile)
    trial = first.ask()
    first.tell(trial, 0.5)
    assert len(study(file).trials) == len(first.trials) == 2
    assert not (tmp_path / "study.journal.lock").exists()


def test_who_was_stopped_before_it_cut_begins_anew(tmp_path, monkeypatch):
    """Between its look at the end of the file and its cut another one has taken the lock, cut, and written."""
    file = tmp_path / "study.journal"
    first, second = study(file), study(file)
    with file.open("ab") as out:
        out.write(b'{"half')
    end_of_lines, looks = journal._end_of_lines, []

    def meanwhile(path):
        found = end_of_lines(path)
        looks.append(found)
        if len(looks) == 1:
            (tmp_path / "study.journal.lock").unlink()
            second.ask()
            monkeypatch.setattr(journal.time, "monotonic", lambda: now() + 60.0)
        return found

    now = time.monotonic
    monkeypatch.setattr(journal, "_end_of_lines", meanwhile)
    first.ask()
    monkeypatch.undo()
    assert len(looks) >= 3
    assert [trial.number for trial in study(file).trials] == [0, 1]


def test_half_a_line_that_is_cut_off_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    file = tmp_path / "study.journal"
    own = study(file)
    own.ask()
    good = file.read_bytes()
    last = good.rindex(b"\n", 0, -1) + 1
    backend = Journal(file)
    found = backend._checked(good[last:-30] + b'"op_code":4}\n', 9, last)
    assert found == json.loads(good[last:-21] + b"}")


def test_optuna_reads_it_and_its_own_lines_are_read(tmp_path):
    file = tmp_path / "study.journal"
    own = study(file)
    own.tell(own.ask(), 0.25)
    assert all("crc32" in line for line in lines(file))
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    theirs = optuna.load_study(study_name="s", storage=storage)
    theirs.tell(theirs.ask(), 0.5)
    assert [trial.value for trial in own.trials] == [0.25, 0.5]
    assert [trial.value for trial in study(file).trials] == [0.25, 0.5]
