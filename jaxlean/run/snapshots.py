"""Snapshots of a run: what trains, as it was after a step, for others to measure while training goes on.

    snapshots/
      run.json              what who measures must know of the run (`Origin`)
      frozen/               what does not train and is not in the base's files, of a run that has it
      120/
        arrays.safetensors  the trainable leaves alone, under our own paths
        complete.json       step, token, shape and dtype of each leaf, CRC-32 of the file (run/manifest.py)
        evaluation.1.lease  who measures it (run/lease.py)
      .writing-130/         one being written, or left by a killed process; never read

`hand_over` copies and returns; a thread writes and renames into place. Where that thread, or those who measure, are too
slow, older snapshots are left out, and training does not wait: of those that nobody has begun a few of the newest stay,
and of those that were measured the best, if it may be wanted at the end: one that is better takes its place when it is
on disk, and not before. A disk that is full costs a snapshot, not the run.
"""

import contextlib
import json
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlean import tree
from jaxlean.run.lease import Leases
from jaxlean.run.manifest import MANIFEST, Damaged, Unreadable, read_manifest, write_manifest
from jaxlean.run.peers import Peers
from jaxlean.xla.spread import gather

FOLDER = "snapshots"
FROZEN = "frozen"
# The name of a snapshot's lease.
LEASE = "evaluation"
_ARRAYS = "arrays.safetensors"
_ORIGIN = "run.json"
_WRITING, _REMOVED = ".writing-", ".removed-"


@dataclass(frozen=True)
class Origin:
    """What who measures must know of a run, beside its config.

    Args:
        run: drawn when it was started, the same when it is resumed.
        platform: cpu, gpu or tpu.
        mesh: devices by axis.
        threads: over which the CPU spreads an operation: another number adds up in another order.
        dtype: of the model's products.
        folder: from which the config's relative paths are meant.
        frozen: whether what is frozen lies beside the snapshots.
        finished: nothing will come any more.
    """

    run: str
    platform: str
    mesh: dict[str, int]
    threads: int
    dtype: str
    folder: str
    frozen: bool
    finished: bool = False


