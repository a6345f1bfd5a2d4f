"""The persistent compilation cache: what one process compiled, the next one reads from disk.

    ~/.cache/jaxlean/xla/x86_64-5f1c09d2/jit_step-8d8d22d7...-cache

It is jax's own cache (docs.jax.dev/en/latest/persistent_compilation_cache.html), whose key holds the program, the
devices, the flags and jaxlib's version, with what a user's machine needs beside it:

* a folder of its own for each kind of processor, since programs hold its instructions and a home folder may be shared
  by machines that differ in them;
* small programs are kept too: a run has a dozen of them, at 20 to 700 ms each;
* an entry cut short (by a killed process, a full disk) is removed. jax would warn of it at every start and never
  write it anew;
* the folder is kept below a size here, when a run starts. jax's own limit (`jax_compilation_cache_max_size`) locks the
  folder for every read, and stops writing for good once one of its time stamps is lost to a killed process. Whoever
  sets it gets it, and this one leaves the folder alone.

Nothing that goes wrong with the cache stops a run.
"""

import contextlib
import hashlib
import logging
import os
import platform
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax

logger = logging.getLogger(__name__)

MAX_BYTES = 2 * 2**30  # a step takes 0.2 MB on CPU and a few MB on GPU: hundreds of jobs
_CHECKED = ".checked"  # its time is that of the last look at the entries
_ZSTD = b"\x28\xb5\x2f\xfd"

_events = threading.local()
_listening = False
_turned_to: str | None = None


def use_cache(setting: bool | str = True) -> Path | None:
    """Read and write compiled programs on disk from here on, in this process.

    Args:
        setting: True: the folder that jax was told (`JAX_COMPILATION_CACHE_DIR`), else the user's cache folder; a
            path: there; False: nowhere.

    Returns:
        the folder; None where there is none: the setting, `JAX_ENABLE_COMPILATION_CACHE=false`, a user without a home,
        or a folder that cannot be written; of the last two a warning is logged.
    """
    try:
        folder = cache_folder(setting)
    except RuntimeError as error:  # of pathlib: no home folder, as for a container's nameless user
        logger.warning("compiled programs are not kept: %s (XDG_CACHE_HOME=FOLDER says where to)", error)
        folder = None
    if folder is not None and (trouble := _unusable(folder)):
        logger.warning("compiled programs are not kept: %s cannot be written (%s)", folder, trouble)
        folder = None
    _turn(folder)
    if folder is not None and jax.config.values["jax_compilation_cache_max_size"] == -1:
        _remove_torn(folder)
        _shrink(folder, MAX_BYTES)
    return folder


def cache_folder(setting: bool | str = True) -> Path | None:
    """Where `use_cache` would keep programs; touches nothing."""
    if setting is False or not jax.config.values["jax_enable_compilation_cache"]:
        return None
    told = jax.config.values["jax_compilation_cache_dir"]
    if told == _turned_to:  # by an earlier run of this process
        told = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if setting is True and told:
        return Path(told)
    parent = user_cache_folder() / "xla" if setting is True else Path(setting).expanduser().absolute()
    return parent / _machine()


def user_cache_folder() -> Path:
    """`jaxlean` in the folder that the platform has for what can be made again."""
    # The XDG rule, which people also use where it is not the platform's own; a relative path is to be ignored.
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return Path(given) / "jaxlean"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "jaxlean" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "jaxlean"
    return Path.home() / ".cache" / "jaxlean"


class Compilations:
    """How many programs were asked for, and how many of them came from disk, since it was made; of this thread."""

    def __init__(self) -> None:
        _listen()
        self._start = _counts()

    @property
    def all_from_cache(self) -> bool | None:
        """Whether nothing had to be compiled; None where there was nothing to compile, or there is no cache."""
        asked, found = (now - before for now, before in zip(_counts(), self._start, strict=True))
        # jax also counts requests while it has no folder
        return found == asked if asked and jax.config.values["jax_compilation_cache_dir"] else None


def _counts() -> tuple[int, int]:
    return getattr(_events, "asked", 0), getattr(_events, "found", 0)


def _listen() -> None:
    global _listening
    if _listening:
        return
    _listening = True

    # jax calls it in the thread that compiles
    def heard(event: str, **_: str | int) -> None:
        if event == "/jax/compilation_cache/compile_requests_use_cache":
            _events.asked = getattr(_events, "asked", 0) + 1
        elif event == "/jax/compilation_cache/cache_hits":
            _events.found = getattr(_events, "found", 0) + 1

    jax.monitoring.register_event_listener(heard)


def _turn(folder: Path | None) -> None:
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    global _turned_to
    wanted = None if folder is None else str(folder)
    if jax.config.values["jax_compilation_cache_dir"] != wanted:
        jax.config.update("jax_compilation_cache_dir", wanted)
        reset_cache()  # jax looks at the folder once
        _turned_to = wanted
    if folder is not None and "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _unusable(folder: Path) -> str | None:
    """Why nothing can be written there."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # who writes here runs code in our processes
        probe.touch()
        probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _machine() -> str:
    """Names the processor by what it can do, as far as the system tells."""
    told = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        told = next((line for line in lines if line.startswith(("flags", "Features"))), told)
    except OSError:
        pass  # not Linux
    return f"{platform.machine() or 'machine'}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def _remove_torn(folder: Path) -> None:
    """Remove entries that are not whole; only those written since the last look are read."""
    stamp, last = folder / _CHECKED, 0
    with contextlib.suppress(OSError):  # the first look
        last = stamp.stat().st_mtime_ns
    with contextlib.suppress(OSError):
        stamp.touch()  # before looking: what is written meanwhile is looked at next time
    for file, about in _entries(folder):
        if about.st_mtime_ns >= last - 2_000_000_000:  # clocks of file systems are coarse
            with contextlib.suppress(OSError):
                if not _whole(file.read_bytes()):
                    file.unlink()


def _whole(entry: bytes) -> bool:
    """Whether a compressed entry has its end."""
    if entry.startswith(_ZSTD):
        return _whole_zstd(entry)
    stream = zlib.decompressobj()
    try:
        stream.decompress(entry)
    except zlib.error:
        return False
    return stream.eof


def _whole_zstd(entry: bytes) -> bool:
    """The same of the format that jax writes where it finds zstandard, which this does without.

    One frame: each block tells its size and whether it is the last one (RFC 8878, 3.1.1).
    """
    if len(entry) < 5:
        return False
    about = entry[4]
    single, checksum = about >> 5 & 1, about >> 2 & 1
    size_of_content = (single, 2, 4, 8)[about >> 6]
    at = 5 + (1 - single) + (0, 1, 2, 4)[about & 3] + size_of_content
    last = 0
    while not last and at + 3 <= len(entry):
        header = int.from_bytes(entry[at : at + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        at += 3 + (1 if kind == 1 else size)  # kind 1: one byte, repeated
    return bool(last) and at + 4 * checksum <= len(entry)


def _shrink(folder: Path, limit: int) -> None:
    """Remove the entries that were not used for longest until what is left fits."""
    entries = sorted(_entries(folder), key=lambda entry: max(entry[1].st_atime_ns, entry[1].st_mtime_ns))
    size = sum(about.st_size for _, about in entries)
    for file, about in entries:
        if size <= limit:
            return
        with contextlib.suppress(OSError):
            file.unlink()
        size -= about.st_size


def _entries(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for file in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process tidies up as well
            yield file, file.stat()
