"""Sources: files, folders and hub datasets -> rows, each with the place it came from.

Local data are memory-mapped; what is on the hub or behind a URL is read by `datasets`, and while training when
`streaming` asks for it.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxlean.config import SourceSection
from jaxlean.data.files import BLOCK, KINDS, Row, Rows, join, open_file
from jaxlean.data.image_folder import METADATA, image_folder, is_image_folder, undecoded
from jaxlean.errors import DataError, did_you_mean
from jaxlean.redact import expand

_SPLITS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev", "eval"},
    "test": {"test"},
}


def open_rows(source: SourceSection) -> Rows:
    """Open a source for random access.

    Raises:
        DataError: nothing there, not readable, an unknown kind of file, a split that does not exist, no row at all.
            A malformed row raises when it is read, with its `file:line`.
    """
    path = Path(source.path)
    if "://" in source.path:
        rows = _dataset(source.path, _load(source, streaming=False))
    elif path.is_dir():
        rows = _folder(path, source)
    elif path.is_file():
        rows = open_file(path)
    else:
        must_be_an_id(source.path)
        rows = _dataset(source.path, _load(source, streaming=False))
    if source.limit is not None and source.limit < len(rows):
        rows = replace(rows, count=source.limit)
    if len(rows) == 0:
        raise DataError("the dataset is empty", where=source.path, wanted="at least one row")
    return rows


def stream_rows(source: SourceSection, start: int = 0) -> Iterator[tuple[int, Row, str]]:
    """Read a source once, from row `start` on, holding little of it: yields (row number, row, origin).

    Local files and folders are memory-mapped; a hub id or URL is read over the network while it is iterated.

    Raises:
        DataError: as `open_rows`; a row that cannot be read or a connection that breaks, when it is reached.
    """
    remote = "://" in source.path or not Path(source.path).exists()
    if not remote:
        rows = open_rows(source)
        for block in range(start, len(rows), BLOCK):
            for i, row in enumerate(rows.read(block, min(block + BLOCK, len(rows))), block):
                yield i, row, rows.origin(i)
        return
    if "://" not in source.path:
        must_be_an_id(source.path)
    dataset = _load(source, streaming=True)
    classes = _classes(dataset)
    stop = source.limit
    iterator = iter(dataset.skip(start) if start else dataset)
    i = start
    while stop is None or i < stop:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # whatever the network, the archive or the parser raises
            got = f"{type(error).__name__}: {error}"
            raise DataError("the stream broke", where=f"{source.path} row {i + 1}", got=got) from error
        yield i, dict(row) | {c: _named(row[c], names) for c, names in classes.items()}, f"{source.path} row {i + 1}"
        i += 1


def _folder(path: Path, source: SourceSection) -> Rows:
    """A folder that `datasets` saved, or one with data files (those of the split, where names tell splits apart)."""
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        import datasets

        try:
            saved = datasets.load_from_disk(str(path))
        except (OSError, ValueError, KeyError) as error:
            raise DataError("not a folder that datasets saved", where=path, got=error) from error
        if isinstance(saved, dict):
            if source.split not in saved:
                raise DataError("no such split", where=path, got=source.split, fix=did_you_mean(source.split, saved))
            saved = saved[source.split]
        return _dataset(str(path), saved)
    files = [f for f in sorted(path.rglob("*")) if f.suffix.lower() in KINDS and not f.name.startswith(".")]
    if all(f.name in METADATA for f in files) and is_image_folder(path):
        return image_folder(path, source.split)
    if not files:
        raise DataError("the folder holds no data file", where=path, wanted="files ending in " + " ".join(KINDS))
    split_of = {f: _split_of(f.relative_to(path)) for f in files}
    splits = {split for split in split_of.values() if split}
    if splits:
        wanted = next((name for name, words in _SPLITS.items() if source.split in words), source.split)
        files = [f for f in files if split_of[f] == wanted]
        if not files:
            raise DataError("no such split", where=path, got=source.split, wanted="one of " + ", ".join(sorted(splits)))
    return join(str(path), [open_file(f) for f in files])


def _split_of(file: Path) -> str | None:
    words = set(re.split(r"[^a-z]+", str(file.with_suffix("")).lower()))
    return next((name for name, spellings in _SPLITS.items() if spellings & words), None)


def _dataset(name: str, dataset: Any) -> Rows:
    """Rows of a `datasets.Dataset`: images as they are packed, classes by their names and not their numbers."""
    fingerprint: str = dataset._fingerprint
    dataset, classes = undecoded(dataset), _classes(dataset)

    def read(start: int, stop: int) -> list[Row]:
        columns = dict(dataset[start:stop])
        for column, names in classes.items():
            columns[column] = [_named(value, names) for value in columns[column]]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    return Rows(name, len(dataset), read, lambda i: f"{name} row {i + 1}", fingerprint=fingerprint)


def _classes(dataset: Any) -> dict[str, list[str]]:
    """What the numbers of a column of classes (`ClassLabel`, or lists of it) stand for."""
    every = {column: getattr(feature, "feature", feature) for column, feature in (dataset.features or {}).items()}
    return {column: feature.names for column, feature in every.items() if hasattr(feature, "names")}


def _named(value: Any, names: list[str]) -> Any:
    """The name of a class; -1, which is none, stays as it is."""
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _load(source: SourceSection, *, streaming: bool) -> Any:
    """`datasets.load_dataset` of a hub id, or of a data file behind a URL, with what the environment adds to it."""
    import datasets

    try:
        url = expand(source.path) if "://" in source.path else None
    except KeyError as error:
        raise DataError(f"the environment has no {error.args[0]}", where=source.path, fix="export it") from None
    try:
        if url is not None:
            suffix = Path(source.path.partition("?")[0]).suffixes or [""]
            builders = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
            builder = next((builders[s] for s in suffix if s in builders), None)
            if builder is None:
                raise DataError("an unknown kind of data file", where=source.path, wanted=" ".join(builders))
            return datasets.load_dataset(builder, data_files=url, split="train", streaming=streaming)
        return datasets.load_dataset(source.path, source.name, split=source.split, streaming=streaming)
    except DataError:
        raise
    except Exception as error:  # the network, the hub, a wrong split, a broken file: datasets has no common base class
        raise DataError(
            "the dataset could not be loaded with datasets.load_dataset",
            where=source.path,
            got=f"{type(error).__name__}: {error}",
            wanted=f"a file, a folder, or a hub dataset with the split {source.split!r}",
            fix="check the name, the split and the network (HF_TOKEN for a private dataset, HF_ENDPOINT for a mirror)",
        ) from error


def must_be_an_id(path: str) -> None:
    """A path that does not exist and cannot be a hub id is a missing file.

    Raises:
        DataError: such a one; names what lies beside it.
    """
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path) and Path(path).suffix.lower() not in KINDS:
        return
    beside = Path(path).parent
    names = [entry.name for entry in beside.iterdir() if entry.name[0] != "."] if beside.is_dir() else []
    raise DataError(
        "no such file or folder",
        where=path,
        fix=did_you_mean(Path(path).name, names) if names else f"the folder {beside} does not exist either",
    )
