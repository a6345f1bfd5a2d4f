"""What tells files from others, without reading all of them: has what a run was started on changed since?

Names, sizes and CRC-32 of pieces that are spread over each file. Times of change are left out: a machine that takes
over from another one has copied the same files later. Files of up to 64 MiB are read whole; of larger ones as much, so
that a model of 100 GB in files of 5 GB takes 1.3 GB, and weights that were trained on, or another version of them, are
found: they differ everywhere. A single value that was altered in a larger file may not be.
"""

import zlib
from collections.abc import Iterable
from pathlib import Path

_SAMPLE_BYTES = 64 * 2**20
_PIECE = 2**20


def of_files(files: Iterable[Path]) -> str:
    """Eight hexadecimal digits. The order of the files counts, their folders do not.

    Raises:
        OSError: one cannot be read.
    """
    value = 0
    for file in files:
        size = file.stat().st_size
        value = zlib.crc32(f"{file.name} {size}".encode(), value)
        num = max(min(size, _SAMPLE_BYTES) // _PIECE, 1)
        last = max(size - _PIECE, 0)
        with file.open("rb") as data:
            for i in range(num + 1):
                data.seek(last * i // num)
                value = zlib.crc32(data.read(_PIECE), value)
    return f"{value:08x}"


def of_model(folder: Path) -> str:
    """Of a model's weights and config, or of an adapter's. Raises: OSError."""
    settings = [folder / name for name in ("config.json", "adapter_config.json") if (folder / name).exists()]
    return of_files(sorted([*folder.glob("*.safetensors"), *settings]))
