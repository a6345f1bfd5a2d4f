"""A disk that is full, a file that may not grow, a folder that may not be written.

A disk is a tmpfs of its own, which needs the right to mount one; without it these faults are left out. A file that may
not grow is RLIMIT_FSIZE. As root, who may write everything, a folder is written as the user nobody.
"""

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from .fault import Fault, Outcome, hold
from .job import STOPPED_AT, Job, newest

FULL = "it says so and ends with code 2; once there is room, --resume ends in the same bytes"
FULL_AT = (
    "the evaluation before", "a checkpoint begun", "half of a checkpoint's arrays written",
    "half of a checkpoint's manifest written", "the result begun", "half of the adapter written",
)  # fmt: skip
DISK_BYTES = 24 * 2**20
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def can_mount() -> bool:
    """Whether this process may mount a tmpfs."""
    folder = Path(f"/tmp/jaxlean-mount-{os.getpid()}")
    folder.mkdir()
    try:
        with mounted(folder, "-t", "tmpfs", "tmpfs"):
            return True
    except (subprocess.CalledProcessError, FileNotFoundError):
        return False
    finally:
        folder.rmdir()


@contextlib.contextmanager
def mounted(folder: Path, *arguments: object) -> Iterator[Path]:
    subprocess.run(["mount", *map(str, arguments), str(folder)], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def disk(job: Job) -> Iterator[Path]:
    folder = job.new("disk")
    folder.mkdir()
    with mounted(folder, "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs"):
        yield folder


def fill(folder: Path, spare: int = 0) -> Path:
    """Fill the disk but for so many bytes."""
    file = folder / "filler"
    free = shutil.disk_usage(folder).free - spare
    with file.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        for _ in range(0, free, 4096):
            out.write(bytes(4096))
    return file


def full(moment: str, spare: int, job: Job) -> Outcome:
    with disk(job) as folder:
        run = folder / "run"
        running = job.start("finetune", run, plan={"at": moment, "do": "tell"})
        running.until_acted()
        filler = fill(folder, spare)
        running.go()
        ended = running.end()
        outcome = job.refused(ended, "no disk space|No space left on device|cannot be written")
        filler.unlink()
        return Outcome(job.resumed(run, ended).lost_steps, True, outcome.said)


def full_from_the_start(job: Job) -> Outcome:
    with disk(job) as folder:
        filler = fill(folder, spare=64 * 1024)
        run = folder / "run"
        outcome = job.refused(job.run("finetune", run), "no disk space for the checkpoints")
        hold(not run.exists(), "nothing was to be begun")
        filler.unlink()
        return Outcome(job.resumed(run, 0).lost_steps, True, outcome.said)


def full_for_an_export(job: Job) -> Outcome:
    with disk(job) as folder:
        filler = fill(folder, spare=16 * 1024)
        outcome = job.refused(
            job.run("export", None, job.whole, folder / "out", "--format", "hf"), "No space left|no disk space|cannot"
        )
        filler.unlink()
        hold(not list(folder.iterdir()), f"left behind: {list(folder.iterdir())}")
        return outcome


def limited(size: int, job: Job) -> Outcome:
    """No file may be larger than this."""
    run = job.new()
    limits = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    ended = job.run("finetune", run, limits=limits, environment={"JAX_ENABLE_COMPILATION_CACHE": "false"})
    outcome = job.refused(ended, "cannot be written|too large")
    if not run.exists():
        return outcome
    return Outcome(job.resumed(run, ended).lost_steps, True, outcome.said)


def as_nobody() -> Sequence[str]:
    return AS_NOBODY if os.geteuid() == 0 else ()


def own(path: Path, number: int) -> None:
    """Give all of it to a user."""
    for one in (path, *path.rglob("*")):
        os.chown(one, number, number)


def forbid(folder: Path) -> None:
    """Nobody may write into it; root may."""
    folder.chmod(0o555)


def unwritable_place(job: Job) -> Outcome:
    place = job.new("place")
    place.mkdir()
    forbid(place)
    ended = job.run("finetune", place / "run", before=as_nobody(), environment={"HOME": "/nonexistent"})
    outcome = job.refused(ended, "the output folder cannot be written")
    hold("no permission to write there" in ended.err, ended.err)
    return outcome


def unwritable_run(inner: str, words: str, job: Job) -> Outcome:
    """A folder of the run may not be written when it is gone on with."""
    run = job.stopped()
    own(run, 65534) if os.geteuid() == 0 else None
    own(run / inner, 0) if os.geteuid() == 0 else None
    before = sorted(file.name for file in newest(run).rglob("*"))
    forbid(run / inner)
    ended = job.run("finetune", run, "--resume", before=as_nobody())
    outcome = job.refused(ended, words)
    (run / inner).chmod(0o777)
    hold(before == sorted(file.name for file in newest(run).rglob("*")), "a checkpoint was touched")
    return Outcome(job.resumed(run, STOPPED_AT).lost_steps, True, outcome.said)


def read_only(job: Job) -> Outcome:
    """The run's file system was mounted read-only after an error."""
    run = job.stopped()
    with mounted(run, "--bind", run):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(run)], check=True)
        outcome = job.refused(job.run("finetune", run, "--resume"), "cannot be (written|locked)")
    return Outcome(job.resumed(run, STOPPED_AT).lost_steps, True, outcome.said)


def unwritable_cache(job: Job) -> Outcome:
    """Compiled programs and what the libraries keep cannot be written: that is no reason not to train."""
    place, run = job.new("cache"), job.new()
    for folder in (place, run):
        folder.mkdir()
    forbid(place)
    run.chmod(0o777)
    names = ("JAXLEAN_HOME", "HF_HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR", "HOME")
    ended = job.run("finetune", run, before=as_nobody(), environment=dict.fromkeys(names, str(place / "x")))
    hold(ended.code == 0, f"exit code {ended.code}: {ended.err[-2000:]}")
    job.same(run)
    return Outcome(0, True, ended.said)


def a_file_in_the_way(job: Job) -> Outcome:
    place = job.new("file")
    place.touch()
    return job.refused(job.run("finetune", place), "output_dir is a file")


def faults() -> list[Fault]:
    found = [
        Fault("no file may grow beyond 500 bytes", "from the start", FULL, partial(limited, 500)),
        Fault("no file may grow beyond 20,000 bytes", "from the start", FULL, partial(limited, 20_000)),
        Fault("output_dir lies where nobody may write", "at the start", "refused by name", unwritable_place),
        Fault("output_dir is a file", "at the start", "refused by name", a_file_in_the_way),
        Fault("the run's folder may not be written", "between stop and resume", "refused by name; nothing is lost",
              partial(unwritable_run, ".", "cannot be written")),
        Fault("the folder of the checkpoints may not be written", "between stop and resume",
              "refused by name; nothing is lost", partial(unwritable_run, "checkpoints", "cannot be written")),
        Fault("no cache may be written", "all the time", "it trains, and ends in the same bytes", unwritable_cache),
    ]  # fmt: skip
    if can_mount():
        found += [
            Fault("the disk is full", "from the start", "refused before anything is begun", full_from_the_start),
            *(Fault("the disk is full", moment, FULL, partial(full, moment, 0)) for moment in FULL_AT),
            Fault("the disk is full but for 100 KB", "a checkpoint begun", FULL,
                  partial(full, "a checkpoint begun", 100_000)),
            Fault("the disk is full", "while a run is exported", "refused; nothing is left", full_for_an_export),
            Fault("the file system is read-only", "between stop and resume", "refused by name; nothing is lost",
                  read_only),
        ]  # fmt: skip
    return found
