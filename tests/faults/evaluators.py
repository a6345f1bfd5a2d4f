"""Processes that score a run's snapshots while it goes on (`eval.mode: async`): killed, stopped, handed damage."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .fault import Fault, Outcome, hold
from .inject import EVALUATOR_CALLS
from .job import SECONDS, Job, Running, lives

SYNC = "the run ends in the same bytes, and its scores are those of eval.mode: sync"
HANDED_AT = 6  # eval.eval_steps of the job
WATCHED = ("eval.mode=async", "eval.evaluators=0")
# A run that goes wrong after its first evaluation, with a checkpoint at each.
BEST = (
    "eval.load_best=true", f"train.save_steps={HANDED_AT}", "train.learning_rate=30",
    "train.lr_scheduler_type=constant", "train.warmup_steps=12",
)  # fmt: skip


def wait(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        hold(time.monotonic() < end, f"{what}: it never came")
        time.sleep(0.02)


def training(job: Job, *arguments: object) -> tuple[Path, Running]:
    """A run that has handed a snapshot over and waits before its last step."""
    run = job.new()
    run.mkdir()
    running = job.start("finetune", run, *(arguments or WATCHED), plan={"at": "the last step", "do": "tell"})
    running.until_acted()
    wait((run / "snapshots" / str(HANDED_AT) / "complete.json").exists, "the snapshot")
    return run, running


def score(run: Path, step: int = HANDED_AT) -> Path:
    return run / "evaluations" / f"{step}.json"


def watching(job: Job, run: Path, **how: object) -> Running:
    return job.start("evaluate", None, "--watch", run, **how)  # type: ignore[arg-type]


def ended(job: Job, run: Path, running: Running, *evaluators: Running, without: int | None = None) -> Outcome:
    """Training goes on to its end, and so do those who watch it."""
    running.go()
    came = running.end()
    hold(came.code == 0, f"training failed: {came.err[-2000:]}")
    for evaluator in evaluators:
        left = evaluator.end()
        hold(left.code == 0, f"an evaluator failed: {left.err[-2000:]}")
    job.same(run, without=without)
    return Outcome(0, True, came.said)


def killed(moment: str, signals: str, job: Job) -> Outcome:
    """One that watches; another one begins after it."""
    run, running = training(job)
    left = watching(job, run, plan={"at": moment, "do": signals}).end()
    hold(left.code != 0 or signals == "SIGTERM", f"it was to end: {left.code}: {left.err[-2000:]}")
    hold("Traceback" not in left.err, left.err[-2000:])
    hold(not score(run).exists() or signals == "SIGTERM", "it had a score already")
    other = watching(job, run)
    wait(score(run).exists, "the score of the other evaluator")
    return ended(job, run, running, other)


def stopped(job: Job) -> Outcome:
    """Held for dead, its snapshot is scored by another one; what it finds when it wakes is dropped."""
    run, running = training(job)
    first = watching(job, run, plan={"at": "a snapshot being read", "do": "SIGSTOP"})
    first.until_stopped()
    second = watching(job, run)
    wait(score(run).exists, "the score of the other evaluator")
    first.process.send_signal(signal.SIGCONT)
    time.sleep(5.0)  # it finds out
    outcome = ended(job, run, running, second)
    woken = first.end()
    hold(woken.code == 0, f"the one that was stopped failed: {woken.err[-2000:]}")
    hold("the score is dropped" in woken.out or f"step {HANDED_AT}" not in woken.out, f"it scored: {woken.out}")
    return outcome


def own(run: Path) -> list[int]:
    """Processes that training started."""
    names = [file.name for file in (run / "snapshots").glob("evaluator-*.lease")]
    return [int(name.split(".")[-3].rpartition("-")[2]) for name in names]


def own_one(number: int, job: Job) -> Outcome:
    """The evaluator that training started gets a signal; training replaces it."""
    run, running = training(job, "eval.mode=async", "eval.evaluators=1", "eval.nice=0")
    wait(lambda: own(run), "the evaluator")
    (pid,) = own(run)
    os.kill(pid, number)
    wait(lambda: [one for one in own(run) if one != pid], "another evaluator")
    wait(score(run).exists, "its score")
    outcome = ended(job, run, running)
    restarted = json.loads((run / "summary.json").read_text())["evaluations"]["restarted"]
    hold(restarted == 1, f"started again {restarted} times")
    return outcome


def two_watch(job: Job) -> Outcome:
    run, running = training(job)
    both = [watching(job, run) for _ in range(2)]
    wait(score(run).exists, "a score")
    running.go()
    came = running.end()
    hold(came.code == 0, f"training failed: {came.err[-2000:]}")
    left = [one.end() for one in both]
    hold(all(one.code == 0 for one in left), f"one of them failed: {left}")
    lines = [line for one in left for line in one.out.splitlines() if line.startswith("step ")]
    steps = [line.partition(":")[0] for line in lines]
    hold(len(steps) == len(set(steps)), f"one was scored twice: {lines}")
    job.same(run)
    return Outcome(0, True)


def damaged(how: Callable[[Path], None], job: Job) -> Outcome:
    """Refused by name: its step has no score, and nothing else is another."""
    run, running = training(job)
    how(run / "snapshots" / str(HANDED_AT) / "arrays.safetensors")
    evaluator = watching(job, run)
    wait(score(run).exists, "the refusal")
    refused = json.loads(score(run).read_text())["refused"]
    hold(refused, "it was scored")
    outcome = ended(job, run, running, evaluator, without=HANDED_AT)
    counts = json.loads((run / "summary.json").read_text())["evaluations"]
    hold(counts["refused"] == 1, f"the summary does not tell: {counts}")
    return Outcome(outcome.lost_steps, outcome.equal, refused)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 4
    file.write_bytes(content)


def of_another_run(job: Job) -> Outcome:
    """A snapshot that was copied over from elsewhere: what is found of it is not this run's."""
    run, running = training(job)
    other, beside = training(job, *WATCHED, "seed=7")
    beside.go()
    shutil.rmtree(run / "snapshots" / str(HANDED_AT))
    shutil.copytree(other / "snapshots" / str(HANDED_AT), run / "snapshots" / str(HANDED_AT))
    hold(beside.end().code == 0, "the other run failed")
    evaluator = watching(job, run)
    wait(lambda: not (run / "snapshots" / str(HANDED_AT)).exists(), "the foreign snapshot to be removed")
    hold(not score(run).exists(), "its score was taken")
    return ended(job, run, running, evaluator, without=HANDED_AT)


