"""A search, whose trials are many and whose study may be worked on by several."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .disk import can_mount, disk, fill
from .fault import Fault, Outcome, hold
from .inject import SEARCH_CALLS, SEARCH_SPECIAL
from .job import Ended, Job, lives

RATES = [0.001, 0.003, 0.01, 0.03]
TRIALS = 6
GONE_ON = "the same command goes on: what was at hand is tried again, and every trial comes to the undisturbed loss"
JOURNAL = "study.journal"
_MAKING = threading.Lock()


def searching(job: Job, **settings: Any) -> Job:
    """The job with a search in its config: of a few learning rates, so that every trial can be compared."""
    section = {"space": {"train.learning_rate": RATES}, "num_trials": TRIALS, "sampler": "random", **settings}
    return job.configured(search=section)


def undisturbed(job: Job, isolation: str = "auto") -> dict[float, float]:
    """Learning rate -> the loss that a trial with it comes to."""
    folder = job.folder / f"search-whole-{isolation}"
    with _MAKING:
        if not (folder / "summary.json").exists():
            number = 24 if isolation == "auto" else 12
            whole = searching(job, num_trials=number, pruner="none", isolation=isolation)
            ended = whole.run("search", folder)
            hold(ended.code == 0, f"the undisturbed search failed: {ended.err}")
    losses: dict[float, float] = {}
    for row in rows_of(folder):
        rate, loss = row["params"]["train.learning_rate"], row["values"]["loss"]
        hold(losses.setdefault(rate, loss) == loss, f"two losses of one learning rate, {rate}: {losses[rate]}, {loss}")
    hold(sorted(losses) == RATES, f"not every learning rate was drawn: {sorted(losses)}")
    return losses


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def whole(folder: Path, job: Job, isolation: str = "auto") -> None:
    """As many trials as were asked for, none left open, each with its loss, and the best of them as a config."""
    losses, rows = undisturbed(job, isolation), rows_of(folder)
    states = [row["state"] for row in rows]
    hold("running" not in states, f"a trial is left open: {states}")
    hold(sum(state in ("complete", "pruned") for state in states) == TRIALS, f"{TRIALS} trials were wanted: {states}")
    done = {row["number"]: row for row in rows if row["state"] == "complete"}
    for row in done.values():
        rate, loss = row["params"]["train.learning_rate"], row["values"]["loss"]
        hold(loss == losses[rate], f"learning rate {rate}: loss {loss} instead of {losses[rate]}")
    best = json.loads((folder / "summary.json").read_text())["best"][0]
    hold(best["values"]["loss"] == min(row["values"]["loss"] for row in done.values()), f"not the best: {best}")
    hold((folder / "best.yaml").exists(), "there is no best.yaml")
    left = [file.name for file in folder.iterdir() if file.suffix in (".tmp", ".lock") or file.name.startswith(".")]
    hold(not left, f"left behind: {left}")


def gone_on(job: Job, folder: Path, said: str = "", isolation: str = "auto") -> Outcome:
    """The same command again ends as it should."""
    ended = job.run("search", folder)
    hold(ended.code == 0, f"it does not go on: {ended.code}: {ended.err[-2000:]}")
    whole(folder, job, isolation)
    return Outcome(None, True, said or ended.said)


def begun(job: Job, at: str = "a rung to be told") -> tuple[Path, Ended]:
    """A search that SIGTERM has ended amid a trial."""
    folder = job.new("search")
    ended = job.run("search", folder, plan={"at": at, "do": "SIGTERM"})
    hold(ended.code == 75, f"exit code {ended.code}: {ended.err[-2000:]}")
    hold("the same command goes on" in ended.said, ended.said)
    return folder, ended


# ---- those who are at work


def killed(moment: str, job: Job) -> Outcome:
    job, folder = searching(job), job.new("search")
    ended = job.run("search", folder, plan={"at": moment, "do": "SIGKILL"})
    hold(ended.code == -signal.SIGKILL, f"it was to be killed: {ended.code}: {ended.err[-2000:]}")
    return gone_on(job, folder)


def asked(moment: str, job: Job) -> Outcome:
    job = searching(job)
    folder, ended = begun(job, moment)
    return gone_on(job, folder, ended.said)


def one_of_two_killed(job: Job) -> Outcome:
    job, folder = searching(job), job.new("search")
    first = job.start("search", folder, plan={"at": "amid a trial", "do": "tell"})
    first.until_acted()
    second = job.start("search", folder, plan={"at": "a result to be told", "do": "tell"})
    second.until_acted()
    first.process.send_signal(signal.SIGKILL)
    first.end()
    second.go()
    ended = second.end()
    hold(ended.code == 0, f"the other one failed: {ended.err[-2000:]}")
    whole(folder, job)
    hold('"again"' in (folder / JOURNAL).read_text(), "the trial of the one that is dead was not tried again")
    return Outcome(None, True)


def one_of_two_stopped(job: Job) -> Outcome:
    """As a machine that is suspended: the others go on without it, and it without its trial."""
    job, folder = searching(job), job.new("search")
    first = job.start("search", folder, plan={"at": "amid a trial", "do": "SIGSTOP"})
    first.until_stopped()
    second = job.start("search", folder, plan={"at": "a result to be told", "do": "tell"})
    second.until_acted()
    second.go()
    ended = second.end()
    hold(ended.code == 0, f"the other one failed: {ended.err[-2000:]}")
    first.process.send_signal(signal.SIGCONT)
    woken = first.end()
    hold(woken.code == 0, f"the one that was stopped failed: {woken.err[-2000:]}")
    whole(folder, job)
    return Outcome(None, True)


def taken_over(job: Job) -> Outcome:
    """The one that was stopped is held for dead, and its trial is another's when it wakes."""
    job, folder = searching(job), job.new("search")
    first = job.start("search", folder, plan={"at": "amid a trial", "do": "SIGSTOP"})
    first.until_stopped()
    second = job.start("search", folder, "search.num_trials=1000", plan={"at": "a trial of another's", "do": "tell"})
    second.until_acted()
    second.go()
    time.sleep(1.0)
    second.process.send_signal(signal.SIGTERM)
    hold(second.end().code == 75, "the second one was to be told to end")
    first.process.send_signal(signal.SIGCONT)
    woken = first.end()
    hold(woken.code == 0, f"the one that was stopped failed: {woken.err[-2000:]}")
    losses = undisturbed(job)
    rows = rows_of(folder)
    hold(rows[0]["state"] == "fail", f"the trial of the one that was stopped: {rows[0]}")
    hold("trial 0: dropped" in woken.out, f"it does not say so: {woken.out[-2000:]}")
    hold('"again":0' in (folder / JOURNAL).read_text(), "it was not tried again")
    for row in rows:
        done = row["state"] == "complete"
        hold(not done or row["values"]["loss"] == losses[row["params"]["train.learning_rate"]], f"another loss: {row}")
    return Outcome(None, True)


