"""Pruning of single weights: a trained model in, one with zeros out. Nothing here trains.

What goes is a share of each matrix, or, as sparse tensor cores want it (arXiv 2104.08378), all but n of every m inputs
in a row of an output:

    magnitude   the smallest weights of a matrix (arXiv 1506.02626); needs no data
    wanda       the smallest products of a weight and the norm of what it is multiplied with, among those of the same
                output (arXiv 2306.11695)
    sparsegpt   those that cost least, while the others make up for them (`compress/sparsegpt.py`)

Layer by layer, so that the next one is judged by what the pruned ones give it (`compress/walk.py`). Zeros save nothing
by themselves, but for hardware that knows them; whole neurons, heads and layers do (`compress/structured.py`), and so
do channels (`compress/channels.py`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxlean import tree
from jaxlean.compress import sparsegpt
from jaxlean.compress.walk import Batch, Inputs, Visited, check_plain, walk, with_layers
from jaxlean.errors import ConfigError, ModelError
from jaxlean.hub.load import Model
from jaxlean.models.stack import stacks
from jaxlean.ranks import smallest

Masks = dict[str, jax.Array]  # path -> bool of the leaf's shape, True where a number stays
Method = Literal["magnitude", "wanda", "sparsegpt"]

# Matrices of layers; the embedding and the output head are few and sensitive.
_DEFAULT = r"^(?!(head|classifier)\.).*\.kernel$"


class Pruned(NamedTuple):
    """What became of one matrix of one layer."""

    layer: int
    module: str  # `attention.query`
    sparsity: float  # share of zeros
    error: float  # root of the squared change of what it gives for its inputs, relative to what it gave


class Choice(NamedTuple):
    """How matrices are pruned.

    Args:
        method: see above.
        sparsity: share that goes of each matrix.
        of: (n, m): of every m inputs of an output n stay, whatever `sparsity` says.
        rules: (regex, share) over paths like `layers.0.mlp.down.kernel`, the layers by their number; the first that
            matches wins over `sparsity`, and one of share 0 stays as it is.
        damping: of SparseGPT (`sparsegpt.solve`).
    """

    method: Method
    sparsity: float = 0.5
    of: tuple[int, int] | None = None
    rules: Sequence[tuple[str, float]] = ()
    damping: float = 0.01


def prune(model: Model, batches: Sequence[Batch], choice: Choice) -> tuple[Model, list[Pruned]]:
    """The model with zeros in the matrices of its layers.

    Args:
        model, batches: as of `walk`.
        choice: what goes, and how that is decided.

    Returns:
        (the model, what became of each matrix).

    Raises:
        ConfigError: a share that is none, an n that is not within 1 and m, an m that does not divide a matrix' inputs,
            or a rule that matches nothing.
        ModelError: as of `walk`; or SparseGPT finds no inverse.
    """
    check_plain(model)
    shares = shares_of(model, choice)
    table: list[Pruned] = []

    def visit(visited: Visited) -> tree.Tree:
        leaves = tree.flatten(visited.params)
        for module, kernel in visited.kernels().items():
            path = f"layers.{visited.number}.{module}.kernel"
            if not shares[path]:
                continue
            inputs = visited.inputs[module]
            pruned = prune_kernel(kernel, inputs, choice._replace(sparsity=shares[path]))
            zeros, error = map(float, jax.device_get(_measured(kernel, pruned, inputs.gram)))
            if not math.isfinite(error):
                raise ModelError(
                    "SparseGPT finds no inverse of what a matrix is given", where=path,
                    got=f"{int(inputs.tokens):,} tokens for {kernel.shape[0]:,} inputs, damping {choice.damping}",
                    fix="more calibration rows, or more damping (prune.damping=0.1)",
                )  # fmt: skip
            table.append(Pruned(visited.number, module, zeros, error))
            leaves[f"{module}.kernel"] = pruned
        return tree.unflatten(leaves)

    return with_layers(model, walk(model, batches, visit)), table


def shares_of(model: Model, choice: Choice) -> dict[str, float]:
    """The share that goes of each matrix, by paths with the layers' numbers. Errors: as of `prune`."""
    check(choice)
    if any(kind.sparse for kind in model.config.all_kinds):
        raise ModelError(
            "a mixture of experts is not pruned", got=model.family.model_type, wanted="layers with one MLP"
        )
    paths = {}
    for number in range(model.config.num_layers):
        # layers of several kinds may have other matrices, so each is asked for its own
        for path, shape in _kernels(model, number).items():
            paths[f"layers.{number}.{path}"] = shape
    shares = tree.match(choice.rules, paths, what="prune.ignore and prune.rules", default=choice.sparsity)
    for path, share in shares.items():
        if share and choice.of is not None and paths[path][0] % choice.of[1]:
            raise ConfigError(
                "n of m: m does not divide a matrix' inputs", where=path, got=f"{paths[path][0]:,} inputs",
                wanted=f"a multiple of {choice.of[1]}", fix="another prune.pattern, or leave it out by prune.ignore",
            )  # fmt: skip
    return shares


def check(choice: Choice) -> None:
    """Refuse shares that are none. Raises: ConfigError."""
    for share in (choice.sparsity, *(share for _, share in choice.rules)):
        if not 0 <= share <= 1:
            raise ConfigError("a sparsity that is no share", got=share, wanted="0 to 1")
    if choice.of is not None:
        _check_of(*choice.of)


