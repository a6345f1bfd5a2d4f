"""MXFP4, in which gpt-oss' experts are published: 32 numbers of 4 bits with one scale (OCP Microscaling Formats 1.0).

A tensor is two in the file: `*_blocks` uint8 [.., out, in / 32, 16], two numbers a byte, the low half first, and
`*_scales` uint8 [.., out, in / 32], exponents of two less 127.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

# FP4 E2M1: a sign, two bits of exponent, one of mantissa.
_LEVELS = np.asarray([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
LEVELS = np.concatenate([_LEVELS, -_LEVELS])
_BLOCKS, _SCALES = "_blocks", "_scales"


class Packed:
    """A tensor of a safetensors file [experts, in, out] that is held so; of the parts that are asked for in bfloat16.

    Nothing is lost: it has the exponents, and more bits than a number here.

    Args:
        file: of `safetensors.safe_open`.
        name: of the tensor, without `_blocks`.
    """

    def __init__(self, file: Any, name: str):
        self._blocks, self._scales = file.get_slice(name + _BLOCKS), file.get_slice(name + _SCALES)

    def get_shape(self) -> tuple[int, ...]:
        """As a slice of safetensors."""
        experts, dim_out, num, half = self._blocks.get_shape()
        return experts, num * half * 2, dim_out

    def __getitem__(self, cuts: tuple[slice, ...]) -> np.ndarray:
        ranges = [range(*cut.indices(size)) for cut, size in zip(cuts, self.get_shape(), strict=True)]
        out = np.empty([len(own) for own in ranges], ml_dtypes.bfloat16)
        for place, expert in enumerate(ranges[0]):  # one at a time: wide, a layer's are large
            blocks, scales = (part[expert : expert + 1, cuts[2]] for part in (self._blocks, self._scales))
            out[place] = decode(blocks, scales)[0, cuts[1]]
        return out


def whole_names(files: Mapping[str, Path]) -> dict[str, Path]:
    """Tensor name -> file, where blocks and scales count as the one tensor that they hold."""
    packed = {
        n.removesuffix(_BLOCKS) for n in files if n.endswith(_BLOCKS) and n.removesuffix(_BLOCKS) + _SCALES in files
    }
    halves = {name + end for name in packed for end in (_BLOCKS, _SCALES)}
    return {n: file for n, file in files.items() if n not in halves} | {n: files[n + _BLOCKS] for n in packed}


def tensor(file: Any, name: str) -> Any:
    """A tensor of an open file, not read yet: `get_shape()`, and its parts by `[...]`."""
    from safetensors import SafetensorError

    try:
        return file.get_slice(name)
    except SafetensorError:  # there is none of that name; to list all names for each would take longer than to read
        return Packed(file, name)


def decode(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 [.., in, out].

    Args:
        blocks: uint8 [.., out, in / 32, 16].
        scales: uint8 [.., out, in / 32].
    """
    numbers = np.empty((*blocks.shape[:-1], 2 * blocks.shape[-1]), np.float32)
    numbers[..., 0::2] = LEVELS[blocks & 15]
    numbers[..., 1::2] = LEVELS[blocks >> 4]
    np.ldexp(numbers, scales.astype(np.int32)[..., None] - 127, out=numbers)
    return numbers.reshape(*blocks.shape[:-2], -1).swapaxes(-1, -2)
