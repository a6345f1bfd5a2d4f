"""Is a folder still what was written? A manifest, `complete.json`, is the last file put into it and says so.

    {"crc32": of the content,
     "content": {..., "files": {"arrays/_METADATA": [size in bytes, CRC-32], ...}}}

CRC-32 finds every accident worth the name (a file cut short, flipped bits, a lost block) as fast as a disk can be
read; it is no protection against somebody who wants to deceive. Files that are not listed are not looked at.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any

MANIFEST = "complete.json"


# It is not there, or something else has its name.
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class Damaged(Exception):
    """The folder is not what was written; the text names the file and what is wrong with it."""


class Unreadable(Damaged):
    """A file is there and cannot be read, as while a network's file system is away: it may be what was written."""


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """List every file of the folder beside `content`, and make all of them last a power cut.

    Raises:
        OSError: as on a full disk.
    """
    files = {
        file.relative_to(folder).as_posix(): [file.stat().st_size, _checksum(file, sync=True)]
        for file in folder.rglob("*")
        if file.is_file()
    }
    content = {**content, "files": files}
    with (folder / MANIFEST).open("w", encoding="utf-8") as out:
        json.dump({"crc32": _digest(content), "content": content}, out)
        out.flush()
        os.fsync(out.fileno())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content, after every listed file was found as it was written.

    Raises:
        Damaged: one was not.
        Unreadable: of one that is not known.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        content = manifest["content"]
        if manifest["crc32"] != _digest(content):
            raise Damaged(f"{MANIFEST} was altered")
    except _ABSENT:
        raise Damaged(f"{MANIFEST} is missing") from None
    except OSError as error:
        raise Unreadable(f"{MANIFEST} is not readable ({error})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{MANIFEST} is not readable ({error})") from None
    for name, (size, checksum) in content["files"].items():
        try:
            found = (folder / name).stat().st_size
            if found != size:
                raise Damaged(f"{name} has {found} bytes instead of {size}")
            if _checksum(folder / name) != checksum:
                raise Damaged(f"{name} was altered (CRC-32 differs)")
        except _ABSENT:
            raise Damaged(f"{name} is missing") from None
        except OSError as error:
            raise Unreadable(f"{name} is not readable ({error})") from None
    return content


def _checksum(file: Path, *, sync: bool = False) -> int:
    value = 0
    with file.open("rb") as data:
        if sync:
            os.fsync(data.fileno())
        while piece := data.read(1 << 20):
            value = zlib.crc32(piece, value)
    return value


def _digest(content: Any) -> int:
    # Of the values, not of the text: keys in order, so that writing and reading agree.
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
