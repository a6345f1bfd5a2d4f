"""Targets planned side by side, each in a process of its own that may crash or hang without harm to the others."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import IO, Any

from jaxlean.plan.candidate import Candidate
from jaxlean.plan.search import Row, Ways

# A compiler that failed so often on a target is left alone.
_TRIES = 3
# What a worker's jax must find before it is imported: no search for hardware, no chatter of the compilers.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nobody touches a TPU: several compilers may run
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Job:
    """What a worker is told.

    Args:
        target: as `--targets` names it.
        config: of the run, as a dict.
        length: tokens of a sequence.
        hardware: the user's table.
        most: compilations.
        host_devices: devices that a CPU target's host is split into.
        ways: what may be chosen, as of `search`.
        variant: said again in each row.
    """

    target: str
    config: dict[str, Any]
    length: int
    hardware: str | None
    most: int
    host_devices: int = 1
    ways: Ways = "all"
    variant: str = ""


def run(
    jobs: Sequence[Job],
    *,
    parallel: int,
    limit_seconds: float,
    watch: Callable[[str, str], None] = lambda target, what: None,
) -> Iterator[Row]:
    """The rows of all jobs, as they come.

    Args:
        jobs: one a target, or (`variant`) one for each config on it.
        parallel: processes at a time.
        limit_seconds: that a worker may be silent: one compilation, say.
        watch: told (target, what it does now).
    """
    rows: queue.Queue[Row | None] = queue.Queue()
    waiting: queue.Queue[Job] = queue.Queue()
    for job in jobs:
        waiting.put(job)
    processes = _Processes()

    def work() -> None:
        while not processes.ended:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                break
            try:
                for row in _run_one(job, limit_seconds, watch, processes):
                    rows.put(replace(row, variant=job.variant))
            except Exception as error:  # a target that cannot be planned is a row, not the end of the plan
                rows.put(Row(job.target, "failed", note=f"{type(error).__name__}: {error}", variant=job.variant))
            watch(job.target, "done")
        rows.put(None)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(max(1, min(parallel, len(jobs))))]
    left = len(threads)
    try:
        for thread in threads:
            thread.start()
        while left:
            row = rows.get()
            if row is None:
                left -= 1
            else:
                yield row
    finally:
        processes.end()  # who asked may have had enough: Ctrl-C
        for thread in threads:
            if thread.ident is not None:
                thread.join(10)  # none is amid something when Python leaves


class _Processes:
    """Those that run, so that they can be ended all at once."""

    def __init__(self) -> None:
        self.ended = False
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    @contextmanager
    def start(self, **how: Any) -> Iterator[subprocess.Popen[str]]:
        """A worker, which lives no longer than the `with`."""
        with self._lock:
            if self.ended:
                raise InterruptedError("the plan was ended")
            process = subprocess.Popen(
                [sys.executable, "-m", "jaxlean.plan.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace", **how,
            )  # fmt: skip
            self._running.add(process)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):  # what it did not read any more
                if process.stdin is not None:
                    process.stdin.close()
            with self._lock:
                self._running.discard(process)

    def end(self) -> None:
        """All of them, and whoever would be started."""
        with self._lock:
            self.ended = True
            for process in self._running:
                process.kill()


def _run_one(job: Job, limit: float, watch: Callable[[str, str], None], processes: _Processes) -> Iterator[Row]:
    skip: list[str] = []
    known: set[str] = set()
    for _ in range(_TRIES):
        failed = yield from _attempt(job, skip, known, limit, watch, processes)
        if failed is None:
            return
        skip.append(str(failed))


def _attempt(
    job: Job,
    skip: list[str],
    known: set[str],
    limit: float,
    watch: Callable[[str, str], None],
    processes: _Processes,
) -> Generator[Row, None, Candidate | None]:
    """The rows of one process, but for those of candidates that are `known` from an earlier one.

    Returns:
        the candidate whose compilation ended it; None where it came to its end, or ended outside of a compilation.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if job.host_devices > 1:
        flags += f" --xla_force_host_platform_device_count={job.host_devices}"
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        processes.start(stderr=errors, env={**os.environ, **ENVIRONMENT, "XLA_FLAGS": flags}) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        told = {"target": job.target, "config": job.config, "length": job.length, "hardware": job.hardware}
        told |= {"ways": job.ways, "most": job.most, "skip": skip}
        with suppress(BrokenPipeError):  # its end is told below
            process.stdin.write(json.dumps(told) + "\n")
            process.stdin.flush()  # and stays open: a worker whose stdin ends leaves
        lines: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(target=_pass_on, args=(process.stdout, lines), daemon=True)
        reader.start()
        current: Candidate | None = None
        watch(job.target, "reading the job")
        try:
            while line := lines.get(timeout=limit):
                found = json.loads(line)
                if "row" in found:
                    row, current = Row.from_dict(found["row"]), None
                    if row.candidate is None or str(row.candidate) not in known:
                        yield row
                    if row.candidate is not None:
                        known.add(str(row.candidate))
                elif "starting" in found:
                    current = Candidate.from_dict(found["starting"])
                    watch(job.target, f"compiling {current.mesh_name}, {current.microbatch} rows")
                else:
                    return None
            reason = _end(process.wait(limit), errors)
        except (queue.Empty, subprocess.TimeoutExpired):
            reason = f"nothing was heard of the compiler for {limit:.0f} s"
        except (ValueError, TypeError, KeyError):
            reason = f"the compiler's process said what is no finding: {line.strip()[:100]!r}"
    yield Row(job.target, "failed", current, note=reason)
    return current


def _pass_on(stream: IO[str], lines: "queue.Queue[str]") -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put("")


def _end(code: int, errors: Any) -> str:
    errors.seek(0)
    last = [line for line in errors.read().splitlines() if line.strip()][-1:] or [""]
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"the compiler's process ended ({how}): {last[0][:200]}"
