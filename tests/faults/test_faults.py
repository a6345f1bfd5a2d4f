"""The table of faults can say no; a few of its faults, in real processes. `python tests/faults` injects all of them."""

import json
import shutil
from collections import Counter

import pytest

from . import evaluators, searches
from .company import while_it_runs
from .fault import Broken
from .inject import CALLS, EVALUATOR_CALLS, RENAMES, SEARCH_CALLS, SEARCH_SPECIAL, SNAPSHOT_SPECIAL, SPECIAL
from .interruptions import killed
from .job import Ended, Job
from .table import every

MOMENTS = (CALLS, RENAMES, SPECIAL, SEARCH_CALLS, SEARCH_SPECIAL, EVALUATOR_CALLS, SNAPSHOT_SPECIAL)


def test_entries_are_told_apart_and_say_what_is_promised():
    faults = every()
    assert len(faults) >= 60
    names = Counter(map(str, faults))
    assert [name for name, number in names.items() if number > 1] == []
    assert all(fault.promised and fault.name and fault.moment for fault in faults)
    moments = Counter(at for each in MOMENTS for at in each)
    assert [at for at, number in moments.items() if number > 1] == []


@pytest.fixture
def finished(tmp_path):
    """A job whose runs are made up: the whole one and another that is the same."""
    job = Job(tmp_path / "job", tmp_path / "compiled")
    for run in (job.whole, job.folder / "run"):
        (run / "adapter").mkdir(parents=True)
        (run / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
        summary = {"status": "completed", "steps": 12, "tokens": 9, "total_tokens": 9, "train_loss": 1.5}
        (run / "summary.json").write_text(json.dumps(summary | {"eval_before": None, "eval_after": None}))
        (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5, "tokens": 4}\n{"step": 1, "eval_loss": 2.0}\n')
    return job


def test_a_run_that_is_the_same_is(finished):
    finished.same(finished.folder / "run")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("adapter/adapter_model.safetensors", "weights", "weightz"),
        ("summary.json", "completed", "preempted"),
        ("summary.json", "1.5", "1.6"),
        ("metrics.jsonl", "2.5", "2.6"),
        ("metrics.jsonl", '{"step": 1, "loss": 2.5, "tokens": 4}\n', ""),
        ("metrics.jsonl", '{"step": 1, "eval_loss": 2.0}\n', '{"step": 1, "eval_loss": 2.0}\n' * 2),
    ],
)
def test_a_run_that_is_another_is_not_held_for_the_same(name, old, new, finished):
    file = finished.folder / "run" / name
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(Broken):
        finished.same(finished.folder / "run")


def test_what_is_left_behind_or_missing_is_noticed(finished):
    run = finished.folder / "run"
    (run / "config.yaml.tmp").touch()
    with pytest.raises(Broken, match=r"left behind: \['config.yaml.tmp'\]"):
        finished.same(run)
    shutil.rmtree(run / "adapter")
    with pytest.raises(Broken, match="there is no adapter"):
        finished.same(run)


def test_a_refusal_is_a_message_with_code_2(finished):
    assert finished.refused(Ended(2, "", "error: no room\n  fix: make some", 0), "no room").said == "error: no room"
    for ended in (
        Ended(0, "", "error: no room", 0),
        Ended(1, "", "error: no room", 0),
        Ended(2, "", "error: another", 0),
        Ended(2, "", "Traceback (most recent call last)\nerror: no room", 0),
    ):
        with pytest.raises(Broken):
            finished.refused(ended, "no room")


# ---- real processes


@pytest.fixture(scope="module")
def job(compiled_dir, tmp_path_factory):
    job = Job(tmp_path_factory.mktemp("faults") / "job", compiled_dir)
    job.make()
    return job


@pytest.mark.slow
def test_killed_amid_a_checkpoint(job):
    assert killed("half of a checkpoint's arrays written", job).equal


@pytest.mark.slow
def test_a_search_killed_amid_a_trial(job):
    assert searches.killed("amid a trial", job).equal


@pytest.mark.slow
def test_an_evaluator_killed(job):
    assert evaluators.killed("a snapshot being read", "SIGKILL", job).equal


@pytest.mark.slow
def test_another_process_while_one_runs(job):
    outcome = while_it_runs(("--resume",), "another process is writing there", job)
    assert outcome.equal
