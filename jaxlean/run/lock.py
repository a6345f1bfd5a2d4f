"""One process at a time writes a folder: the operating system's lock on a file, which ends with the process.

`filelock` asks for `flock`: no process leaves such a lock behind, not even by `kill -9`, and of a network file system
the server keeps it. The file that it is taken on says who has it, for the message that others get. It is removed
when the lock is given back; one that a killed process left stands in nobody's way.
"""

import contextlib
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from jaxlean.errors import RunError

_FILE = ".lock"
# Who only looks whether it is taken has it for a moment.
_PATIENCE_SECONDS = 1.0


class FolderLock:
    """The right to write a folder; taken by `acquire`, given back at the end of the context.

    Args:
        folder: which. Its lock lies in it.
        beside: the lock lies beside the folder, which is to appear whole.
    """

    def __init__(self, folder: Path, *, beside: bool = False):
        from filelock import FileLock

        self._folder = Path(folder)
        # where the folder is now, should the process change its current one
        place = self._folder.absolute()
        self.file = place.with_name(f".{place.name}{_FILE}") if beside else place / _FILE
        self._lock = FileLock(self.file, thread_local=False)

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take it, if this object has not got it already. The folder that the lock lies in is made.

        Raises:
            RunError: another process has it, whom the message names; or the file system will not have it.
        """
        if self._lock.is_locked:
            return
        self._take()
        said = {"host": socket.gethostname(), "pid": os.getpid(), "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"}
        with contextlib.suppress(OSError):  # a full disk: the lock holds without
            self.file.write_text(json.dumps(said), encoding="utf-8")

    def check(self) -> None:
        """Raise what `acquire` would, and take nothing. What we may not lock is nobody's, as far as is known.

        Raises:
            RunError: another process has it.
        """
        if self._lock.is_locked or not self.file.exists() or not os.access(self.file, os.W_OK):
            return
        self._take()
        self._lock.release()

    def release(self) -> None:
        """Give it back, where it was taken."""
        if not self._lock.is_locked:
            return
        if os.name == "posix":  # whoever waits for a file that is gone notices, and makes a new one
            with contextlib.suppress(OSError):
                self.file.unlink(missing_ok=True)
        self._lock.release()

    def _take(self) -> None:
        from filelock import Timeout

        try:
            self._lock.acquire(timeout=_PATIENCE_SECONDS)
        except Timeout:
            raise RunError(
                "another process is writing there", where=self._folder, got=self._holder(),
                fix="wait until it is done, or end it; another output folder leaves it alone",
            ) from None  # fmt: skip
        except OSError as error:
            raise RunError("the output folder cannot be locked", where=self.file, got=error) from error

    def _holder(self) -> str:
        try:
            said = json.loads(self.file.read_text(encoding="utf-8"))
            return f"process {said['pid']} on {said['host']}, since {said['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "a process that did not say who it is"
