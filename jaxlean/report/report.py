"""`jaxlean report`: runs as one HTML file, read, drawn, written."""

import os
from collections.abc import Sequence
from pathlib import Path

from jaxlean.errors import RunError
from jaxlean.report.page import GENERATOR, render
from jaxlean.report.read import read
from jaxlean.run.units import show_bytes

# Where the head of a page says what made it.
_HEAD_BYTES = 2000


def report(folders: Sequence[Path], output: Path) -> str:
    """Write one page that shows the runs; it needs nothing but a browser.

    Args:
        folders: of runs, in the order they are shown in.
        output: the file. An earlier report there is replaced, any other file is not.

    Returns:
        what was written, in a line.

    Raises:
        RunError: a folder holds no run, or the file cannot be written.
    """
    check_output(output)
    runs = read(folders)
    page = render(runs)
    write(output, page)
    what = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    return f"report of {what}: {output} ({show_bytes(len(page.encode()))})"


def check_output(file: Path) -> None:
    """Refuse to replace what is no report. Raises: RunError."""
    fix = "--output names another file"
    if file.is_dir():
        raise RunError("--output is a folder", where=file, wanted="a file", fix="--output report.html")
    if not file.absolute().parent.is_dir():
        raise RunError("the folder of --output is not there", where=file.parent, fix=f"make it, or {fix}")
    if not file.exists():
        return
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
    except OSError as error:
        raise RunError("the file at --output cannot be read", where=file, got=error, fix=fix) from error
    if f'name="generator" content="{GENERATOR} '.encode() not in head:
        raise RunError("the file at --output is no report, and would be replaced", where=file, fix=fix)


def write(file: Path, page: str) -> None:
    """Write the page whole, or not at all. Raises: RunError."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError("the report cannot be written", where=file, got=error) from error
