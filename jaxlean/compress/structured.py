"""Structured pruning: a smaller dense model, which any program runs faster, in the form that its family has.

What can go, alike in all layers, since Hugging Face's configs have one width for them:

    neurons     of the MLP                     `intermediate_size`
    heads       query heads of each group that shares a key and a value, or whole such groups (so that grouped queries,
                arXiv 2305.13245, stay even)   `num_heads`, `num_kv_heads`
    features    of the residual stream         `hidden_size`
    layers      whole ones                     `depth`

A neuron, or a head, is worth the energy of what it adds to its branch over the calibration tokens: tr(W^T G W) of its
own rows W of `down` (or `out`) and its part G of the gram of what that is given. It is Minitron's importance by
activations (arXiv 2407.14679, section 2.2) times the size of what reads them, as in Wanda (arXiv 2306.11695). A feature
is worth its share of what the layers' norms give, summed over the layers (Minitron). A layer is worth what it turns its
input by: 1 - cosine of in and out (block influence, ShortGPT, arXiv 2403.03853).

The rows that stay make up for those that go: W_k + G_kk^-1 G_kr W_r is the least-squares fit of what all of them gave,
damped. It costs one solve a layer and no training. Norms that divide by a root mean square see fewer features; they are
scaled by the root mean square that is left, so that what stays keeps its size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlean import tree
from jaxlean.compress.cut import best, cut, heads_that_stay
from jaxlean.compress.prune import relative_error
from jaxlean.compress.walk import Batch, Inputs, Visited, check_plain, walk
from jaxlean.errors import ConfigError, ModelError
from jaxlean.hub.load import Model
from jaxlean.hub.shape import reshaped
from jaxlean.models.stack import put_together, take_apart


class Narrowed(NamedTuple):
    """What became of a branch of one layer."""

    layer: int
    module: str  # `mlp.down` or `attention.out`
    error: float  # root of the squared change of what it gives, relative to what it gave


def width(
    model: Model,
    batches: Sequence[Batch],
    *,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    compensate: bool = True,
    damping: float = 0.01,
) -> tuple[Model, list[Narrowed]]:
    """A narrower model.

    Args:
        model, batches: as of `walk`.
        hidden_size, intermediate_size, num_heads, num_kv_heads: of the model that results; None: as they are. With
            `num_kv_heads` alone as many queries share a key as before.
        compensate: the rows that stay make up for those that go.
        damping: of the least squares, relative to the mean of the gram's diagonal.

    Returns:
        (the model, what became of each branch that was narrowed).

    Raises:
        ConfigError: a size that is none, or larger than it was, or heads that do not share keys evenly.
        ModelError: a mixture of experts, latent attention, or a family whose config.json cannot say it.
    """
    check_plain(model)
    config = narrowed(
        model, hidden_size=hidden_size, intermediate_size=intermediate_size, num_heads=num_heads,
        num_kv_heads=num_kv_heads,
    )  # fmt: skip
    said = reshaped(model, config)
    was = model.config
    table: list[Narrowed] = []
    kept: list[dict[str, np.ndarray]] = []
    power: list[np.ndarray] = []  # of each norm's output, by feature, as shares
    spread: list[dict[str, np.ndarray]] = []  # the mean square of each feature before its norm's scale

    def visit(visited: Visited) -> tree.Tree:
        leaves = tree.flatten(visited.params)
        stay: dict[str, np.ndarray] = {}

        def take_out(module: str, rows: np.ndarray) -> None:
            inputs, kernel = visited.inputs[module], leaves[f"{module}.kernel"]
            new = without(kernel, inputs.gram, rows, damping if compensate else None)
            leaves[f"{module}.kernel"] = new
            table.append(Narrowed(visited.number, module, relative_error(kernel, new, inputs.gram)))

        if (config.num_heads, config.num_kv_heads) != (was.num_heads, was.num_kv_heads):
            out = "attention.out"
            energy = branch_energy(leaves[f"{out}.kernel"], visited.inputs[out].gram, was.head_dim)
            stay |= heads_that_stay(np.asarray(energy), was, config)
            take_out(out, stay["queries"])
        if config.intermediate_size != was.intermediate_size:
            energy = np.asarray(branch_energy(leaves["mlp.down.kernel"], visited.inputs["mlp.down"].gram, 1))
            stay["neurons"] = best(energy, config.intermediate_size)
            take_out("mlp.down", stay["neurons"])
        kept.append(stay)
        before = _normed(visited.inputs)
        power.extend(_shares(inputs.gram) for inputs in before.values())
        spread.append({name: _before_scale(leaves, name, x, was.norm_offset) for name, x in before.items()})
        return tree.unflatten(leaves)

    layers = walk(model, batches, visit)
    hidden = None
    if config.hidden_size != was.hidden_size:
        hidden = best(np.sum([np.sqrt(share) for share in power], axis=0), config.hidden_size)
    top = {path: x for path, x in model.params.items() if path != "layers"}
    if hidden is not None and was.norm == "rms":
        whole = {**top, "layers": put_together(layers, was.all_kinds)}
        top |= _final_norm(model, whole, batches, hidden)
        layers = [_scaled(layer, found, hidden, was) for layer, found in zip(layers, spread, strict=True)]
    narrow = [cut(layer, {**stay, "hidden": hidden}, was) for layer, stay in zip(layers, kept, strict=True)]
    params = {**cut(top, {"hidden": hidden}, was), "layers": put_together(narrow, config.all_kinds)}
    return replace(model, config=config, hf_config=said).with_params(params), table


def narrowed(model: Model, **sizes: int | None) -> Any:
    """The config with other widths, checked. Args, errors: as of `width`."""
    was = model.config
    if was.experts is not None or was.latent is not None:
        what = "a mixture of experts" if was.experts is not None else "latent attention"
        raise ModelError(f"{what} is not made narrower", got=model.family.model_type, fix="prune whole layers")
    asked = {name: size for name, size in sizes.items() if size is not None}
    per_group = was.num_heads // was.num_kv_heads
    if "num_heads" not in asked and "num_kv_heads" in asked:
        asked["num_heads"] = asked["num_kv_heads"] * per_group
    elif "num_kv_heads" not in asked and "num_heads" in asked and per_group == 1:
        asked["num_kv_heads"] = asked["num_heads"]
    for name, size in asked.items():
        if not 1 <= size <= getattr(was, name):
            raise ConfigError(
                f"a {name} that no pruning gives", got=size, wanted=f"1 up to {getattr(was, name):,}, which it has"
            )
    config = replace(was, **asked)
    if config.num_heads % config.num_kv_heads or config.num_heads // config.num_kv_heads > per_group:
        raise ConfigError(
            "heads that do not share keys and values as before", got=f"{config.num_heads} heads, "
            f"{config.num_kv_heads} keys", wanted=f"for each key the same number of heads, at most {per_group}",
        )  # fmt: skip
    if config.hidden_size != was.hidden_size and was.norm == "rms" and {"output", "sum"} & set(was.norm_at):
        raise ModelError(
            f"{model.family.model_type} normalises what its branches give by all features: without some it is another "
            "norm", got=f"hidden_size={config.hidden_size}", fix="prune its neurons (intermediate_size) or its layers",
        )  # fmt: skip
    heads_go = config.num_heads != was.num_heads
    if heads_go and was.qk_norm == "all":
        raise ModelError(
            f"{model.family.model_type} normalises the queries of all heads together: without some it is another norm",
            fix="prune its neurons (intermediate_size) or its layers",
        )
    return config


def depth(model: Model, keep: Sequence[int]) -> Model:
    """The model of some of its layers.

    Args:
        model: its kernels plain.
        keep: their numbers, ascending; see `influences` and `most_influential`.

    Raises:
        ConfigError: numbers that are no layers, or not ascending.
        ModelError: the family's config.json cannot say it.
    """
    check_plain(model)
    was, keep = model.config, list(keep)
    check_layers(keep, was)
    if was.attention_scale_by_layer:
        raise ModelError("the scale of attention depends on the layer's number", got=model.family.model_type)
    kinds = tuple(was.all_kinds[number] for number in keep) if was.kinds else ()
    config = replace(was, num_layers=len(keep), kinds=kinds)
    said = reshaped(model, config, layers=keep)
    layers = take_apart(model.params["layers"], was.all_kinds)
    params = {**model.params, "layers": put_together([layers[number] for number in keep], config.all_kinds)}
    return replace(model, config=config, hf_config=said).with_params(params)


def check_layers(keep: Sequence[int], config: Any) -> None:
    """Refuse what are no numbers of layers, ascending. Raises: ConfigError."""
    if not keep or list(keep) != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= config.num_layers:
        raise ConfigError(
            "layers that stay are numbers of layers, ascending", got=list(keep), wanted=f"0 to {config.num_layers - 1}"
        )


def influences(model: Model, batches: Sequence[Batch]) -> list[float]:
    """The block influence of each layer: 1 - mean cosine of what goes in and what comes out. Args: as of `walk`."""
    found: list[float] = []

    def visit(visited: Visited) -> None:
        found.append(1.0 - visited.similarity)

    walk(model, batches, visit)
    return found


def most_influential(influences: Sequence[float], num: int) -> list[int]:
    """The numbers of the `num` layers that do most, ascending.

    >>> most_influential([0.9, 0.1, 0.2, 0.5], 3)
    [0, 2, 3]
    """
    return [int(number) for number in best(np.asarray(influences), num)]


@partial(jax.jit, static_argnums=2)
def branch_energy(kernel: jax.Array, gram: jax.Array, each: int) -> jax.Array:
    """Of each `each` rows that follow each other: the energy of what they add to the output."""
    num = len(kernel) // each
    rows = kernel.astype(jnp.float32).reshape(num, each, -1)
    own = gram.reshape(num, each, num, each)[jnp.arange(num), :, jnp.arange(num), :]
    return jnp.einsum("nij,njo,nio->n", own, rows, rows, precision="highest")


def without(kernel: jax.Array, gram: jax.Array, rows: np.ndarray, damping: float | None) -> jax.Array:
    """The kernel, zero but for `rows`, which make up for the others where there is a damping."""
    gone = np.setdiff1d(np.arange(len(kernel)), rows)
    wide = kernel.astype(jnp.float32)
    stay = wide[rows]
    if damping is not None and len(gone):
        stay = stay + _fit(gram[np.ix_(rows, rows)], gram[np.ix_(rows, gone)], wide[gone], damping)
    return jnp.zeros_like(kernel).at[rows].set(stay.astype(kernel.dtype))


@jax.jit
def _fit(among: jax.Array, between: jax.Array, gone: jax.Array, damping: jax.Array) -> jax.Array:
    diagonal = jnp.diagonal(among)
    damped = among + jnp.diag(jnp.full_like(diagonal, damping * jnp.where(diagonal.mean() > 0, diagonal.mean(), 1.0)))
    with jax.default_matmul_precision("highest"):
        return jax.scipy.linalg.solve(damped, between @ gone, assume_a="pos")


def _normed(inputs: Mapping[str, Inputs]) -> dict[str, Inputs]:
    """What the norms before attention and MLP give, by the norms' names."""
    found: dict[str, Inputs] = {}
    readers = {"attention_norm": ("attention.query", "attention.qkv"), "mlp_norm": ("mlp.up", "mlp.gate_up")}
    for norm, modules in readers.items():
        for module in modules:
            if module in inputs:
                found[norm] = inputs[module]
    return found


