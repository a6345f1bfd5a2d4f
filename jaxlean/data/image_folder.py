"""A folder of images -> rows, as `datasets`' imagefolder reads one.

    folder/cat/1.png, folder/dog/2.jpg          the folder's name is the label
    folder/train/cat/1.png, folder/test/...     the same, with splits
    folder/metadata.jsonl (or .csv), 1.png ...  `file_name` and any other columns; a split may have its own

https://huggingface.co/docs/datasets/image_load
"""

from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from jaxlean.data.files import Row, Rows, open_file
from jaxlean.data.images import SUFFIXES
from jaxlean.errors import DataError, did_you_mean

METADATA = ("metadata.jsonl", "metadata.csv")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def is_image_folder(path: Path) -> bool:
    """Whether a folder holds images, or lists some, anywhere below it."""
    return path.is_dir() and any(_is_image(file) or file.name in METADATA for file in path.rglob("*"))


def image_folder(path: Path, split: str = "train") -> Rows:
    """Open a folder of images.

    Args:
        path: the folder.
        split: which part, where the folder's own folders are named for splits; else everything is in it.

    Returns:
        rows of `image` (the file's path) and `label` (its folder's name), or of the metadata's columns, `file_name`
        replaced by `image`; by path, or as listed. The origin of a row is the image's path, or the metadata's line.

    Raises:
        DataError: no image, no such split, images and folders mixed; a metadata row without its image, or one that
            names a file outside of the folder, when it is read.
    """
    splits = {_SPLITS[f.name.lower()]: f for f in sorted(path.iterdir()) if f.is_dir() and f.name.lower() in _SPLITS}
    if splits:
        wanted = _SPLITS.get(split.lower(), split)
        if wanted not in splits:
            raise DataError("no such split", where=path, got=split, fix=did_you_mean(split, splits))
        path = splits[wanted]
    listed = next((path / name for name in METADATA if (path / name).exists()), None)
    if listed is not None:
        return _listed(path, open_file(listed))
    files = [file for file in sorted(path.rglob("*")) if _is_image(file)]
    if not files:
        raise DataError("the folder holds no image", where=path, wanted="files ending in " + " ".join(SUFFIXES))
    loose = [file for file in files if file.parent == path]
    if loose:
        raise DataError(
            "an image without a label", where=loose[0], wanted="one folder for each class, named for it",
            fix="move it into its class' folder, or list the images in a metadata.jsonl",
        )  # fmt: skip

    def read(start: int, stop: int) -> list[Row]:
        return [{"image": str(f), "label": f.relative_to(path).parts[0]} for f in files[start:stop]]

    return Rows(str(path), len(files), read, lambda i: str(files[i]), tuple(files))


def _listed(folder: Path, rows: Rows) -> Rows:
    def row(i: int, listed: Row) -> Row:
        name = listed.get("file_name")
        if not isinstance(name, str) or not name:
            raise DataError("a row without its image", where=rows.origin(i), got=sorted(listed), wanted="file_name")
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise DataError("an image outside of the folder", where=rows.origin(i), got=name, wanted=f"within {folder}")
        return {"image": str(folder / name), **{key: x for key, x in listed.items() if key != "file_name"}}

    def read(start: int, stop: int) -> list[Row]:
        return [row(i, listed) for i, listed in enumerate(rows.read(start, stop), start)]

    return replace(rows, read=read)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def undecoded(dataset: Any) -> Any:
    """A `datasets.Dataset` whose image columns give `{bytes, path}`, which `images.open_image` opens safely.

    Left to itself `datasets` unpacks every image of a block of rows at once, whatever its size.
    """
    import datasets

    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset
