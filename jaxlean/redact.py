"""Passwords and tokens: what looks like one is neither printed nor written, and a config names it without holding it.

    data.train='https://${DATA_USER}:${DATA_PASSWORD}@host/rows.jsonl'

stands so in config.yaml, and is filled in from the environment where the address is opened. What is a secret: name and
password in a URL, the parameters that sign one, tokens by what they begin with, and the values of environment
variables whose names say so.
"""

import logging
import os
import re
import sys
import threading
import traceback
import warnings
from types import TracebackType
from typing import Any

HIDDEN = "***"
# What says, in the name of a variable or of a URL's parameter, that its value is one.
_NAMES = r"(?:token|api_?key|access_?key|secret|secret_?key|password|passwd|credentials?|signature)"
_VARIABLE = re.compile(rf"(?:^|_){_NAMES}(?:_ID)?$", re.IGNORECASE)
_SHORTEST = 8  # a shorter value would be found in ordinary words
_KINDS = (
    # scheme://name:password@host; a reference to the environment is none
    ("a password in a URL", re.compile(r"(?<=://)(?!\$\{\w+\}(?::\$\{\w+\})?@)[^\s/@'\"]+(?=@)")),
    (
        "a signature in a URL",
        re.compile(rf"(?<=[?&])((?:[\w-]*{_NAMES}|sig|auth|key)=)(?!\$\{{)[^\s&'\"]+", re.IGNORECASE),
    ),
    (
        "a token",
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{20,}|gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|"
            r"glpat-[\w-]{20,}|xox[abeprs]-[\w-]{10,}|A(?:KIA|SIA)[A-Z0-9]{16}|AIza[\w-]{30,}|wandb_v1_\w{20,})"
        ),
    ),
    ("a password", re.compile(r"(?i)(?<![\w{])((?:password|passwd|pwd)=)(?!\$\{)[^\s&;'\",{}]+")),
)
# What `expand` has filled in: whatever it looks like, it is one.
_expanded: dict[str, str] = {}
_format_warning = warnings.formatwarning


def hidden(text: str) -> str:
    """The text with *** in the place of every secret in it.

    >>> hidden("GET https://me:word@host/rows.jsonl?X-Amz-Signature=0123 failed")
    'GET https://***@host/rows.jsonl?X-Amz-Signature=*** failed'
    """
    for value in _values():
        text = text.replace(value, HIDDEN)
    for _, pattern in _KINDS:
        text = pattern.sub(lambda found: (found[1] if found.re.groups else "") + HIDDEN, text)
    return text


def secret_in(text: str) -> str | None:
    """What kind of secret the text holds; None: none."""
    for value, name in _values().items():
        if value in text:
            return f"the value of {name}, which is secret by that name,"
    return next((kind for kind, pattern in _KINDS[:-1] if pattern.search(text)), None)


def expand(text: str) -> str:
    """The text with each `${NAME}` filled in from the environment, whose value is hidden from then on.

    Raises:
        KeyError: the environment has no such variable.
    """

    def fill(found: re.Match[str]) -> str:
        value = os.environ[found[1]]
        if len(value) >= _SHORTEST // 2:
            _expanded[value] = found[1]
        return value

    return re.sub(r"\$\{(\w+)\}", fill, text)


def guard() -> None:
    """Hide secrets in what this process says by other ways than ours.

    Tracebacks, of any thread, lines of any library's log with what they are told beside, and warnings.
    """
    if sys.excepthook is sys.__excepthook__:  # a debugger's, or a test's, is its own
        sys.excepthook = _print_hidden
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _print_unraisable
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _print_of_thread
    if warnings.formatwarning is _format_warning:  # from it those who show one, or log it, have the text
        warnings.formatwarning = _format_hidden
    logging.setLogRecordFactory(_Record)


def _values() -> dict[str, str]:
    """Secrets that are known by heart -> the variable that holds each, the longest first."""
    named = {value: name for name, value in os.environ.items() if _VARIABLE.search(name)}
    # a path to a file of secrets is none
    found = {
        value: n for value, n in named.items() if len(value) >= _SHORTEST and not value.startswith(("/", "~", "."))
    }
    found |= {value: name for value, name in _expanded.items() if value not in found}
    return dict(sorted(found.items(), key=lambda pair: len(pair[0]), reverse=True))


def _print_hidden(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    print(hidden("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _print_unraisable(told: Any) -> None:
    where = f"{told.err_msg or 'Exception ignored in'}: {told.object!r}\n" if told.object is not None else ""
    print(hidden(where), end="", file=sys.stderr)
    if told.exc_value is not None:
        _print_hidden(told.exc_type, told.exc_value, told.exc_traceback)


def _print_of_thread(told: threading.ExceptHookArgs) -> None:
    if told.exc_type is SystemExit:  # which ends a thread silently
        return
    name = threading.get_ident() if told.thread is None else told.thread.name
    print(hidden(f"Exception in thread {name}:"), file=sys.stderr)
    _print_hidden(told.exc_type, told.exc_value, told.exc_traceback)


def _format_hidden(*told: Any, **named: Any) -> str:
    return hidden(_format_warning(*told, **named))


class _Record(logging.LogRecord):
    """Holds the text of an exception, and not the exception, of which each handler would make a text in its own way."""

    def __init__(self, *told: Any, **named: Any):
        super().__init__(*told, **named)
        if isinstance(self.exc_info, tuple):
            self.exc_text, self.exc_info = hidden(logging.Formatter().formatException(self.exc_info)), None
        if self.stack_info:
            self.stack_info = hidden(self.stack_info)

    def getMessage(self) -> str:
        return hidden(super().getMessage())
