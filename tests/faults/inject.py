"""Runs `jaxlean` in this process with one fault planted in it; `job.py` starts it with a plan in the environment.

    FAULT_PLAN={"at": moment, "do": what, "notes": folder}  python inject.py finetune config.yaml ...

At a moment the process does something to itself (a signal), or tells the runner by a file and waits until that has done
something to it.
"""

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

PLAN = json.loads(os.environ.get("FAULT_PLAN", "{}"))  # none where only the moments are asked for
NOTES = Path(PLAN.get("notes", "."))

# moment -> (module, attribute, which call): the fault comes right before the call
CALLS = {
    "reading the base": ("jaxlean.run.finetune", "base", 1),
    "reading the rows": ("jaxlean.run.finetune", "batches_of", 1),
    "compiling the step": ("jaxlean.run.finetune", "compile_step", 1),
    "the evaluation before": ("jaxlean.run.evaluate", "Evaluator.loss", 1),
    "the first step": ("jaxlean.run.meter", "Meter.add", 1),
    "the evaluation between": ("jaxlean.run.evaluate", "Evaluator.loss", 2),
    "a checkpoint begun": ("jaxlean.run.checkpoint", "Checkpoints.save", 2),
    "the tenth step": ("jaxlean.run.meter", "Meter.add", 10),
    "the last step": ("jaxlean.run.meter", "Meter.add", 12),
    "the evaluation after": ("jaxlean.run.evaluate", "Evaluator.loss", 3),
    "the result begun": ("jaxlean.run.finetune", "write_adapter", 1),
}
# moment -> (function of os, name of the file that is renamed to, which time, before or after)
RENAMES = {
    "the folder being claimed": ("replace", "config.yaml", 1, "before"),
    "a checkpoint written and not renamed": ("rename", "8", 1, "before"),
    "a checkpoint just renamed": ("rename", "8", 1, "after"),
    "an old checkpoint hidden and not removed": ("rename", ".writing-removed-4", 1, "after"),
    "the adapter written and not renamed": ("rename", "adapter", 1, "before"),
    "the summary written and not renamed": ("replace", "summary.json", 1, "before"),
    "the summary just renamed": ("replace", "summary.json", 1, "after"),
}
# Of a search, and of an evaluator.
SEARCH_CALLS = {
    "the first trial asked for": ("jaxlean.search.study", "Study.ask", 1),
    "amid a trial": ("jaxlean.search.program", "Program.step", 5),
    "a rung to be told": ("jaxlean.search.study", "Study.report", 2),
    "a result to be told": ("jaxlean.search.study", "Study.finish", 1),
    "a result half told": ("optuna.study.study", "Study.tell", 1),
    "the report begun": ("jaxlean.search.report", "write_all", 1),
    "a trial of another's": ("jaxlean.search.study", "Study._again", 1),
    "a trial's process watched": ("jaxlean.search.processes", "Processes._watch", 1),
}
EVALUATOR_CALLS = {
    "its model being built": ("jaxlean.run.async_evaluation", "Scorer.__init__", 1),
    "a snapshot being read": ("jaxlean.run.async_evaluation", "read_snapshot", 1),
    "a score to be written": ("jaxlean.run.async_evaluation", "write_score", 1),
}
_done = threading.Event()


def act() -> None:
    """The fault, once."""
    if _done.is_set():
        return
    _done.set()
    (NOTES / "acted").touch()
    what = PLAN["do"]
    if what == "tell":
        while not (NOTES / "go").exists():
            time.sleep(0.01)
        return
    for number in what.split("+"):
        os.kill(os.getpid(), getattr(signal, number))
        time.sleep(0.05)


