"""What can go wrong that a user can fix.

Every such problem is a `UserError`: it says what is wrong, where, what was got, what was wanted and how to
mend it. The command line prints it without a traceback and exits with `EXIT_USER_ERROR`. Anything else that
is raised is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable

EXIT_USER_ERROR = 2
# A process of several that failed for no reason that another start would mend.
EXIT_FAILED = 1
# The run came to a limit of its own (cost.max_usd and the like): saved, and not to be started again by a scheduler.
EXIT_BUDGET = 3
# sysexits.h EX_TEMPFAIL: "try again". Schedulers (SLURM, Kubernetes pod failure policies) can tell it from a failure.
EXIT_PREEMPTED = 75
# sysexits.h EX_UNAVAILABLE: another process of the same run is gone; worth starting all of them again, with --resume.
EXIT_PEER_LOST = 69


class UserError(ValueError):
    """A problem the user can fix.

    Args:
        what: one sentence that names the thing that is wrong.
        where: the file, `file:line`, config key or parameter path.
        got: what was found there.
        wanted: what should have been there.
        fix: what to do now.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object | None = None,
        got: object | None = None,
        wanted: object | None = None,
        fix: str | None = None,
    ):
        self.what, self.where, self.got, self.wanted, self.fix = what, where, got, wanted, fix
        lines = [what]
        for label, value in (("where", where), ("got", got), ("wanted", wanted), ("fix", fix)):
            if value is not None:
                lines.append(f"  {label + ':':<8}{value}")
        super().__init__("\n".join(lines))


class ConfigError(UserError):
    """A setting that cannot be: an unknown key, a wrong value, two settings that exclude each other."""


class ModelError(UserError):
    """A model that cannot be loaded or written: a missing file, an unsupported family, a tensor that does not fit."""


class DataError(UserError):
    """A dataset that cannot be trained on: a missing file, a malformed row, nothing to learn from."""


class RunError(UserError):
    """A run that cannot start or go on: a folder already used, a loss that is not a number, no disk space."""


class Preempted(Exception):
    """The machine asked us to leave (SIGTERM). Where `saved`, the same command with `--resume` goes on.

    Where `together`, all processes of the run leave after the same step.
    """

    saved = together = False
    code, status = EXIT_PREEMPTED, "preempted"
    goes_on = "the same command with --resume goes on from what is saved"


class BudgetReached(Preempted):
    """The run came to one of its limits: it leaves as if it had been asked to."""

    code, status = EXIT_BUDGET, "budget"
    goes_on = "--resume with a higher limit goes on from what is saved"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the closest known one, or the whole list where none is close.

    >>> did_you_mean("lerning_rate", ["learning_rate", "seed"])
    "did you mean 'learning_rate'?"
    >>> did_you_mean("zzz", ["b", "a"])
    'known: a, b'
    """
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(known)
