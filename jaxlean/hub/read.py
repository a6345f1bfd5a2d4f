"""Safetensors -> parameters, each tensor straight from the file to its place on the devices.

The files are read slice by slice: at no time is more than one tensor of the file in memory beside the parameters
themselves, and with a mesh each process reads only what its own devices hold. What is quantized is so tensor by tensor,
while it is read; since a block may reach over the border between two devices, each process reads such a tensor whole.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlean import codec, tree
from jaxlean.codec import Format
from jaxlean.errors import ModelError, did_you_mean
from jaxlean.hub import compressed, mxfp4
from jaxlean.hub.family import Family
from jaxlean.hub.files import tensors_by_file
from jaxlean.hub.names import Names

Place = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
# Bytes that are read of a file before it is closed: until then its mapped pages count as our memory. To open it anew
# for each tensor would take longer than to read those of a mixture, which are small and thousands to a file.
_READ_AT_ONCE = 8 * 2**20
# Columns of a transposed tensor that are copied at a time: a cache holds the lines of the file's rows that they lie in.
_STRIP = 16


class Stored(NamedTuple):
    """A tensor in a file, and what it is called there."""

    file: Path
    name: str


def read_params(
    folder: Path,
    names: Names,
    shapes: Mapping[str, Any],
    *,
    dtype: Callable[[str], Any],
    place: Place,
    form: Callable[[str], Format | None] = lambda path: None,
    scheme: compressed.Scheme | None = None,
) -> tree.Tree:
    """Read the parameters of a model.

    Args:
        folder: holds `model.safetensors`, or its shards and their index.
        names: of the tensors.
        shapes: tree of the shapes that the model declares (leaves with `.shape`).
        dtype: path -> the dtype it is held in.
        place: (path, shape) -> the sharding it gets.
        form: path of a kernel -> the format it is held in, None for `dtype`. It is rounded from the file's own numbers.
        scheme: of the files, where they hold such kernels in fewer bits already.

    Returns:
        nested dict of jax arrays, path for path what `shapes` declares, but for kernels that have a format: in their
        place stand its leaves (`jaxlean.codec`).

    Raises:
        ModelError: names the first tensor that is missing, extra or of the wrong shape.
    """
    files = stored_tensors(folder, names.family)
    wanted = tree.flatten(shapes)
    _check_names(folder, names, wanted, files)
    params: dict[str, jax.Array] = {}
    opened = _Opened()
    every = {} if scheme is None else tensors_by_file(folder)
    for path, leaf in wanted.items():
        source = _Source(path, tuple(leaf.shape), names, files, np.dtype(dtype(path)), opened)
        held_in = form(path)
        if scheme is not None and held_in is not None:
            params |= _packed(source, scheme, every, place)
            continue
        source.check_wide(every)
        source.check()
        if held_in is not None:
            params |= _quantized(source, held_in, place)
            continue
        params[path] = jax.make_array_from_callback(source.shape, place(path, source.shape), source.read)
    return tree.unflatten(params)


def stored_tensors(folder: Path, family: Family) -> dict[str, Stored]:
    """The tensors of a model's files, by the names that they have today.

    Raises:
        ModelError: as `hub.files.tensors_by_file`.
    """
    found = {}
    for name, file in compressed.whole_names(mxfp4.whole_names(tensors_by_file(folder))).items():
        today = name
        for pattern, replacement in family.renamed:
            today = re.sub(pattern, replacement, today)
        found[today] = Stored(file, name)
    return found


def is_bare(stored: Iterable[str], family: Family) -> bool:
    """Whether the names of tensors lack the family's prefix, as of models that were saved without a head."""
    return not any(name.startswith(family.prefix) for name in stored)


