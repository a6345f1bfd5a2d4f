"""A worker that crashes, hangs or talks nonsense is a row of its target; the other targets are planned all the same.

The workers are stand-ins: `sys.executable` is a script that does what its target's name says.
"""

import json
import os
import sys
import threading
import time

import pytest

from jaxlean.plan.candidate import Candidate
from jaxlean.plan.search import Row
from jaxlean.plan.workers import Job, run

SLOW = Candidate((1, 1, 1, 1, 1), 8, 1, "bfloat16", "none", "full")
FAST = Candidate((1, 1, 1, 1, 1), 8, 1, "bfloat16", "none", ("query", "gate"))

SCRIPT = r"""#!PYTHON -IS
import json, os, signal, sys, time
assert sys.argv[1:] == ["-m", "jaxlean.plan.worker"]

def say(**line):
    print(json.dumps(line), flush=True)

def plan(candidate):
    say(starting=candidate)
    if candidate["remat"] != "full" and way in ("crash", "hang", "garbage", "exit"):
        {"crash": crash, "hang": lambda: time.sleep(60), "garbage": lambda: print("[not a finding", flush=True),
         "exit": lambda: sys.exit("Traceback ...\n  \nKeyError: 'why'\n\n")}[way]()
        time.sleep(60)
    say(row=row | {"candidate": candidate, "status": "fits"})

def crash():
    os.kill(os.getpid(), signal.SIGSEGV)

job = json.loads(sys.stdin.readline())
row, slow, fast, log = job["config"]["row"], job["config"]["slow"], job["config"]["fast"], job["config"]["log"]
way = job["target"]
row = row | {"target": way}
with open(log, "a") as file:
    told = [job["target"], job["skip"], job["most"], job["length"], job["hardware"], os.getpid(),
            os.environ["XLA_FLAGS"], os.environ["JAX_PLATFORMS"]]
    file.write(json.dumps(told) + "\n")
if way == "dead":
    crash()
if way == "stubborn":
    say(starting=slow)
    crash()
if way == "silent":
    sys.exit(0)
if way == "later":
    say(row=row | {"candidate": slow, "status": "fits"})
    crash()
if way == "wait":
    say(starting=slow)
    time.sleep(60)
plan(slow)
if job["config"]["name of fast"] not in job["skip"]:
    plan(fast)
say(done=True)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    script, log = tmp_path / "python", tmp_path / "log"
    script.write_text(SCRIPT.replace("PYTHON", sys.executable))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))

    def job(target, **more):
        config = {
            "row": Row(target, "fits", None, 1e9, 2 * 10**9, 0.5).as_dict(),
            "slow": SLOW.as_dict(), "fast": FAST.as_dict(), "name of fast": str(FAST), "log": str(log),
        }  # fmt: skip
        return Job(target, config, 64, "table.yaml", 4, **more)

    job.calls = lambda: [json.loads(line) for line in log.read_text().splitlines()]
    return job


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def told(rows, target):
    return [(row.status, row.candidate, row.note) for row in rows if row.target == target]


def test_what_workers_are_told_and_say(stand_in, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a")
    watched = []
    jobs = [stand_in("one"), stand_in("two", host_devices=4)]
    rows = list(run(jobs, parallel=2, limit_seconds=30, watch=lambda *what: watched.append(what)))
    for target in ("one", "two"):
        assert told(rows, target) == [("fits", SLOW, ""), ("fits", FAST, "")]
        assert [what for name, what in watched if name == target] == [
            "reading the job", "compiling one device, 8 rows", "compiling one device, 8 rows", "done",
        ]  # fmt: skip
    row = rows[0]
    assert (row.memory, row.capacity, row.step_seconds) == (1e9, 2 * 10**9, 0.5)
    calls = {call[0]: call for call in stand_in.calls()}
    assert calls["one"][1:5] == [[], 4, 64, "table.yaml"]
    assert calls["one"][6:] == ["--a", "cpu"], "a worker looks for no hardware"
    assert calls["two"][6] == "--a --xla_force_host_platform_device_count=4"


def test_rows_of_several_configs_say_whose_they_are(stand_in):
    jobs = [stand_in("dead", variant="a"), stand_in("later", variant="b"), stand_in("one", variant="c")]
    rows = list(run(jobs, parallel=2, limit_seconds=30))
    assert {(row.target, row.variant) for row in rows} == {("dead", "a"), ("later", "b"), ("one", "c")}


def test_a_compiler_that_crashes_is_a_row_and_the_plan_goes_on_without_the_candidate(stand_in):
    rows = list(run([stand_in("crash"), stand_in("fine")], parallel=1, limit_seconds=30))
    assert told(rows, "fine") == [("fits", SLOW, ""), ("fits", FAST, "")]
    assert told(rows, "crash") == [
        ("fits", SLOW, ""),
        ("failed", FAST, "the compiler's process ended (signal SIGSEGV): "),
    ], "the second process finds the first row again, which is told once"
    assert [call[1] for call in stand_in.calls() if call[0] == "crash"] == [[], [str(FAST)]]


def test_one_that_ends_by_itself_has_the_last_line_that_it_wrote(stand_in):
    rows = list(run([stand_in("exit")], parallel=1, limit_seconds=30))
    assert told(rows, "exit")[1] == ("failed", FAST, "the compiler's process ended (exit code 1): KeyError: 'why'")


def test_one_that_hangs_is_ended_after_its_limit(stand_in):
    start = time.monotonic()
    rows = list(run([stand_in("hang"), stand_in("fine")], parallel=2, limit_seconds=5))
    assert time.monotonic() - start < 50, "the worker sleeps for 60 s"
    assert told(rows, "fine") == [("fits", SLOW, ""), ("fits", FAST, "")]
    assert told(rows, "hang") == [("fits", SLOW, ""), ("failed", FAST, "nothing was heard of the compiler for 5 s")]
    assert not any(alive(call[5]) for call in stand_in.calls())


def test_one_that_talks_nonsense(stand_in):
    rows = list(run([stand_in("garbage")], parallel=1, limit_seconds=30))
    why = "the compiler's process said what is no finding: '[not a finding'"
    assert told(rows, "garbage") == [("fits", SLOW, ""), ("failed", FAST, why)]


@pytest.mark.parametrize(
    ("way", "before", "how"),
    [
        ("dead", [], "signal SIGSEGV"),
        ("silent", [], "exit code 0"),
        ("later", [("fits", SLOW, "")], "signal SIGSEGV"),
    ],
)
def test_one_that_ends_outside_of_a_compilation_is_not_tried_again(stand_in, way, before, how):
    rows = list(run([stand_in(way), stand_in("fine")], parallel=2, limit_seconds=30))
    assert told(rows, way) == [*before, ("failed", None, f"the compiler's process ended ({how}): ")]
    assert [call[0] for call in stand_in.calls()].count(way) == 1
    assert len(told(rows, "fine")) == 2


def test_a_compiler_that_fails_on_everything_is_left_alone(stand_in):
    rows = list(run([stand_in("stubborn")], parallel=1, limit_seconds=30))
    assert {row.status for row in rows} == {"failed"}
    assert len(rows) == len(stand_in.calls()) == 3


def test_a_python_that_does_not_start_is_a_row_too(stand_in, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/python")
    rows = list(run([stand_in("one")], parallel=1, limit_seconds=30))
    ((status, candidate, note),) = told(rows, "one")
    assert (status, candidate) == ("failed", None)
    assert "/no/python" in note


def test_who_has_had_enough_leaves_no_process(stand_in):
    """Ctrl-C raises where the rows are read."""
    jobs = [stand_in("fine"), *(stand_in("wait") for _ in range(3))]
    rows = run(jobs, parallel=3, limit_seconds=30)
    assert next(rows).target == "fine"
    start = time.monotonic()
    while [call[0] for call in stand_in.calls()].count("wait") < 2:
        assert time.monotonic() - start < 60
        time.sleep(0.01)
    with pytest.raises(KeyboardInterrupt):
        rows.throw(KeyboardInterrupt)
    while any(alive(call[5]) for call in stand_in.calls()):
        assert time.monotonic() - start < 60
        time.sleep(0.01)
    deadline = time.monotonic() + 60
    while threading.active_count() > 1 and any("(work)" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(stand_in.calls()) <= 4, "nothing was started again"
