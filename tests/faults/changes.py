"""What a run is made of changes between its stop and its resumption: rows, base, settings, the clock."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from .damage import flip
from .fault import Fault, Outcome, hold
from .job import STOPPED_AT, Job, files

SAME = "it goes on and ends in the same bytes"
REFUSED = "refused by name; put back, it goes on and ends in the same bytes"
DAY = 86_400.0


def changed(change: Callable[[Job], None], words: str, job: Job) -> Outcome:
    """Something of a stopped run's job is changed, then put back."""
    other = job.copy()
    run = other.stopped()
    kept = other.folder / "kept"
    kept.mkdir()
    for path in (other.train, other.eval, other.config, other.base):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, kept / path.name)
    change(other)
    outcome = other.refused(other.run("finetune", run, "--resume"), words)
    for path in (other.train, other.eval, other.config, other.base):
        if path.is_dir():
            shutil.rmtree(path)
        (shutil.copytree if (kept / path.name).is_dir() else shutil.copy)(kept / path.name, path)
    return Outcome(other.resumed(run, STOPPED_AT).lost_steps, True, outcome.said)


def told(arguments: Sequence[str], words: str, job: Job) -> Outcome:
    """--resume with another setting."""
    run = job.stopped()
    outcome = job.refused(job.run("finetune", run, "--resume", *arguments), words)
    return Outcome(job.resumed(run, STOPPED_AT).lost_steps, True, outcome.said)


def unchanged(change: Callable[[Job, Path], None], job: Job) -> Outcome:
    """What does not matter: it goes on."""
    other = job.copy()
    run = other.stopped()
    change(other, run)
    return other.resumed(run, STOPPED_AT)


def edit(name: str, how: Callable[[list[str]], list[str]]) -> Callable[[Job], None]:
    """Change the lines of a file of rows."""

    def change(job: Job) -> None:
        file: Path = getattr(job, name)
        lines = file.read_text().splitlines(keepends=True)
        after = how(list(lines))
        hold(after != lines, "nothing was changed")
        file.write_text("".join(after))

    return change


def move_from_prompt(lines: list[str]) -> list[str]:
    """The same text in all, of which more is learned."""
    row = json.loads(lines[3])
    first, _, rest = row["completion"].partition(" ")
    return [*lines[:3], json.dumps({"prompt": f"{row['prompt']} {first}", "completion": rest}) + "\n", *lines[4:]]


def other_template(job: Job) -> None:
    file = job.base / "chat_template.jinja"
    hold(file.exists(), "the base has no template")
    file.write_text("{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}")


def set_json(path: str, key: str, value: object) -> Callable[[Job], None]:
    def change(job: Job) -> None:
        file = job.folder / path
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))

    return change


def touch_everything(when: float, job: Job, run: Path) -> None:
    """Every file of the job and of the run says that it was changed then."""
    for file in (job.train, job.eval, job.config, *files(job.base), *files(run)):
        os.utime(file, (when, when))


def write_base_anew(job: Job, run: Path) -> None:
    """As another machine that fetched the same files."""
    for file in files(job.base):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)


def clock(offset: float, after: float, job: Job) -> Outcome:
    """The wall clock of the whole run is off, from so many seconds after its start on."""
    run = job.new()
    ended = job.run("finetune", run, plan={"clock": [offset, after]})
    hold(ended.code == 0, f"exit code {ended.code}: {ended.err[-2000:]}")
    job.same(run)
    seconds = json.loads((run / "summary.json").read_text())["seconds"]
    hold(0 < seconds < 1000, f"the run took {seconds} seconds")
    return Outcome(0, True)


def clock_between(offset: float, job: Job) -> Outcome:
    run = job.stopped()
    outcome = job.resumed(run, STOPPED_AT, plan={"clock": [offset, 0.0]})
    seconds = json.loads((run / "summary.json").read_text())["seconds"]
    hold(0 < seconds < 1000, f"the run took {seconds} seconds")
    return outcome


def faults() -> list[Fault]:
    between = "between stop and resume"
    data = "the data or the batch size changed since the checkpoint"
    base = "the base model has changed since the checkpoint"
    held_out = "the held-out rows have changed since the checkpoint"
    found = [
        Fault("a row of the dataset edited", between, REFUSED, partial(
            changed, edit("train", lambda rows: [rows[0].replace("red", "blue"), *rows[1:]]), data)),
        Fault("a word moved from a prompt to its completion", between, REFUSED,
              partial(changed, edit("train", move_from_prompt), data)),
        Fault("a row appended", between, REFUSED, partial(changed, edit("train", lambda rows: [*rows, rows[0]]), data)),
        Fault("a row removed", between, REFUSED, partial(changed, edit("train", lambda rows: rows[:-1]), data)),
        Fault("two rows swapped", between, REFUSED,
              partial(changed, edit("train", lambda rows: [rows[1], rows[0], *rows[2:]]), data)),
        Fault("a row cut in half", between, REFUSED,
              partial(changed, edit("train", lambda rows: [*rows[:-1], rows[-1][:20]]), "train.jsonl:24")),
        Fault("the dataset emptied", between, REFUSED, partial(changed, edit("train", lambda rows: []), "train.jsonl")),
        Fault("the dataset gone", between, REFUSED, partial(changed, lambda job: job.train.unlink(), "train.jsonl")),
        Fault("a held-out row edited", between, REFUSED, partial(
            changed, edit("eval", lambda rows: [rows[0].replace("red", "blue"), *rows[1:]]), held_out)),
        Fault("a held-out row removed", between, REFUSED,
              partial(changed, edit("eval", lambda rows: rows[1:]), held_out)),
        Fault("a bit of the base's weights turned", between, REFUSED,
              partial(changed, lambda job: flip(job.base / "model.safetensors", 0.9), base)),
        Fault("the base's config changed", between, REFUSED,
              partial(changed, set_json("base/config.json", "rms_norm_eps", 1e-3), base)),
        Fault("the base gone", between, REFUSED,
              partial(changed, lambda job: shutil.rmtree(job.base), "no such model folder")),
        Fault("the base's tokenizer gone", between, REFUSED,
              partial(changed, lambda job: (job.base / "tokenizer.json").unlink(), "tokenizer")),
        Fault("the chat template changed", between, REFUSED, partial(changed, other_template, f"{data}|{held_out}")),
        Fault("another seed", between, REFUSED, partial(told, ["seed=1"], "--resume with another seed")),
        Fault("another rank", between, REFUSED, partial(told, ["lora.r=8"], "--resume with another lora.r")),
        Fault("another dropout", between, REFUSED,
              partial(told, ["lora.lora_dropout=0.1"], "another lora.lora_dropout")),
        Fault("another number of steps", between, REFUSED,
              partial(told, ["train.max_steps=9"], "another train.max_steps")),
        Fault("another batch size", between, REFUSED, partial(told, ["train.per_device_train_batch_size=3"], data)),
        Fault("the same base fetched anew", between, SAME, partial(unchanged, write_base_anew)),
        Fault("every file is from 1970", between, SAME, partial(unchanged, partial(touch_everything, 1.0))),
        Fault("every file is from the future", between, SAME, partial(unchanged, partial(touch_everything, 4e9))),
        Fault("the clock goes back a day", between, SAME, partial(clock_between, -DAY)),
        Fault("the clock goes back 40 years", between, SAME, partial(clock_between, -40 * 365 * DAY)),
        Fault("the clock goes back an hour", "while it runs", SAME, partial(clock, -3600.0, 4.0)),
        Fault("the clock goes forward a year", "while it runs", SAME, partial(clock, 365 * DAY, 4.0)),
    ]  # fmt: skip
    return found
