"""Layers in stacks: what repeats is compiled once.

Layers of one kind are one stack, scanned. Where kinds alternate (Gemma 3: five with a window, one without), the group
that repeats is what is scanned, and each of its places is a stack of its own: every kind is known when the program is
written, so that a window is a window and not a mask over everything. A model of one kind holds its stack as
`layers.attention...` [layers, ...], any other as `layers.0.attention...`, `layers.1...` [repetitions, ...].
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean.models.config import Kind
from jaxlean.models.cpu import from_bits, frozen_bits

Body = Callable[[Any, Any], tuple[Any, Any]]
Scan = Callable[[Body, Any, Any], tuple[Any, Any]]  # (body, carry, xs) -> (carry, ys)


class Stack(NamedTuple):
    """Layers of one kind, as many numbers apart as the group has layers."""

    kind: Kind
    first: int
    step: int
    num: int

    @property
    def numbers(self) -> range:
        """The layers, by their number in the model."""
        return range(self.first, self.first + self.step * self.num, self.step)

    def place(self, number: jax.Array) -> jax.Array:
        """int32 []: where in the stack the layer of that number is."""
        return (number.astype(jnp.int32) - self.first) // self.step


@cache
def runs(kinds: tuple[Kind, ...]) -> tuple[tuple[Stack, ...], ...]:
    """The stacks of each run of repeating groups, with the fewest layers to compile, then the fewest runs.

    >>> local, full = Kind(window=4), Kind()
    >>> [[(s.first, s.num) for s in run] for run in runs((local, full) * 3 + (local, local))]
    [[(0, 3), (1, 3)], [(6, 2)]]
    """
    best: list[tuple[int, int, tuple[tuple[int, int], ...]]] = [(0, 0, ())]  # of the layers from here to the end
    for first in range(len(kinds) - 1, -1, -1):
        found = []
        for size in range(1, len(kinds) - first + 1):
            group, count = kinds[first : first + size], 1
            while kinds[first + count * size : first + (count + 1) * size] == group:
                count += 1
            for times in range(1, count + 1):
                bodies, parts, rest = best[len(kinds) - first - times * size]
                found.append((bodies + size, parts + 1, ((size, times), *rest)))
        best.append(min(found, key=lambda split: (split[0], split[1], -math.prod(split[2][0]))))
    at, out = 0, []
    for size, count in best[-1][2]:
        out.append(tuple(Stack(kinds[at + i], at + i, size, count) for i in range(size)))
        at += size * count
    return tuple(out)


def stacks(kinds: tuple[Kind, ...]) -> tuple[Stack, ...]:
    """All stacks, in the order of their names."""
    return tuple(stack for run in runs(kinds) for stack in run)


class Group:
    """A scan's body that is several layers, one after the other; `each` wraps them one by one (a checkpoint, say)."""

    def __init__(self, bodies: Sequence[Body]):
        self.bodies = tuple(bodies)

    def __call__(self, carry: Any, xs: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
        ys = []
        for body, x in zip(self.bodies, xs, strict=True):
            carry, y = body(carry, x)
            ys.append(y)
        return carry, tuple(ys)

    def each(self, wrap: Callable[[Body], Body]) -> "Group":
        """The same layers, each wrapped."""
        return Group([wrap(body) for body in self.bodies])


class Stacks(nnx.Module):
    """The stacks of a model with several kinds of layers, by their number."""


def stacked(build: Callable[[Kind, nnx.Rngs], nnx.Module], kinds: tuple[Kind, ...], rngs: nnx.Rngs) -> Any:
    """The layers of a model: one stack, or `Stacks`.

    Args:
        build: (kind, rngs) -> one layer.
        kinds: one a layer.
        rngs: draws the parameters, each layer's from a key of its own.
    """
    found = stacks(kinds)
    if len(found) == 1:
        return _stack(partial(build, found[0].kind), found[0].num, rngs)
    out = Stacks()
    for number, stack in enumerate(found):
        setattr(out, str(number), _stack(partial(build, stack.kind), stack.num, rngs))
    return out


def modules(layers: nnx.Module, kinds: tuple[Kind, ...]) -> list[Any]:
    """One module a stack, as `stacked` made them."""
    num = len(stacks(kinds))
    return [layers] if num == 1 else [getattr(layers, str(number)) for number in range(num)]


def take_apart(params: Mapping[str, Any], kinds: tuple[Kind, ...]) -> list[dict[str, Any]]:
    """The parameters of a model's `layers`, as the trees of single layers in the order of their numbers.

    Args:
        params: as `stacked` makes them: one stack, or one for each number.
        kinds: one a layer.
    """
    found = stacks(kinds)
    layers: list[dict[str, Any]] = [{} for _ in kinds]
    for place, stack in enumerate(found):
        own = params if len(found) == 1 else params[str(place)]
        for index, number in enumerate(stack.numbers):
            layers[number] = jax.tree.map(lambda x, index=index: x[index], dict(own))
    return layers


def put_together(layers: Sequence[Mapping[str, Any]], kinds: tuple[Kind, ...]) -> dict[str, Any]:
    """The inverse of `take_apart`; what layers of one kind have must be of one shape."""
    found = stacks(kinds)
    parts = []
    for stack in found:
        own = [dict(layers[number]) for number in stack.numbers]
        parts.append(jax.tree.map(lambda *each: jnp.stack(each), *own))
    return parts[0] if len(parts) == 1 else {str(place): part for place, part in enumerate(parts)}


def through(
    layers: nnx.Module,
    kinds: tuple[Kind, ...],
    apply: Callable[[Any, Any, Any, Stack], tuple[Any, Any]],
    x: Any,
    scan: Scan,
) -> tuple[Any, list[Any]]:
    """Run all layers.

    Args:
        layers: as `stacked` made them.
        kinds: one a layer.
        apply: (layer, x, its number in the model, the stack that it is of) -> (x, anything).
        x: what goes through: any tree.
        scan: runs a body over a stack (`xla.remat.scan_layers` makes one of a policy).

    Returns:
        (x, for each stack what its layers gave, stacked).
    """
    out: list[Any] = []
    every = iter(modules(layers, kinds))
    for run in runs(kinds):
        bodies: list[Body] = []
        xs: list[Any] = []
        for stack in run:
            graph, params = nnx.split(next(every))
            numbers = jnp.arange(stack.first, stack.numbers.stop, stack.step, jnp.uint32)
            bodies.append(partial(_layer, graph, stack, apply))
            xs.append((jax.tree.map(frozen_bits, params), numbers))
        if len(run) == 1:
            x, ys = scan(bodies[0], x, xs[0])
            out.append(ys)
        else:
            x, ys = scan(Group(bodies), x, tuple(xs))
            out.extend(ys)
    return x, out


def _layer(graph: nnx.GraphDef, stack: Stack, apply: Callable[..., Any], x: Any, per_layer: Any) -> tuple[Any, Any]:
    params, number = per_layer
    return apply(nnx.merge(graph, jax.tree.map(from_bits, params)), x, number, stack)


def _stack(build: Callable[[nnx.Rngs], nnx.Module], num: int, rngs: nnx.Rngs) -> Any:
    """`num` modules as one whose parameters have a leading dim of `num`, each drawn from a key of its own."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    params = jax.vmap(lambda key: nnx.split(build(nnx.Rngs(params=key)))[1])(jax.random.split(rngs.params(), num))
    return nnx.merge(graph, params)
