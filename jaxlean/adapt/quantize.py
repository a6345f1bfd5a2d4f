"""Quantize a frozen base: the kernels of its linear layers in 8 or 4 bits, all else as it is (QLoRA, arXiv 2305.14314).

Which kernels is a rule over parameter paths. The embedding and the output head stay wide: they are few parameters of a
large model and what a model says is most sensitive to them. Norms and biases are small anyway.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxlean import codec, tree
from jaxlean.codec import Format

# The first pattern found in a path decides.
RULES: tuple[tuple[str, bool], ...] = (
    (r"^(head|classifier)\.", False),
    (r"\.kernel$", True),
    (r".*", False),
)


def is_chosen(path: str, rules: Sequence[tuple[str, bool]] = RULES) -> bool:
    """Whether a parameter is quantized."""
    return next(chosen for pattern, chosen in rules if re.search(pattern, path))


def quantize(params: Mapping[str, Any], form: Format, rules: Sequence[tuple[str, bool]] = RULES) -> tree.Tree:
    """The tree with the chosen kernels in a format's leaves (`jaxlean.codec`); adapters beside them stay.

    A stack is encoded layer by layer. `hub.load` does the same while it reads, which never holds the wide model.

    Args:
        params: nested dict of arrays; kernels that are quantized already stay as they are.
        form: int8 or nf4.
        rules: `(regex, whether)` over paths, the last one matching all.

    Raises:
        ModelError: a matrix that the format cannot hold.
    """
    out: dict[str, Any] = {}
    for path, leaf in tree.flatten(params).items():
        if is_chosen(path, rules):
            module = path.removesuffix(".kernel")
            out |= {f"{module}.{name}": part for name, part in _encoded(leaf, form).items()}
        else:
            out[path] = leaf
    return tree.unflatten(out)


def dequantize(params: Mapping[str, Any], dtype: Any = jnp.float32) -> tree.Tree:
    """The tree with every quantized kernel as a plain one in `dtype`: what the quantized model computes with."""
    leaves = tree.flatten(params)
    out = dict(leaves)
    for module, held in codec.kernels(leaves).items():
        if "kernel" not in held:
            for name in held:
                del out[f"{module}.{name}"]
            out[f"{module}.kernel"] = _decoded(held, dtype)
    return tree.unflatten(out)


@partial(jax.jit, static_argnums=1)
def _encoded(kernel: jax.Array, form: Format) -> dict[str, jax.Array]:
    return codec.each_layer(partial(codec.encode, form=form), kernel, dims=kernel.ndim - 2)


@partial(jax.jit, static_argnums=1)
def _decoded(held: codec.Leaves, dtype: Any) -> jax.Array:
    return codec.each_layer(partial(codec.decode, dtype=dtype), held, dims=len(codec.shape(held)) - 2)
