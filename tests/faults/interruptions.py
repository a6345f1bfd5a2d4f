"""Signals: a process that is killed, asked to leave, stopped, or whose terminal closes."""

import os
import pty
import signal
import subprocess
from functools import partial

from .fault import Fault, Outcome, hold
from .inject import CALLS, RENAMES, SPECIAL
from .job import Job

BEFORE = "before anything is imported"
MOMENTS = (BEFORE, *CALLS, *SPECIAL, *RENAMES)
# Nothing has been written yet, or the result is there already.
TOO_EARLY = (BEFORE, "reading the base", "reading the rows")
DONE = ("the summary written and not renamed", "the summary just renamed")
ASKED = (
    "reading the base", "compiling the step", "the evaluation before", "the first step", "amid a step",
    "a checkpoint begun", "half of a checkpoint's arrays written", "a checkpoint written and not renamed",
    "the evaluation between", "the last step", "the evaluation after", "half of the adapter written",
    "the adapter written and not renamed", "the summary written and not renamed",
)  # fmt: skip
KILLED = "--resume ends in the same bytes; steps since the last checkpoint that had reached the disk are done again"
LEFT = "it saves and ends with code 75; --resume loses no step and ends in the same bytes"


def killed(moment: str, job: Job) -> Outcome:
    run = job.new()
    ended = job.run("finetune", run, plan={"at": moment, "do": "SIGKILL"})
    hold(ended.code == -signal.SIGKILL, f"it was to be killed: {ended.code}: {ended.err[-2000:]}")
    return job.resumed(run, ended)


def asked(moment: str, signals: str, job: Job) -> Outcome:
    run = job.new()
    ended = job.run("finetune", run, plan={"at": moment, "do": signals})
    if moment in DONE:
        hold(ended.code == 0, f"its result was written: {ended.code}: {ended.err[-2000:]}")
        job.same(run)
        return Outcome(0, True)
    hold(ended.code == 75, f"exit code {ended.code}: {ended.err[-2000:]}")
    hold("Traceback" not in ended.err, ended.err[-2000:])
    saved = "--resume goes on" in ended.said
    hold(saved or (moment in TOO_EARLY or moment == "compiling the step"), ended.said)
    outcome = job.resumed(run, ended)
    hold(outcome.lost_steps == 0, f"{outcome.lost_steps} steps were lost")
    return outcome


def asked_too_early(job: Job) -> Outcome:
    run = job.new()
    ended = job.run("finetune", run, plan={"at": BEFORE, "do": "SIGTERM"})
    hold(ended.code == -signal.SIGTERM, f"exit code {ended.code}")
    hold(not run.exists(), "nothing was begun")
    return job.resumed(run, ended)


def stopped(moment: str, job: Job) -> Outcome:
    run = job.new()
    running = job.start("finetune", run, plan={"at": moment, "do": "SIGSTOP"})
    running.until_stopped()
    running.process.send_signal(signal.SIGCONT)
    ended = running.end()
    hold(ended.code == 0, f"exit code {ended.code}: {ended.err[-2000:]}")
    job.same(run)
    return Outcome(0, True)


def stopped_and_killed(job: Job) -> Outcome:
    run = job.new()
    running = job.start("finetune", run, plan={"at": "amid a step", "do": "SIGSTOP"})
    running.until_stopped()
    ended = job.run("finetune", run, "--resume")
    job.refused(ended, "another process is writing there")
    running.process.kill()
    return job.resumed(run, running.end())


def terminal_closed(job: Job) -> Outcome:
    """Output goes to a terminal, as over ssh, and that is gone."""
    run = job.new()
    ours, theirs = pty.openpty()
    running = job.start("finetune", run, plan={"at": "the tenth step", "do": "tell"}, terminal=theirs)
    os.close(theirs)
    running.until_acted()
    os.close(ours)
    running.process.send_signal(signal.SIGHUP)
    running.go()
    running.process.wait(timeout=300)
    hold(running.process.returncode == 75, f"exit code {running.process.returncode}")
    outcome = job.resumed(run, running.steps)
    hold(outcome.lost_steps == 0, f"{outcome.lost_steps} steps were lost")
    return outcome


def reader_gone(job: Job) -> Outcome:
    """`jaxlean finetune | tee log`, and tee is gone."""
    run = job.new()
    running = job.start("finetune", run, plan={"at": "the tenth step", "do": "tell"})
    running.until_acted()
    assert running.process.stdout is not None
    running.process.stdout.close()
    running.process.stdout = subprocess.DEVNULL  # type: ignore[assignment]
    running.go()
    running.process.wait(timeout=300)
    return job.resumed(run, running.steps)


def faults() -> list[Fault]:
    found = [Fault("kill -9", moment, KILLED, partial(killed, moment)) for moment in MOMENTS]
    found.append(Fault("SIGTERM", BEFORE, "it ends, and nothing was begun", asked_too_early))
    found += [Fault("SIGTERM", moment, LEFT, partial(asked, moment, "SIGTERM")) for moment in ASKED]
    for name, signals in (("Ctrl-C", "SIGINT"), ("SIGHUP", "SIGHUP")):
        for moment in ("the evaluation before", "amid a step", "half of a checkpoint's arrays written"):
            found.append(Fault(name, moment, LEFT, partial(asked, moment, signals)))
    for moment in ("amid a step", "a checkpoint begun", "half of the adapter written"):
        found.append(
            Fault("SIGTERM twice, then Ctrl-C", moment, LEFT, partial(asked, moment, "SIGTERM+SIGTERM+SIGINT"))
        )
    for moment in (
        "reading the base",
        "amid a step",
        "half of a checkpoint's arrays written",
        "half of the adapter written",
    ):
        found.append(
            Fault("SIGSTOP, then SIGCONT", moment, "it goes on and ends in the same bytes", partial(stopped, moment))
        )
    found.append(
        Fault("SIGSTOP, then kill -9", "amid a step", "stopped, it keeps its folder; killed, it is as kill -9",
              stopped_and_killed)
    )  # fmt: skip
    found.append(Fault("the terminal closes", "the tenth step", LEFT, terminal_closed))
    found.append(Fault("the reader of its output is gone", "the tenth step", KILLED, reader_gone))
    return found
