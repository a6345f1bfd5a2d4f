"""The study: rungs, who may go on, when it ends, and what becomes of trials whose worker is gone."""

import math
import subprocess
import sys
import textwrap
import time

import pytest

from jaxlean.config import SearchSection, build
from jaxlean.errors import ConfigError, RunError
from jaxlean.search import study as module
from jaxlean.search.study import Study, rungs

SPACE = {"train.learning_rate": {"log": [1e-5, 1e-1]}}


@pytest.fixture
def open_study(tmp_path):
    """`open_study(num_trials=3)`: a worker's view of the study in `tmp_path`."""
    workers = []

    def opened(num_steps=81, **settings):
        config = build({"search": {"space": SPACE, "startup_trials": 2, **settings}})
        workers.append(Study(config, tmp_path, num_steps))
        return workers[-1]

    yield opened
    for worker in workers:
        worker.close()


@pytest.mark.parametrize(
    ("settings", "num_steps", "want"),
    [
        ({}, 81, [9, 27, 81]),
        ({}, 100, [11, 33, 99, 100]),
        ({"min_steps": 10, "reduction_factor": 2}, 45, [10, 20, 40, 45]),
        ({"min_steps": 90}, 81, [81]),
        ({"pruner": "none"}, 81, [81]),
        ({"objectives": ["loss", "usd"]}, 81, [81]),
        ({}, 3, [1, 3]),
        ({}, 1, [1]),
    ],
)
def test_rungs(settings, num_steps, want):
    assert rungs(SearchSection(**settings), num_steps) == want


def play(study, quality, most=1000):
    """Run trials whose quality at a rung is `quality(learning rate, step)`; the steps taken."""
    taken = 0
    for _ in range(most):
        trial = study.ask()
        if trial is None:
            break
        rate = trial.params["train.learning_rate"]
        for step in study.rungs[:-1]:
            if not study.report(trial, step, quality(rate, step)):
                study.finish(trial, None, steps=step)
                break
        else:
            step = study.rungs[-1]
            study.finish(trial, [quality(rate, step)], steps=step)
        taken += step
    return taken


def loss(rate, step):
    """Best at 1e-3, and known early."""
    return abs(math.log10(rate) + 3) + 1 / step


@pytest.mark.parametrize("pruner", ["hyperband", "asha", "median"])
def test_losers_are_given_up_and_the_best_is_found(open_study, pruner):
    study = open_study(num_trials=30, pruner=pruner)
    taken = play(study, loss)
    assert len(study.trials) == 30
    assert study.ask() is None
    assert study.reason_to_end() == "30 trials"
    assert taken < 0.6 * 30 * 81
    states = [trial.state.name for trial in study.trials]
    assert states.count("PRUNED") >= 10
    (best,) = study.best()
    assert best.values[0] == min(t.values[0] for t in study.trials if t.values and t.state.name == "COMPLETE")
    assert loss(best.params["train.learning_rate"], 81) < 0.5


def test_the_best_of_what_is_to_be_large(open_study):
    study = open_study(num_trials=4, objectives=["accuracy"], pruner="none")
    play(study, lambda rate, step: rate)
    assert study.best()[0].values[0] == max(t.values[0] for t in study.trials)


def test_of_several_objectives_the_front(open_study):
    study = open_study(num_trials=12, objectives=["loss", "usd"])
    assert study.rungs == [81]
    for _ in range(12):
        trial = study.ask()
        rate = trial.params["train.learning_rate"]
        study.finish(trial, [rate, 1 / rate if trial.number != 3 else 1e9])
    front = study.best()
    assert len(front) == 11
    assert 3 not in [trial.number for trial in front]


def test_a_value_that_is_no_number_is_no_result(open_study):
    study = open_study(num_trials=2, pruner="none")
    trial = study.ask()
    study.finish(trial, [math.nan])
    assert study.trials[0].state.name == "PRUNED"
    assert study.best() == []


def test_money_ends_it(open_study):
    study = open_study(num_trials=10, max_usd=1.0)
    study.finish(study.ask(), [0.5], usd=0.7)
    assert study.reason_to_end() is None
    study.finish(study.ask(), [0.4], usd=0.4)
    assert study.ask() is None
    assert study.reason_to_end() == "search.max_usd=$1 is spent ($1.1000)"


