"""The processes of one run: the first decides and writes, all stop at the same step, and nobody outlives another.

    with join(config.distributed) as peers:
        found = peers.first(lambda: what(only, the, first, does))     # the others get what came of it
        peers.barrier()

How it ends:

- a process is dead (`run/watch.py`): each other one says which and what to do, and ends with `EXIT_PEER_LOST`;
- a process raises: the others say so in its words; a `UserError` ends all of them with `EXIT_USER_ERROR`;
- SIGTERM to one or to all, while steps are run: the processes agree on the step to stop after (`stop_before`), since
  none of them can take a step alone.

They end by `os._exit`: the main thread may wait inside a collective for ever, and what jax would do at the exit of a
process is to wait for the others. For a process alone everything here is nothing.
"""

import atexit
import ctypes
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import jax

from jaxlean.config import DistributedSection
from jaxlean.errors import (
    EXIT_BUDGET,
    EXIT_FAILED,
    EXIT_PEER_LOST,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    Preempted,
    RunError,
    UserError,
)
from jaxlean.platform import claim_gpu_memory
from jaxlean.redact import hidden
from jaxlean.run.watch import Line, Meeting, Message, connect
from jaxlean.tree import Tree
from jaxlean.xla.distributed import Standing, initialize
from jaxlean.xla.spread import gather

if TYPE_CHECKING:
    from rich.console import Console

# For a process that is about to end by itself, with an error of its own; and for what it still has to write.
_GRACE_SECONDS = 2.0
_AGAIN = "start all processes again with --resume"


class Peers:
    """The processes of a run, as this one sees them; made by `join`.

    Args:
        standing: of this process; default: alone.
        meeting: how many times this program has brought processes together before.

    Attributes:
        index: of this process.
        num: of all.
        saved: the step of the newest checkpoint, where there is one; for the last words.
        leaving: called before this process is ended for another's sake; waits for what is being written.
    """

    def __init__(self, standing: Standing | None = None, *, meeting: int = 0):
        standing = standing if standing is not None else Standing()
        self.index, self.num = standing.index, standing.num
        self.saved: int | None = None
        self.leaving: Callable[[], None] = lambda: None
        self._depth = 0
        self._changed = threading.Condition()
        self._shared: list[Any] = []
        self._here = 0
        self._asked = False
        self.why = ""  # why they stop, where that is a limit of the run
        self._progress = 0
        self._reports: dict[int, int] = {}
        self._last: int | None = None
        self._over = threading.Event()
        self._line: Line | None = None
        if self.num > 1:
            self._line = Line(*_meet(standing, meeting), self._heard, self._lost)
            self._line.start()

    @property
    def is_first(self) -> bool:
        """Whether this process decides, writes and prints."""
        return self.index == 0

    @property
    def num_hosts(self) -> int:
        """Machines of the run; known to the first process."""
        return 1 if self._line is None else len({socket.gethostname(), *self._line.hosts.values()})

    # ---- one for all

    def first(self, act: Callable[[], Any]) -> Any:
        """The first process acts; every process gets what came of it, which JSON must hold.

        What it raises is raised there, and ends the others.
        """
        return self.share(act() if self.is_first else None)

    def share(self, value: Any = None) -> Any:
        """The first process's value, in every process; JSON."""
        if self._line is None:
            return value
        if self.is_first:
            self._line.say({"kind": "share", "value": value})
            return value
        with self._changed:
            self._changed.wait_for(lambda: bool(self._shared))
            return self._shared.pop(0)

    def barrier(self) -> None:
        """Wait until every process is here; before collectives, which wait for each other for half a minute only."""
        if self._line is None:
            return
        if self.is_first:
            with self._changed:
                self._changed.wait_for(lambda: self._here >= self.num - 1)
                self._here -= self.num - 1
        else:
            self._line.say({"kind": "here"})
        self.share()

    def gather(self, tree: Tree) -> Tree:
        """The leaves as numpy arrays in the first process, nothing in the others; alone: the tree as it is."""
        if self._line is None:
            return tree
        found = jax.tree.map(lambda leaf: gather(leaf, keep=self.is_first), tree)
        return found if self.is_first else {}

    def console(self) -> "Console":
        """Where to print; silent but in the first process."""
        from rich.console import Console

        return Console(quiet=not self.is_first)

    # ---- stopping together

    def ask_to_stop(self, why: str = "") -> None:
        """Ask all processes to stop after a step; safe in a signal handler.

        Args:
            why: a limit that was reached; empty: the machine is taken away.
        """
        assert self._line is not None
        stop = {"kind": "stop", "why": why}
        self._line.wake(lambda: self._heard(0, stop) if self.is_first else self._say(stop, 0))

    def stop_before(self, done: int) -> bool:
        """Whether the processes agreed to stop after `done` steps; called by each of them before each step.

        The first asks each how many steps it has begun. None begins another one until the highest of these numbers is
        announced, and all stop after that step. The threads of the lines answer, so that nobody waits for a process
        that waits for the device.
        """
        if self._line is None:
            return False
        with self._changed:
            self._changed.wait_for(lambda: not self._asked or self._last is not None)
            if self._last is not None and done >= self._last:
                return True
            self._progress = done + 1
            return False

    @property
    def asked(self) -> bool:
        """Whether one of the processes is to leave."""
        return self._asked

    # ---- the end

    def __enter__(self) -> "Peers":
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _current
        self._depth -= 1
        if self._depth or self._line is None:
            return
        if error is None or (isinstance(error, Preempted) and error.together):
            self.barrier()
            self._over.set()
            self._line.say({"kind": "bye"})
            self._line.all_parted(within=_GRACE_SECONDS)
        else:
            code, text = _last_words(self, error)
            if code == EXIT_FAILED:
                # what came out of a collective may be another process's death, which the line tells of in a moment
                time.sleep(_GRACE_SECONDS)
            self._over.set()
            self._line.say({"kind": "end", "code": code, "text": text})
            # jax's service, which lives in the first process, takes down those that outlive it
            self._line.all_parted(within=3 * _GRACE_SECONDS if self.is_first else 0)
            atexit.register(_leave, code)
        self._line.close()
        _current = None

    # ---- in the line's thread

    def _say(self, message: Message, to: int | None = None) -> None:
        assert self._line is not None
        self._line.say(message, to)

    def _heard(self, process: int, message: Message) -> None:
        assert self._line is not None
        kind = message["kind"]
        with self._changed:
            if kind == "share":
                self._shared.append(message["value"])
            elif kind == "here":
                self._here += 1
            elif kind == "stop" and not self._asked:
                self._say({"kind": "asked", "why": message["why"]})
                self._asked, self.why, self._reports = True, message["why"], {0: self._progress}
            elif kind == "asked":
                self._asked, self.why = True, message["why"]
                self._say({"kind": "progress", "step": self._progress}, 0)
            elif kind == "progress":
                self._reports[process] = message["step"]
            elif kind == "last":
                self._last = message["step"]
            elif kind == "bye":
                self._line.part(process)
            if self._asked and self._last is None and len(self._reports) == self.num:
                self._last = max(self._reports.values())
                self._say({"kind": "last", "step": self._last})
            self._changed.notify_all()
        if kind == "end":
            self._line.part(process)
            self._follow(message["code"], message["text"])

    def _lost(self, process: int, host: str, how: str) -> None:
        saved = "" if self.saved is None else f"; the last checkpoint is that of step {self.saved}"
        what = f"process {process} of {self.num}, on {host}, is gone ({how}), and the others cannot go on without it"
        error = RunError(what, fix=_AGAIN + saved)
        self._end(EXIT_PEER_LOST, str(error))

    def _follow(self, code: int, text: str) -> None:
        """Another process ends with an error; this one may be about to raise the same."""
        if self.is_first:
            self._say({"kind": "end", "code": code, "text": text})
        if not self._over.wait(_GRACE_SECONDS):
            self._end(code, text)

    def _end(self, code: int, text: str) -> None:
        if self._over.is_set():
            return
        self._over.set()
        if self.is_first:
            self._say({"kind": "end", "code": code, "text": text})
        print(f"error: {text}" if code not in (EXIT_PREEMPTED, EXIT_BUDGET) else text, file=sys.stderr, flush=True)
        self.leaving()
        if self.is_first:
            assert self._line is not None
            self._line.all_parted(within=2 * _GRACE_SECONDS)
        _leave(code)


