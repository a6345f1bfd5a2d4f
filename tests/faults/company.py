"""Two processes and one folder."""

import shutil
import signal
from functools import partial

from .fault import Fault, Outcome, hold
from .job import STOPPED_AT, Job

TAKEN = "another process is writing there"
ALONE = "one of the two is refused and told who has the folder; the other ends in the same bytes"


def while_it_runs(arguments: tuple[str, ...], words: str, job: Job) -> Outcome:
    run = job.new()
    running = job.start("finetune", run, plan={"at": "the tenth step", "do": "tell"})
    running.until_acted()
    refused = job.run("finetune", run, *arguments)
    outcome = job.refused(refused, words)
    hold(f"process {running.process.pid} on " in refused.err or words != TAKEN, f"it is not named: {refused.err}")
    running.go()
    ended = running.end()
    hold(ended.code == 0, f"the first one failed: {ended.err[-2000:]}")
    job.same(run)
    return Outcome(0, True, outcome.said)


def export_while_it_runs(job: Job) -> Outcome:
    run, out = job.new(), job.new("out")
    shutil.copytree(job.whole, run)
    running = job.start("finetune", run, "--overwrite", plan={"at": "the tenth step", "do": "tell"})
    running.until_acted()
    outcome = job.refused(job.run("export", None, run, out, "--format", "peft"), TAKEN)
    hold(not out.exists(), "it was exported")
    running.go()
    hold(running.end().code == 0, "the first one failed")
    job.same(run)
    return Outcome(0, True, outcome.said)


def at_once(arguments: tuple[str, ...], job: Job) -> Outcome:
    """Started at the same moment."""
    run = job.new() if "--resume" not in arguments else job.stopped()
    both = [job.start("finetune", run, *arguments) for _ in range(2)]
    ended = [running.end() for running in both]
    won = [one for one in ended if one.code == 0]
    lost = [one for one in ended if one.code != 0]
    hold(won, f"neither came to its end: {ended}")
    said = ""
    for one in lost:
        said = job.refused(one, f"{TAKEN}|already holds a run").said
    hold(lost or "--resume" in arguments or "--overwrite" in arguments, "both wrote one folder")
    job.same(run)
    return Outcome(0, True, said or "one after the other")


def exports_at_once(job: Job) -> Outcome:
    out = job.new("out")
    both = [job.start("export", None, job.whole, out, "--format", "hf") for _ in range(2)]
    ended = [running.end() for running in both]
    hold(sum(one.code == 0 for one in ended) == 1, f"not one of them: {[(one.code, one.err[-500:]) for one in ended]}")
    said = job.refused(next(one for one in ended if one.code), f"{TAKEN}|is not empty").said
    hold((out / "model.safetensors").exists(), "there is no model")
    left = [file.name for file in out.parent.iterdir() if file.name.startswith(".")]
    hold(not left, f"left behind: {left}")
    return Outcome(said=said)


def curated_at_once(job: Job) -> Outcome:
    out = job.new("curated")
    both = [job.start("curate", out, "curate.steps=[exact_duplicates]", "data.eval=null") for _ in range(2)]
    ended = [running.end() for running in both]
    hold(sum(one.code == 0 for one in ended) == 1, f"not one of them: {[(one.code, one.err[-500:]) for one in ended]}")
    said = job.refused(next(one for one in ended if one.code), f"{TAKEN}|already holds").said
    hold((out / "train.parquet").exists(), "there are no rows")
    return Outcome(said=said)


def lock_left_behind(job: Job) -> Outcome:
    """By a process that was killed, whose number another one has by now."""
    run = job.stopped()
    (run / ".lock").write_text('{"host": "elsewhere", "pid": 1, "since": "yesterday"}')
    return job.resumed(run, STOPPED_AT)


def killed_while_another_waits(job: Job) -> Outcome:
    """Refused while the first runs, taken in as soon as that is dead."""
    run = job.new()
    running = job.start("finetune", run, plan={"at": "the last step", "do": "tell"})
    running.until_acted()
    outcome = job.refused(job.run("finetune", run, "--resume"), TAKEN)
    running.process.send_signal(signal.SIGKILL)
    ended = running.end()
    return Outcome(job.resumed(run, ended).lost_steps, True, outcome.said)


def faults() -> list[Fault]:
    runs, moment = "the first one is at its tenth step", "at the same moment"
    return [
        Fault("two processes on one folder", runs, ALONE, partial(while_it_runs, (), f"already holds a run|{TAKEN}")),
        Fault("two processes on one folder: --resume", runs, ALONE, partial(while_it_runs, ("--resume",), TAKEN)),
        Fault("two processes on one folder: --overwrite", runs, ALONE, partial(while_it_runs, ("--overwrite",), TAKEN)),
        Fault("two processes on one folder: export", runs, ALONE, export_while_it_runs),
        Fault("two processes on one folder", moment, ALONE, partial(at_once, ())),
        Fault("two processes on one folder: --resume", moment, ALONE, partial(at_once, ("--resume",))),
        Fault("two processes on one folder: --overwrite", moment, ALONE, partial(at_once, ("--overwrite",))),
        Fault("two exports to one folder", moment, "one is refused; the other's folder is whole", exports_at_once),
        Fault("two curations into one folder", moment, "one is refused; the other's rows are whole", curated_at_once),
        Fault("a lock that a dead process left", "before a resume", "it stands in nobody's way", lock_left_behind),
        Fault("kill -9 while another process was refused", "the last step", "then the other one may",
              killed_while_another_waits),
    ]  # fmt: skip