def trial_goes_with_its_search(job: Job) -> Outcome:
    """Trials as processes: nobody trains for a search that is dead."""
    job, folder = searching(job, isolation="process"), job.new("search")
    running = job.start("search", folder, plan={"at": "a trial's process watched", "do": "tell"})
    running.until_acted()
    trials = children(running.process.pid)
    hold(trials, "no trial was under way")
    running.process.send_signal(signal.SIGKILL)
    running.end()
    end = time.monotonic() + 20
    while any(map(lives, trials)):
        hold(time.monotonic() < end, "the trial goes on for nobody")
        time.sleep(0.1)
    return gone_on(job, folder, isolation="process")


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def overwritten_while_it_runs(job: Job) -> Outcome:
    job, folder = searching(job), job.new("search")
    running = job.start("search", folder, plan={"at": "amid a trial", "do": "tell"})
    running.until_acted()
    outcome = job.refused(job.run("search", folder, "--overwrite"), "others are at work in it")
    running.go()
    hold(running.end().code == 0, "the first one failed")
    whole(folder, job)
    return Outcome(None, True, outcome.said)


# ---- the study


def torn(job: Job) -> Outcome:
    """As a machine leaves it that lost its power."""
    job = searching(job)
    folder, _ = begun(job)
    file = folder / JOURNAL
    os.truncate(file, file.stat().st_size - 17)
    return gone_on(job, folder)


