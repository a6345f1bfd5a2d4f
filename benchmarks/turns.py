"""Processes timed side by side on a machine whose speed drifts: a group runs for some seconds, the others stopped."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_LOOK_SECONDS = 0.005
Group = Sequence["subprocess.Popen[bytes]"]


def in_turns(commands: Mapping[str, Sequence[str]], logs: Path, *, seconds: float = 15.0) -> dict[str, float]:
    """Seconds that each command, with all that it starts, was running until its end.

    Args:
        commands: by name; the order of the turns.
        logs: folder for what they print.
        seconds: of a turn. What is stopped keeps its memory, and finds its files in the cache as it left them.

    Raises:
        RuntimeError: one failed, with the end of what it said.
    """
    files = {name: logs / f"{name.replace(', ', '-').replace(' ', '-')}.log" for name in commands}
    running: dict[str, Group] = {}
    try:
        for name, command in commands.items():
            with files[name].open("wb") as out:
                running[name] = [subprocess.Popen(command, stdout=out, stderr=out, process_group=0)]
            os.killpg(running[name][0].pid, signal.SIGSTOP)
    except BaseException:
        _end(running)
        raise
    return take_turns(running, files, seconds=seconds)


def take_turns(
    groups: Mapping[str, Group],
    logs: Mapping[str, Path],
    *,
    seconds: float,
    look: Callable[[str, float], None] = lambda name, running: None,
) -> dict[str, float]:
    """Seconds that each group was running until the end of its last process.

    Args:
        groups: by name, stopped; the order of the turns. The first process of each leads the process group of all.
        logs: what each prints, for the error.
        seconds: of a turn.
        look: called often while a group has its turn, with its name and its running seconds so far.

    Raises:
        RuntimeError: a process failed, with the end of what its group said. None is left running.
    """
    took = dict.fromkeys(groups, 0.0)
    left = dict(groups)
    try:
        while left:
            for name, group in list(left.items()):
                started = time.perf_counter()
                os.killpg(group[0].pid, signal.SIGCONT)
                ended = False
                while not ended and time.perf_counter() - started < seconds:
                    time.sleep(_LOOK_SECONDS)
                    look(name, took[name] + time.perf_counter() - started)
                    codes = [process.poll() for process in group]
                    if any(codes):
                        said = logs[name].read_text(errors="replace")
                        raise RuntimeError(f"{name}: exit codes {codes}: {said[-2000:]}")
                    ended = None not in codes
                if ended:
                    del left[name]
                else:
                    os.killpg(group[0].pid, signal.SIGSTOP)
                took[name] += time.perf_counter() - started
    finally:
        _end(left)
    return took


def _end(groups: Mapping[str, Group]) -> None:
    for group in groups.values():
        os.killpg(group[0].pid, signal.SIGKILL)
        for process in group:
            process.wait()