def planted(content: str, job: Job) -> Outcome:
    """A score's file that no evaluator wrote."""
    run, running = training(job)
    score(run).parent.mkdir(exist_ok=True)
    score(run).write_text(content)
    wait(lambda: not score(run).exists(), "the file to be removed")
    evaluator = watching(job, run)
    wait(score(run).exists, "the score")
    return ended(job, run, running, evaluator)


def clock(offset: float, job: Job) -> Outcome:
    run, running = training(job)
    evaluator = watching(job, run, plan={"clock": [offset, 2.0]})
    wait(score(run).exists, "the score")
    return ended(job, run, running, evaluator)


def training_killed(job: Job) -> Outcome:
    """Those who watch stay, and go on with the run that is gone on with."""
    run, running = training(job)
    evaluator = watching(job, run)
    wait(score(run).exists, "the score")
    running.process.send_signal(signal.SIGKILL)
    dead = running.end()
    outcome = job.resumed(run, dead, *WATCHED)
    left = evaluator.end()
    hold(left.code == 0, f"the evaluator failed: {left.err[-2000:]}")
    return outcome


def training_killed_with_its_own(job: Job) -> Outcome:
    """The evaluators that it started go with it."""
    run, running = training(job, "eval.mode=async", "eval.evaluators=1")
    wait(lambda: own(run), "the evaluator")
    (pid,) = own(run)
    running.process.send_signal(signal.SIGKILL)
    dead = running.end()
    wait(lambda: not lives(pid), "its evaluator's end")
    return job.resumed(run, dead, "eval.mode=async", "eval.evaluators=1")


def best_half_written(job: Job) -> Outcome:
    """Training dies amid the snapshot of its best step, whose score and checkpoint are on disk."""
    kept = job.configured()
    kept.whole = job.new("whole")
    hold(job.run("finetune", kept.whole, *BEST).code == 0, "the undisturbed run failed")
    best = json.loads((kept.whole / "summary.json").read_text())["best_step"]
    hold(best == HANDED_AT, f"the best step of the undisturbed run is {best}")
    run = job.new()
    dead = job.run("finetune", run, *BEST, plan={"at": "the best snapshot half written", "do": "SIGKILL"})
    hold(dead.code == -signal.SIGKILL, f"it was to be killed: {dead.code}: {dead.err[-2000:]}")
    hold(score(run).exists() and not (run / "snapshots" / str(HANDED_AT)).exists(), "it was to have the score alone")
    hold(not (run / "checkpoints" / "12").exists(), "it was to have no later checkpoint")
    return kept.resumed(run, dead, *BEST)


def faults() -> list[Fault]:
    again = f"the next one scores the snapshot; {SYNC}"
    waiting = "before it was scored"
    found = [Fault("an evaluator: kill -9", at, again, partial(killed, at, "SIGKILL")) for at in EVALUATOR_CALLS]
    found += [
        Fault("an evaluator: SIGTERM", at, again, partial(killed, at, "SIGTERM"))
        for at in ("its model being built", "a snapshot being read")
    ]
    found += [
        Fault("an evaluator: SIGSTOP, and SIGCONT after another one came", "a snapshot being read",
              f"what it finds is dropped; {SYNC}", stopped),
        Fault("an evaluator that training started: kill -9", "at once", f"another is started; {SYNC}",
              partial(own_one, signal.SIGKILL)),
        Fault("an evaluator that training started: SIGSTOP", "at once", f"another is started; {SYNC}",
              partial(own_one, signal.SIGSTOP)),
        Fault("two evaluators", "at the same moment", f"each snapshot is scored once; {SYNC}", two_watch),
        Fault("a snapshot is cut to its half", waiting, "refused by name; the result is the undisturbed one",
              partial(damaged, cut)),
        Fault("a bit of a snapshot flips", waiting, "refused by name; the result is the undisturbed one",
              partial(damaged, flip)),
        Fault("a snapshot is another run's", waiting, "its score is dropped; the result is the undisturbed one",
              of_another_run),
        Fault("half of a score", "while training goes on", f"it is removed, and measured anew; {SYNC}",
              partial(planted, '{"step": 6, "tok')),
        Fault("a score of another start", "while training goes on", f"it is removed, and measured anew; {SYNC}",
              partial(planted, '{"step": 6, "token": "0", "evaluation": {"loss": 0.5}, "refused": null}')),
        *(Fault(f"an evaluator: its clock goes {way}", "while it watches", SYNC, partial(clock, offset))
          for way, offset in (("a year backwards", -3.2e7), ("a day forwards", 86400.0))),
        Fault("kill -9, of training", "while others watch", f"they go on with the run that is gone on with; {SYNC}",
              training_killed),
        Fault("kill -9, of training", "the best snapshot half written",
              "it is written again; the result is that of the best step, in the same bytes", best_half_written),
        Fault("kill -9, of training", "with an evaluator of its own", f"that ends too; {SYNC}",
              training_killed_with_its_own),
    ]  # fmt: skip
    return found
