"""Batches of images with labels: as those of tokens (`data/epochs.py`), a pure function of the seed and the step.

A row of a batch is one image, its pixels in one line, so that whatever splits rows over devices need know of nothing
but rows. Files are opened when their step comes; nothing but their names and labels stays in memory.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxlean.config import RunConfig, SourceSection
from jaxlean.data.batches import Batches, EvalBatches, Stats
from jaxlean.data.columns import label_ids, need
from jaxlean.data.epochs import Batch, Mix
from jaxlean.data.files import Rows
from jaxlean.data.images import Preprocess, open_image
from jaxlean.data.loader import part_of, shares
from jaxlean.data.source import open_rows
from jaxlean.data.tokenize import Counts
from jaxlean.errors import ConfigError, DataError

_NO_LABEL = -100


@dataclass
class ImageStats(Stats):
    """What the rows became: `examples` images."""

    def __str__(self) -> str:
        lines = [f"images {self.examples:,}"]
        if len(self.sources) > 1:
            lines += [f"  {name}: {examples:,} an epoch" for name, examples in self.sources.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Images:
    """Where images are, and what they show.

    Args:
        sources: the rows of each source, and the folder that its paths begin at; None: the current one.
        places: int64 [images, 2]: source and row of each.
        labels: int32 [images].
        column: of the image.
        preprocess: makes pixels of one.
        content: CRC-32 of the images, or of names and sizes of their files: those are not read before they are shown.
    """

    sources: Sequence[tuple[Rows, Path | None]]
    places: np.ndarray
    labels: np.ndarray
    column: str
    preprocess: Preprocess
    content: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, i: int, *, seed: int | None = None, epoch: int = 0) -> np.ndarray:
        """float32 [height * width * channels] of image i; with a seed, of a random part of it.

        Raises:
            DataError: it cannot be read; names its file and row.
        """
        source, row = self.places[i].tolist()
        rows, folder = self.sources[source]
        image = open_image(rows[row].get(self.column), origin=rows.origin(row), folder=folder)
        if seed is None:
            return self.preprocess(image).reshape(-1)
        return self.preprocess.augmented(image, seed=seed, row=i, epoch=epoch).reshape(-1)


class ImageSteps(Sequence[Batch]):
    """The batches of a run, by step number. Only the very last may end in empty rows, whose label is negative.

    Args:
        images: of all sources.
        mix: draws the epochs.
        rows: images of a batch.
        num_epochs, max_steps, held: as of `data.epochs.Steps`.
        augment: whether each epoch sees another part of each image.
    """

    def __init__(
        self,
        images: Images,
        mix: Mix,
        *,
        rows: int,
        num_epochs: float = 1.0,
        max_steps: int | None = None,
        held: Sequence[int] | None = None,
        augment: bool = False,
    ):
        self.images, self.mix, self.rows, self.augment = images, mix, rows, augment
        self.held = range(rows) if held is None else held
        self.each = len(mix.epoch(0))
        self.num_steps = max_steps if max_steps is not None else -(-max(1, round(num_epochs * self.each)) // rows)
        self.num_images = self.num_steps * rows if max_steps is not None else max(1, round(num_epochs * self.each))
        self._order = (-1, np.zeros(0, np.int64))

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Batch:  # type: ignore[override]
        """pixels float32 [len(held), height * width * channels] and labels int32 [len(held), 1] of one step."""
        if not 0 <= step < self.num_steps:
            raise IndexError(step)
        shape = (len(self.held), 3 * int(np.prod(self.images.preprocess.shape)))
        batch = {"pixels": np.zeros(shape, np.float32), "labels": np.full((shape[0], 1), _NO_LABEL, np.int32)}
        for at, row in enumerate(self.held):
            number = step * self.rows + int(row)
            if number >= self.num_images:
                continue
            epoch, place = divmod(number, self.each)
            i = int(self._epoch(epoch)[place])
            seed = self.mix.seed if self.augment else None
            batch["pixels"][at] = self.images.pixels(i, seed=seed, epoch=epoch)
            batch["labels"][at] = self.images.labels[i]
        return batch

    def _epoch(self, epoch: int) -> np.ndarray:
        known, order = self._order
        if known != epoch:
            order = self.mix.epoch(epoch)
            self._order = (epoch, order)
        return order


def image_batches(
    config: RunConfig, preprocess: Preprocess, *, rows_per_step: int, length: int, held: Sequence[int] | None = None
) -> Batches:
    """The training batches of images.

    Args:
        config: resolved (`data.columns`).
        preprocess: of the model.
        rows_per_step: images of one optimizer step.
        length: tokens that the model makes of an image.
        held: as of `data.loader.train_batches`.

    Raises:
        DataError, ConfigError: as `data.loader.train_batches`.
    """
    data = config.data
    if not data.train:
        raise ConfigError("no training data", wanted="data.train: a folder, a file or a hub id")
    if data.curriculum is not None:
        raise ConfigError("data.curriculum orders texts, and the rows are images", fix="leave it out")
    parts = [_read(config, [source], preprocess, held_out=False) for source in data.train]
    images = _joined(parts)
    mix = Mix([len(part) for part in parts], shares(data.train), config.seed, data.shuffle)
    steps = ImageSteps(
        images, mix, rows=rows_per_step, num_epochs=config.train.num_train_epochs, max_steps=config.train.max_steps,
        held=held, augment=data.augment,
    )  # fmt: skip
    names = [source.path for source in data.train]
    stats = _stats(images, length, dict(zip(names, mix.quota, strict=True)))
    content = zlib.crc32(images.labels.tobytes(), zlib.crc32(images.places.tobytes(), images.content))
    fingerprint = (
        f"{len(images)} images ({content:08x}), seed {mix.seed}, {rows_per_step} rows, shuffle {mix.shuffle}, "
        f"augment {data.augment}, mix {mix.quota}"
    )
    return Batches(steps, num_steps=len(steps), length=length, stats=stats, fingerprint=fingerprint)


def image_eval_batches(
    config: RunConfig, preprocess: Preprocess, *, rows: int, length: int, held: Sequence[int] | None = None
) -> EvalBatches:
    """The held-out batches, each image once and as it is. Args, errors: as `image_batches`."""
    data = config.data
    sources = data.eval or (data.train if data.eval_fraction else None) or []
    images = _read(config, sources, preprocess, held_out=not data.eval)
    if config.eval.max_examples is not None:
        most = config.eval.max_examples
        images = replace(images, places=images.places[:most], labels=images.labels[:most])
    stats = _stats(images, length, {"eval": len(images)})
    if not len(images):
        return EvalBatches(None, length, stats)
    mix = Mix([len(images)], None, config.seed, shuffle=False)
    return EvalBatches(ImageSteps(images, mix, rows=rows, held=held), length, stats)


def _stats(images: Images, length: int, sources: dict[str, int]) -> ImageStats:
    num = len(images)
    return ImageStats(
        Counts(rows=num, longest=length), examples=num, tokens=num, total_tokens=num * length, sources=sources,
        length=length, sequences=num,
    )  # fmt: skip


def _read(config: RunConfig, sources: Sequence[SourceSection], preprocess: Preprocess, *, held_out: bool) -> Images:
    data = config.data
    assert data.image_column is not None, "the config is resolved"
    assert data.label_column is not None, "the config is resolved"
    number = label_ids(data.labels or [], data.label_column)
    places: list[tuple[int, int]] = []
    labels: list[int] = []
    opened: list[tuple[Rows, Path | None]] = []
    content = 0
    for source in sources:
        rows, path = open_rows(source), Path(source.path)
        folder = path.parent if path.is_file() else None
        need([data.image_column], rows[0], source.path, "data.image_column")
        need([data.label_column], rows[0], source.path, "data.label_column")
        for i in range(len(rows)) if sources is data.eval else part_of(len(rows), data, held_out, config.seed):
            row = rows[i]
            labels.append(number(row.get(data.label_column), rows.origin(i)))
            places.append((len(opened), i))
            content = zlib.crc32(_told(row.get(data.image_column), folder), content)
        opened.append((rows, folder))
    if not held_out and not labels:
        raise DataError("no image is left to train on", fix="lower data.eval_fraction")
    found = np.asarray(places, np.int64).reshape(-1, 2), np.asarray(labels, np.int32)
    return Images(opened, *found, data.image_column, preprocess, content)


def _told(image: Any, folder: Path | None) -> bytes:
    """An image that lies in its row, or name and size of its file, if it is there (`open_image` says so if not)."""
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str | Path):
        return b""
    file = Path(image) if folder is None else folder / image
    return f"{file.name} {file.stat().st_size if file.is_file() else None}".encode()


def _joined(parts: Sequence[Images]) -> Images:
    """Several sources' images as one."""
    first = np.cumsum([0, *(len(part.sources) for part in parts)])
    moved = [part.places + np.asarray([first[i], 0]) for i, part in enumerate(parts)]
    return replace(
        parts[0],
        sources=[source for part in parts for source in part.sources],
        places=np.concatenate(moved).astype(np.int64),
        labels=np.concatenate([part.labels for part in parts]),
        content=zlib.crc32(repr([part.content for part in parts]).encode()),
    )
