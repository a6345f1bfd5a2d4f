"""Checkpoints: written in the background, atomic, and verified before they are trusted.

    checkpoints/
      120/                  a folder named by its step is a complete checkpoint
        arrays/             orbax (OCDBT), one entry per leaf
        complete.json       step, state, shape and dtype of each leaf, CRC-32 of each file (run/manifest.py)
      .writing-130/         one being written, or left by a killed process; never read, removed when next opened

`save` copies the arrays to host memory and returns, so that the caller may donate its buffers to the next step. A
background thread then lets orbax write them, makes the manifest of what reached the disk, and renames the folder
into place: a process killed at any moment leaves either the whole checkpoint or none. A file that is later cut short
or altered no longer fits the manifest, and the checkpoint before it is used.

In a run of several processes the first one writes: what is spread over them is brought to it leaf by leaf. It also says
which checkpoint is the newest, and each process reads from it what its own devices hold, whatever mesh wrote it.

The thread is ours rather than orbax's AsyncCheckpointer: orbax runs its callback before its rename, so the manifest
could not come last, and it logs a traceback where a full disk deserves a sentence.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlean.errors import RunError
from jaxlean.run.manifest import MANIFEST, Damaged, read_manifest, write_manifest
from jaxlean.run.peers import Peers
from jaxlean.xla.spread import gather

logger = logging.getLogger(__name__)

# Nested dicts, NamedTuples (optax states), lists and tuples of arrays and numbers.
Arrays = Any

_WRITING = ".writing-"
_FORMAT = 1


@dataclass
class Saved:
    """A restored checkpoint.

    Args:
        step: optimizer steps done when it was written.
        arrays: as `like`, with the saved values.
        state: the JSON-able rest (data position, counters).
    """

    step: int
    arrays: Arrays
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: folder that holds them; made when it is not there.
        keep: how many of the newest to keep; older ones are removed once a newer one is complete.
        peers: the processes of the run; each makes this object and calls its methods alike.

    Raises:
        RunError: the folder cannot be made.
    """

    def __init__(self, directory: Path, *, keep: int, peers: Peers | None = None):
        assert keep >= 1
        self._peers = peers if peers is not None else Peers()
        # orbax wants absolute paths.
        self._directory, self._keep = Path(directory).absolute(), keep
        self._damaged: set[int] = set()
        self._pending: Future[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        if self._peers.is_first:
            self._open()

    def _open(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            for leftover in self._directory.glob(f"{_WRITING}*"):
                shutil.rmtree(leftover)
        except OSError as error:
            raise _explain(error, self._directory) from error

    def save(self, step: int, arrays: Arrays, state: dict[str, Any], *, wait: bool = False) -> None:
        """Copy the arrays to host memory and write them in the background.

        When it returns, the buffers of `arrays` may be donated. It first waits for the save before it, if that is
        still being written. A step that is on disk already is not written again, unless `latest` found it damaged.

        Args:
            step: optimizer steps done.
            arrays: any pytree of jax or numpy arrays and numbers, sharded over the run's devices or not.
            state: what JSON can hold.
            wait: return only when it is on disk (in the process that writes).

        Raises:
            RunError: no disk space, or the folder cannot be written; also when the save *before* this one failed.
        """
        self._finish()
        there = self._peers.first(lambda: [other for other in self.steps() if other not in self._damaged])
        self._peers.saved = max(there, default=None)
        if step in there:
            return
        host = self._to_host(_leaves(arrays))
        if not self._peers.is_first:
            return
        # Through JSON now, so that a state that cannot be saved fails here and later changes to it do not matter.
        content = {"format": _FORMAT, "step": step, "state": json.loads(json.dumps(state))}
        content["leaves"] = {path: [list(leaf.shape), leaf.dtype.name] for path, leaf in host.items()}
        self._pending = self._thread.submit(self._write, step, host, content)
        if wait:
            self._finish()

    def latest(self, like: Arrays, *, same: Mapping[str, Any] | None = None) -> Saved | None:
        """The newest checkpoint that is whole; None where there is none.

        One that was cut short or altered on disk is skipped, with a logged warning that says which and why.

        Args:
            like: the tree to restore into: jax arrays or `jax.ShapeDtypeStruct` (restored onto their sharding where
                they have one), numpy arrays, or numbers.
            same: what the saved state must hold, `section.key` -> value.

        Raises:
            RunError: the checkpoint is whole but of another run: its leaves, shapes or dtypes are not those of `like`,
                or it was saved with another value of a setting in `same`.
        """
        self._finish()
        content = self._peers.first(self._newest)
        if content is None:
            return None
        folder = self._directory / str(content["step"])
        if not (folder / MANIFEST).exists():
            raise RunError(
                "a process does not see the checkpoint that the first one found",
                where=f"process {self._peers.index}: {folder}",
                fix="let output_dir lie on a file system that all processes share",
            )
        self._peers.saved = content["step"]
        for key, value in (same or {}).items():
            if content["state"].get(key) != value:
                raise RunError(
                    f"the checkpoint is of a run with another {key}",
                    where=folder,
                    got=content["state"].get(key),
                    wanted=value,
                    fix=f"resume with the {key} that the run was started with, or start anew with --overwrite",
                )
        _check_same(_leaves(like), content["leaves"], folder)
        return Saved(content["step"], _restore(folder / "arrays", like), content["state"])

    def _newest(self) -> dict[str, Any] | None:
        """The manifest of the newest checkpoint that is whole."""
        for step in reversed(self.steps()):
            folder = self._directory / str(step)
            try:
                return read_manifest(folder)
            except Damaged as damage:
                self._damaged.add(step)
                logger.warning("checkpoint %s is damaged and is skipped: %s", folder, damage)
        if self._damaged:
            logger.warning("no checkpoint in %s is whole: there is nothing to go on from", self._directory)
        return None

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first; not the one being written."""
        folders = (entry for entry in self._directory.iterdir() if entry.is_dir())
        return sorted(int(folder.name) for folder in folders if folder.name.isdecimal())

    def nbytes(self, step: int) -> int:
        """Size on disk, in bytes."""
        return sum(file.stat().st_size for file in (self._directory / str(step)).rglob("*") if file.is_file())

    def settle(self, seconds: float) -> None:
        """Give the last save so many seconds to reach the disk; what becomes of it does not matter any more."""
        pending = self._pending
        if pending is not None:
            futures.wait([pending], timeout=seconds)

    def close(self) -> None:
        """Wait until the last save is on disk.

        Raises:
            RunError: it could not be written.
        """
        try:
            self._finish()
        finally:
            self._thread.shutdown()

    def _finish(self) -> None:
        if self._pending is None:
            return
        try:
            self._pending.result()
        finally:
            # A signal may end the wait before the write is done: then it is still to be waited for.
            if self._pending.done():
                self._pending = None

    def _to_host(self, leaves: dict[str, Any]) -> dict[str, np.ndarray]:
        """Copies that nothing else can write to; none of them in the processes that do not write."""
        keep, host = self._peers.is_first, {}
        for leaf in leaves.values():
            if keep and isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()
        for path, leaf in leaves.items():
            found = gather(leaf, keep=keep)
            if found is not None:
                host[path] = found
        return host

    def _write(self, step: int, host: dict[str, np.ndarray], content: dict[str, Any]) -> None:
        """In the background thread."""
        writing, final = self._directory / f"{_WRITING}{step}", self._directory / str(step)
        try:
            writing.mkdir()
            _write_arrays(writing / "arrays", host)
            write_manifest(writing, content)
            if final.exists():  # damaged: nothing is lost
                shutil.rmtree(final)
            os.rename(writing, final)
            _sync(self._directory)  # before an older one is removed
        except Exception as error:
            explained = _explain(error, self._directory, needed=sum(leaf.nbytes for leaf in host.values()))
            shutil.rmtree(writing, ignore_errors=True)
            if explained is error:
                raise
            raise explained from error
        self._damaged.discard(step)
        self._peers.saved = step
        # What is beyond this step belongs to a past that this run went back from (a damaged checkpoint): counted among
        # the newest, it would push out the good ones.
        kept = [other for other in self.steps() if other <= step][-self._keep :]
        for other in self.steps():
            if other not in kept:
                self._remove(other)

    def _remove(self, step: int) -> None:
        # Out of sight first, so that a process killed in between leaves no half of it.
        hidden = self._directory / f"{_WRITING}removed-{step}"
        os.rename(self._directory / str(step), hidden)
        shutil.rmtree(hidden)


def _sync(folder: Path) -> None:
    """Make a rename in the folder last a power cut, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _leaves(tree: Arrays) -> dict[str, Any]:
    """`{dotted path: leaf}`. The file knows names only, so the structure comes from `like` when it is read."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    leaves = {jax.tree_util.keystr(path, simple=True, separator=".") or "value": leaf for path, leaf in pairs}
    assert len(leaves) == len(pairs), "two leaves have the same dotted path"
    return leaves


def _orbax() -> Any:
    """A checkpointer that waits for no other process: orbax would do so by collectives, amid those of the steps."""
    import orbax.checkpoint as ocp

    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process-{own}"
    )
    # Weights are noise to a compressor: it takes twice the time to make them 8 % smaller.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _write_arrays(folder: Path, host: dict[str, np.ndarray]) -> None:
    import orbax.checkpoint as ocp

    with _quiet(), _orbax() as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(host))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What goes wrong is raised; orbax's threads would also log it, with a page of traceback each.

    The first array that cannot be written ends orbax's event loop, and tensorstore tells `sys.unraisablehook` of each
    other array that it cannot tell that loop of it. Some do so late: after an error nobody hears of it any more.
    """

    def not_an_error(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    def hook(told: Any) -> None:
        if not isinstance(told.exc_value, RuntimeError) or str(told.exc_value) != "Event loop is closed":
            before(told)

    before, sys.unraisablehook = sys.unraisablehook, hook
    absl = logging.getLogger("absl")
    absl.addFilter(not_an_error)
    try:
        yield
        sys.unraisablehook = before
    finally:
        absl.removeFilter(not_an_error)


def _restore(folder: Path, like: Arrays) -> Arrays:
    import orbax.checkpoint as ocp

    leaves = _leaves(like)
    how: dict[str, Any] = {}
    for path, leaf in leaves.items():
        sharding = getattr(leaf, "sharding", None)
        how[path] = (
            ocp.RestoreArgs(restore_type=np.ndarray)
            if sharding is None
            else ocp.ArrayRestoreArgs(sharding=sharding, dtype=leaf.dtype)
        )
    with _orbax() as checkpointer:
        restored = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(item=how, restore_args=how))
    return jax.tree.unflatten(jax.tree.structure(like), [_as(restored[path], leaf) for path, leaf in leaves.items()])


def _as(value: Any, like: Any) -> Any:
    if isinstance(like, bool | int | float):
        return type(like)(value.item())
    if isinstance(like, jax.ShapeDtypeStruct) and like.sharding is None:
        return jax.numpy.array(value)
    return value


def _check_same(like: dict[str, Any], saved: dict[str, list[Any]], folder: Path) -> None:
    """The leaves of the checkpoint are those of the run."""
    fix = "resume with the config the run was started with, or start anew with --overwrite"
    for path, leaf in like.items():
        if path not in saved:
            raise RunError("the checkpoint lacks an array that this run has", where=folder, wanted=path, fix=fix)
        # As save saw it: a Python number is what numpy makes of it.
        leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        wanted, got = [list(leaf.shape), np.dtype(leaf.dtype).name], saved[path]
        if wanted != got:
            raise RunError(
                f"the checkpoint is of another run: {path}",
                where=folder,
                got=f"{got[1]} {got[0]}",
                wanted=f"{wanted[1]} {wanted[0]}",
                fix=fix,
            )
    for path in saved:
        if path not in like:
            raise RunError("the checkpoint has an array that this run lacks", where=folder, got=path, fix=fix)


def _explain(error: Exception, folder: Path, *, needed: int = 0) -> Exception:
    """What a user can mend, in our form; a bug as it is."""
    code = getattr(error, "errno", None)
    # tensorstore writes from C++ and raises ValueError or RuntimeError with the system's words.
    full = code in (errno.ENOSPC, errno.EDQUOT) or any(
        words in str(error) for words in (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
    )
    if full:
        try:
            free = f"{shutil.disk_usage(folder).free:,} bytes free"
        except OSError:
            free = "unknown free space"
        return RunError(
            "no disk space for a checkpoint",
            where=folder,
            got=free,
            wanted=f"about {needed:,} bytes for each checkpoint" if needed else None,
            fix="make room, lower train.save_total_limit or move output_dir, then go on with --resume",
        )
    if code == errno.EFBIG or os.strerror(errno.EFBIG) in str(error):
        fix = "raise the limit (ulimit -f) or move output_dir, then go on with --resume"
        return RunError("a checkpoint is larger than a file may be", where=folder, got=error, fix=fix)
    if isinstance(error, OSError):
        fix = "check that the folder is there and may be written to"
        return RunError("a checkpoint cannot be written", where=folder, got=error, fix=fix)
    return error
