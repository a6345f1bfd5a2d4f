"""Scales moved from activations into weights, so that both round better and the model computes what it did.

A linear layer's inputs can be divided by any positive numbers s, one a feature, if its kernel's rows are multiplied by
them. The division costs nothing where what stands before is linear in its own parameters: a norm's scale, or the
columns of another kernel. `sites` finds these places in a layer.

    smoothquant  s = max|x|^alpha / max|w|^(1 - alpha): outliers of the activations go into the weights, for W8A8
                 (arXiv 2211.10438). Here alpha is searched for at each place.
    awq          s = mean|x|^alpha with the alpha of a grid that spoils the outputs least: weights that meet large
                 activations are rounded more finely, for W4A16 (arXiv 2306.00978). What is spoiled is measured on all
                 calibration tokens, through their gram matrix.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlean import tree
from jaxlean.compress.walk import Inputs
from jaxlean.models.config import LayersConfig

_GRID = 20  # alphas that are tried
_SMALLEST = 1e-5


class Site(NamedTuple):
    """Linear layers that share an input, and what can take its scale.

    Args:
        readers: paths of the linear layers.
        writer: the path of a norm, or of a linear layer whose output columns the features are.
        groups: features of one head of the writer, of which as many heads read as there are features in all over its
            columns (grouped query attention); 0: one column a feature.
    """

    readers: tuple[str, ...]
    writer: str
    groups: int = 0


def sites(config: LayersConfig, leaves: Mapping[str, Any]) -> list[Site]:
    """The places of a layer.

    Args:
        config: of its model.
        leaves: `{path: leaf}` of the layer.
    """

    def there(*paths: str) -> tuple[str, ...]:
        return tuple(path for path in paths if f"{path}.kernel" in leaves)

    attention = there("attention.query", "attention.key", "attention.value", "attention.qkv")
    attention += there("attention.query_a", "attention.key_value_a")  # of latent attention
    mlp = there("mlp.gate", "mlp.up", "mlp.gate_up")
    found = []
    if config.parallel and config.shared_norm:
        attention, mlp = attention + mlp, ()
    for norm, readers in (("attention_norm", attention), ("mlp_norm", mlp)):
        if f"{norm}.scale" in leaves and readers:
            found.append(Site(readers, norm))
    if there("attention.value", "attention.out") == ("attention.value", "attention.out") and config.latent is None:
        shared = config.num_heads != config.num_kv_heads
        found.append(Site(("attention.out",), "attention.value", config.head_dim if shared else 0))
    # of an ungated MLP only the activation stands between, which is not linear
    if config.gated and there("mlp.up", "mlp.down") == ("mlp.up", "mlp.down"):
        found.append(Site(("mlp.down",), "mlp.up"))
    return found


def moved(leaves: Mapping[str, jax.Array], site: Site, scale: jax.Array, config: LayersConfig) -> dict[str, jax.Array]:
    """The layer's leaves with a site's inputs divided by `scale` [features], and its readers' rows multiplied by it."""
    out = dict(leaves)
    for reader in site.readers:
        kernel = leaves[f"{reader}.kernel"]
        out[f"{reader}.kernel"] = (kernel * scale[:, None]).astype(kernel.dtype)
    own = written(scale, site, config)
    if f"{site.writer}.kernel" in leaves:
        kernel = leaves[f"{site.writer}.kernel"]
        out[f"{site.writer}.kernel"] = (kernel / own).astype(kernel.dtype)
    else:
        stored, offset = leaves[f"{site.writer}.scale"], config.norm_offset
        out[f"{site.writer}.scale"] = ((stored + offset) / own - offset).astype(stored.dtype)
    bias = f"{site.writer}.bias"
    if bias in leaves:
        out[bias] = (leaves[bias] / own).astype(leaves[bias].dtype)
    return out


def written(scale: jax.Array, site: Site, config: LayersConfig) -> jax.Array:
    """The scale of the writer's columns, of that of the features that are read."""
    if not site.groups:
        return scale
    return scale.reshape(config.num_kv_heads, -1, site.groups)[:, 0].reshape(-1)


def shared(scale: jax.Array, site: Site, config: LayersConfig) -> jax.Array:
    """The scale of a site's features with the same numbers wherever the same column of the writer is read."""
    if not site.groups:
        return scale
    by_head = scale.reshape(config.num_kv_heads, -1, site.groups)
    return jnp.broadcast_to(by_head.max(axis=1, keepdims=True), by_head.shape).reshape(-1)


def divided(inputs: Inputs, scale: jax.Array) -> Inputs:
    """What a layer is given, its features divided."""
    gram, sample = inputs.gram / scale[:, None] / scale, inputs.sample / scale
    return Inputs(gram, inputs.total / scale, inputs.largest / scale, inputs.tokens, sample)


