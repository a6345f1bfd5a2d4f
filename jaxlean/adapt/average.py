"""The mean of adapters that were trained apart, without their data: FedAvg (arXiv 1602.05629) of LoRA.

An adapter adds `scale * lora_a @ lora_b` to a kernel (`adapt.lora`), so what several of them add on average is

    mean = sum_i  w_i * scale_i * a_i @ b_i                   w: weights that sum to one

and not the product of the mean of the `a_i` and the mean of the `b_i`: that has terms `a_i @ b_j` of two parties too,
which nobody trained (arXiv 2409.05976, 2410.09432). `exact` is the mean: all `a_i` side by side and all `b_i` one below
the other are an adapter of the sum of the ranks. A QR of each stack and an SVD of what stands between them, which is no
larger than that sum, say which rank is enough, and give the nearest adapter of a lower one (Eckart and Young). The mean
itself, as large as the kernel, is never formed. `plain` is the mean of every leaf by itself, as most tools have it.
What trains whole beside adapters is linear: its mean is the same in both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxlean import tree
from jaxlean.adapt.vocabulary import IDS
from jaxlean.errors import ConfigError, ModelError

Method = Literal["exact", "plain"]
# A singular value that is less than this share of the largest one is below what float32 factors can say.
_PRECISION = float(np.finfo(np.float32).eps)
_PRODUCT = ("lora_a", "lora_b", "lora_scale")


class Matrix(NamedTuple):
    """What became of the mean of one matrix; squared Frobenius norms."""

    energy: float  # of the mean of the updates
    lost: float  # of what the averaged adapter adds less that mean


class Party(NamedTuple):
    """What one adapter adds, over all its matrices."""

    norm: float  # Frobenius
    cosine: float  # of the angle to the mean of all; 0 where either is zero


@dataclass(frozen=True)
class Average:
    """Averaged adapters.

    Args:
        adapter: the leaves, float32.
        rank: the highest of its matrices; 0 where there are none.
        matrices: by module, `[i]` behind it for each matrix of a stack; empty for adapters with magnitudes (DoRA),
            which add something else than a product.
        parties: in the order that they were given in; empty where `matrices` is.
    """

    adapter: tree.Tree
    rank: int
    matrices: dict[str, Matrix]
    parties: list[Party]

    @property
    def lost(self) -> float:
        """The share of the mean's energy that the averaged adapter is off by, over all matrices."""
        return _share(sum(m.lost for m in self.matrices.values()), sum(m.energy for m in self.matrices.values()))

    @property
    def worst(self) -> tuple[str, float] | None:
        """The matrix with the highest such share, and that; None where there is no matrix."""
        shares = {name: _share(matrix.lost, matrix.energy) for name, matrix in self.matrices.items()}
        return max(shares.items(), key=lambda one: one[1], default=None)