_current: Peers | None = None
_meetings = 0
# ctypes must not lose it
_abort_handler: Any = None


def join(section: DistributedSection) -> Peers:
    """The processes of this run; while they are together, the same object for every caller.

    The first thing that a run does with jax: what jax has to know before it looks for devices, it is told here.

    Raises:
        ConfigError, RunError: as `jaxlean.xla.distributed.initialize`.
    """
    claim_gpu_memory()
    global _current, _meetings
    if _current is None:
        standing = initialize(section)
        if standing.num == 1:
            return Peers()
        _current = Peers(standing, meeting=_meetings)
        _meetings += 1
        _catch_abort()
    return _current


def _meet(standing: Standing, number: int) -> tuple[dict[int, socket.socket], dict[int, str]]:
    """Connections to the others: the first tells its port by jax's store."""
    key, seconds = f"jaxlean/watch/{number}", 60
    try:
        if standing.index == 0:
            meeting = Meeting()
            standing.store.key_value_set(key, meeting.ticket)
            return meeting.wait(standing.num, seconds)
        ticket = standing.store.blocking_key_value_get(key, seconds * 1000)
        return connect(standing.host, ticket, standing.index, seconds)
    except OSError as error:
        raise RunError(
            "the processes of the run cannot reach each other",
            where=f"process {standing.index}",
            got=error,
            fix=f"let them open TCP connections to {standing.host}, on any port",
        ) from error


def _last_words(peers: Peers, error: BaseException) -> tuple[int, str]:
    """(exit code, what the others say) when this process ends with an error."""
    who = f"process {peers.index} of {peers.num}, on {socket.gethostname()},"
    if isinstance(error, UserError):
        return EXIT_USER_ERROR, hidden(f"{who} ended: {error}")
    if isinstance(error, Preempted):
        return error.code, f"preempted: {who} was told to leave ({error}); {_AGAIN}"
    first = (str(error).strip() or "-").splitlines()[0]
    return EXIT_FAILED, hidden(f"{who} failed: {type(error).__name__}: {first}\n  fix:    see its output")


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _catch_abort() -> None:
    """jax's client aborts a process as soon as the first one is gone: let the line's thread have the last word."""
    global _abort_handler
    if _abort_handler is not None or not hasattr(ctypes, "CDLL") or sys.platform == "win32":
        return

    def aborted(number: int) -> None:
        time.sleep(3 * _GRACE_SECONDS)
        print(f"error: jax ended this process (see above)\n  fix:    {_AGAIN}", file=sys.stderr)
        _leave(EXIT_PEER_LOST)

    _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    ctypes.CDLL(None).signal(6, _abort_handler)  # SIGABRT; Python's own handlers wait for the main thread
