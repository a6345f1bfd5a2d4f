"""The study's file: one JSON object a line, appended to by every worker; what a killed one left half is cut off.

Optuna's own journal (`JournalFileBackend`) appends behind half a line, which nobody can read from then on: neither the
others who are at work nor the next start. Here each append first looks at how the file ends.
"""

import json
import os
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

# Seconds after which the lock of a worker that was killed while it wrote is taken away.
GRACE_SECONDS = 30


class Journal(JournalFileBackend):
    """Args: file: which; made when it is not there."""

    def __init__(self, file: Path):
        self._file, self._own_lock = file, JournalFileSymlinkLock(str(file), grace_period=GRACE_SECONDS)
        super().__init__(str(file), lock_obj=self._own_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write them whole, or not at all.

        Raises:
            OSError: a full disk, say; the file is as it was.
        """
        content = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._own_lock.acquire()
        try:
            with self._file.open("r+b") as out:
                end = _end_of_lines(out)
                out.seek(end)
                out.truncate()
                try:
                    out.write(content)
                    out.flush()
                    os.fsync(out.fileno())
                except OSError:
                    out.truncate(end)
                    raise
        finally:
            self._own_lock.release()


def _end_of_lines(file: Any) -> int:
    """Where the last whole line ends."""
    at = file.seek(0, os.SEEK_END)
    while at:
        start = max(at - 4096, 0)
        file.seek(start)
        found = file.read(at - start).rfind(b"\n")
        if found >= 0:
            return int(start + found + 1)
        at = start
    return 0