def before(module: str, name: str, number: int, do: Callable[..., None]) -> None:
    """`do(*arguments)` before the `number`-th call of a function or method; 0: before each."""
    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, last), []

    def wrapped(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if number in (0, len(calls)):
            do(*arguments)
        return original(*arguments, **options)

    setattr(owner, last, wrapped)


def on_rename(function: str, target: str, number: int, when: str) -> None:
    original, calls = getattr(os, function), []

    def wrapped(source: Any, to: Any, **options: Any) -> None:
        ours = Path(os.fspath(to)).name == target
        if ours:
            calls.append(1)
        if ours and when == "before" and len(calls) == number:
            act()
        original(source, to, **options)
        if ours and when == "after" and len(calls) == number:
            act()

    setattr(os, function, wrapped)


def amid_a_step() -> None:
    """A moment after the sixth step was handed to the device."""
    before("jaxlean.run.meter", "Meter.add", 6, lambda *_: threading.Timer(0.002, act).start())


def half_of_the_arrays() -> None:
    """As soon as a file of the second checkpoint's arrays is there."""

    def watch(folder: Path) -> None:
        while not any(file.is_file() for file in folder.parent.rglob("*")):
            time.sleep(0.0002)
        act()

    def start(folder: Path, *_: Any) -> None:
        threading.Thread(target=watch, args=(folder,), daemon=True).start()

    before("jaxlean.run.checkpoint", "_write_arrays", 2, start)


def half_of_the_manifest() -> None:
    def start(folder: Path, *_: Any) -> None:
        (folder / "complete.json").write_text('{"crc32": 12')
        act()

    before("jaxlean.run.checkpoint", "write_manifest", 2, start)


def half_of_the_adapter() -> None:
    def start(file: Path, *_: Any) -> None:
        file.write_bytes(bytes(1000))
        act()

    before("jaxlean.hub.adapter", "write_tensors", 1, start)


def half_of_a_line() -> None:
    """Of metrics.jsonl."""

    def start(metrics: Any, step: int, *_: Any) -> None:
        metrics._out.write('{"step": 7, "lo')
        metrics._out.flush()
        act()

    before("jaxlean.run.metrics", "Metrics.log", 9, start)


def half_of_a_line_of_the_study() -> None:
    """With the study's lock in hand."""

    def start(journal: Any, *_: Any) -> None:
        journal._own_lock.acquire()
        with journal._file.open("ab") as out:
            out.write(b'{"op_code":6,"worker_id":"')
        act()

    before("jaxlean.search.journal", "Journal.append_logs", 20, start)


def amid_the_first_snapshot() -> None:
    """Once the checkpoint of its step is on disk, and before training has come to the next."""

    def start(folder: Path, content: Any, *_: Any) -> None:
        while not (folder.parents[1] / "checkpoints" / str(content["step"])).exists():
            time.sleep(0.0002)
        act()

    before("jaxlean.run.snapshots", "write_manifest", 1, start)


SNAPSHOT_SPECIAL = {"the best snapshot half written": amid_the_first_snapshot}
SEARCH_SPECIAL = {"half of a line of the study written": half_of_a_line_of_the_study}
SPECIAL = {
    "amid a step": amid_a_step,
    "half of a checkpoint's arrays written": half_of_the_arrays,
    "half of a checkpoint's manifest written": half_of_the_manifest,
    "half of the adapter written": half_of_the_adapter,
    "half of a line of metrics.jsonl written": half_of_a_line,
}


def turn_the_clock(offset: float, after_seconds: float) -> None:
    """What the wall clock says is so many seconds off, from so many seconds after the start on."""
    real, real_ns, started = time.time, time.time_ns, time.monotonic()

    def off() -> float:
        return offset if time.monotonic() - started >= after_seconds else 0.0

    time.time = lambda: real() + off()
    time.time_ns = lambda: real_ns() + int(off() * 1e9)


def note_steps() -> None:
    """How many steps were begun, for the runner: a line each, as a file that is written anew is empty once."""

    def note(meter: Any, step: int, *_: Any) -> None:
        with (NOTES / "steps").open("a") as out:
            out.write(f"{step}\n")

    before("jaxlean.run.meter", "Meter.add", 0, note)


class WithoutTorch(PathFinder):
    """transformers imports torch where it finds it, which takes longer than all else and which nothing here needs."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        return None if fullname.partition(".")[0] == "torch" else super().find_spec(fullname, path, target)


def main() -> None:
    sys.meta_path = [WithoutTorch if finder is PathFinder else finder for finder in sys.meta_path]
    if "clock" in PLAN:
        turn_the_clock(*PLAN["clock"])
    moment = PLAN.get("at")
    if moment == "before anything is imported":
        act()
    note_steps()
    calls, special = CALLS | SEARCH_CALLS | EVALUATOR_CALLS, SPECIAL | SEARCH_SPECIAL | SNAPSHOT_SPECIAL
    if moment in calls:
        before(*calls[moment], lambda *_: act())
    elif moment in RENAMES:
        on_rename(*RENAMES[moment])
    elif moment in special:
        special[moment]()
    elif moment is not None and moment != "before anything is imported":
        raise KeyError(moment)
    from jaxlean.cli import main as jaxlean

    jaxlean()


if __name__ == "__main__":
    sys.argv[0] = "jaxlean"
    main()
