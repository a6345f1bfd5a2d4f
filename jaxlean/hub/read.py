"""Safetensors -> parameters, each tensor straight from the file to its place on the devices.

The files are read slice by slice: at no time is more than one tensor of the file in memory beside the parameters
themselves, and with a mesh each process reads only what its own devices hold. What is quantized is so tensor by tensor,
while it is read; since a block may reach over the border between two devices, each process reads such a tensor whole.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlean import codec, tree
from jaxlean.codec import Format
from jaxlean.errors import ModelError, did_you_mean
from jaxlean.hub.family import Family
from jaxlean.hub.files import tensors_by_file

Place = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]


def read_params(
    folder: Path,
    family: Family,
    shapes: Mapping[str, Any],
    *,
    dtype: Callable[[str], Any],
    place: Place,
    form: Callable[[str], Format | None] = lambda path: None,
) -> tree.Tree:
    """Read the parameters of a model.

    Args:
        folder: holds `model.safetensors`, or its shards and their index.
        family: whose tables name the tensors.
        shapes: tree of the shapes that the model declares (leaves with `.shape`).
        dtype: path -> the dtype it is held in.
        place: (path, shape) -> the sharding it gets.
        form: path of a kernel -> the format it is held in, None for `dtype`. It is rounded from the file's own numbers.

    Returns:
        nested dict of jax arrays, path for path what `shapes` declares, but for kernels that have a format: in their
        place stand its leaves (`jaxlean.codec`).

    Raises:
        ModelError: names the first tensor that is missing, extra or of the wrong shape.
    """
    files = tensors_by_file(folder)
    wanted = tree.flatten(shapes)
    _check_names(folder, family, wanted, files)
    params: dict[str, jax.Array] = {}
    for path, leaf in wanted.items():
        source = _Source(path, tuple(leaf.shape), family.tensor(path), files, np.dtype(dtype(path)))
        source.check()
        held_in = form(path)
        if held_in is not None:
            params |= _quantized(source, held_in, place)
            continue
        params[path] = jax.make_array_from_callback(source.shape, place(path, source.shape), source.read)
    return tree.unflatten(params)


class _Source:
    """One parameter's tensors in the files: one, or one a layer."""

    def __init__(self, path: str, shape: tuple[int, ...], name: str, files: Mapping[str, Path], dtype: np.dtype):
        self.path, self.shape, self.name, self.files, self.dtype = path, shape, name, files, dtype
        self.stacked = "{}" in name
        self.transposed = path.endswith(".kernel")

    def names(self) -> list[str]:
        return [self.name.format(i) for i in range(self.shape[0])] if self.stacked else [self.name]

    def check(self) -> None:
        inner = self.shape[1:] if self.stacked else self.shape
        want = inner[::-1] if self.transposed else inner
        for name in self.names():
            with _open(self.files[name]) as file:
                got = tuple(file.get_slice(name).get_shape())
            if got != want:
                raise ModelError(f"a tensor has the wrong shape: {name}", where=self.files[name], got=got, wanted=want)

    def read(self, index: tuple[slice, ...] | None) -> np.ndarray:
        """The part that `index` cuts out of the parameter, put together from its tensors."""
        assert index is not None, "only a scalar has no index"
        bounds = [range(*cut.indices(size)) for cut, size in zip(index, self.shape, strict=True)]
        out = _aligned(tuple(len(b) for b in bounds), self.dtype)
        if not self.stacked:
            out[...] = self._slice(self.name, index)
            return out
        for row, layer in enumerate(bounds[0]):
            out[row] = self._slice(self.name.format(layer), index[1:])
        return out

    def _slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        # Opened anew for each tensor: a mapped file's pages count as our memory until it is closed.
        with _open(self.files[name]) as file:
            if self.transposed:
                return file.get_slice(name)[index[::-1]].T
            return file.get_slice(name)[index]


def _quantized(source: _Source, form: Format, place: Place) -> dict[str, jax.Array]:
    """A kernel's leaves in a format, each tensor of the file rounded on the first device before the next is read."""
    module = source.path.removesuffix("kernel")
    leaves = codec.shapes(source.shape, form)
    shardings = {name: place(module + name, leaf.shape) for name, leaf in leaves.items()}
    held = {name: _aligned(leaf.shape, np.dtype(leaf.dtype)) for name, leaf in leaves.items()}
    for layer, name in enumerate(source.names()):
        with _open(source.files[name]) as file:
            found = jax.device_get(_encode(file.get_slice(name)[:].T, form))
        for leaf, part in found.items():
            held[leaf][layer if source.stacked else ...] = part
    return {
        module + name: jax.make_array_from_callback(whole.shape, shardings[name], whole.__getitem__)
        for name, whole in held.items()
    }


_encode = partial(jax.jit, static_argnums=1)(codec.encode)


def _open(file: Path) -> Any:
    from safetensors import safe_open

    return safe_open(file, framework="numpy")


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that starts at a multiple of 64 bytes: jax takes such an array over on CPU without a copy."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _check_names(folder: Path, family: Family, wanted: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    names = []
    for path, leaf in wanted.items():
        name = family.tensor(path)
        names += [name.format(i) for i in range(leaf.shape[0])] if "{}" in name else [name]
    extra = set(files) - set(names)
    # A tied model's head may be stored too; it is the embedding again.
    harmless = {family.modules["head"] + ".weight"} if "head.kernel" not in wanted else set()
    extra = {n for n in extra - harmless if not any(re.search(pattern, n) for pattern in family.ignored)}
    missing = [name for name in names if name not in files]
    if missing:
        more = f" (and {len(missing) - 1} more)" if missing[1:] else ""
        raise ModelError(
            f"a tensor is missing: {missing[0]}{more}",
            where=folder,
            fix=did_you_mean(missing[0], extra) if extra else None,
        )
    if extra:
        first = sorted(extra)[0]
        more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        raise ModelError(f"a tensor that the model does not have: {first}{more}", where=files[first])
