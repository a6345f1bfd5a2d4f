"""One process at a time in a folder, however the one before it ended."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from jaxlean.errors import RunError
from jaxlean.run.lock import FolderLock

HOLD = """
import sys, time
from pathlib import Path
from jaxlean.run.lock import FolderLock
with FolderLock(Path(sys.argv[1])) as lock:
    lock.acquire()
    print("taken", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.communicate()


def test_the_other_process_is_named(holder, tmp_path):
    with FolderLock(tmp_path) as lock:
        for take in (lock.acquire, lock.check):
            with pytest.raises(RunError, match="another process is writing there") as refused:
                take()
            assert f"process {holder.pid} on {socket.gethostname()}, since 20" in str(refused.value)
            assert str(tmp_path) in str(refused.value)
            assert "wait until it is done" in refused.value.fix
    assert (tmp_path / ".lock").exists(), "it is the other's"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_has_nothing(number, holder, tmp_path):
    holder.send_signal(number)
    holder.wait()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == holder.pid, "what it said is still there"
    with FolderLock(tmp_path) as lock:
        lock.check()
        lock.acquire()
        lock.acquire()
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_stopped_process_still_has_it(holder, tmp_path):
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(RunError, match="another process"), FolderLock(tmp_path) as lock:
        lock.acquire()


def test_given_back_it_leaves_nothing(tmp_path):
    for _ in range(2):
        with FolderLock(tmp_path) as lock, FolderLock(tmp_path) as other:
            other.check()
            lock.acquire()
            with pytest.raises(RunError, match="another process"):
                other.acquire()
        assert list(tmp_path.iterdir()) == []


def test_beside_the_folder(tmp_path):
    out = tmp_path / "out"
    with FolderLock(out, beside=True) as lock, FolderLock(out, beside=True) as other:
        lock.acquire()
        assert [file.name for file in tmp_path.iterdir()] == [".out.lock"]
        with pytest.raises(RunError, match="another process"):
            other.acquire()
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_can_read_is_said_so(tmp_path):
    with FolderLock(tmp_path) as lock, FolderLock(tmp_path) as other:
        lock.acquire()
        (tmp_path / ".lock").write_text("[")
        with pytest.raises(RunError, match="a process that did not say who it is"):
            other.acquire()


def test_a_folder_that_cannot_be_locked(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="the output folder cannot be locked"), FolderLock(tmp_path / "file") as lock:
        lock.acquire()
    (tmp_path / "target").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "target")  # planted: it is not written through
    with pytest.raises(RunError, match="cannot be locked"), FolderLock(tmp_path) as lock:
        lock.acquire()
    assert (tmp_path / "target").read_text() == "mine"
