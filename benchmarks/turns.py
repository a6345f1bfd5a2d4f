"""Commands timed side by side on a machine whose speed drifts: each runs for some seconds, the others stopped."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


def in_turns(commands: Mapping[str, Sequence[str]], logs: Path, *, seconds: float = 15.0) -> dict[str, float]:
    """Seconds that each command, with all that it starts, was running until its end.

    Args:
        commands: by name; the order of the turns.
        logs: folder for what they print.
        seconds: of a turn. What is stopped keeps its memory, and finds its files in the cache as it left them.

    Raises:
        RuntimeError: one failed, with the end of what it said.
    """
    running: dict[str, subprocess.Popen[bytes]] = {}
    took = dict.fromkeys(commands, 0.0)
    try:
        for name, command in commands.items():
            with (logs / f"{name.replace(', ', '-').replace(' ', '-')}.log").open("wb") as out:
                running[name] = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
            os.killpg(running[name].pid, signal.SIGSTOP)
        while running:
            for name, process in list(running.items()):
                started = time.perf_counter()
                os.killpg(process.pid, signal.SIGCONT)
                try:
                    process.wait(seconds)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGSTOP)
                took[name] += time.perf_counter() - started
                if process.returncode is not None:
                    del running[name]
                    if process.returncode:
                        log = (logs / f"{name.replace(', ', '-').replace(' ', '-')}.log").read_text(errors="replace")
                        raise RuntimeError(f"{name}: exit code {process.returncode}: {log[-2000:]}")
    finally:
        for process in running.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return took
