"""LoRA: freeze the base, learn a low-rank change beside some of its matrices (arXiv 2106.09685).

Beside `x.kernel` [.., in, out], in whatever form it is held (`jaxlean.codec`), stand `x.lora_a` [.., in, r] and
`x.lora_b` [.., r, out]; the layer computes `x @ kernel + lora_scale * (x @ lora_a) @ lora_b`. A leading dim is the
stacked layers'. Which kernels are adapted is a rule over parameter paths; nothing here knows what the paths mean.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxlean import codec, tree
from jaxlean.config import LoraSection
from jaxlean.errors import ConfigError, ModelError, did_you_mean

_TRAINED = ("lora_a", "lora_b", "lora_magnitude")


def scale(config: LoraSection) -> float:
    """What the adapter's product is multiplied with: alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732)."""
    return config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)


def is_adapter(path: str) -> bool:
    """Whether a parameter is a trained part of an adapter."""
    return path.rsplit(".", 1)[-1] in _TRAINED


def targets(
    params: Mapping[str, Any],
    target_modules: str | Sequence[str],
    names: Mapping[str, str] | None = None,
    *,
    apart: Sequence[str] = (),
) -> list[str]:
    """The modules whose kernel gets an adapter.

    Args:
        params: the base.
        target_modules: `all-linear` (every kernel but the output head's and those `apart`), names, or one regex.
        names: our module path -> its name elsewhere (`model.layers.{}.self_attn.q_proj`), which may be used as well.
        apart: regexes of modules that `all-linear` leaves out.

    Returns:
        module paths, sorted.

    Raises:
        ConfigError: a name or regex that matches nothing.
    """
    names = names or {}
    modules = list(codec.kernels(tree.flatten(params)))
    if target_modules == "all-linear":
        apart = (r"^head$", r"^classifier(\.|$)", *apart)
        return [module for module in modules if not any(re.search(rule, module) for rule in apart)]

    def called(module: str) -> set[str]:
        known = (module, names.get(module, module))
        return {*known, *(name.rsplit(".", 1)[-1] for name in known)}

    everything = sorted(set().union(*(called(module) for module in modules)))
    if isinstance(target_modules, str):
        try:
            pattern = re.compile(target_modules)
        except re.error as error:
            raise ConfigError(
                "lora.target_modules: not a regular expression", got=repr(target_modules), fix=str(error)
            ) from error
        found = [module for module in modules if any(pattern.search(name) for name in called(module))]
        if not found:
            raise ConfigError(
                "lora.target_modules: the rule matched no module",
                got=repr(target_modules),
                wanted="all-linear, or a regex found in one of: " + ", ".join(modules),
            )
        return found
    chosen: set[str] = set()
    for name in target_modules:
        found = [module for module in modules if name in called(module)]
        if not found:
            raise ConfigError("lora.target_modules: no such module", got=repr(name), fix=did_you_mean(name, everything))
        chosen.update(found)
    return sorted(chosen)


def add(params: tree.Tree, modules: Sequence[str], config: LoraSection, key: jax.Array) -> tree.Tree:
    """The base with fresh adapters beside the kernels of `modules`.

    `default`: lora_a is Kaiming-uniform and lora_b zero, so that the model starts as the base. `pissa` (arXiv
    2404.02948): the adapter starts as the kernel's r principal singular directions, which are taken out of the kernel.
    A base that is to be quantized gets such an adapter before, so that what is rounded is the rest (QPiSSA).

    Args:
        params: nested dict of arrays.
        modules: as `targets` gives them.
        config: rank, alpha and variant.
        key: draws lora_a; one key a module, folded in by its place in the sorted list.

    Returns:
        a new tree; adapters are float32.

    Raises:
        ConfigError: the rank exceeds a matrix's smaller side, or PiSSA over a base that is quantized already.
    """
    leaves = dict(tree.flatten(params))
    kernels = codec.kernels(leaves)
    for number, module in enumerate(sorted(modules)):
        kernel = kernels[module]
        *stack, dim_in, dim_out = codec.shape(kernel)
        if config.r > min(dim_in, dim_out):
            raise ConfigError(
                "lora.r exceeds the matrix", where=module, got=config.r, wanted=f"at most {min(dim_in, dim_out)}"
            )
        check_stack(module, (*stack, dim_in, dim_out), config)
        if config.init_lora_weights == "pissa":
            if "kernel" not in kernel:
                raise ConfigError(
                    "pissa takes its start out of the full kernel, and this one is quantized",
                    where=module,
                    fix="add the adapter to the base as it was, then quantize (adapt.quantize)",
                )
            a, b, leaves[f"{module}.kernel"] = _principal(kernel["kernel"], config.r, scale(config))
        else:
            a, b = _fresh(jax.random.fold_in(key, number), tuple(stack), dim_in, config.r, dim_out)
        adapter = {"lora_a": a, "lora_b": b, "lora_scale": jnp.full(tuple(stack), scale(config), jnp.float32)}
        if config.use_dora:
            # the length of each column of the base: at the start, direction and magnitude give the base again
            adapter["lora_magnitude"] = column_lengths(kernel)
        leaves |= {f"{module}.{name}": beside(kernel, leaf) for name, leaf in adapter.items()}
    return tree.unflatten(leaves)


