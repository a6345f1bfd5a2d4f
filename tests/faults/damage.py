"""What lies on the disk is not what was written: cut short, emptied, removed, with a bit turned."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .fault import Fault, Outcome, hold
from .job import SAVE_STEPS, STOPPED_AT, Job, files, newest

SKIPPED = "it says which checkpoint is damaged, goes on from the one before, and ends in the same bytes"


def flip(file: Path, place: float = 0.5) -> None:
    """Turn one bit, so far into the file."""
    content = bytearray(file.read_bytes())
    content[int((len(content) - 1) * place)] ^= 1 << 3
    file.write_bytes(content)


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def largest(folder: Path) -> Path:
    return max(files(folder), key=lambda file: file.stat().st_size)


def manifest(folder: Path) -> Path:
    return folder / "complete.json"


def skipped(harm: Callable[[Path], None], job: Job) -> Outcome:
    """`harm` the newest checkpoint."""
    run = job.stopped()
    last = newest(run)
    done = int(last.name)
    harm(last)
    ended = job.run("finetune", run, "--resume")
    hold(ended.code == 0, f"exit code {ended.code}: {ended.err[-2000:]}")
    hold(f"checkpoints/{last.name} is damaged and is skipped" in ended.err, f"it was not told: {ended.err[-2000:]}")
    job.same(run)
    return Outcome(done - ended.resumed_at, True, ended.said.split(" and is skipped: ")[-1])


def flipped(number: int, place: float, job: Job) -> Outcome:
    """A bit of the so-manieth file."""

    def harm(folder: Path) -> None:
        every = list(files(folder))
        flip(every[number % len(every)], place)

    return skipped(harm, job)


def all_damaged(job: Job) -> Outcome:
    run = job.stopped()
    for folder in (run / "checkpoints").iterdir():
        cut(largest(folder))
    ended = job.run("finetune", run, "--resume")
    hold(ended.code == 0, f"exit code {ended.code}: {ended.err[-2000:]}")
    hold("no checkpoint in" in ended.err, f"it was not told: {ended.err[-2000:]}")
    hold("starting at step 0" in ended.out, "it was not told")
    job.same(run)
    return Outcome(STOPPED_AT, True, ended.err.strip().splitlines()[-1])


def config_damaged(harm: Callable[[Path], None], words: str, job: Job) -> Outcome:
    run = job.stopped()
    good = (run / "config.yaml").read_bytes()
    harm(run / "config.yaml")
    outcome = job.refused(job.run("finetune", run, "--resume"), words)
    (run / "config.yaml").write_bytes(good)
    job.resumed(run, STOPPED_AT)
    return outcome


def beside(name: str, content: bytes, job: Job) -> Outcome:
    """A file of the run that is not a checkpoint holds something else."""
    run = job.stopped()
    file = run / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes((file.read_bytes() if file.exists() else b"") + content)
    return job.resumed(run, STOPPED_AT)


def base_damaged(job: Job) -> Outcome:
    other = job.copy()
    cut(other.base / "model.safetensors")
    run = other.new()
    outcome = other.refused(other.run("finetune", run), "not a whole safetensors file")
    hold(not run.exists(), "nothing was to be begun")
    return outcome


def result_damaged(job: Job) -> Outcome:
    """The adapter of a finished run, before it is exported."""
    run = job.new()
    shutil.copytree(job.whole, run)
    cut(run / "adapter" / "adapter_model.safetensors")
    out = job.new("out")
    outcome = job.refused(job.run("export", None, run, out, "--format", "peft"), "safetensors")
    hold(not out.exists(), "half of it was written")
    return outcome


def second_bit(line: bytes) -> Callable[[Path], None]:
    """Turn a bit of the value in a line of the config, which stays YAML."""

    def harm(file: Path) -> None:
        content = file.read_bytes()
        hold(content.count(line) == 1, f"{line!r} is not there once")
        file.write_bytes(content.replace(line, line[:-1] + bytes([line[-1] ^ 1])))

    return harm


def faults() -> list[Fault]:
    found = []
    for number in range(12):  # a checkpoint has about as many files
        place = (0.1, 0.5, 0.9)[number % 3]
        name = f"a bit of file {number + 1} of the newest checkpoint turned"
        found.append(Fault(name, f"{place:.0%} into it", SKIPPED, partial(flipped, number, place)))
    kinds: list[tuple[str, Callable[[Path], None]]] = [
        ("cut short", cut), ("emptied", empty), ("removed", Path.unlink),
    ]  # fmt: skip
    for what, harm in kinds:
        for which, choose in (("largest file", largest), ("manifest", manifest)):
            found.append(
                Fault(f"the {which} of the newest checkpoint {what}", "between stop and resume", SKIPPED,
                      partial(skipped, lambda folder, harm=harm, choose=choose: harm(choose(folder))))
            )  # fmt: skip
    found += [
        Fault("the arrays of the newest checkpoint removed", "between stop and resume", SKIPPED,
              partial(skipped, lambda folder: shutil.rmtree(folder / "arrays"))),
        Fault("a file of one checkpoint in the place of another's", "between stop and resume", SKIPPED,
              partial(skipped, lambda folder: shutil.copy(
                  folder.parent / str(2 * SAVE_STEPS) / "complete.json", folder / "complete.json"))),
        Fault("all checkpoints cut short", "between stop and resume",
              "it says that none is whole, starts at step 0, and ends in the same bytes", all_damaged),
        Fault("config.yaml cut short", "between stop and resume", "refused by name; nothing is lost",
              partial(config_damaged, cut, "config")),
        Fault("config.yaml emptied", "between stop and resume", "refused by name; nothing is lost",
              partial(config_damaged, empty, "the config of the run cannot be read")),
        Fault("a bit of config.yaml turned: another seed", "between stop and resume", "refused: another seed",
              partial(config_damaged, second_bit(b"\nseed: 0"), "--resume with another seed")),
        Fault("metrics.jsonl ends in half a line", "between stop and resume", "the half line is dropped",
              partial(beside, "metrics.jsonl", b'{"step": 11, "lo')),
        Fault("metrics.jsonl ends in other bytes", "between stop and resume", "they are dropped",
              partial(beside, "metrics.jsonl", bytes(range(128, 256)) + b"\n")),
        Fault("summary.json holds other bytes", "between stop and resume", "it is written anew",
              partial(beside, "summary.json", b"\xff{")),
        Fault("half an adapter left by another process", "between stop and resume", "it is written anew",
              partial(beside, ".adapter.part/adapter_model.safetensors", bytes(100))),
        Fault("a half-written checkpoint left", "between stop and resume", "it is never read, and removed",
              partial(beside, "checkpoints/.writing-11/arrays/x", bytes(100))),
        Fault("the base's weights cut short", "before the start", "refused by name; nothing is begun", base_damaged),
        Fault("the adapter of a finished run cut short", "before its export", "refused by name; nothing is written",
              result_damaged),
    ]  # fmt: skip
    return found
