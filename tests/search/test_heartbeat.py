"""Signs of life: at once, again and again, and no more for what is left."""

import threading

from jaxlean.search.heartbeat import Heartbeat


def test_it_beats_for_each_until_it_is_left():
    beats, enough = [], threading.Event()

    def beat(number):
        beats.append(number)
        if beats.count(2) == 3:
            enough.set()

    heart = Heartbeat(beat, 0.01)
    heart.add(1)
    assert beats[0] == 1, "at once"
    heart.leave(1)
    heart.add(2)
    assert enough.wait(10)
    heart.close()
    heart._thread.join()
    assert beats.count(1) <= 2
    seen = len(beats)
    assert not heart._over.wait(0) or len(beats) == seen


def test_a_database_that_is_away_for_a_while_does_not_end_it():
    tried = []
    back = threading.Event()

    def beat(number):
        tried.append(number)
        if 1 < len(tried) < 4:
            raise OSError("away")
        if len(tried) >= 4:
            back.set()

    heart = Heartbeat(beat, 0.01)
    heart.add(7)
    assert back.wait(10)
    heart.close()