def average(
    adapters: Sequence[Mapping[str, Any]],
    weights: Sequence[float],
    *,
    method: Method = "exact",
    rank: int | None = None,
    names: Sequence[str] | None = None,
) -> Average:
    """The weighted mean of adapters over one base.

    A module that an adapter lacks is one to which it adds zero. All arithmetic is in float64.

    Args:
        adapters: trees of `lora_a` [.., in, r], `lora_b` [.., r, out], `lora_scale` [..] (numpy or jax arrays, of any
            ranks and scales, leading dims being stacks), perhaps `lora_magnitude` [.., out], and what trained whole.
        weights: one each, positive; only their ratios count.
        method: `exact`, or `plain`: missing ranks are zeros, and a scale is the mean of those that have one.
        rank: of `exact`: the highest of the result; default: the least that holds the mean to float32's precision.
        names: of the adapters, for messages.

    Returns:
        of `exact`: adapters whose matrices all have the same rank (but where a matrix itself has less) and one scale:
        the parties', if they all have the same, else 1.

    Raises:
        ConfigError: weights that are not positive numbers, one each; a rank for `plain`.
        ModelError: adapters that do not fit each other, or that have magnitudes (`exact`), or numbers that are none.
    """
    assert adapters, "nothing to average"
    shares = _normalised(weights, len(adapters))
    if rank is not None and method == "plain":
        raise ConfigError("a rank is for the exact mean", got=f"rank {rank}, method plain", fix="leave out one of them")
    if rank is not None and rank < 1:
        raise ConfigError("a rank is a positive number", got=rank)
    called = list(names) if names is not None else [f"adapter {i + 1}" for i in range(len(adapters))]
    parties = [tree.flatten(one) for one in adapters]
    every = sorted({path for one in parties for path in one})
    others = [path for path in every if path.rpartition(".")[2] not in _PRODUCT]
    modules = sorted({path.rpartition(".")[0] for path in every if path.rpartition(".")[2] in _PRODUCT})
    dora = any(path.endswith(".lora_magnitude") for path in others)
    if dora:
        _check_magnitudes(parties, called, modules, method)
    leaves = {path: _mean(path, parties, shares, called) for path in others}
    found: dict[str, _Factors] = {}
    matrices: dict[str, Matrix] = {}
    scales: set[float] = set()
    norms, inner, total = np.zeros(len(parties)), np.zeros(len(parties)), 0.0
    for module in modules:
        stack = _stack(module, parties, called)
        scales.update(float(x) for s, there in zip(stack.scales, stack.there, strict=True) for x in s[there].ravel())
        core = _Core(stack, shares)
        found[module] = core.factors(rank) if method == "exact" else core.plain()
        for index in np.ndindex(core.energy.shape):
            name = f"{module}[{', '.join(map(str, index))}]" if index else module
            matrices[name] = Matrix(float(core.energy[index]), float(found[module].lost[index]))
        norms, inner, total = norms + core.norms, inner + core.inner, total + float(core.energy.sum())
    # the scale that all have, so that who trains on has the learning rate that was right before
    only = scales.pop() if len(scales) == 1 else 1.0
    scale = only if method == "exact" and only > 0 else 1.0
    highest = max((factors.a.shape[-1] for factors in found.values()), default=0)
    for module, (a, b, own_scale, _) in found.items():
        # one rank for all where that can be, since who serves adapters knows one
        r = min(highest, a.shape[-2], b.shape[-1]) if method == "exact" else a.shape[-1]
        leaves[f"{module}.lora_a"] = np.asarray(_padded(a, r, -1) / scale**0.5, np.float32)
        leaves[f"{module}.lora_b"] = np.asarray(_padded(b, r, -2) / scale**0.5, np.float32)
        leaves[f"{module}.lora_scale"] = np.asarray(own_scale * scale, np.float32)
    if dora or not modules:
        return Average(tree.unflatten(leaves), highest, {}, [])
    lengths = np.sqrt(norms * total)
    cosines = np.divide(inner, lengths, out=np.zeros_like(inner), where=lengths > 0)
    own = [Party(float(norm) ** 0.5, float(cosine)) for norm, cosine in zip(norms, cosines, strict=True)]
    return Average(tree.unflatten(leaves), highest, matrices, own)


class _Stack(NamedTuple):
    """One module of all parties; who lacks it has rank 0 there."""

    a: list[np.ndarray]  # [.., in, r_i]
    b: list[np.ndarray]  # [.., r_i, out]
    scales: list[np.ndarray]  # [..]

    @property
    def there(self) -> list[np.ndarray]:
        """Of each party, bool [..]: whether it has an adapter there; a layer of a stack may have none."""
        return [np.asarray(a.any(axis=(-2, -1))) for a in self.a]


class _Factors(NamedTuple):
    """One module of the result: `scale * a @ b`, and by what energy each matrix is off the mean."""

    a: np.ndarray  # [.., in, r]
    b: np.ndarray  # [.., r, out]
    scale: np.ndarray  # [..]
    lost: np.ndarray  # [..]