def test_what_cannot_be_started_does_not_count_but_has_an_end(open_study):
    study = open_study(num_trials=2)
    for _ in range(21):
        study.refuse(study.ask(), "does not fit: a step takes 90 GB of 80 GB")
    with pytest.raises(RunError, match="21 refused, 0 started; the last: does not fit"):
        study.ask()


def test_several_workers_start_no_more_trials_than_one(open_study):
    first, second = open_study(num_trials=3), open_study(num_trials=3)
    asked = [worker.ask() for worker in (first, second, first, second, first)]
    assert [trial is not None for trial in asked] == [True, True, True, False, False]
    assert len({trial.params["train.learning_rate"] for trial in asked[:3]}) == 3


def test_trials_of_a_dead_worker_are_tried_again(open_study, tmp_path):
    code = f"""
        import os
        from pathlib import Path
        from jaxlean.config import build
        from jaxlean.search.study import Study
        config = build({{"search": {{"space": {SPACE!r}, "num_trials": 3}}}})
        print(Study(config, Path({str(tmp_path)!r}), 81).ask().params["train.learning_rate"], flush=True)
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    lost = float(done.stdout)
    study = open_study(num_trials=3)
    trial = study.ask()
    assert trial.params["train.learning_rate"] == lost
    assert trial.user_attrs["again"] == 0
    assert study.trials[0].state.name == "FAIL"
    living = open_study(num_trials=3)
    assert living.ask().params["train.learning_rate"] != lost, "a worker that lives keeps its own"


def test_a_trial_that_nobody_signed_is_tried_again_once_nobody_is_at_work(open_study):
    first = open_study(num_trials=5)
    lost = first._study.ask(first._distributions)  # as if killed before the next line
    second = open_study(num_trials=5)
    assert second.ask().params != lost.params, "it may be the first one's"
    first.close()
    assert second.ask().params == lost.params


def test_who_wakes_up_finds_its_trial_taken_over_and_drops_it(open_study):
    first = open_study(num_trials=3)
    trial = first.ask()
    other = open_study(num_trials=3)
    other._again(other.trials[0], lost=True)  # as where the first one has been silent for long
    assert not first.report(trial, 9, 0.1)
    first.note(trial, usd=1.0)
    first.finish(trial, [0.1], steps=81)
    (dropped, *_) = other.trials
    assert (dropped.state.name, dropped.values, dropped.intermediate_values) == ("FAIL", None, {})
    again = first.ask()
    assert again.params == trial.params
    first.finish(again, [0.2])
    assert other.best()[0].values == [0.2]


def test_what_the_first_keeps_the_others_read(open_study):
    first, second = open_study(), open_study()
    assert first.keep("made of", {"data.train": "a"}) == {"data.train": "a"}
    assert second.keep("made of", {"data.train": "b"}) == {"data.train": "a"}
    # two that come at once have both seen none
    second._study.set_user_attr(f"made of {second.worker}", {"data.train": "b"})
    assert [worker.keep("made of", {}) for worker in (first, second)] == [{"data.train": "a"}] * 2


def test_what_is_given_back_is_tried_by_the_next(open_study):
    study = open_study(num_trials=3)
    trial = study.ask()
    study.leave([(trial, {"usd": 0.5})])
    assert study.ask().params == trial.params
    assert [t.user_attrs.get("usd") for t in study.trials] == [0.5, None], "what it has cost stays with it"


def test_what_kills_its_workers_is_given_up(open_study):
    study = open_study(num_trials=2, max_usd=1.0)
    trial = study.ask()
    params = trial.params
    for _ in range(2):
        study.leave([(trial, {"usd": 0.1})], lost=True)
        trial = study.ask()
        assert trial.params == params
    study.leave([(trial, {"usd": 0.1})])  # told to end: that is not its fault
    trial = study.ask()
    assert trial.params == params
    study.leave([(trial, {"usd": 0.1})], lost=True)
    assert study.ask().params != params
    study.note_setup(0.5)
    assert study.too_dear() is None
    study.note_setup(0.6)
    assert study.too_dear() == "search.max_usd=$1 is spent ($1.0000)"


def test_a_space_that_only_kills_has_an_end(open_study):
    study = open_study(num_trials=2)
    with pytest.raises(RunError, match=r"21 refused, 0 started; the last: its process died, 3 times"):
        for _ in range(100):
            study.leave([(study.ask(), {})], lost=True)


def test_a_database_is_a_storage_too(open_study, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_DB", f"sqlite:///{tmp_path}/study.db")
    study = open_study(num_trials=2, storage="${STUDY_DB}")
    trial = study.ask()
    study.finish(trial, [0.5])
    assert len(open_study(num_trials=2, storage="${STUDY_DB}").trials) == 1
    assert not (tmp_path / "study.journal").exists()


ONE_THAT_DIES = """
    import os
    from pathlib import Path
    from jaxlean.config import build
    from jaxlean.search.study import Study
    settings = {{"space": {space!r}, "num_trials": 3, "storage": "sqlite:///{folder}/study.db"}}
    study = Study(build({{"search": settings}}), Path("{folder}"), 81)
    if {unsigned}:
        study._study.ask(study._distributions)
    else:
        study.note(study.ask(), usd=0.25)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("unsigned", [False, True])