def _shares(gram: jax.Array) -> np.ndarray:
    diagonal = np.asarray(jnp.diagonal(gram), np.float64)
    return diagonal / max(diagonal.sum(), np.finfo(np.float64).tiny)


def _before_scale(leaves: Mapping[str, Any], norm: str, inputs: Inputs, offset: float) -> np.ndarray:
    """The mean square of each feature that a norm has divided, before its scale; 1 where the scale says nothing."""
    if f"{norm}.scale" not in leaves:
        return np.ones(len(inputs.total))
    scale = np.asarray(leaves[f"{norm}.scale"], np.float64) + offset
    given = np.asarray(jnp.diagonal(inputs.gram), np.float64) / float(inputs.tokens)
    return np.where(np.abs(scale) > 1e-6, given / np.maximum(scale**2, 1e-12), 1.0)


def _scaled(layer: tree.Tree, spread: Mapping[str, np.ndarray], hidden: np.ndarray, config: Any) -> tree.Tree:
    """A layer whose norms make up for the features that their root mean square will no longer count."""
    leaves = tree.flatten(layer)
    for norm, found in spread.items():
        path = f"{norm}.scale"
        if path in leaves:
            leaves[path] = _rescaled(leaves[path], found[hidden].mean(), config.norm_offset)
    return tree.unflatten(leaves)