class Snapshots:
    """The snapshots of a run, as training sees them. Every process makes this object and calls its methods alike.

    Args:
        folder: that holds them.
        waiting: how many may wait to be begun.
        scored: step -> whether its score is known. This and the next two are called by a thread.
        came: step -> whether its score lies there, known or not.
        best: of such steps with a score, the one that stays; None: none.
        leases: as those who measure take them.
        peers: the processes of the run; the first writes.
        copy_on_device: the leaves are copied where they lie, so that nothing waits for the step under way; else into
            the host's memory, which spares the device a second copy.
        resume_step: those of later steps are removed; None: all that are there.
        say: prints a line.

    Attributes:
        skipped: how many were left out.
    """

    def __init__(
        self,
        folder: Path,
        *,
        waiting: int,
        scored: Callable[[int], bool],
        came: Callable[[int], bool] = lambda step: False,
        best: Callable[[Sequence[int]], int | None] = lambda steps: None,
        leases: Leases | None = None,
        peers: Peers | None = None,
        copy_on_device: bool = True,
        resume_step: int | None = None,
        say: Callable[[str], None] = lambda line: None,
    ):
        self._folder, self._waiting, self._say = folder, waiting, say
        self._scored, self._came, self._best = scored, came, best
        self._leases = leases if leases is not None else Leases()
        self._peers = peers if peers is not None else Peers()
        self._on_device = copy_on_device and self._peers.num == 1
        self._copy = jax.jit(lambda leaves: {path: jnp.copy(leaf) for path, leaf in leaves.items()})
        self.skipped = 0
        self._told_of_trouble = False
        self._lock = threading.Lock()
        self._next: tuple[int, dict[str, Any], bool] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshot")
        self._whole: set[int] = set()
        self._names: dict[int, str] = {}  # step -> token of its snapshot
        if self._peers.is_first:
            self._open(resume_step)

    def _open(self, resume_step: int | None) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for leftover in [*self._folder.glob(f"{_WRITING}*"), *self._folder.glob(f"{_REMOVED}*")]:
            shutil.rmtree(leftover, ignore_errors=True)
        for step in snapshot_steps(self._folder):
            if resume_step is None or step > resume_step:
                self.remove(step)
                continue
            # one that is not what was written stays: who measures it refuses it, and says why
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                content = json.loads((self._folder / str(step) / MANIFEST).read_text(encoding="utf-8"))["content"]
                self._names[step] = content["token"]
                if content["whole"]:
                    self._whole.add(step)

    def hand_over(self, step: int, trainable: tree.Tree, *, whole: bool = False) -> None:
        """Take a copy and have it written; the buffers may be donated when this returns.

        Args:
            step: optimizer steps done.
            trainable: what is evaluated of the run's state.
            whole: it is measured as a result is, with what takes longer than the loss, and is not left out.
        """
        leaves = tree.flatten(trainable)
        if self._on_device:
            copied: dict[str, Any] = dict(self._copy(leaves))
        else:
            keep = self._peers.is_first
            copied = {path: found for path, leaf in leaves.items() if (found := gather(leaf, keep=keep)) is not None}
        if not self._peers.is_first:
            return
        with self._lock:
            if self._next is not None and self._next[2]:  # one that is not left out
                self._thread.submit(self._write, *self._next)
            elif self._next is not None:
                self.skipped += 1
            self._next = (step, copied, whole)
            self._thread.submit(self._write_next)

    def write_frozen(self, frozen: tree.Tree) -> None:
        """Write what does not train, once; every process must call it."""
        keep = self._peers.is_first
        leaves = tree.flatten(frozen).items()
        host = {path: found for path, leaf in leaves if (found := gather(leaf, keep=keep)) is not None}
        if keep and not (self._folder / FROZEN).exists():
            # without it no snapshot can be measured: a full disk is told here
            self._write_folder(FROZEN, host, {"leaves": _leaves(host)})

    def token(self, step: int) -> str | None:
        """Of a snapshot that this run wrote and has not removed."""
        return self._names.get(step)

    def is_foreign(self, step: int) -> bool:
        """Whether what lies there for a step was not written by this run: it was put there from elsewhere."""
        try:
            content = json.loads((self._folder / str(step) / MANIFEST).read_text(encoding="utf-8"))["content"]
            return bool(content["token"] != self._names.get(step))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def waiting(self) -> list[int]:
        """The steps that are still to be measured, in order."""
        return [step for step in snapshot_steps(self._folder) if not self._scored(step)]

    def make_room(self) -> None:
        """Have what was measured removed, but for the best that is there; in the thread."""
        if self._peers.is_first:
            self._thread.submit(self._make_room)

    def remove(self, step: int | str) -> None:
        """Out of sight first, so that nobody finds half of it; who measures it finds its lease gone."""
        hidden = self._folder / f"{_REMOVED}{step}-{secrets.token_hex(4)}"
        if isinstance(step, int):
            self._names.pop(step, None)
            self._whole.discard(step)
        try:
            os.rename(self._folder / str(step), hidden)
        except FileNotFoundError:
            return
        shutil.rmtree(hidden, ignore_errors=True)

    def settle(self) -> None:
        """Wait until what was handed over is on disk, or could not be written."""
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """As `settle`, and nothing more will come."""
        self._thread.shutdown(wait=True)

    def _write_next(self) -> None:
        with self._lock:
            following, self._next = self._next, None
        if following is not None:
            self._write(*following)

    def _write(self, step: int, leaves: Mapping[str, Any], whole: bool) -> None:
        """In the thread."""
        token = secrets.token_hex(8)
        try:
            host = {path: np.asarray(leaf) for path, leaf in leaves.items()}
            if (self._folder / str(step)).exists():
                self.remove(step)
            self._names[step] = token
            if whole:
                self._whole.add(step)
            content = {"step": step, "token": token, "whole": whole, "leaves": _leaves(host)}
            self._write_folder(str(step), host, content)
        except Exception as error:  # safetensors has an error of its own for a full disk
            self._names.pop(step, None)
            self.skipped += 1
            if not self._told_of_trouble:
                self._told_of_trouble = True
                first = (str(error).splitlines() or [type(error).__name__])[0]
                self._say(f"the snapshot of step {step} cannot be written, and is left out: {first}")
        else:
            self._make_room()

    def _write_folder(self, name: str, host: Mapping[str, np.ndarray], content: dict[str, Any]) -> None:
        from safetensors.numpy import save_file

        writing = self._folder / f"{_WRITING}{name}"
        try:
            writing.mkdir()
            save_file(dict(host), writing / _ARRAYS)
            write_manifest(writing, content)
            os.rename(writing, self._folder / name)
        except BaseException:
            shutil.rmtree(writing, ignore_errors=True)
            raise

    def _make_room(self) -> None:
        """Remove what was measured and is not the best; leave out the oldest that wait, where nobody has begun them."""
        # The best is asked of these steps alone: a score that training takes up meanwhile is of none of them, and one
        # whose snapshot is still to be written removes nothing.
        measured = [step for step in snapshot_steps(self._folder) if self._scored(step)]
        best = self._best(measured)
        for step in measured:
            if step != best:
                self.remove(step)
        idle = [step for step in self.waiting() if step not in self._whole and not self._came(step)]
        for step in idle[: -self._waiting]:
            # taken, so that nobody can begin it now: what somebody works on is not to be had
            try:
                lease = self._leases.take(self._folder / str(step) / LEASE)
            except OSError:
                continue
            if lease is not None:
                if not self._came(step):  # until it was taken, somebody may have been at work
                    self.skipped += 1
                    self.remove(step)
                lease.release()