def test_trials_of_a_dead_worker_of_a_database_are_tried_again(open_study, tmp_path, monkeypatch, unsigned):
    code = textwrap.dedent(ONE_THAT_DIES.format(space=SPACE, folder=tmp_path, unsigned=unsigned))
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    study = open_study(num_trials=3, storage=f"sqlite:///{tmp_path}/study.db")
    (lost,) = study.trials
    trial = study.ask()
    if unsigned:  # it may be somebody's, until nobody has signed it for long
        assert trial.params != lost.params
        monkeypatch.setattr(module, "_DEAD_SECONDS", -1)
        trial = study.ask()
    assert trial.params == lost.params
    assert trial.user_attrs["again"] == 0
    assert study.trials[0].state.name == "FAIL"
    assert study.trials[0].user_attrs.get("usd") == (None if unsigned else 0.25)
    assert "usd" not in trial.user_attrs, "paid once"


def test_workers_of_a_database_draw_different_trials(open_study, tmp_path):
    """It gives names back by the alphabet, not in the order in which they came."""
    workers = [open_study(num_trials=30, storage=f"sqlite:///{tmp_path}/study.db") for _ in range(6)]
    rates = [worker.ask().params["train.learning_rate"] for worker in workers]
    assert len(set(rates)) == 6


def test_a_trial_that_is_compiled_or_measured_for_long_gives_signs_of_life(open_study, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BEAT_SECONDS", 0.05)
    study = open_study(num_trials=3, storage=f"sqlite:///{tmp_path}/study.db")
    beats, beat = [], study._beat
    study._heartbeat = module.Heartbeat(lambda trial_id: (beats.append(trial_id), beat(trial_id)), 0.05)
    trial = study.ask()
    time.sleep(0.5)
    assert len(beats) >= 3
    study.finish(trial, [0.5])
    time.sleep(0.1)
    seen = len(beats)
    time.sleep(0.3)
    assert len(beats) == seen


def test_a_worker_elsewhere_that_is_silent_for_long_loses_its_trial(open_study, tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/study.db"
    first = open_study(num_trials=3, storage=url)
    trial = first.ask()
    first._heartbeat.close()
    second = open_study(num_trials=3, storage=url)
    storage = second._study._storage._backend if hasattr(second._study._storage, "_backend") else second._study._storage
    own = second.ask()
    assert own.params != trial.params
    monkeypatch.setattr(storage, "grace_period", 1)
    time.sleep(2.5)
    second._heartbeat.add(own._trial_id)
    again = second.ask()
    assert again.params == trial.params
    assert (again.user_attrs["again"], again.user_attrs["lost"]) == (0, 1)


def test_a_database_that_cannot_be_reached_is_said_without_its_password(open_study, monkeypatch):
    with pytest.raises(ConfigError, match="NO_SUCH_DB is not set in the environment"):
        open_study(storage="${NO_SUCH_DB}")
    monkeypatch.setenv("DB", "sqlite:////no/such/folder/x.db")
    with pytest.raises(RunError, match="the study cannot be read or written"):
        open_study(storage="${DB}")
    monkeypatch.setenv("DB", "mysql+pymysql://me:topsecret@127.0.0.1:1/study")
    with pytest.raises((RunError, ConfigError)) as error:
        open_study(storage="${DB}")
    assert "topsecret" not in str(error.value)
    with pytest.raises(ConfigError, match=r"storage holds a password in a URL.*\$\{PASSWORD\}"):
        open_study(storage="mysql+pymysql://me:another@127.0.0.1:1/study")


def test_a_study_of_other_objectives_is_refused(open_study):
    open_study()
    with pytest.raises((RunError, ValueError)):
        open_study(objectives=["accuracy"])
