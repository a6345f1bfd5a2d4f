"""How much each layer suffers from being pruned alone, all others as they were.

What is measured is local: the squared change of what a matrix gives for its inputs, relative to the square of what it
gave. It takes one walk for all shares, where the change of the loss would take an evaluation for each matrix and share.
A matrix that hardly changes may still matter more than one that changes much: it says where errors begin, not what
they lead to.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlean import tree
from jaxlean.compress.cut import best
from jaxlean.compress.prune import Choice, prune_kernel, relative_error, shares_of
from jaxlean.compress.structured import branch_energy, without
from jaxlean.compress.walk import Batch, Visited, walk
from jaxlean.hub.load import Model

SHARES = (0.25, 0.5, 0.75)


class Alone(NamedTuple):
    """A matrix of a layer, pruned alone."""

    layer: int
    module: str
    share: float  # that went
    error: float


def of_matrices(
    model: Model, batches: Sequence[Batch], choice: Choice, shares: Sequence[float] = SHARES
) -> list[Alone]:
    """Of zeros in each matrix that `choice` prunes. Args, errors: as of `prune.prune`; its sparsities do not count."""
    chosen, found = shares_of(model, choice), []
    if choice.of is not None:
        shares = (1 - choice.of[0] / choice.of[1],)

    def visit(visited: Visited) -> None:
        for module, kernel in visited.kernels().items():
            if not chosen[f"layers.{visited.number}.{module}.kernel"]:
                continue
            inputs = visited.inputs[module]
            for share in shares:
                pruned = prune_kernel(kernel, inputs, choice._replace(sparsity=share))
                found.append(Alone(visited.number, module, share, relative_error(kernel, pruned, inputs.gram)))

    walk(model, batches, visit)
    return found


def of_widths(
    model: Model, batches: Sequence[Batch], *, compensate: bool = True, damping: float = 0.01,
    shares: Sequence[float] = SHARES,
) -> list[Alone]:  # fmt: skip
    """Of neurons (`mlp.down`) and heads (`attention.out`) that go. Args: as of `structured.width`."""
    found: list[Alone] = []

    def visit(visited: Visited) -> None:
        leaves = tree.flatten(visited.params)
        for module, each in (("attention.out", model.config.head_dim), ("mlp.down", 1)):
            if module not in visited.inputs:
                continue
            kernel, gram = leaves[f"{module}.kernel"], visited.inputs[module].gram
            energy = np.asarray(branch_energy(kernel, gram, each))
            for share in shares:
                units = best(energy, max(round((1 - share) * len(energy)), 1))
                rows = (units[:, None] * each + np.arange(each)).reshape(-1)
                less = without(kernel, gram, rows, damping if compensate else None)
                found.append(
                    Alone(visited.number, module, 1 - len(units) / len(energy), relative_error(kernel, less, gram))
                )

    walk(model, batches, visit)
    return found
