"""Leases in the file system: "I am working on this, and alive", across processes and machines that share a folder.

    NAME.1.lease          the first holder's; "held 000000000017" and, below, who that is
    NAME.2.lease          who took it over from the first, which was dead, or took it again after it was released

The newest file says whose it is. It is made by a hard link, which only one of several can make, and never moved:
taking over what is dead is making the next number, so a holder cannot lose to someone who looked before it came, and
one that was stopped for an hour finds a newer number than its own (`Lease.held`) before it writes what nobody waits
for any more.

No clock is compared with another. A holder's thread counts up in its file; who looks on holds it for dead when the
count has stood still for so many seconds of its own monotonic clock. The count is written in place, which needs no room
on a full disk and is seen at once over NFS, where a renamed file is not; a count half read is another count, a sign of
life. A holder on this machine whose process is gone is seen at once.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

BEAT_SECONDS = 2.0
DEAD_SECONDS = 20.0
_HELD, _RELEASED = "held", "done"
_ENDING = ".lease"
# A pause between two looks counts for no more than this share of the wait: where all was stopped together (a suspended
# machine), the holder gets its turn to count.
_MOST_OF_WAIT = 0.25


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Args:
        token: of the holding alone, random.
        host: name of the machine, for people.
        pid: of the process, there.
        place: where that number means a process: machine, its boot, its PID namespace; "" where that is not known.
        started: when the process started, in the kernel's ticks since boot: another process may get the same number.
    """

    token: str
    host: str
    pid: int
    place: str
    started: int | None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine, which is seen when it ends."""
        return bool(self.place) and self.place == _place() and self.started is not None

    @property
    def is_gone(self) -> bool:
        """Whether its process can be seen to have ended."""
        if not self.is_here:
            return False
        state = _state(self.pid)
        return state is None or state[0] in "ZX" or state[1] != self.started


class Lease:
    """What `Leases.take` gives; to be released, or left to die with the process.

    Args:
        file: its own, made by `take`.
        number: of the file.
        holder: this process.
        beat_seconds: between two counts.
    """

    def __init__(self, file: Path, number: int, holder: Holder, *, beat_seconds: float):
        self.file, self.holder = file, holder
        self._name, self._number, self._count = _name(file), number, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beating, args=(beat_seconds,), daemon=True, name="lease")
        self._thread.start()

    def beat(self) -> bool:
        """Count up; whether the file was there to do so."""
        self._count += 1
        return self._write(_HELD)

    def held(self) -> bool:
        """Whether it is still this process's: to be asked before what was done under it is written."""
        if self._over.is_set():
            return False
        numbers = _numbers(self.file.parent, self._name)
        if not numbers or numbers[-1] != self._number:
            return False
        said = _read(self.file)
        return said is not None and said.holder == self.holder

    def release(self, *, remove: bool = False) -> None:
        """Let others have it at once; where it was lost already, nothing.

        Args:
            remove: its file as well. Only of a name that nobody else takes: numbers would begin again.
        """
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        self._write(_RELEASED)
        if remove:
            with contextlib.suppress(OSError):
                self.file.unlink()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _beating(self, seconds: float) -> None:
        while not self._over.wait(seconds):
            self.beat()

    def _write(self, word: str) -> bool:
        try:
            descriptor = os.open(self.file, os.O_WRONLY)  # not made anew where it was removed
            try:
                os.write(descriptor, _count(word, self._count))
            finally:
                os.close(descriptor)  # with which NFS sends it
        except OSError:
            return False  # removed, or the disk is gone for now: the others judge by what they see
        return True


