"""A folder that appears when all of it is there, or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxlean.errors import RunError
from jaxlean.run.folder import check_writable, make
from jaxlean.run.lock import FolderLock


def check_output(folder: Path) -> None:
    """Refuse a folder that holds something, cannot be made anew, or cannot be written. Raises: RunError."""
    what = None
    if folder.is_symlink():
        what = "a link"
    elif folder.resolve() == Path.cwd():
        what = "the current one"
    elif folder.resolve().is_mount():
        what = "a mount point"
    if what is not None:
        raise RunError(
            f"the output folder is {what}: it would be made anew", where=folder, fix="name a folder inside of it"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise RunError(f"the output folder {what}", where=folder, fix="choose another, or remove it")
    check_writable(folder, named="the output folder")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A path beside the folder, to write to; it becomes the folder at the end, and is removed where that fails.

    What a killed process left there is removed first: its name, `.NAME.new`, is none that people give.

    Raises:
        RunError: the folder holds something, or cannot be written, or another process is about to write it.
    """
    check_output(folder)
    make(folder.parent)
    with FolderLock(folder, beside=True) as lock:
        lock.acquire()
        check_output(folder)  # another process may have made it meanwhile
        part = folder.with_name(f".{folder.name}.new")
        try:
            shutil.rmtree(part, ignore_errors=True)
            yield part
            if folder.exists():
                folder.rmdir()
            part.rename(folder)
        except OSError as error:
            raise RunError("the output folder cannot be written", where=folder, got=error) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
