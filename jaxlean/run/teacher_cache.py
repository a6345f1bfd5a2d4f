"""What a teacher says of every training row, on disk: written once, read by later epochs, runs, students and searches.

    cache/
      teacher.json            whose words these are: a checksum of its weights, its temperature, k ...
      quality.json            how good it is on held-out rows, so that it need not be loaded to say so
      rows-8c1f.../           a shard, which counts when it has this name
        keys.npy              uint64 [rows], a hash of each row's tokens and of which of them carry loss
        ends.npy              int64 [rows], where each row's places end
        ids.npy               uint16 or int32 [places, k]; of labels there are none
        logs.npy              float16 or float32 [places, k + 1]; of labels [places, labels]
        complete.json         size and CRC-32 of each (run/manifest.py)
      rows-8c1f....host.4711.part/   one being written by that process, or left by it when it was killed

A place is a token that carries loss, or a label. A row is known by what it holds, not by its number: another order,
packing, seed, mixture or choice of rows finds the same words, and rows that are new are asked about and added.
"""

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from jaxlean.data.epochs import Batch
from jaxlean.data.tokenize import Ragged
from jaxlean.errors import RunError
from jaxlean.run.manifest import Damaged, read_manifest, write_manifest
from jaxlean.train.distill import IDS, LOGS

_TEACHER, _QUALITY, _SHARD, _PART = "teacher.json", "quality.json", "rows-", ".part"
_FORMAT = 1

Said = Mapping[str, np.ndarray]  # IDS and LOGS of the places of one row, [places, ...]