def smoothquant(
    params: tree.Tree,
    inputs: Mapping[str, Inputs],
    config: LayersConfig,
    rounded: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    alpha: float | None = None,
) -> tuple[tree.Tree, dict[str, Inputs]]:
    """A layer with its activations smoothed.

    Args:
        params: of the layer.
        inputs: of its linear layers.
        config: of the model.
        rounded: (inputs [tokens, in], kernel) -> their product [tokens, out] with both rounded.
        alpha: how much of the difficulty goes into the weights, 0 to 1. None: of each site the one of a grid that
            spoils the outputs of a sample of its inputs least; the paper takes 0.5 everywhere.

    Returns:
        (its parameters, what its linear layers are given then).
    """

    def choose(site: Site, leaves: Mapping[str, jax.Array], given: Inputs) -> jax.Array:
        kernels = [leaves[f"{reader}.kernel"].astype(jnp.float32) for reader in site.readers]
        weights = _positive(jnp.stack([jnp.abs(kernel).max(axis=1) for kernel in kernels]).max(axis=0))
        activations = _positive(given.largest)

        def candidate(alpha: jax.Array | float) -> jax.Array:
            scale = shared(activations**alpha / weights ** (1.0 - alpha), site, config)
            return scale / jnp.exp(jnp.log(scale).mean())

        def lost(scale: jax.Array) -> jax.Array:
            sample = given.sample
            off = [rounded(sample / scale, k * scale[:, None]) - sample @ k for k in kernels]
            return jnp.stack([jnp.square(x).sum() for x in off]).sum()

        if alpha is not None:
            return candidate(alpha)
        alphas = jnp.arange(_GRID + 1, dtype=jnp.float32) / _GRID
        scales = jnp.concatenate([jnp.ones((1, len(weights))), jax.vmap(candidate)(alphas)])
        return scales[jnp.argmin(jax.lax.map(lost, scales))]

    return _each_site(params, inputs, config, choose)


def awq(
    params: tree.Tree,
    inputs: Mapping[str, Inputs],
    config: LayersConfig,
    rounded: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[tree.Tree, dict[str, Inputs]]:
    """A layer whose weights are scaled by the activations that they meet.

    Args:
        params, inputs, config: as of `smoothquant`.
        rounded: (kernel, gram) -> the kernel as it will be after it was quantized.

    Returns: as `smoothquant`.
    """

    def choose(site: Site, leaves: Mapping[str, jax.Array], given: Inputs) -> jax.Array:
        kernels = [leaves[f"{reader}.kernel"].astype(jnp.float32) for reader in site.readers]
        mean = _positive(given.total / given.tokens)

        def candidate(alpha: jax.Array) -> tuple[jax.Array, jax.Array]:
            scale = shared(mean**alpha, site, config)
            scale = scale / jnp.sqrt(scale.max() * scale.min())
            own = divided(given, scale).gram
            lost = [spoiled(rounded(k * scale[:, None], own) - k * scale[:, None], own) for k in kernels]
            return scale, jnp.stack(lost).sum()

        scales, lost = jax.lax.map(candidate, jnp.arange(_GRID, dtype=jnp.float32) / _GRID)
        return scales[jnp.argmin(lost)]

    return _each_site(params, inputs, config, choose)


def spoiled(off: jax.Array, gram: jax.Array) -> jax.Array:
    """The squared error of a matrix' outputs over all calibration tokens, of what it is off by: [in, out] -> []."""
    return jnp.einsum("io,ij,jo->", off, gram, off, precision="highest")


def _each_site(
    params: tree.Tree,
    inputs: Mapping[str, Inputs],
    config: LayersConfig,
    choose: Callable[[Site, Mapping[str, jax.Array], Inputs], jax.Array],
) -> tuple[tree.Tree, dict[str, Inputs]]:
    leaves, given = tree.flatten(params), dict(inputs)
    for site in sites(config, leaves):
        scale = shared(choose(site, leaves, given[site.readers[0]]), site, config)
        if f"{site.writer}.scale" in leaves:
            scale = _representable(leaves[f"{site.writer}.scale"] + config.norm_offset, scale, config.norm_offset)
        leaves = moved(leaves, site, scale, config)
        given |= {reader: divided(given[reader], scale) for reader in site.readers}
    return tree.unflatten(leaves), given


def _representable(multiplier: jax.Array, scale: jax.Array, offset: float) -> jax.Array:
    """The nearest scale with which a norm stores bfloat16s: files hold no more.

    What rounding it took from one side and not from the other would be as much as 8 bits lose.
    """
    stored = (multiplier / scale - offset).astype(jnp.bfloat16).astype(jnp.float32) + offset
    return jnp.where((stored != 0) & (multiplier / stored > 0), multiplier / stored, 1.0)


def _positive(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, _SMALLEST)