class _Core:
    """A module's mean as `left @ mean @ right^T`, left and right with orthonormal columns: norms are those of `mean`.

    Attributes:
        energy: [..] squared norm of the mean.
        norms: [parties] squared norms of what each of them adds.
        inner: [parties] its product with the mean, entry by entry, summed.
    """

    def __init__(self, stack: _Stack, shares: np.ndarray):
        self._stack, self._shares = stack, shares
        self._left, left = np.linalg.qr(np.concatenate(stack.a, axis=-1))
        self._right, right = np.linalg.qr(np.swapaxes(np.concatenate(stack.b, axis=-2), -1, -2))
        ends = np.cumsum([a.shape[-1] for a in stack.a])[:-1]
        self._lefts, self._rights = np.split(left, ends, axis=-1), np.split(right, ends, axis=-1)
        self._mean = sum(share * self._own(i) for i, share in enumerate(shares))
        self.energy = _squared(self._mean)
        self.norms = np.array([_squared(self._own(i)).sum() for i in range(len(shares))])
        self.inner = np.array([(self._own(i) * self._mean).sum() for i in range(len(shares))])

    def _own(self, party: int) -> Any:
        """What a party adds, in the coordinates of `mean`."""
        scale = self._stack.scales[party][..., None, None]
        return scale * (self._lefts[party] @ np.swapaxes(self._rights[party], -1, -2))

    def factors(self, rank: int | None) -> _Factors:
        """The mean re-factorised, its singular values shared out evenly: neither factor outgrows the other."""
        u, s, vt = np.linalg.svd(self._mean, full_matrices=False)
        least = int((s > _PRECISION * s[..., :1]).sum(axis=-1).max())
        r = max(min(least, rank or least), 1)
        root = np.sqrt(s[..., :r])
        a = self._left @ (u[..., :r] * root[..., None, :])
        b = root[..., None] * (vt[..., :r, :] @ np.swapaxes(self._right, -1, -2))
        return _Factors(a, b, np.ones(s.shape[:-1]), (s[..., r:] ** 2).sum(axis=-1))

    def plain(self) -> _Factors:
        """The mean of each leaf by itself."""
        widest = max(a.shape[-1] for a in self._stack.a)

        def mean(parts: Sequence[np.ndarray], dim: int) -> Any:
            padded = [_padded(part, widest, dim) for part in parts]
            return sum(share * part for share, part in zip(self._shares, padded, strict=True))

        here = [share * there for share, there in zip(self._shares, self._stack.there, strict=True)]
        each = np.asarray(sum(w * s for w, s in zip(here, self._stack.scales, strict=True)))
        weight = np.asarray(sum(here))
        scale = np.divide(each, weight, out=np.ones_like(each), where=weight > 0)
        core = scale[..., None, None] * (mean(self._lefts, -1) @ np.swapaxes(mean(self._rights, -1), -1, -2))
        return _Factors(mean(self._stack.a, -1), mean(self._stack.b, -2), scale, _squared(core - self._mean))


def _stack(module: str, parties: Sequence[Mapping[str, Any]], names: Sequence[str]) -> _Stack:
    """A module's parts. Raises: ModelError, where they do not fit each other."""
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray] | None] = []
    first: tuple[str, tuple[int, ...]] | None = None
    for name, leaves in zip(names, parties, strict=True):
        own = {leaf: leaves[path] for leaf in _PRODUCT if (path := f"{module}.{leaf}") in leaves}
        if not own:
            parts.append(None)
            continue
        if len(own) < len(_PRODUCT):
            raise ModelError(f"an adapter without {', '.join(sorted({*_PRODUCT} - {*own}))}: {module}", where=name)
        a, b, scale = (_wide(leaf, f"{name}: {module}.{key}") for key, leaf in own.items())
        if a.ndim < 2 or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2] or scale.shape != a.shape[:-2]:
            raise ModelError(
                f"an adapter whose parts do not fit each other: {module}", where=name,
                got=f"lora_a {a.shape}, lora_b {b.shape}, lora_scale {scale.shape}",
                wanted="lora_a [.., in, r], lora_b [.., r, out], lora_scale [..]",
            )  # fmt: skip
        shape = (*a.shape[:-1], b.shape[-1])
        first = first or (name, shape)
        if first[1] != shape:
            raise ModelError(
                f"adapters over different bases: {module}", where=name, got=f"a kernel {shape}",
                wanted=f"{first[1]}, as in {first[0]}",
            )  # fmt: skip
        parts.append((a, b, scale))
    assert first is not None, "of a module that one of them has"
    *leading, dim_in, dim_out = first[1]
    none = (np.zeros((*leading, dim_in, 0)), np.zeros((*leading, 0, dim_out)), np.zeros(leading))
    every = [part if part is not None else none for part in parts]
    return _Stack([part[0] for part in every], [part[1] for part in every], [part[2] for part in every])


