"""The entry point: one verb is run, and a `UserError` becomes a message and exit code 2."""

import errno
import os
import sys

import typer

# in the order of --help
from jaxlean.cli import train, cost, use, shrink, data, configs, about  # isort: skip
from jaxlean.cli.app import app
from jaxlean.errors import EXIT_USER_ERROR, BudgetReached, Preempted, RunError, UserError
from jaxlean.redact import guard, hidden

VERBS = (train, cost, use, shrink, data, configs, about)


def main() -> None:
    """Entry point.

    Exit codes: 0 done, 2 something the user can mend, 3 stopped at a limit of its own (`cost.max_usd`), 69 another
    process of the run is lost (`run.watch`), 75 preempted (see `Preempted.saved`).
    """
    guard()
    try:
        typer.main.get_command(app)()  # not `app()`, which puts a hook for tracebacks of its own in the place of ours
    except UserError as error:
        _fail(error)
    except Preempted as preempted:
        nothing = "before there was anything to save; the same command starts again"
        word = "stopped" if isinstance(preempted, BudgetReached) else "preempted"
        print(f"{word} ({preempted}): {preempted.goes_on if preempted.saved else nothing}", file=sys.stderr)
        sys.exit(preempted.code)
    except Exception as error:
        if not _no_space(error):
            raise
        where = getattr(error, "filename", None)
        fix = "make room; a run goes on from its last checkpoint with --resume"
        _fail(RunError("no disk space", where=where, got=error, fix=fix))


def _no_space(error: Exception) -> bool:
    # safetensors and tensorstore write from other languages and raise errors of their own with the system's words
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in codes or any(os.strerror(code) in str(error) for code in codes)


def _fail(error: UserError) -> None:
    print(hidden(f"error: {error}"), file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)