def check_stack(module: str, shape: Sequence[int], config: LoraSection) -> None:
    """Refuse what an adapter beside a kernel of that shape cannot have. Raises: ConfigError."""
    if len(shape) > 3 and (config.use_dora or config.lora_dropout):
        raise ConfigError(
            "adapters of experts have neither magnitudes nor dropout, as in PEFT",
            where=module,
            got=f"use_dora={config.use_dora}, lora_dropout={config.lora_dropout}",
            fix="set both off, or name other modules in lora.target_modules",
        )


@jax.jit
def column_lengths(kernel: codec.Leaves) -> jax.Array:
    """float32 [.., out]: the Euclidean length of each column of a kernel in any form, computed layer by layer."""

    def lengths(one: codec.Leaves) -> jax.Array:
        return jnp.linalg.norm(codec.decode(one, jnp.float32), axis=-2)

    return codec.each_layer(lengths, kernel, dims=len(codec.shape(kernel)) - 2)


def beside(kernel: codec.Leaves, leaf: jax.Array) -> jax.Array:
    """An adapter's leaf where its kernel is: a copy on each device that holds a part of it, for the leaf is small."""
    sharding = getattr(next(iter(kernel.values())), "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return leaf
    return jax.device_put(leaf, NamedSharding(sharding.mesh, PartitionSpec()))


def merge(params: tree.Tree, *, keep_zeros: bool = False) -> tree.Tree:
    """Fold every adapter into its kernel: a base of plain kernels that computes the same.

    The product is taken in float32 and the kernel keeps its dtype.

    Args:
        params: of a model with adapters.
        keep_zeros: what is zero in a kernel stays so, as it was while the adapter trained (`train.keep_zeros`).

    Raises:
        ModelError: an adapter beside a quantized kernel, whose steps are coarser than what the adapter adds.
    """
    leaves = tree.flatten(params)
    merged = {path: leaf for path, leaf in leaves.items() if ".lora_" not in path}
    for path in leaves:
        if path.endswith(".lora_a"):
            module = path.removesuffix(".lora_a")
            if f"{module}.kernel" not in leaves:
                raise ModelError(
                    "an adapter cannot be folded into a quantized kernel",
                    where=module,
                    fix="load the base without quantization and merge into that (`jaxlean merge` does)",
                )
            kernel = leaves[f"{module}.kernel"]
            merged[f"{module}.kernel"] = _merged(
                kernel, leaves[path], leaves[f"{module}.lora_b"], leaves[f"{module}.lora_scale"],
                leaves.get(f"{module}.lora_magnitude"), keep_zeros,
            ).astype(kernel.dtype)  # fmt: skip
    return tree.unflatten(merged)


def merge_on_grid(params: tree.Tree) -> tree.Tree:
    """Fold adapters into quantized kernels: the nearest of the numbers that these have with the scales that they have.

    What was trained so (`lora.quantization_aware`) loses nothing; any other loses what is less than half a step.
    """
    leaves = tree.flatten(params)
    merged = {path: leaf for path, leaf in leaves.items() if ".lora_" not in path}
    for module, held in codec.kernels(leaves).items():
        if f"{module}.lora_a" not in leaves or "kernel" in held:
            continue
        adapter = tuple(leaves[f"{module}.{name}"] for name in ("lora_a", "lora_b", "lora_scale"))
        parts = codec.each_layer(_moved, (held, adapter), dims=len(codec.shape(held)) - 2)
        merged |= {f"{module}.{name}": leaf for name, leaf in parts.items()}
    return tree.unflatten(merged)


@jax.jit
def _moved(parts: tuple[codec.Leaves, tuple[jax.Array, jax.Array, jax.Array]]) -> dict[str, jax.Array]:
    held, (a, b, scale) = parts
    return codec.moved(held, scale * (a.astype(jnp.float32) @ b.astype(jnp.float32)))


def unprincipal(params: tree.Tree, start: tree.Tree) -> tree.Tree:
    """PiSSA adapters as plain LoRA of twice the rank over the *original* base, which is what others can load.

    The base that trained is `kernel - s * a0 @ b0`, so the change against the original is `s * (a @ b - a0 @ b0)`:
    the columns of `a` and `a0`, and the rows of `b` and `-b0`, side by side.

    Args:
        params: adapter leaves after training.
        start: the same leaves as they were before the first step.
    """
    now, before = tree.flatten(params), tree.flatten(start)
    out = dict(now)
    for path, leaf in now.items():
        if path.endswith(".lora_a"):
            out[path] = jnp.concatenate([leaf, before[path]], axis=-1)
        elif path.endswith(".lora_b"):
            out[path] = jnp.concatenate([leaf, -before[path]], axis=-2)
    return tree.unflatten(out)


def padded(adapter: tree.Tree, r: int) -> tree.Tree:
    """An adapter as one of a higher rank that computes and learns the same: the rest of `lora_a` and `lora_b` is zero.

    The gradient of each zero is a sum of products with the other's zeros, so they stay zero under every rule that moves
    a parameter by its own gradients or by products of the matrix (not under one that takes means over it: adafactor).

    Args:
        adapter: leaves of adapters, and whatever else trains, which stays as it is.
        r: at least the rank that they have.
    """

    def wide(path: str, leaf: jax.Array) -> jax.Array:
        dim = {"lora_a": -1, "lora_b": -2}.get(path.rsplit(".", 1)[-1])
        if dim is None:
            return leaf
        width = [(0, 0)] * leaf.ndim
        width[dim] = (0, r - leaf.shape[dim])
        return jnp.pad(leaf, width)

    return tree.map_with_path(wide, adapter)


def learning_rate_ratios(config: LoraSection | None) -> Callable[[str], float]:
    """path -> how much faster than the base rate it learns: LoRA+ (arXiv 2402.12354) speeds up `lora_b`."""
    ratio = (config.loraplus_lr_ratio if config is not None else None) or 1.0
    return lambda path: ratio if path.endswith(".lora_b") else 1.0


def _fresh(key: jax.Array, stack: tuple[int, ...], dim_in: int, r: int, dim_out: int) -> tuple[jax.Array, jax.Array]:
    # torch's kaiming_uniform_(a=sqrt(5)), which PEFT uses: uniform within 1 / sqrt(in)
    bound = dim_in**-0.5
    a = jax.random.uniform(key, (*stack, dim_in, r), jnp.float32, -bound, bound)
    return a, jnp.zeros((*stack, r, dim_out), jnp.float32)


def _principal(kernel: jax.Array, r: int, factor: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    # numpy, float64, layer by layer: done once, and the same on every run
    wide = np.asarray(kernel, np.float64)
    flat = wide.reshape(-1, *wide.shape[-2:])
    a, b = [], []
    for matrix in flat:
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        root = np.sqrt(s[:r] / factor)
        a.append(u[:, :r] * root)
        b.append(root[:, None] * vt[:r])
    stack = wide.shape[:-2]
    a_all = np.reshape(np.stack(a), (*stack, wide.shape[-2], r)).astype(np.float32)
    b_all = np.reshape(np.stack(b), (*stack, r, wide.shape[-1])).astype(np.float32)
    residual = wide - factor * (a_all.astype(np.float64) @ b_all.astype(np.float64))
    rest = jax.device_put(residual.astype(kernel.dtype), kernel.sharding)
    return jnp.asarray(a_all), jnp.asarray(b_all), rest


@partial(jax.jit, static_argnums=5)
def _merged(
    kernel: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array, magnitude: jax.Array | None, keep_zeros: bool
) -> jax.Array:
    delta = scale[..., None, None] * jnp.einsum("...ir,...ro->...io", a, b, precision=jax.lax.Precision.HIGHEST)
    whole = codec.beside_zeros(kernel, delta) if keep_zeros else kernel.astype(jnp.float32) + delta
    if magnitude is not None:
        whole = whole * (magnitude / jnp.linalg.norm(whole, axis=-2))[..., None, :]
    return whole
