"""Evaluators that die, hang or cannot work: replaced, or given up with what they said."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxlean.run import evaluator_processes as module
from jaxlean.run.evaluator_processes import EvaluatorProcesses
from jaxlean.run.lease import Leases

# As an evaluator: it holds its lease and waits.
WORKS = """
import os, socket, sys, time
from pathlib import Path
from jaxlean.run.lease import Leases
lease = Leases(beat_seconds=0.05).take(Path(sys.argv[1]) / f"evaluator-{socket.gethostname()}-{os.getpid()}")
print("at work", flush=True)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """`start(program, num=1)`: (the processes, what was said)."""
    monkeypatch.setattr(module, "_STOP_SECONDS", 0.5)
    every: list[EvaluatorProcesses] = []

    def make(program: str, num: int = 1) -> tuple[EvaluatorProcesses, list[str]]:
        said: list[str] = []
        processes = EvaluatorProcesses(
            tmp_path, num, threads=1, snapshots=tmp_path, leases=Leases(dead_seconds=0.5), log=tmp_path / "log",
            say=said.append, command=[sys.executable, "-c", program, str(tmp_path)],
        )  # fmt: skip
        every.append(processes)
        processes.start()
        return processes, said

    yield make
    for processes in every:
        processes.stop()


def until(what: Callable[[], bool], processes: EvaluatorProcesses) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)
        processes.check()


def at_work(tmp_path: Path, pid: int) -> bool:
    return (tmp_path / f"evaluator-{socket.gethostname()}-{pid}.1.lease").exists()


def test_one_that_is_killed_is_started_again(start, tmp_path):
    processes, said = start("import time; time.sleep(60)", num=2)
    first, second = processes.processes
    os.kill(first, signal.SIGKILL)
    until(lambda: processes.restarted == 1, processes)
    assert said == ["evaluator 1 was ended by signal 9, and is started again"]
    assert len(processes.processes) == 2
    assert second in processes.processes
    assert first not in processes.processes
    processes.stop()
    assert processes.processes == []


def test_one_that_shows_no_sign_of_life_is_replaced(start, tmp_path):
    processes, said = start(WORKS)
    (pid,) = processes.processes
    until(lambda: at_work(tmp_path, pid), processes)
    for _ in range(30):  # it beats
        time.sleep(0.02)
        processes.check()
    assert processes.processes == [pid]
    os.kill(pid, signal.SIGSTOP)
    until(lambda: processes.restarted == 1, processes)
    assert said == ["evaluator 1 showed no sign of life, and is started again"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_those_that_die_again_and_again_are_given_up(start, tmp_path):
    processes, said = start("import sys; print('Traceback ...'); print('out of memory'); sys.exit(1)")
    until(lambda: processes.given_up is not None, processes)
    assert processes.restarted == 3
    assert said[0] == "evaluator 1 ended with exit code 1, and is started again"
    assert said[-1].startswith("no evaluator is started any more: evaluator 1 ended with exit code 1: ")
    assert said[-1].endswith("Traceback ...\nout of memory")
    assert processes.processes == []


def test_a_score_between_is_a_new_beginning(start):
    processes, _ = start("import sys; sys.exit(1)")
    for restarted in range(1, 8):
        until(lambda restarted=restarted: processes.restarted == restarted, processes)
        processes.scored()
    assert processes.given_up is None


def test_what_the_user_can_mend_is_not_tried_again(start):
    processes, said = start(
        "import sys; print('waiting'); print('error: no such folder\\n  fix: name it'); sys.exit(2)"
    )
    until(lambda: processes.given_up is not None, processes)
    assert processes.restarted == 0
    assert said == [
        "no evaluator is started any more: evaluator 1 ended with exit code 2: no such folder\n  fix: name it"
    ]


def test_one_that_is_stopped_is_ended_nevertheless(start, tmp_path):
    processes, _ = start(WORKS)
    (pid,) = processes.processes
    until(lambda: at_work(tmp_path, pid), processes)
    os.kill(pid, signal.SIGSTOP)
    processes.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert [file.name for file in tmp_path.iterdir()] == ["log"]


def test_a_program_that_is_not_there(tmp_path):
    said: list[str] = []
    processes = EvaluatorProcesses(
        tmp_path, 1, threads=1, snapshots=tmp_path, leases=Leases(), log=tmp_path / "log", say=said.append,
        command=[str(tmp_path / "nothing")],
    )  # fmt: skip
    processes.start()
    assert processes.processes == []
    assert "no evaluator can be started: [Errno 2] No such file or directory" in said[0]
    processes.check()
