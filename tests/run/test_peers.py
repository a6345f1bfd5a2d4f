"""Several processes as threads of this one; with real processes: test_finetune_processes.py."""

import random
import socket
import threading
import time

import pytest

from jaxlean.config import DistributedSection
from jaxlean.errors import EXIT_FAILED, EXIT_PEER_LOST, EXIT_PREEMPTED, EXIT_USER_ERROR, Preempted, RunError
from jaxlean.run import peers as module
from jaxlean.run import watch
from jaxlean.run.peers import Peers, join
from jaxlean.xla.distributed import Standing


class Store:
    """jax's key-value store."""

    def __init__(self):
        self._values, self._changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self._changed:
            assert self._changed.wait_for(lambda: key in self._values, milliseconds / 1000)
            return self._values[key]


class Left(BaseException):
    """A process ended here."""


@pytest.fixture
def ends(monkeypatch) -> dict[threading.Thread, int]:
    """The exit codes of processes that were ended for another's sake, by the thread of their line."""
    codes: dict[threading.Thread, int] = {}

    monkeypatch.setattr(module, "_leave", lambda code: codes.setdefault(threading.current_thread(), code))
    monkeypatch.setattr(module.atexit, "register", lambda *arguments: None)
    monkeypatch.setattr(module, "_GRACE_SECONDS", 0.3)
    monkeypatch.setattr(watch, "BEAT_SECONDS", 0.05)
    return codes


def ends_of(peers, ends):
    """Hang as in a collective, until this process is ended."""
    until = time.monotonic() + 10
    while peers._line._thread not in ends:
        assert time.monotonic() < until
        time.sleep(0.01)
    # where a real process is no more
    peers._over.set()
    peers._line.close()
    raise Left(ends[peers._line._thread])


def together(num, act):
    """`act(peers)` in each of so many processes; their results, or what they raised."""
    store, results = Store(), [None] * num

    def run(index):
        try:
            with Peers(Standing(index, num, "127.0.0.1", store)) as peers:
                results[index] = act(peers)
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    return results


def test_alone_everything_is_nothing(capsys):
    with join(DistributedSection(enabled=False)) as peers:
        assert (peers.index, peers.num, peers.is_first) == (0, 1, True)
        assert peers.num_hosts == 1
        assert peers.first(lambda: 3) == peers.share(3) == 3
        peers.barrier()
        assert not peers.stop_before(10**9)
        assert peers.gather({"a": 1}) == {"a": 1}
        peers.console().print("heard")
    assert capsys.readouterr().out == "heard\n"
    assert not [thread for thread in threading.enumerate() if thread.name == "watch"]


def test_the_first_acts_and_all_get_what_came_of_it(ends, capsys):
    acted = []

    def act(peers):
        peers.console().print(f"process {peers.index}")
        found = [peers.first(lambda: acted.append(peers.index) or {"step": 7}) for _ in range(3)]
        peers.barrier()
        return found

    assert together(3, act) == [[{"step": 7}] * 3] * 3
    assert acted == [0, 0, 0]
    assert capsys.readouterr().out == "process 0\n"
    assert not ends


def test_a_barrier_waits_for_the_last(ends):
    here = []

    def act(peers):
        time.sleep(0.2 * peers.index)
        here.append(peers.index)
        peers.barrier()
        return len(here)

    assert together(3, act) == [3, 3, 3]


@pytest.mark.parametrize("askers", [(0,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_all_stop_at_the_same_step(ends, askers, seed):
    draw, steps = random.Random(seed), threading.Barrier(3)

    def act(peers):
        own, done = random.Random(draw.random()), 0
        while not peers.stop_before(done):
            assert done < 1000
            time.sleep(own.random() * 0.01)
            done += 1
            if done % 3 == 0:  # as a collective: none gets further ahead
                steps.wait(timeout=10)
            if done == 10 and peers.index in askers:
                peers.ask_to_stop()
        return done

    first, *others = together(3, act)
    assert isinstance(first, int), first
    assert others == [first] * 2
    assert 10 <= first < 20


def test_an_error_of_one_is_told_in_its_words(ends, capsys):
    def act(peers):
        if peers.index == 1:
            raise RunError("no disk space", where="/data")
        ends_of(peers, ends)

    found = together(3, act)
    assert isinstance(found[1], RunError)
    assert [found[i].args for i in (0, 2)] == [(EXIT_USER_ERROR,)] * 2
    told = capsys.readouterr().err
    sentence = f"error: process 1 of 3, on {socket.gethostname()}, ended: no disk space\n  where:  /data\n"
    assert told == sentence * 2


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RunError("wrong"), EXIT_USER_ERROR, "ended: wrong"),
        (Preempted("SIGTERM"), EXIT_PREEMPTED, "was told to leave (SIGTERM); start all processes again with --resume"),
        (KeyError("x"), EXIT_FAILED, "failed: KeyError: 'x'"),
    ],
)
def test_the_exit_code_says_what_to_do(ends, capsys, error, code, words):
    def act(peers):
        if peers.index == 0:
            raise error
        ends_of(peers, ends)

    raised, other = together(2, act)
    assert raised is error
    assert isinstance(other, Left)
    assert other.args == (code,)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("dead", [0, 1])
def test_a_process_that_is_gone_ends_the_others_with_a_sentence(ends, capsys, dead):
    written = []

    def act(peers):
        peers.saved = 40
        peers.leaving = lambda: written.append(peers.index)
        peers.barrier()
        if peers.index == dead:
            peers._line.close()  # as the system does for a killed process
            peers._over.set()
            raise Left
        ends_of(peers, ends)

    results = together(3, act)
    assert {result.args for index, result in enumerate(results) if index != dead} == {(EXIT_PEER_LOST,)}
    assert sorted(written) == [index for index in range(3) if index != dead]
    told = capsys.readouterr().err
    assert f"error: process {dead} of 3, on {socket.gethostname()}, is gone (its connection is closed)" in told
    assert "start all processes again with --resume; the last checkpoint is that of step 40" in told


def test_an_agreed_stop_is_no_alarm(ends):
    def act(peers):
        preempted = Preempted("SIGTERM")
        preempted.together = True
        raise preempted

    assert all(isinstance(found, Preempted) for found in together(2, act))
    assert not ends