def _kernels(model: Model, number: int) -> dict[str, tuple[int, ...]]:
    kinds = model.config.all_kinds
    found = stacks(kinds)
    place = next(i for i, stack in enumerate(found) if number in stack.numbers)
    own = model.params["layers"] if len(found) == 1 else model.params["layers"][str(place)]
    leaves = tree.flatten(own)
    return {path: leaf.shape[1:] for path, leaf in leaves.items() if path.endswith(".kernel") and leaf.ndim == 3}


def prune_kernel(kernel: jax.Array, inputs: Inputs, choice: Choice) -> jax.Array:
    """One matrix [in, out] with zeros; `choice.rules` do not count."""
    if choice.method == "sparsegpt":
        return sparsegpt.solve(kernel, inputs.gram, sparsity=choice.sparsity, of=choice.of, damping=choice.damping)
    scores = jnp.abs(kernel.astype(jnp.float32))
    if choice.method == "wanda":
        scores = scores * inputs.norm[:, None]
    if choice.of is not None:
        stays = largest_of(scores, *choice.of)
    else:
        gone = kernel.shape[0] if choice.method == "wanda" else kernel.size
        stays = largest(scores, round(choice.sparsity * gone), by_output=choice.method == "wanda")
    return jnp.where(stays, kernel, jnp.zeros((), kernel.dtype))


@partial(jax.jit, static_argnames=("gone", "by_output"))
def largest(scores: jax.Array, gone: int, *, by_output: bool = False) -> jax.Array:
    """Which scores [..., in, out] of a matrix stay, if the `gone` smallest go: of it all, or of each of its outputs."""
    scores = scores.astype(jnp.float32)
    flat = jnp.swapaxes(scores, -1, -2) if by_output else scores.reshape(*scores.shape[:-2], -1)
    stays = ~smallest(flat, gone)
    return jnp.swapaxes(stays, -1, -2) if by_output else stays.reshape(scores.shape)


@partial(jax.jit, static_argnums=(1, 2))
def largest_of(scores: jax.Array, n: int, m: int) -> jax.Array:
    """Which scores [..., in, out] stay, if of every m inputs of an output the n largest do; m divides the inputs."""
    *stack, rows, columns = scores.shape
    groups = scores.reshape(*stack, rows // m, m, columns)
    rank = jnp.argsort(jnp.argsort(groups, axis=-2), axis=-2)
    return (rank >= m - n).reshape(scores.shape)


def magnitude(params: Mapping[str, Any], sparsity: float, *, where: str = _DEFAULT) -> Masks:
    """Of each chosen matrix (of each layer of a stack) exactly `round(sparsity * size)` numbers go, the smallest.

    For any tree, also of a model that `walk` does not go through.

    Args:
        params: nested dict of arrays.
        sparsity: share that goes, 0 to 1.
        where: regex of the paths that are pruned.

    Raises:
        ConfigError: a share that is none, or a regex that finds nothing.
    """
    if not 0 <= sparsity <= 1:
        raise ConfigError("a sparsity that is no share", got=sparsity, wanted="0 to 1")
    return _masks(params, where, lambda x: largest(x, round(sparsity * math.prod(x.shape[-2:]))))


def n_of_m(params: Mapping[str, Any], n: int, m: int, *, where: str = _DEFAULT) -> Masks:
    """Of every m inputs that follow each other, those n stay whose weight for an output is largest.

    Args: as `magnitude`; a matrix whose number of inputs m does not divide stays whole.

    Raises:
        ConfigError: n is not within 1 and m, or a regex that finds nothing.
    """
    _check_of(n, m)
    return _masks(params, where, lambda x: jnp.ones(x.shape, bool) if x.shape[-2] % m else largest_of(x, n, m))


def apply(params: Mapping[str, Any], masks: Masks) -> tree.Tree:
    """The tree with zeros where the masks say so (`train/zeros.py` keeps them zero in training)."""

    def masked(path: str, leaf: Any) -> Any:
        return jnp.where(masks[path], leaf, jnp.zeros((), leaf.dtype)) if path in masks else leaf

    return tree.map_with_path(masked, params)


def relative_error(kernel: jax.Array, changed: jax.Array, gram: jax.Array) -> float:
    """sqrt(tr(d^T G d) / tr(W^T G W)), where d is the change: of what the matrix gives for its inputs."""
    return float(_measured(kernel, changed, gram)[1])


@jax.jit
def _measured(kernel: jax.Array, changed: jax.Array, gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(share of zeros, relative error)."""
    was, is_now = kernel.astype(jnp.float32), changed.astype(jnp.float32)

    def square(x: jax.Array) -> jax.Array:
        return (x * jnp.matmul(gram, x, precision="highest")).sum()

    ratio = square(is_now - was) / jnp.maximum(square(was), jnp.finfo(jnp.float32).tiny)
    # of what hardly changes the sum of products may come out just below zero
    return (changed == 0).mean(), jnp.sqrt(jnp.maximum(ratio, 0.0))


def _check_of(n: int, m: int) -> None:
    if not 1 <= n <= m:
        raise ConfigError("n of m: n is at least 1 and at most m", got=f"{n} of {m}")


def _masks(params: Mapping[str, Any], where: str, stays: Callable[[jax.Array], jax.Array]) -> Masks:
    leaves = tree.flatten(params)
    rules: Sequence[tuple[str, bool]] = [(where, True)]
    chosen = tree.match(rules, leaves, what="what is pruned", default=False)
    sizes = {path: jnp.abs(jnp.asarray(leaf)) for path, leaf in leaves.items() if chosen[path]}
    return {path: stays(size) for path, size in sizes.items()}
