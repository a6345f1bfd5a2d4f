"""The processes that training starts to score its snapshots: kept at work, or given up, without training noticing.

One that is dead is started again. So is one that shows no sign of life (it was stopped, its machine hangs): it holds a
lease as long as it runs, and is killed where that falls silent. Those that end again and again without a score between
are given up, with what the last one said.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxlean.errors import EXIT_USER_ERROR
from jaxlean.run.lease import Leases

# The name of the lease that an evaluator holds while it runs begins so.
PREFIX = "evaluator-"
# Starts without a score between after which no other is tried.
_STARTS = 4
_STOP_SECONDS = 5.0


def evaluator_name(pid: int) -> str:
    """Of the lease that a process of this machine holds while it is an evaluator."""
    return f"{PREFIX}{socket.gethostname()}-{pid}"


class EvaluatorProcesses:
    """The evaluators of one run on this machine.

    Args:
        run: the run's folder.
        num: of processes.
        threads: over which each spreads an operation.
        snapshots: the folder in which they hold leases.
        leases: observes those.
        log: the folder for what they print.
        nice: how much they yield to other processes.
        say: prints a line.
        command: default: `jaxlean evaluate --watch`.

    Attributes:
        restarted: how many were started again.
        given_up: why no more are started; None while they are.
    """

    def __init__(
        self,
        run: Path,
        num: int,
        *,
        threads: int,
        snapshots: Path,
        leases: Leases,
        log: Path,
        nice: int = 0,
        say: Callable[[str], None] = lambda line: None,
        command: Sequence[str] | None = None,
    ):
        self._num, self._snapshots, self._leases, self._log, self._say = num, snapshots, leases, log, say
        own = ["--parent", str(os.getpid()), "--nice", str(nice)]
        self._command = list(
            command or [sys.executable, "-m", "jaxlean", "evaluate", "--watch", str(run.absolute()), *own]
        )
        # jax in these looks for no accelerator, which is training's
        self._environment = os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": str(threads)}
        self._running: list[subprocess.Popen[bytes] | None] = [None] * num
        self._in_vain = 0
        self.restarted = 0
        self.given_up: str | None = None

    def start(self) -> None:
        """All of them."""
        self._log.mkdir(parents=True, exist_ok=True)
        for number in range(self._num):
            with contextlib.suppress(OSError):
                self._file(number).unlink()
            self._running[number] = self._new(number)

    def check(self) -> None:
        """Replace those that are dead or silent."""
        for number, process in enumerate(self._running):
            if process is None:
                continue
            how = self._ended(process)
            if how is None:
                continue
            self._running[number] = None
            self._leases.clear(self._snapshots / evaluator_name(process.pid))
            self._in_vain += 1
            if process.returncode == EXIT_USER_ERROR or self._in_vain >= _STARTS:
                self.given_up = self._last_words(number) or how
                self._say(f"no evaluator is started any more: evaluator {number + 1} {how}: {self.given_up}")
                self.stop()
                return
            self.restarted += 1
            self._say(f"evaluator {number + 1} {how}, and is started again")
            self._running[number] = self._new(number)

    def scored(self) -> None:
        """One of them has done its work."""
        self._in_vain = 0

    @property
    def processes(self) -> list[int]:
        """Their numbers, of those that run."""
        return [process.pid for process in self._running if process is not None and process.poll() is None]

    def stop(self) -> None:
        """End all of them, and wait until they have."""
        running = [process for process in self._running if process is not None and process.poll() is None]
        self._running = [None] * self._num
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:  # stopped, or amid a long computation
                process.kill()
                process.wait()
            self._leases.clear(self._snapshots / evaluator_name(process.pid))

    def _new(self, number: int) -> subprocess.Popen[bytes] | None:
        try:
            with self._file(number).open("ab") as out:
                # a group of its own: Ctrl-C is meant for training, which ends them
                return subprocess.Popen(
                    self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                    process_group=0,
                )  # fmt: skip
        except OSError as error:
            self.given_up = str(error)
            self._say(f"no evaluator can be started: {error}")
            return None

    def _ended(self, process: subprocess.Popen[bytes]) -> str | None:
        """How; None where it works."""
        code = process.poll()
        if code is not None:
            return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if self._leases.is_dead(self._snapshots / evaluator_name(process.pid)):
            process.kill()
            process.wait()
            return "showed no sign of life"
        return None

    def _file(self, number: int) -> Path:
        return self._log / f"evaluator-{number + 1}.log"

    def _last_words(self, number: int) -> str:
        """From the last error on."""
        try:
            text = self._file(number).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""
        start = text.rfind("error: ")
        return text[start + len("error: ") :] if start >= 0 else "\n".join(text.splitlines()[-3:])