class TeacherCache:
    """The cache of one teacher.

    Args:
        folder: made when something is written.
        whose: what tells this teacher's words from another's (`whose` makes it), by names that a user understands.
        num_ids: tokens named at each place; 0: labels, all of them in order.
        num_logs: log-probabilities of each place.
        vocab_size: ids are below it.
        dtype: of the log-probabilities.

    Raises:
        RunError: the folder holds another teacher's words, or something else, or is damaged.
    """

    def __init__(
        self, folder: Path, whose: Mapping[str, Any], *, num_ids: int, num_logs: int, vocab_size: int, dtype: Any
    ):
        self.folder = Path(folder)
        self._whose = {"format": _FORMAT, **whose}
        self._num_ids, self._num_logs, self._dtype = num_ids, num_logs, np.dtype(dtype)
        self._id_dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)
        self._found: dict[int, tuple[int, int]] = {}  # key -> (shard, its number in it)
        self._shards: list[dict[str, np.ndarray]] = []
        self._keys: np.ndarray | None = None
        self._examples: Ragged | None = None
        self._open()

    @property
    def place_bytes(self) -> int:
        """Of one place on disk."""
        return self._num_ids * self._id_dtype.itemsize + self._num_logs * self._dtype.itemsize

    # ---- reading

    def of(self, examples: Ragged, used: np.ndarray) -> np.ndarray:
        """Serve these rows from now on.

        Args:
            examples: all rows.
            used: numbers of those that will be asked for.

        Returns:
            the numbers of those among them of which nothing is known yet, each content once.
        """
        self._examples, self._keys = examples, keys(examples)
        own, first = np.unique(self._keys[used], return_index=True)
        new = [used[at] for key, at in zip(own, first, strict=True) if int(key) not in self._found]
        return np.sort(np.asarray(new, np.int64))

    def said(self, i: int) -> dict[str, np.ndarray]:
        """What the teacher says of the places of row i. It must be known."""
        assert self._keys is not None, "`of` says of which rows"
        number, row = self._found[int(self._keys[i])]
        shard = self._shards[number]
        span = slice(int(shard["ends"][row - 1]) if row else 0, int(shard["ends"][row]))
        return {name: shard[name][span] for name in (IDS, LOGS) if name in shard}

    def beside(self, rows: Sequence[np.ndarray], length: int) -> Batch:
        """What a batch holds of it (`data.epochs.Steps.beside`): [len(rows), length, ...] each, 0 where no place is."""
        assert self._examples is not None
        shape = (len(rows), length)
        batch: Batch = {LOGS: np.zeros((*shape, self._num_logs), self._dtype)}
        if self._num_ids:
            batch[IDS] = np.zeros((*shape, self._num_ids), np.int32)
        for r, members in enumerate(rows):
            start = 0
            for i in members:
                at = start + places(self._examples, int(i))
                for name, value in self.said(int(i)).items():
                    batch[name][r, at] = value
                start += int(self._examples.lengths[int(i)])
        return batch

    # ---- writing

    def missing_bytes(self, missing: np.ndarray) -> int:
        """That these rows will take."""
        assert self._examples is not None
        return sum(len(places(self._examples, int(i))) for i in missing) * self.place_bytes

    def check_space(self, needed: int) -> None:
        """Fail now, not in the middle.

        Raises:
            RunError: the disk has less room than that.
        """
        absolute = self.folder.absolute()
        free = shutil.disk_usage(next(p for p in (absolute, *absolute.parents) if p.exists())).free
        if free < needed:
            raise RunError(
                "no disk space for what the teacher says", where=self.folder, got=f"{free / 1e6:,.0f} MB free",
                wanted=f"{needed / 1e6:,.0f} MB", fix="free some, choose another distill.cache, or lower distill.top_k",
            )  # fmt: skip

    def add(self, rows: np.ndarray, said: Iterator[Said]) -> None:
        """Write one shard: it is there when this returns, and not at all before.

        Args:
            rows: numbers of rows of which nothing is known.
            said: of each row, in order.

        Raises:
            RunError: it cannot be written.
        """
        assert self._keys is not None
        assert self._examples is not None
        own = self._keys[rows]
        name = _SHARD + blake2b(own.tobytes(), digest_size=8).hexdigest()
        # of this process alone: two runs that begin with one empty cache write the same shards at the same time
        part = self.folder / f"{name}{_own_part()}"
        ends = np.cumsum([len(places(self._examples, int(i))) for i in rows]).astype(np.int64)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_whose()
            self._remove_left()
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            files = {LOGS: (self._num_logs, self._dtype)}
            if self._num_ids:
                files[IDS] = (self._num_ids, self._id_dtype)
            # in the file as it comes: a shard may be larger than what is free of the memory
            out = {
                what: np.lib.format.open_memmap(part / _FILES[what], "w+", dtype, (int(ends[-1]), width))
                for what, (width, dtype) in files.items()
            }
            for start, end, found in zip(np.concatenate([[0], ends]), ends, said, strict=False):
                for what, array in out.items():
                    array[start:end] = found[what]
            for array in out.values():
                array.flush()
            del out
            np.save(part / "keys.npy", own)
            np.save(part / "ends.npy", ends)
            write_manifest(part, {"format": _FORMAT, "rows": len(rows)})
            try:
                os.rename(part, self.folder / name)
            except OSError:
                if not (self.folder / name).exists():
                    raise
                shutil.rmtree(part)  # another run has written the same meanwhile
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise RunError("what the teacher says cannot be written", where=self.folder, got=error) from error
        self._read(self.folder / name)

    def _write_whose(self) -> None:
        file = self.folder / _TEACHER
        if not file.exists():
            _write_json(file, self._whose)
        self._check_whose()  # another run may have begun it meanwhile, with another teacher

    def _remove_left(self) -> None:
        """What processes of this machine that are no more have left half written."""
        for part in self.folder.glob(f"{_SHARD}*{_PART}"):
            who, _, process = part.name.removesuffix(_PART).rpartition(".")
            if who.endswith(f".{socket.gethostname()}") and process.isdecimal() and not _is_alive(int(process)):
                shutil.rmtree(part, ignore_errors=True)

    # ---- the teacher's own quality

    def quality(self, key: str) -> Any:
        """What was kept of it under this key; None: nothing."""
        try:
            return json.loads((self.folder / _QUALITY).read_text(encoding="utf-8")).get(key)
        except (OSError, ValueError, AttributeError):
            return None

    def keep_quality(self, key: str, found: Any) -> None:
        """Keep it for the next run.

        Raises:
            RunError: it cannot be written.
        """
        try:
            known = json.loads((self.folder / _QUALITY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_whose()
            _write_json(self.folder / _QUALITY, known | {key: found})
        except OSError as error:
            raise RunError("the teacher's quality cannot be written", where=self.folder, got=error) from error

    # ---- opening

    def _open(self) -> None:
        absolute = self.folder.absolute()
        above = next(p for p in (absolute, *absolute.parents) if os.path.lexists(p))
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            what = "is a file" if above == absolute else "cannot be made or written"
            raise RunError(f"distill.cache {what}", where=self.folder, wanted="a folder, or a place for one")
        if not self.folder.exists():
            return
        file = self.folder / _TEACHER
        if not file.exists():
            if any(not entry.name.endswith(_PART) for entry in self.folder.iterdir()):
                raise RunError(
                    "the folder of the cache holds something else", where=self.folder,
                    wanted=f"{_TEACHER}, or nothing", fix="distill.cache=... names another",
                )  # fmt: skip
            return
        self._check_whose()
        for shard in sorted(self.folder.glob(f"{_SHARD}*")):
            if not shard.name.endswith(_PART):
                self._read(shard)

    def _check_whose(self) -> None:
        file = self.folder / _TEACHER
        try:
            stated = json.loads(file.read_text(encoding="utf-8"))
            differs = {key for key in {*stated, *self._whose} if stated.get(key) != self._whose.get(key)}
        except (OSError, ValueError, TypeError) as error:
            raise RunError("the cache cannot be read", where=file, got=error, fix=_ANEW) from None
        if differs:
            raise RunError(
                f"the cache is of another teacher, or was asked for something else: {', '.join(sorted(differs))}",
                where=self.folder, got="; ".join(f"{key} {stated.get(key)}" for key in sorted(differs)),
                wanted="; ".join(f"{key} {self._whose.get(key)}" for key in sorted(differs)), fix=_ANEW,
            )  # fmt: skip

    def _read(self, shard: Path) -> None:
        try:
            read_manifest(shard)
            held = {
                what: np.load(shard / file, mmap_mode="r" if what in (IDS, LOGS) else None)
                for what, file in _FILES.items()
                if what != IDS or self._num_ids
            }
        except (Damaged, OSError, ValueError) as error:
            raise RunError(
                "the cache is damaged", where=shard, got=error,
                fix="remove that folder: the teacher will be asked about its rows again",
            ) from None  # fmt: skip
        self._found |= {int(key): (len(self._shards), row) for row, key in enumerate(held["keys"])}
        self._shards.append(held)


_FILES = {IDS: "ids.npy", LOGS: "logs.npy", "keys": "keys.npy", "ends": "ends.npy"}
_ANEW = "distill.cache=... names another folder; or remove this one, and it is written anew"


def _own_part() -> str:
    """The end of the name of what this process writes."""
    return f".{socket.gethostname()}.{os.getpid()}{_PART}"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _write_json(file: Path, value: Any) -> None:
    partial = file.with_name(f"{file.name}{_own_part()}")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, file)


def places(examples: Ragged, i: int) -> np.ndarray:
    """int [places]: where in example i something is expected: its labels, or the tokens before those with loss."""
    if "labels" in examples.more:
        return np.flatnonzero(examples.more_of(i)["labels"] >= 0)
    return np.flatnonzero(examples[i][1][1:])


def keys(examples: Ragged) -> np.ndarray:
    """uint64 [examples]: a hash of what each holds, that decides what a teacher says of it and where."""
    found = np.empty(len(examples), np.uint64)
    for i in range(len(examples)):
        tokens, _ = examples[i]
        digest = blake2b(tokens.tobytes(), digest_size=8)
        digest.update(places(examples, i).tobytes())
        digest.update(examples.more_of(i).get("token_types", np.zeros(0, np.int32)).tobytes())
        found[i] = int.from_bytes(digest.digest(), "little")
    return found


def shards(missing: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """The missing rows, so many at a time."""
    for start in range(0, len(missing), rows):
        yield missing[start : start + rows]
