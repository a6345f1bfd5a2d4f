import json
import queue
import socket
import threading
import time

import pytest

from jaxlean.run import watch
from jaxlean.run.watch import Line, Meeting, connect


class End:
    """One end of a line, with what it heard."""

    def __init__(self, peers, hosts):
        self.heard, self.lost = queue.Queue(), queue.Queue()
        self.line = Line(peers, hosts, lambda *found: self.heard.put(found), lambda *found: self.lost.put(found))
        self.line.start()


@pytest.fixture
def star(monkeypatch):
    """`star(3)`: the ends of three processes."""
    monkeypatch.setattr(watch, "BEAT_SECONDS", 0.05)
    ends = []

    def make(num):
        meeting = Meeting()
        found = {}

        def come(index):
            found[index] = connect("127.0.0.1", meeting.ticket, index, 5)

        threads = [threading.Thread(target=come, args=(index,)) for index in range(1, num)]
        for thread in threads:
            thread.start()
        first = meeting.wait(num, 5)
        for thread in threads:
            thread.join()
        ends.extend(End(*pair) for pair in (first, *(found[index] for index in range(1, num))))
        return ends

    yield make
    for end in ends:
        end.line.close()


def test_words_arrive_whole_and_in_order(star):
    first, second, third = star(3)
    long = "x" * 200_000
    second.line.say({"kind": "one", "text": long})
    second.line.say({"kind": "two"})
    assert first.heard.get(timeout=5) == (1, {"kind": "one", "text": long})
    assert first.heard.get(timeout=5) == (1, {"kind": "two"})
    first.line.say({"kind": "all"})
    assert second.heard.get(timeout=5) == third.heard.get(timeout=5) == (0, {"kind": "all"})
    first.line.say({"kind": "you"}, to=2)
    assert third.heard.get(timeout=5) == (0, {"kind": "you"})
    assert second.heard.empty()


def test_a_closed_connection_is_a_dead_process(star):
    first, second, third = star(3)
    assert first.line.hosts == {1: socket.gethostname(), 2: socket.gethostname()}
    second.line.close()
    assert first.lost.get(timeout=5) == (1, socket.gethostname(), "its connection is closed")
    time.sleep(0.3)
    assert first.lost.empty()
    assert third.lost.empty()
    assert second.lost.empty()


def test_after_a_goodbye_it_is_not(star):
    first, second = star(2)
    first.line.part(1)
    second.line.close()
    assert first.line.all_parted(within=5)
    time.sleep(0.2)
    assert first.lost.empty()


def test_silence_is_a_dead_process_and_signs_of_life_are_none(star, monkeypatch):
    monkeypatch.setattr(watch, "SILENT_SECONDS", 0.6)
    first, second = star(2)
    time.sleep(1.2)
    assert first.lost.empty()
    # a machine without power closes nothing
    monkeypatch.setattr(second.line, "say", lambda message: None)
    assert first.lost.get(timeout=5) == (1, socket.gethostname(), "no sign of life for 1 seconds")


def test_a_signal_handler_wakes_the_thread(star):
    (first, _), done = star(2), threading.Event()
    first.line.wake(done.set)
    assert done.wait(5)


def test_strangers_are_not_let_in_and_who_is_missing_is_named():
    meeting, found = Meeting(), []
    port, _ = meeting.ticket.split()

    def stranger():
        with socket.create_connection(("127.0.0.1", int(port))) as connection:
            connection.sendall(json.dumps({"token": "guess", "process": 1, "host": "x"}).encode() + b"\n")
            found.append(connection.recv(10))

    def known():
        peers, _ = connect("127.0.0.1", meeting.ticket, 2, 5)
        peers[0].close()

    threads = [threading.Thread(target=stranger), threading.Thread(target=known)]
    for thread in threads:
        thread.start()
    with pytest.raises(TimeoutError, match=r"no connection from process 1$"):
        meeting.wait(3, 1.0)
    for thread in threads:
        thread.join()
    assert found == [b""]