def snapshot_steps(folder: Path) -> list[int]:
    """The steps that have a snapshot, in order."""
    try:
        return sorted(int(name) for name in os.listdir(folder) if name.isdecimal())
    except OSError:
        return []


def read_snapshot(folder: Path, name: str) -> tuple[dict[str, Any], tree.Tree]:
    """(what the manifest says, the leaves as numpy arrays) of a snapshot.

    Args:
        folder: of all of them.
        name: the step, or `frozen`.

    Raises:
        FileNotFoundError: it is gone.
        Damaged: it is not what was written.
        Unreadable: that is not known, since it cannot be read now.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    place = folder / name
    try:
        content = read_manifest(place)
        arrays = load_file(place / _ARRAYS)
    except (Damaged, OSError, SafetensorError) as error:
        if _is_gone(place):
            raise FileNotFoundError(place) from None
        if isinstance(error, Damaged):
            raise
        # safetensors calls every file missing that it cannot open
        kind = Damaged if isinstance(error, SafetensorError) or _is_gone(place / _ARRAYS) else Unreadable
        raise kind(f"{_ARRAYS} is not readable ({error})") from None
    if content["leaves"] != _leaves(arrays):
        raise Damaged(f"{_ARRAYS} holds other arrays than {content['leaves'].keys()}")
    return content, tree.unflatten(arrays)


def write_origin(folder: Path, origin: Origin) -> None:
    """Say it to those who watch the folder, whole or not at all."""
    part = folder / f"{_ORIGIN}.tmp"
    part.write_text(json.dumps(asdict(origin)), encoding="utf-8")
    os.replace(part, folder / _ORIGIN)


def read_origin(folder: Path) -> Origin | None:
    """None while there is none."""
    try:
        return Origin(**json.loads((folder / _ORIGIN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _is_gone(path: Path) -> bool:
    """False where that cannot be known."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def _leaves(host: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {path: [list(leaf.shape), leaf.dtype.name] for path, leaf in host.items()}