class _Source:
    """One parameter's tensors in the files: one, or one a layer, or one a layer and expert."""

    def __init__(
        self,
        path: str,
        shape: tuple[int, ...],
        names: Names,
        files: Mapping[str, Stored],
        dtype: np.dtype,
        opened: "_Opened",
    ):
        self.path, self.shape, self.names, self.files, self.dtype = path, shape, names, files, dtype
        self.opened = opened
        self.leading = names.leading(path)
        self.axes = names.axes(path, len(shape) - self.leading)

    def check(self) -> None:
        inner = self.shape[self.leading :]
        want = self.names.on_file(self.path, tuple(inner[self.axes.index(dim)] for dim in range(len(inner))))
        for _, name in self.names.tensors(self.path, self.shape):
            stored = self.files[name]
            got = tuple(mxfp4.tensor(self.opened.file(stored.file), stored.name).get_shape())
            if got != want:
                raise ModelError(
                    f"a tensor has the wrong shape: {stored.name}", where=stored.file, got=got, wanted=want
                )

    def check_wide(self, every: Mapping[str, Path]) -> None:
        """Refuse what the files hold in fewer bits and we do not: a head, an embedding."""
        for _, name in self.names.tensors(self.path, self.shape):
            stored = self.files[name]
            if compressed.is_packed(stored.name, every):
                raise ModelError(
                    f"a quantized tensor that is not read: {stored.name}", where=stored.file,
                    wanted="the linear layers of layers alone in fewer bits, and lm_head in `ignore`",
                    fix="the wide model, with model.quantization=int8 or nf4",
                )  # fmt: skip

    def read(self, index: tuple[slice, ...] | None) -> np.ndarray:
        """The part that `index` cuts out of the parameter, put together from its tensors."""
        assert index is not None, "only a scalar has no index"
        bounds = [range(*cut.indices(size)) for cut, size in zip(index, self.shape, strict=True)]
        out = _aligned(tuple(len(b) for b in bounds), self.dtype)
        for places in product(*(enumerate(b) for b in bounds[: self.leading])):
            own = tuple(number for _, number in places)
            at: tuple[Any, ...] = (*(place for place, _ in places), ...)
            _copy(self.whole(self.names.tensor(self.path, *own), index[self.leading :]), out[at])
        return out

    def whole(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """One tensor, or a part of it, its dims in our order."""
        cuts = index if index is not None else (slice(None),) * len(self.axes)
        theirs: list[Any] = [cuts[self.axes.index(dim)] for dim in range(len(cuts))]
        for dim in self.names.ones(self.path):
            theirs.insert(dim, 0)
        stored = self.files[name]
        file = self.opened.file(stored.file)
        found = mxfp4.tensor(file, stored.name)[tuple(theirs)] if theirs else file.get_tensor(stored.name)
        self.opened.has_read(found.nbytes)
        return found.transpose(self.axes)


def _quantized(source: _Source, form: Format, place: Place) -> dict[str, jax.Array]:
    """A kernel's leaves in a format, each tensor of the file rounded on the first device before the next is read."""
    return _each_tensor(source, codec.shapes(source.shape, form), place, lambda name: _encode(source.whole(name), form))


def _packed(
    source: _Source, scheme: compressed.Scheme, files: Mapping[str, Path], place: Place
) -> dict[str, jax.Array]:
    """A kernel's leaves from files that hold them so, tensor by tensor."""
    *_, dim_in, dim_out = source.shape
    leaves = codec.shapes(source.shape, scheme.form, group_size=scheme.group_size)

    def read(name: str) -> Mapping[str, Any]:
        return compressed.read_leaves(files, source.files[name].name, (dim_in, dim_out), scheme)

    return _each_tensor(source, leaves, place, read)


def _each_tensor(
    source: _Source, leaves: Mapping[str, Any], place: Place, read: Callable[[str], Mapping[str, Any]]
) -> dict[str, jax.Array]:
    """Leaves of these shapes on their devices, `read` by the name of each tensor in the file."""
    module = source.path.removesuffix("kernel")
    shardings = {name: place(module + name, leaf.shape) for name, leaf in leaves.items()}
    held = {name: _aligned(leaf.shape, np.dtype(leaf.dtype)) for name, leaf in leaves.items()}
    for index, name in source.names.tensors(source.path, source.shape):
        for leaf, part in jax.device_get(dict(read(name))).items():
            held[leaf][index or ...] = part
    return {
        module + name: jax.make_array_from_callback(whole.shape, shardings[name], whole.__getitem__)
        for name, whole in held.items()
    }


_encode = partial(jax.jit, static_argnums=1)(codec.encode)


class _Opened:
    """The file that tensors were last read of, which stays open until another one is wanted or much was read."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: Any = None
        self._bytes = 0

    def file(self, path: Path) -> Any:
        """It, open."""
        from safetensors import safe_open

        if self._file is None or path != self._path:
            self._path, self._file, self._bytes = path, safe_open(path, framework="numpy"), 0
        return self._file

    def has_read(self, num_bytes: int) -> None:
        """So much was read of it."""
        self._bytes += num_bytes
        if self._bytes > _READ_AT_ONCE:
            self._file = None


def _copy(source: np.ndarray, to: np.ndarray) -> None:
    if source.ndim < 2 or source.flags.c_contiguous:
        to[...] = source
        return
    for start in range(0, source.shape[-1], _STRIP):
        to[..., start : start + _STRIP] = source[..., start : start + _STRIP]


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that starts at a multiple of 64 bytes: jax takes such an array over on CPU without a copy."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _is_passed_over(name: str, family: Family) -> bool:
    short = name.removeprefix(family.prefix)
    return any(re.search(rule, name) for rule in family.ignored) or any(re.search(r, short) for r in family.carried)


def _check_names(folder: Path, names: Names, wanted: Mapping[str, Any], files: Mapping[str, Stored]) -> None:
    own = [name for path, leaf in wanted.items() for _, name in names.tensors(path, tuple(leaf.shape))]
    extra = set(files) - set(own)
    # A tied model's head may be stored too; it is the embedding again.
    harmless = {names.template("head.kernel")} if "head.kernel" not in wanted and names.modules(["head"]) else set()
    extra = {name for name in extra - harmless if not _is_passed_over(name, names.family)}
    if names.family.more_layers:
        extra = {name for name in extra if not names.is_beyond(name)}
    missing = [name for name in own if name not in files]
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
        raise ModelError(f"a tensor that the model does not have: {first}{more}", where=files[first].file)