def half_lost(job: Job) -> Outcome:
    job = searching(job)
    folder, _ = begun(job)
    os.truncate(folder / JOURNAL, (folder / JOURNAL).stat().st_size // 2)
    return gone_on(job, folder)


def flipped(job: Job) -> Outcome:
    """A bit of a result: another loss, and the file is still JSON."""
    job, folder = searching(job), job.new("search")
    hold(job.run("search", folder).code == 0, "the search failed")
    file = folder / JOURNAL
    content = bytearray(file.read_bytes())
    at = content.index(b'"values":[') + len(b'"values":[') + 4
    content[at] ^= 1
    before = bytes(content)
    file.write_bytes(before)
    outcome = job.refused(job.run("search", folder, "search.num_trials=8"), rf"{JOURNAL}:\d+")
    hold("a line of the study is not what was written there" in outcome.said, outcome.said)
    content[at] ^= 1
    hold(file.read_bytes() == before, "a file that is refused was written to")
    file.write_bytes(content)
    hold(job.run("search", folder).code == 0, "put back, it is as it was")
    whole(folder, job)
    return outcome


def lock_left_behind(job: Job) -> Outcome:
    """The study's lock, of a worker that was killed while it wrote."""
    job = searching(job)
    folder, _ = begun(job)
    (folder / f"{JOURNAL}.lock").touch()
    return gone_on(job, folder)


@contextlib.contextmanager
def locked(file: Path) -> Iterator[sqlite3.Connection]:
    """An SQLite database that another process writes to, and does not let go."""
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    try:
        other.execute("BEGIN EXCLUSIVE")
        yield other
    finally:
        other.close()


def locked_for_a_while(moment: str, job: Job) -> Outcome:
    file = job.new("study").with_suffix(".db")
    job, folder = searching(job, storage=f"sqlite:///{file}"), job.new("search")
    running = job.start("search", folder, plan={"at": moment, "do": "tell"})
    running.until_acted()
    with locked(file):
        running.go()
        time.sleep(8)
        hold(running.process.poll() is None, "it was to wait")
    ended = running.end()
    hold(ended.code == 0, f"exit code {ended.code}: {ended.err[-2000:]}")
    whole(folder, job)
    return Outcome(None, True)


def locked_for_good(job: Job) -> Outcome:
    file = job.new("study").with_suffix(".db")
    job, folder = searching(job, storage=f"sqlite:///{file}?timeout=2"), job.new("search")
    running = job.start("search", folder, plan={"at": "a rung to be told", "do": "tell"})
    running.until_acted()
    with locked(file):
        running.go()
        outcome = job.refused(running.end(), "the study cannot be read or written")
    ended = job.run("search", folder)
    hold(ended.code == 0, f"it does not go on: {ended.err[-2000:]}")
    losses = undisturbed(job)
    for row in rows_of(folder):
        done = row["state"] == "complete"
        hold(not done or row["values"]["loss"] == losses[row["params"]["train.learning_rate"]], f"another loss: {row}")
    return Outcome(None, True, outcome.said)


def killed_with_a_database(moment: str, job: Job) -> Outcome:
    """No lease lies beside it: who is gone is known by what the study says of its worker."""
    job, folder = searching(job, storage=f"sqlite:///{job.new('study').with_suffix('.db')}"), job.new("search")
    ended = job.run("search", folder, plan={"at": moment, "do": "SIGKILL"})
    hold(ended.code == -signal.SIGKILL, f"it was to be killed: {ended.code}: {ended.err[-2000:]}")
    outcome = gone_on(job, folder)
    hold(any(row["again"] is not None for row in rows_of(folder)), "what was at hand was not tried again")
    return outcome


def trial_killed(job: Job) -> Outcome:
    """Trials as processes: one that is killed by somebody else is no result."""
    job, folder = searching(job, isolation="process"), job.new("search")
    running = job.start("search", folder, plan={"at": "a trial's process watched", "do": "tell"})
    running.until_acted()
    (trial,) = children(running.process.pid)
    os.kill(trial, signal.SIGKILL)
    running.go()
    ended = running.end()
    hold(ended.code == 0, f"the search failed: {ended.err[-2000:]}")
    hold("its process ended, signal SIGKILL" in ended.out, f"it does not say so: {ended.out[-2000:]}")
    whole(folder, job, "process")
    hold(rows_of(folder)[0]["state"] == "fail", "it counts as a result")
    return Outcome(None, True)


def no_database(job: Job) -> Outcome:
    file = job.new("study").with_suffix(".db")
    file.write_bytes(b"this is no database" * 1000)
    job = searching(job, storage=f"sqlite:///{file}")
    return job.refused(job.run("search", job.new("search")), "the study cannot be read or written")


# ---- what it is made of


def changed(name: str, words: str, job: Job) -> Outcome:
    """The files of a search are others when it is gone on with."""
    job = searching(job.copy())
    folder, _ = begun(job)
    file = {"train": job.train, "eval": job.eval, "base": job.base / "model.safetensors"}[name]
    kept = file.read_bytes()
    file.write_bytes(kept.replace(b"red house", b"bad house") if name != "base" else kept[:-1] + b"\x01")
    outcome = job.refused(job.run("search", folder), words)
    file.write_bytes(kept)
    return gone_on(job, folder, outcome.said)


def full(moment: str, job: Job) -> Outcome:
    job = searching(job)
    with disk(job) as place:
        folder = place / "search"
        running = job.start("search", folder, plan={"at": moment, "do": "tell"})
        running.until_acted()
        filler = fill(place)
        running.go()
        outcome = job.refused(running.end(), "cannot be (read or )?written|No space left")
        filler.unlink()
        return gone_on(job, folder, outcome.said)


def clock(offset: float, job: Job) -> Outcome:
    """Two are at work when one's clock is set."""
    job, folder = searching(job), job.new("search")
    both = [job.start("search", folder, plan=plan) for plan in ({"clock": [offset, 4.0]}, {})]
    for ended in [running.end() for running in both]:
        hold(ended.code == 0, f"exit code {ended.code}: {ended.err[-2000:]}")
    whole(folder, job)
    hold('"again"' not in (folder / JOURNAL).read_text(), "one was held for dead")
    return Outcome(None, True)


def copied(job: Job) -> Outcome:
    """Gone on with on another machine, where its folder lies elsewhere."""
    job = searching(job)
    folder, _ = begun(job)
    elsewhere = job.new("elsewhere")
    shutil.move(folder, elsewhere)
    return gone_on(job, elsewhere)


def faults() -> list[Fault]:
    moments = (*SEARCH_CALLS, *SEARCH_SPECIAL)
    own = ("a trial of another's", "a trial's process watched")
    found = [Fault("a search: kill -9", at, GONE_ON, partial(killed, at)) for at in moments if at not in own]
    found += [
        Fault("a search: SIGTERM", at, f"it gives back what is at hand, and ends with code 75; {GONE_ON}",
              partial(asked, at))
        for at in ("amid a trial", "a rung to be told", "a result to be told")
    ]  # fmt: skip
    waits = "the others wait, and every trial comes to the undisturbed loss"
    found += [
        Fault("a search: one of two workers is killed", "amid a trial",
              "the other one tries its trial again, and ends with all of them", one_of_two_killed),
        Fault("a search: one of two workers is stopped, and woken", "amid a trial",
              "both end, and every trial comes to the undisturbed loss", one_of_two_stopped),
        Fault("a search: one of two workers is stopped, and woken", "after its trial was taken over",
              "it drops that, and goes on; every trial comes to the undisturbed loss", taken_over),
        Fault("a search: kill -9", "a trial's process trains", f"that ends too; {GONE_ON}",
              trial_goes_with_its_search),
        Fault("a search: --overwrite", "another one is at work in it", "refused, and told who is; the other ends well",
              overwritten_while_it_runs),
        Fault("a search: its study loses its last 17 bytes", "between stop and start", GONE_ON, torn),
        Fault("a search: its study loses its second half", "between stop and start", GONE_ON, half_lost),
        Fault("a search: a bit of its study flips", "between stop and start", "refused by file and line", flipped),
        Fault("a search: its study's lock is left behind", "between stop and start", GONE_ON, lock_left_behind),
        *(Fault("a search: its database is locked for 8 seconds", at, waits, partial(locked_for_a_while, at))
          for at in ("the first trial asked for", "a rung to be told", "a result half told")),
        Fault("a search: its database is locked for good", "a rung to be told",
              "it says so and ends with code 2; the same command goes on", locked_for_good),
        *(Fault("a search: kill -9, with a database", at, GONE_ON, partial(killed_with_a_database, at))
          for at in ("amid a trial", "a rung to be told")),
        Fault("a search: kill -9 of a trial's process", "it trains",
              "no result; its values are tried again, and every trial comes to the undisturbed loss", trial_killed),
        Fault("a search: its database is none", "from the start", "refused by name", no_database),
        *(Fault(f"a search: {what} changed", "between stop and start", "refused by name; put back, it goes on",
                partial(changed, name, words))
          for what, name, words in (
              ("the training rows have", "train", "data.train names has changed"),
              ("the held-out rows have", "eval", "data.eval names has changed"),
              ("the base has", "base", "model.path names has changed"))),
        *(Fault(f"a search: the clock of one of two workers goes {way}", "amid the search",
                "nobody is held for dead, and every trial comes to the undisturbed loss", partial(clock, offset))
          for way, offset in (("a year backwards", -3.2e7), ("a day forwards", 86400.0))),
        Fault("a search: its folder is moved", "between stop and start", GONE_ON, copied),
    ]  # fmt: skip
    if can_mount():
        promised = f"it says so and ends with code 2; {GONE_ON}"
        found += [
            Fault("a search: the disk is full", at, promised, partial(full, at))
            for at in ("a rung to be told", "a result to be told", "the report begun")
        ]
    return found
