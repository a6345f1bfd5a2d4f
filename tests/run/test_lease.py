"""Who works on what, across processes: one holder at a time, whatever dies, stops or is slow."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jaxlean.run import lease as module
from jaxlean.run.lease import Holder, Leases

# Takes a lease, says so, and waits for its end.
HOLD = """
import sys, time
from pathlib import Path
from jaxlean.run.lease import Leases
lease = Leases(beat_seconds=0.05).take(Path(sys.argv[1]))
print("taken" if lease else "not taken", flush=True)
for line in sys.stdin:
    print(lease.held(), flush=True)
"""


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def look(leases: Leases, path: Path, clock: Clock, seconds: float) -> list[bool]:
    """What is said at each second."""
    found = []
    for _ in range(int(seconds)):
        clock.now += 1
        found.append(leases.is_free(path))
    return found


@contextmanager
def holding(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds the lease."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "taken\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.fixture
def elsewhere(monkeypatch):
    """From now on what is taken is taken by a process of a machine that is not this one."""

    def move(place: str = "another boot, another namespace") -> None:
        here = module.this_process
        monkeypatch.setattr(module, "this_process", lambda: Holder(**{**here().__dict__, "place": place}))

    return move


def test_one_holder_at_a_time(tmp_path):
    path = tmp_path / "trial"
    first, second = Leases(), Leases()
    lease = first.take(path)
    assert lease.held()
    assert second.take(path) is None
    assert second.holder(path) == lease.holder
    assert str(lease.holder) == f"process {os.getpid()} on {socket.gethostname()}"
    assert second.take(tmp_path / "trial-2").held()
    assert second.take(tmp_path / "trial-2.1") is not None  # other names, that begin alike
    lease.release()
    assert not lease.held()
    again = second.take(path)
    assert again.held()
    assert first.take(path) is None
    lease.release()  # a second time
    assert again.held()
    again.release()
    assert [file.name for file in tmp_path.glob("trial.*")] == ["trial.2.lease"]


def test_who_is_alive_by_name(tmp_path, elsewhere):
    clock = Clock()
    elsewhere()
    observer = Leases(dead_seconds=20, clock=clock)
    assert observer.alive(tmp_path / "nothing", "box-") == []
    one, two = (Leases(beat_seconds=1e9).take(tmp_path / name) for name in ("box-1", "box-2"))
    Leases(beat_seconds=1e9).take(tmp_path / "other")
    assert observer.alive(tmp_path, "box-") == ["box-1", "box-2"]
    one.release(remove=True)
    assert observer.alive(tmp_path, "box-") == ["box-2"]
    assert not observer.is_dead(tmp_path / "box-1")  # it left in order
    for _ in range(25):
        assert not observer.is_dead(tmp_path / "box-2") or not observer.alive(tmp_path, "box-")
        clock.now += 1
    assert observer.is_dead(tmp_path / "box-2")
    two.release()
    assert not observer.is_dead(tmp_path / "box-2")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["box-2.1.lease", "other.1.lease"]
    observer.clear(tmp_path / "box-2")
    assert [file.name for file in tmp_path.iterdir()] == ["other.1.lease"]


def test_a_context_releases_it(tmp_path):
    with Leases().take(tmp_path / "a") as lease:
        assert Leases().holder(tmp_path / "a") == lease.holder
    assert Leases().holder(tmp_path / "a") is None
    assert Leases().is_free(tmp_path / "a")


def test_of_many_that_want_it_one_gets_it(tmp_path):
    """Again and again, each time anew, taken over, or released."""
    for _ in range(20):
        start, got = threading.Barrier(8), []

        def take(start=start, got=got) -> None:
            leases = Leases()
            start.wait()
            got.append(leases.take(tmp_path / "a"))

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (lease,) = [one for one in got if one is not None]
        lease.release()


def test_who_is_silent_is_dead_after_the_observers_own_seconds(tmp_path, elsewhere):
    clock, path = Clock(), tmp_path / "a"
    elsewhere()
    lease = Leases(beat_seconds=1e9).take(path)
    observer = Leases(dead_seconds=20, clock=clock)
    assert not any(look(observer, path, clock, 20))
    assert lease.beat()
    assert not any(look(observer, path, clock, 20))  # a sign of life: it counts anew
    assert look(observer, path, clock, 3)[-1]
    taken = observer.take(path)
    assert taken.held()
    assert not lease.held()  # it wakes up, and must not write
    assert not lease.beat()
    lease.release()
    assert taken.held()


def test_taking_over_is_for_one(tmp_path, elsewhere):
    """Two hold it for dead; what the second does after the first has taken it over takes nothing from the first."""
    clock, path = Clock(), tmp_path / "a"
    elsewhere()
    Leases(beat_seconds=1e9).take(path)
    one, two = Leases(dead_seconds=20, clock=clock), Leases(dead_seconds=20, clock=clock)
    assert not look(one, path, clock, 1)[0]
    assert not two.is_free(path)
    for _ in range(25):
        clock.now += 1
        one.is_free(path), two.is_free(path)
    number = two._newest(path)[0]
    taken = one.take(path)
    assert not module._create(module._file(path, number + 1), b"")  # what `take` does after the same look
    assert two.take(path) is None
    assert taken.held()


def test_a_clock_of_the_wall_is_not_asked(tmp_path, elsewhere, monkeypatch):
    clock, path = Clock(), tmp_path / "a"
    elsewhere()
    Leases(beat_seconds=1e9).take(path)
    observer = Leases(dead_seconds=20, clock=clock)
    observer.is_free(path)
    (file,) = tmp_path.glob("a.*")
    for seconds in (-1e6, 1e6):  # the clock of either machine jumps
        monkeypatch.setattr(time, "time", lambda seconds=seconds: 1.7e9 + seconds)
        os.utime(file, (1.7e9 + seconds, 1.7e9 + seconds))
        clock.now += 1
        assert not observer.is_free(path)


def test_where_all_were_stopped_together_the_holder_gets_its_turn(tmp_path, elsewhere):
    """A machine that slept for an hour: the first look after it is no proof."""
    clock, path = Clock(), tmp_path / "a"
    elsewhere()
    lease = Leases(beat_seconds=1e9).take(path)
    observer = Leases(dead_seconds=20, clock=clock)
    observer.is_free(path)
    clock.now += 3600
    assert not observer.is_free(path)
    lease.beat()
    clock.now += 1
    assert not observer.is_free(path)
    assert not any(look(observer, path, clock, 19))
    assert observer.is_free(path) is False  # asked again at the same moment


def test_a_process_of_this_machine_that_is_gone_is_seen_at_once(tmp_path):
    path = tmp_path / "a"
    with holding(path) as process:
        leases = Leases()
        assert leases.holder(path).pid == process.pid
        assert leases.take(path) is None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie, and stays one
        assert leases.take(path).held()


def test_a_number_of_a_process_that_another_one_has_is_no_sign_of_life(tmp_path):
    path = tmp_path / "a"
    leases = Leases(beat_seconds=1e9)
    lease = leases.take(path)
    assert not leases.is_free(path)
    text = lease.file.read_text()
    file = path.with_name("a.1.lease")
    file.write_text(text.replace(f'"started": {lease.holder.started}', '"started": 1'))
    assert leases.is_free(path)


def test_a_container_with_the_same_host_name_has_other_processes(tmp_path, elsewhere):
    elsewhere()
    lease = Leases(beat_seconds=1e9).take(tmp_path / "a")
    text = lease.file.read_text().replace(f'"pid": {os.getpid()}', '"pid": 999999999')
    lease.file.write_text(text)
    assert not Leases().is_free(tmp_path / "a")


def test_one_that_was_stopped_finds_out(tmp_path):
    """SIGSTOP, another takes over, SIGCONT."""
    path = tmp_path / "a"
    with holding(path) as process:
        print("?", file=process.stdin, flush=True)
        assert process.stdout.readline() == "True\n"
        observer = Leases(dead_seconds=0.4)
        for _ in range(20):  # it beats
            time.sleep(0.05)
            assert not observer.is_free(path)
        process.send_signal(signal.SIGSTOP)
        lease = None
        while lease is None:
            time.sleep(0.05)
            lease = observer.take(path)
        process.send_signal(signal.SIGCONT)
        print("?", file=process.stdin, flush=True)
        assert process.stdout.readline() == "False\n"
        assert lease.held()
        lease.release()


def test_a_folder_that_is_removed_takes_its_leases_with_it(tmp_path):
    folder = tmp_path / "snapshot"
    folder.mkdir()
    lease = Leases(beat_seconds=1e9).take(folder / "a")
    lease.file.unlink()
    folder.rmdir()
    assert not lease.beat()
    assert not lease.held()
    lease.release()
    assert not folder.exists()
    with pytest.raises(OSError):
        Leases().take(folder / "a")


def test_a_file_cut_short_is_of_somebody_until_it_is_silent(tmp_path):
    clock, path = Clock(), tmp_path / "a"
    path.with_name("a.1.lease").write_text("held 0000")
    observer = Leases(dead_seconds=20, clock=clock)
    assert observer.take(path) is None
    assert observer.holder(path) is None
    assert look(observer, path, clock, 25)[-1]
    assert observer.take(path).held()


def test_without_hard_links(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    lease = Leases().take(tmp_path / "a")
    assert lease.held()
    assert Leases().take(tmp_path / "a") is None
    assert [file.name for file in tmp_path.iterdir()] == ["a.1.lease"]


def test_an_answer_lost_by_nfs(tmp_path, monkeypatch):
    """The link was made, and the client is told that it was there."""
    real = os.link

    def lost(source, target) -> None:
        real(source, target)
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(os, "link", lost)
    assert Leases().take(tmp_path / "a").held()


def test_a_count_stays_as_long_as_it_was(tmp_path):
    lease = Leases(beat_seconds=1e9).take(tmp_path / "a")
    size = lease.file.stat().st_size
    for _ in range(12):
        lease.beat()
    first, rest = lease.file.read_text().split("\n", 1)
    assert first == "held 000000000012"
    assert json.loads(rest)["token"] == lease.holder.token
    assert lease.file.stat().st_size == size
