"""What a traced function does, read off its jaxpr: operations of matrix products, other operations, what scans keep.

Nothing is compiled or run. A scan's body counts as often as it runs, which XLA's own cost analysis does not do.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# Results that are another view of what is there, or that XLA computes where they are used.
_FREE = frozenset(
    "reshape broadcast_in_dim squeeze expand_dims convert_element_type name stop_gradient copy copy_p iota "
    "sharding_constraint device_put transpose slice reduce_precision bitcast_convert_type".split()
)
_TRANSCENDENTAL = frozenset("exp exp2 log log1p expm1 logistic tanh erf erf_inv pow sin cos".split())
# Operations of one element of a transcendental function, in those of an addition.
_STEPS = 4.0
# Fused attention of jax.nn.dot_product_attention: products of [query, head_dim] x [head_dim, key] that it does.
_CUDNN = {"dot_product_attention_fwd": 2, "dot_product_attention_bwd": 5}


@dataclass
class Work:
    """An amount of work; its numbers are floats, or arrays of as many amounts.

    Args:
        flops: operations of matrix products, by the name of the dtype that is multiplied.
        product_bytes: what these products read and write; a narrow one (an adapter's) takes as long as that.
        elements: all other operations, one for each element of a result (or of what is reduced).
    """

    flops: dict[str, Any] = field(default_factory=dict)
    product_bytes: Any = 0.0
    elements: Any = 0.0

    @property
    def total_flops(self) -> Any:
        """Of all dtypes together."""
        return sum(self.flops.values())

    def add(self, other: "Work", times: Any = 1.0) -> None:
        """Add another's work, so many times (an array of numbers makes arrays of these)."""
        for dtype, flops in other.flops.items():
            self.flops[dtype] = self.flops.get(dtype, 0.0) + flops * times
        if other.product_bytes:
            self.product_bytes = self.product_bytes + other.product_bytes * times
        if other.elements:
            self.elements = self.elements + other.elements * times


def count(jaxpr: Jaxpr) -> Work:
    """All that a function does, once. The body of a `while` counts once: nobody knows how often it runs.

    What nothing is made of does not count, and XLA does not compute it: the gradient of a frozen kernel, say.
    """
    total = Work()
    needed = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    for eqn in reversed(jaxpr.eqns):
        if not needed.isdisjoint(eqn.outvars) or eqn.effects:
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
            total.add(work_of(eqn))
    return total


_FUSED: ContextVar[str | None] = ContextVar("fused", default=None)


@contextmanager
def as_one_kernel(scope: str) -> Iterator[None]:
    """Within this block, what was traced under a name scope counts as one kernel does it: its products, nothing else.

    For a plan, in which plain XLA stands in for a kernel that is not installed here.
    """
    token = _FUSED.set(scope)
    try:
        yield
    finally:
        _FUSED.reset(token)


_REPEATED: ContextVar[tuple[str, float] | None] = ContextVar("repeated", default=None)


@contextmanager
def repeated(scope: str, times: float) -> Iterator[None]:
    """Within this block, what was traced under a name scope counts so many times.

    For what several devices do alike: an update of parameters of which each of them has a copy.
    """
    token = _REPEATED.set((scope, times))
    try:
        yield
    finally:
        _REPEATED.reset(token)


def scope_of_kernel() -> str | None:
    """The scope that counts as one kernel now."""
    return _FUSED.get()


def work_of(eqn: Any) -> Work:
    """What one equation does, with everything inside it."""
    again = _REPEATED.get()
    if again is not None and again[0] in str(eqn.source_info.name_stack):
        token = _REPEATED.set(None)  # once, however deep it goes from here
        try:
            once, found = work_of(eqn), Work()
        finally:
            _REPEATED.reset(token)
        found.add(once, again[1])
        return found
    found = _work_of(eqn)
    scope = _FUSED.get()
    if scope is not None and scope in str(eqn.source_info.name_stack):
        return Work(found.flops)
    return found


def _work_of(eqn: Any) -> Work:
    name, params = eqn.primitive.name, eqn.params
    if name in ("dot_general", "ragged_dot_general"):  # the latter as a TPU does it: each row with one kernel
        moved = sum(map(nbytes, (*eqn.invars, *eqn.outvars)))
        return Work({eqn.invars[0].aval.dtype.name: _dot_flops(eqn)}, moved)
    if name.removesuffix("_wrapper") in _CUDNN:
        query, key = (v.aval.shape for v in eqn.invars[:2])  # [batch, length, heads, head_dim], its only layout
        flops = 2.0 * _CUDNN[name.removesuffix("_wrapper")] * query[0] * query[1] * query[2] * query[3] * key[1]
        return Work({eqn.invars[0].aval.dtype.name: flops})
    inner = [count(sub) for sub in jaxprs_in(eqn)]
    if inner:
        total = Work()
        if name == "cond":
            total.add(max(inner, key=lambda work: (work.total_flops, work.elements)))
            return total
        times = params["length"] if name == "scan" else devices(eqn)
        if name == "pallas_call":
            times = int(np.prod([size for size in params["grid_mapping"].grid if isinstance(size, int)]))
            inner = [Work(work.flops) for work in inner]  # all else stays in the core's own memory
        for work in inner:
            total.add(work, times)
        return total
    if name in _FREE:
        return Work()
    sizes = [v.aval.size for v in eqn.outvars if hasattr(v.aval, "size")]
    if name.startswith(("reduce", "arg", "cum")):
        sizes = [v.aval.size for v in eqn.invars if hasattr(v.aval, "size")]
    return Work(elements=sum(sizes) * (_STEPS if name in _TRANSCENDENTAL else 1.0))


def kept_bytes(jaxpr: Jaxpr) -> int:
    """What the layers leave for the backward pass: all that a scan over named activations stacks, over all devices."""
    total = 0
    for eqn in jaxpr.eqns:
        for sub in jaxprs_in(eqn):
            total += devices(eqn) * kept_bytes(sub)
            # The scan back through the layers stacks gradients, not activations: it is the one that runs in reverse.
            if eqn.primitive.name == "scan" and not eqn.params["reverse"] and _names_something(sub):
                # what is carried has the shape that it has inside
                pairs: Any = zip(sub.outvars, eqn.outvars, strict=True)
                total += sum(nbytes(out) for inside, out in pairs if inside.aval.shape != out.aval.shape)
    return total


def largest_result(jaxpr: Jaxpr) -> int:
    """Bytes of the largest result of a single operation, over all devices."""
    sizes = [0]
    for eqn in jaxpr.eqns:
        sizes.extend(devices(eqn) * largest_result(sub) for sub in jaxprs_in(eqn))
        sizes.extend(map(nbytes, eqn.outvars))
    return max(sizes)


def devices(eqn: Any) -> int:
    """On how many devices what is inside an equation runs, its shapes those of one: 1 but for `shard_map`."""
    if eqn.primitive.name != "shard_map":
        return 1
    mesh = eqn.params["mesh"]
    return int(np.prod([mesh.shape[axis] for axis in eqn.params["newly_manual_axes"]]))


def jaxprs_in(eqn: Any) -> Iterator[Jaxpr]:
    """The functions inside an equation: bodies of loops, branches, what is jitted."""
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def nbytes(variable: Any) -> int:
    """Of an array; 0 of what is none (a token, a key)."""
    dtype = getattr(variable.aval, "dtype", None)
    if dtype is None or jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return 0
    return int(variable.aval.size) * np.dtype(dtype).itemsize


def _is_backward(eqn: Any) -> bool:
    """Whether this is the backward pass of a checkpointed function: what it computes again, and the gradients."""
    return eqn.primitive.name in ("remat2", "checkpoint", "remat") and bool(eqn.params.get("differentiated"))


def _names_something(jaxpr: Jaxpr) -> bool:
    return any(eqn.primitive.name == "name" or any(map(_names_something, jaxprs_in(eqn))) for eqn in jaxpr.eqns)


def _dot_flops(eqn: Any) -> float:
    numbers = eqn.params.get("dimension_numbers") or eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    (contracted, _), _ = numbers
    left = eqn.invars[0].aval.shape
    return 2.0 * eqn.outvars[0].aval.size * float(np.prod([left[dim] for dim in contracted]))


@dataclass(frozen=True)
class _Node:
    """An equation of the backward pass, its variables as numbers."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    work: Work
    name: str | None
    size: int


class Recomputation:
    """What the backward pass of the layers does, were this or that activation kept.

    Made of the trace of a gradient under the policy `full`, whose backward pass computes every activation again. To
    keep a name is to cut the graph at that name: what only leads to it is not done.

    Args:
        jaxpr: of a function with a gradient inside it.
    """

    def __init__(self, jaxpr: Jaxpr):
        self._nodes: list[tuple[list[_Node], set[int], float]] = []
        self._collect(jaxpr, 1.0)

    @property
    def names(self) -> tuple[str, ...]:
        """The activations that the backward pass reads, so that keeping them saves something."""
        return tuple(self.without(())[1])

    def without(self, kept: Collection[str]) -> tuple[Work, dict[str, int]]:
        """(work of the backward pass with these names kept, bytes of each named activation that it then reads).

        A name that is kept in vain, since nothing is computed from it, is not among those that are read.
        """
        work, sizes = self.without_each({name: np.ones(1, bool) for name in kept}, 1)
        flops = {dtype: float(flops[0]) for dtype, flops in work.flops.items()}
        only = Work(flops, float(np.sum(work.product_bytes)), float(np.sum(work.elements)))
        return only, {name: int(size[0]) for name, size in sizes.items() if size[0]}

    def without_each(self, kept: Mapping[str, np.ndarray], num: int) -> tuple[Work, dict[str, np.ndarray]]:
        """`without` for many sets of names in one go.

        Args:
            kept: name -> bool [num], whether each of the sets holds it.
            num: sets.

        Returns:
            work whose numbers are float [num], and the bytes of each name, int64 [num].
        """
        total = Work()
        sizes: dict[str, Any] = {}
        for nodes, wanted, times in self._nodes:
            needed = {variable: np.ones(num, bool) for variable in wanted}
            for node in reversed(nodes):
                uses = [needed.pop(variable) for variable in set(node.outputs) if variable in needed]
                if not uses:
                    continue
                here = np.logical_or.reduce(uses)
                if node.name is not None:
                    sizes[node.name] = sizes.get(node.name, 0) + here * int(node.size * times)
                    if node.name in kept:
                        here = here & ~kept[node.name]
                for variable in set(node.inputs):
                    needed[variable] = needed[variable] | here if variable in needed else here
                total.add(node.work, here * times)
        return total, dict(reversed(sizes.items()))

    def _collect(self, jaxpr: Jaxpr, times: float) -> None:
        for eqn in jaxpr.eqns:
            inner = eqn.params["length"] if eqn.primitive.name == "scan" else devices(eqn)
            for sub in jaxprs_in(eqn):
                if _is_backward(eqn):
                    flat = _Flat()
                    outputs = flat.run(sub, [flat.new() for _ in sub.invars])
                    self._nodes.append((flat.nodes, set(outputs), times))
                else:
                    self._collect(sub, times * inner)


class _Flat:
    """A jaxpr with the functions that it merely calls written out, so that every name stands at the top."""

    def __init__(self) -> None:
        self.nodes: list[_Node] = []
        self._count = 0

    def new(self) -> int:
        self._count += 1
        return self._count

    def run(self, jaxpr: Jaxpr, arguments: list[int], copies: int = 1) -> list[int]:
        """The numbers of the results; `copies` of it run, each on a device of its own."""
        numbers: dict[Any, int] = dict(zip(jaxpr.invars, arguments, strict=True))

        def number(variable: Any) -> int:
            if isinstance(variable, Literal):
                return 0
            return numbers.setdefault(variable, 0)  # a constant of the function: always there

        for eqn in jaxpr.eqns:
            inputs = [number(v) for v in eqn.invars]
            called = list(jaxprs_in(eqn))
            calls = eqn.primitive.name in (
                "jit",
                "pjit",
                "closed_call",
                "core_call",
                "custom_jvp_call",
                "custom_vjp_call",
                "shard_map",
            )
            if calls and len(called[0].invars) == len(inputs):
                outputs = self.run(called[0], inputs, copies * devices(eqn))
            else:
                outputs = [self.new() for _ in eqn.outvars]
                name = eqn.params["name"] if eqn.primitive.name == "name" else None
                size = copies * nbytes(eqn.outvars[0]) if name is not None else 0
                work = Work()
                work.add(work_of(eqn), copies)
                self.nodes.append(_Node(tuple(inputs), tuple(outputs), work, name, size))
            numbers.update(zip(eqn.outvars, outputs, strict=True))
        return [number(v) for v in jaxpr.outvars]
