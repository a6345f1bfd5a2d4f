"""The study's file: one JSON object a line, appended to by every worker; what a killed one left half is cut off.

Optuna's own journal (`JournalFileBackend`) appends behind half a line, which nobody can read from then on: neither the
others who are at work nor the next start. Here each append first looks at how the file ends. And each line ends in a
checksum of what stands before it, since one digit of a loss that flips on the disk is another loss: lines are read by
Optuna and its dashboard all the same, to whom it is one more key, and a line without it (of theirs) is taken as it is.

    {"op_code":6,"worker_id":"...","trial_id":3,"state":1,"values":[0.2755],"crc32":"1c291ca3"}
"""

import contextlib
import errno
import json
import os
import re
import time
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from jaxlean.errors import RunError

# Seconds after which the lock of a worker that was killed while it wrote is taken away.
GRACE_SECONDS = 30
# A line that ends in a checksum, or in what was one: no line of Optuna's own ends in such a pair.
_CHECKED = re.compile(rb'(\{.*),"(.{5})":"(.{8})"\}\n', re.DOTALL)


class Journal(JournalFileBackend):
    """Args: file: which; made when it is not there."""

    def __init__(self, file: Path):
        self._file, self._own_lock = file, JournalFileOpenLock(str(file), grace_period=GRACE_SECONDS)
        super().__init__(str(file), lock_obj=self._own_lock)
        self._read = (0, 0)  # lines, and the bytes they take

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The lines from that number on; one that is being written is not there yet.

        Raises:
            RunError: a line is not what was written.
        """
        number, end = self._read if self._read[0] <= log_number_from else (0, 0)
        with self._file.open("rb") as lines:
            lines.seek(end)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                if number >= log_number_from:
                    found = self._checked(line, number, end)
                    self._read = (number + 1, end + len(line))
                    yield found
                number, end = number + 1, end + len(line)

    def _checked(self, line: bytes, number: int, start: int) -> dict[str, Any]:
        try:
            return _content(line)
        except ValueError:
            # half of it may have been a dead worker's, which another one has cut off meanwhile
            with self._file.open("rb") as lines:
                lines.seek(start)
                if lines.read(len(line)) != line:
                    lines.seek(start)
                    line = lines.readline()
        try:
            return _content(line)
        except ValueError as error:
            raise RunError(
                "a line of the study is not what was written there", where=f"{self._file}:{number + 1}", got=error,
                fix="put the file back from a copy, or start anew with --overwrite or another output_dir",
            ) from None  # fmt: skip

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write them whole, or not at all.

        Raises:
            OSError: a full disk, say; the file is as it was.
        """
        content = b"".join(map(_line, logs))
        while not self._append(content):
            pass

    def _append(self, content: bytes) -> bool:
        """Whether it was done. Who was stopped here for so long that others may have taken the lock away cuts nothing
        off, since they may have written behind it, and begins anew; what is appended is written over nothing anyway.
        """
        held, began = False, time.monotonic()
        try:
            self._own_lock.acquire()
            held, began = True, time.monotonic()
            with self._file.open("ab", buffering=0) as out:
                end = _end_of_lines(self._file)
                if out.seek(0, os.SEEK_END) != end:
                    if time.monotonic() - began > GRACE_SECONDS / 2:
                        return False
                    out.truncate(end)
                try:
                    if out.write(content) != len(content):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._file))
                    os.fsync(out.fileno())
                except OSError:
                    if time.monotonic() - began < GRACE_SECONDS / 2:
                        out.truncate(end)
                    raise
            return True
        finally:
            if held:
                with contextlib.suppress(RuntimeError):  # it was taken away
                    self._own_lock.release()


def _line(log: dict[str, Any]) -> bytes:
    text = json.dumps(log, separators=(",", ":")).encode()
    return text[:-1] + f',"crc32":"{zlib.crc32(text):08x}"}}\n'.encode()


def _content(line: bytes) -> dict[str, Any]:
    """What a line says. Raises: ValueError."""
    summed = _CHECKED.fullmatch(line)
    if summed is not None:
        text = summed[1] + b"}"
        if (summed[2], summed[3]) != (b"crc32", f"{zlib.crc32(text):08x}".encode()):
            raise ValueError("its checksum is another")
        line = text
    found: dict[str, Any] = json.loads(line)
    return found


def _end_of_lines(path: Path) -> int:
    """Where the last whole line ends."""
    with path.open("rb") as file:
        at = file.seek(0, os.SEEK_END)
        while at:
            start = max(at - 4096, 0)
            file.seek(start)
            found = file.read(at - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            at = start
    return 0