class Leases:
    """Takes leases, and remembers of those that others hold how long they have been silent.

    Args:
        beat_seconds: between two signs of life of what this process takes.
        dead_seconds: of silence after which a holder counts as dead. Over NFS: longer than it caches attributes.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        beat_seconds: float = BEAT_SECONDS,
        dead_seconds: float = DEAD_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._beat, self._dead, self._clock = beat_seconds, dead_seconds, clock
        self._looks: dict[Path, _Look] = {}

    def take(self, path: Path) -> Lease | None:
        """The lease of that name, unless another process that is alive, as far as is known, holds it.

        Args:
            path: folder / NAME; the folder is there.

        Raises:
            OSError: no file can be made there.
        """
        number, free = self._newest(path)
        if not free:
            return None
        holder = this_process()
        file = _file(path, number + 1)
        if not _create(file, _count(_HELD, 0) + json.dumps(holder.__dict__).encode() + b"\n"):
            return None  # somebody else was faster
        lease = Lease(file, number + 1, holder, beat_seconds=self._beat)
        if not lease.held():  # the folder was cleared while it was looked at, and others took on with other numbers
            lease.release()
            return None
        for old in _numbers(path.parent, path.name)[:-1]:
            with contextlib.suppress(OSError):
                _file(path, old).unlink()
        return lease

    def holder(self, path: Path) -> Holder | None:
        """Who holds it and is alive, as far as is known."""
        number, free = self._newest(path)
        said = None if free else _read(_file(path, number))
        return said.holder if said is not None else None

    def is_free(self, path: Path) -> bool:
        """Whether it was never taken, was released, or its holder is dead. What stands still is known as dead only by
        being looked at several times, over `dead_seconds`.
        """
        return self._newest(path)[1]

    def is_dead(self, path: Path) -> bool:
        """Whether somebody took it, did not release it, and is dead; known as of `is_free`."""
        number, free = self._newest(path)
        said = _read(_file(path, number)) if number else None
        return free and said is not None and said.word != _RELEASED

    def alive(self, folder: Path, prefix: str) -> list[str]:
        """The names that begin so and are held by somebody alive, as far as is known."""
        try:
            entries = os.listdir(folder)
        except OSError:
            return []
        names = {_name(Path(entry)) for entry in entries if entry.startswith(prefix) and entry.endswith(_ENDING)}
        return sorted(name for name in names if not self.is_free(folder / name))

    def clear(self, path: Path) -> None:
        """Remove the files of a name that nobody will take again."""
        for number in _numbers(path.parent, path.name):
            with contextlib.suppress(OSError):
                _file(path, number).unlink()

    def _newest(self, path: Path) -> tuple[int, bool]:
        """(number of the newest file, 0 without any; whether the lease is free)."""
        numbers = _numbers(path.parent, path.name)
        if not numbers:
            self._looks.pop(path, None)
            return 0, True
        number = numbers[-1]
        said = _read(_file(path, number))
        if said is not None and said.word == _RELEASED:
            return number, True
        if said is not None and said.holder is not None and said.holder.is_gone:
            return number, True
        now, seen = self._clock(), (number, None if said is None else said.text)
        look = self._looks.get(path)
        if look is None or look.seen != seen:
            self._looks[path] = _Look(seen, now, 0.0)
            return number, False
        look.quiet += min(now - look.at, _MOST_OF_WAIT * self._dead)
        look.at = now
        return number, look.quiet >= self._dead


@dataclass
class _Look:
    """What was seen last, when, and for how long it has been so."""

    seen: tuple[int, str | None]
    at: float
    quiet: float


@dataclass(frozen=True)
class _Said:
    word: str
    text: str
    holder: Holder | None  # None: cut short


def _name(file: Path) -> str:
    return file.name.removesuffix(_ENDING).rpartition(".")[0]


def _file(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}{_ENDING}")


def _numbers(folder: Path, name: str) -> list[int]:
    """Of the files of a lease, lowest first."""
    found = []
    try:
        entries = os.listdir(folder)
    except OSError:
        return []
    for entry in entries:
        if entry.startswith(f"{name}.") and entry.endswith(_ENDING):
            middle = entry[len(name) + 1 : -len(_ENDING)]
            if middle.isdecimal():
                found.append(int(middle))
    return sorted(found)


def _count(word: str, count: int) -> bytes:
    # always as long, so that it can be written over
    return f"{word} {count:012d}\n".encode()


def _read(file: Path) -> _Said | None:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    first, _, rest = text.partition("\n")
    holder = None
    with contextlib.suppress(ValueError, TypeError):
        holder = Holder(**json.loads(rest))
    return _Said(first.partition(" ")[0], text, holder)


def _create(file: Path, content: bytes) -> bool:
    """Make a file with that content, whole; False where it is there already."""
    mine = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        mine.write_bytes(content)
        try:
            os.link(mine, file)
        except FileExistsError:
            # NFS repeats a request whose answer was lost, and finds what it made itself
            return mine.stat().st_nlink == 2
        except OSError:  # no hard links here (mounted buckets, SMB)
            try:
                with file.open("xb") as out:
                    out.write(content)
            except FileExistsError:
                return False
        return True
    finally:
        with contextlib.suppress(OSError):
            mine.unlink()


def this_process() -> Holder:
    """This process, as others can find it."""
    state = _state(os.getpid())
    return Holder(
        secrets.token_hex(8), socket.gethostname(), os.getpid(), _place(), None if state is None else state[1]
    )


def _place() -> str:
    """Machine, boot and PID namespace; containers may share a host's name and not its processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _state(pid: int) -> tuple[str, int] | None:
    """(state letter, start in ticks since boot) of a process of this machine; None: gone, or not known (no /proc).

    Source: proc_pid_stat(5).
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields: list[Any] = text[text.rindex(")") + 2 :].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