def _mean(path: str, parties: Sequence[Mapping[str, Any]], shares: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The mean of what is linear: heads, tables, rows of new tokens, and magnitudes by themselves.

    Raises:
        ModelError: it is not in all of them, or not of one shape.
    """
    has = next(name for name, leaves in zip(names, parties, strict=True) if path in leaves)
    arrays = []
    for name, leaves in zip(names, parties, strict=True):
        if path not in leaves:
            raise ModelError(
                f"what trained whole must be in all adapters, and one lacks it: {path}", where=name,
                wanted=f"it, as in {has}: what the base has in its place is not known here",
            )  # fmt: skip
        arrays.append(_wide(leaves[path], f"{name}: {path}"))
        if arrays[-1].shape != arrays[0].shape:
            raise ModelError(
                f"what trained whole has another shape: {path}", where=name, got=arrays[-1].shape,
                wanted=f"{arrays[0].shape}, as in {names[0]}",
            )  # fmt: skip
    if path != IDS:
        return np.asarray(sum(share * x for share, x in zip(shares, arrays, strict=True)), np.float32)
    if any(not np.array_equal(x, arrays[0]) for x in arrays):
        raise ModelError("rows of different tokens have no mean", where=path, got=", ".join(names))
    return arrays[0].astype(np.int32)


def _check_magnitudes(
    parties: Sequence[Mapping[str, Any]], names: Sequence[str], modules: Sequence[str], method: Method
) -> None:
    """Refuse DoRA's magnitudes where they cannot be averaged. Raises: ModelError."""
    if method == "exact":
        has = (name for name, own in zip(names, parties, strict=True) if any(p.endswith("_magnitude") for p in own))
        raise ModelError(
            "adapters with magnitudes (DoRA) have no exact mean: what they add is no product of two matrices",
            where=next(has), fix="--method plain: each matrix and each magnitude by itself; or train without use_dora",
        )  # fmt: skip
    for module in modules:
        for name, own in zip(names, parties, strict=True):
            if f"{module}.lora_magnitude" not in own:
                raise ModelError(
                    f"adapters with magnitudes (DoRA) have a mean where all have the same modules: {module} is missing",
                    where=name, wanted="its magnitude: the lengths of the base's columns are not known here",
                )  # fmt: skip


def _normalised(weights: Sequence[float], num: int) -> np.ndarray:
    given = np.asarray(weights, np.float64)
    if given.shape != (num,):
        raise ConfigError("there is not one weight for each adapter", got=f"{len(given)} weights", wanted=str(num))
    if not (np.isfinite(given).all() and (given > 0).all()):
        raise ConfigError(
            "a weight is a positive number", got=", ".join(f"{x:g}" for x in given),
            fix="leave out an adapter that is to count nothing",
        )  # fmt: skip
    scaled = given / given.max()  # whose sum is finite
    return scaled / scaled.sum()


def _wide(leaf: Any, where: str) -> np.ndarray:
    wide = np.asarray(leaf).astype(np.float64)
    if not np.isfinite(wide).all():
        raise ModelError("an adapter holds what is not a number", where=where, fix="leave that adapter out")
    return wide


def _padded(x: np.ndarray, r: int, dim: int) -> np.ndarray:
    width = [(0, 0)] * x.ndim
    width[dim] = (0, r - x.shape[dim])
    return np.pad(x, width)


def _squared(x: np.ndarray) -> np.ndarray:
    return (x**2).sum(axis=(-2, -1))


def _share(lost: float, energy: float) -> float:
    if energy > 0:
        return lost / energy
    return 0.0 if lost == 0 else float("inf")