def _rescaled(scale: jax.Array, left: float, offset: float) -> jax.Array:
    return ((scale.astype(jnp.float32) + offset) * np.sqrt(left, dtype=np.float32) - offset).astype(scale.dtype)


def _final_norm(model: Model, params: tree.Tree, batches: Sequence[Batch], hidden: np.ndarray) -> tree.Tree:
    """The last norm, scaled as those of the layers are; nothing of a model that has none."""
    norm = params.get("norm")
    if norm is None:
        return {}
    offset = model.config.norm_offset
    total, tokens = np.zeros(model.config.hidden_size), 0
    for batch in batches:
        square, seen = _hidden_squares(model.graph, params, {name: jnp.asarray(x) for name, x in batch.items()})
        total, tokens = total + np.asarray(square, np.float64), tokens + int(seen)
    scale = np.asarray(norm["scale"], np.float64) + offset
    found = np.where(np.abs(scale) > 1e-6, total / tokens / np.maximum(scale**2, 1e-12), 1.0)
    return {"norm": dict(norm) | {"scale": _rescaled(norm["scale"], found[hidden].mean(), offset)}}


@partial(jax.jit, static_argnums=0)
def _hidden_squares(graph: nnx.GraphDef, params: tree.Tree, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """(the sum of each feature's squares over the tokens that are no padding, how many these are)."""
    counts = batch["segments"] > 0
    x = nnx.merge(graph, params).hidden(**batch).astype(jnp.float32)
    return jnp.where(counts[..., None], jnp.square(x), 0.0).sum((0, 1)), counts.sum()
