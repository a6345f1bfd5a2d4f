"""Targets planned side by side, each in a process of its own that may crash or hang without harm to the others."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlean.plan.candidate import Candidate
from jaxlean.plan.search import Row

# A compiler that failed so often on a target is left alone.
_TRIES = 3
# What a worker's jax must find before it is imported: no search for hardware, no chatter of the compilers.
_ENVIRONMENT = {
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
    """

    target: str
    config: dict[str, Any]
    length: int
    hardware: str | None
    most: int
    host_devices: int = 1


def run(
    jobs: Sequence[Job],
    *,
    parallel: int,
    limit_seconds: float,
    watch: Callable[[str, str], None] = lambda target, what: None,
) -> Iterator[Row]:
    """The rows of all jobs, as they come.

    Args:
        jobs: one a target.
        parallel: processes at a time.
        limit_seconds: that a worker may be silent: one compilation, say.
        watch: told (target, what it does now).
    """
    rows: queue.Queue[Row | None] = queue.Queue()
    waiting: queue.Queue[Job] = queue.Queue()
    for job in jobs:
        waiting.put(job)

    def work() -> None:
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                rows.put(None)
                return
            try:
                for row in _run_one(job, limit_seconds, watch):
                    rows.put(row)
            except Exception as error:  # a target that cannot be planned is a row, not the end of the plan
                rows.put(Row(job.target, "failed", note=f"{type(error).__name__}: {error}"))
            watch(job.target, "done")

    threads = [threading.Thread(target=work, daemon=True) for _ in range(max(1, min(parallel, len(jobs))))]
    for thread in threads:
        thread.start()
    left = len(threads)
    while left:
        row = rows.get()
        if row is None:
            left -= 1
        else:
            yield row


def _run_one(job: Job, limit: float, watch: Callable[[str, str], None]) -> Iterator[Row]:
    skip: list[str] = []
    for _ in range(_TRIES):
        failed = yield from _attempt(job, skip, limit, watch)
        if failed is None:
            return
        skip.append(str(failed))


def _attempt(
    job: Job, skip: list[str], limit: float, watch: Callable[[str, str], None]
) -> Generator[Row, None, Candidate | None]:
    """The rows of one process; returns the candidate whose compilation ended it, None where it came to its end."""
    flags = os.environ.get("XLA_FLAGS", "")
    if job.host_devices > 1:
        flags += f" --xla_force_host_platform_device_count={job.host_devices}"
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxlean.plan.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**os.environ, **_ENVIRONMENT, "XLA_FLAGS": flags},
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        told = {"target": job.target, "config": job.config, "length": job.length, "hardware": job.hardware}
        process.stdin.write(json.dumps({**told, "most": job.most, "skip": skip}))
        process.stdin.close()
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_pass_on, args=(process.stdout, lines), daemon=True).start()
        current: Candidate | None = None
        watch(job.target, "reading the job")
        try:
            while line := lines.get(timeout=limit):
                found = json.loads(line)
                if "row" in found:
                    yield Row.from_dict(found["row"])
                elif "starting" in found:
                    current = Candidate.from_dict(found["starting"])
                    watch(job.target, f"compiling {current.mesh_name}, {current.microbatch} rows")
                else:
                    return None
            reason = _end(process.wait(), errors)
        except queue.Empty:
            reason = f"nothing was heard of the compiler for {limit:.0f} s"
        finally:
            process.kill()
            process.wait()
    yield Row(job.target, "failed", current, note=reason)
    return current


def _pass_on(stream: Iterable[str], lines: "queue.Queue[str]") -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def _end(code: int, errors: Any) -> str:
    errors.seek(0)
    last = [line for line in errors.read().splitlines() if line.strip()][-1:] or [""]
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"the compiler's process ended ({how}): {last[0][:200]}"
