"""Quantization after training: a model in, one out whose linear layers are held, and perhaps multiplied, in fewer bits.

    w8a8   weights in 8 bits with a scale a column, activations in 8 bits with a scale a token, found as they arise:
           int8 x int8 products, twice the speed of bfloat16 where hardware has them
    w8a16  weights in 8 bits, activations as they are: half the memory
    w4a16  weights in 4 bits with a scale for each group of a column: a quarter of it

How weights are rounded (`compress/gptq.py`, `compress/smooth.py`):

    rtn    to the nearest number; needs no data
    gptq   one input after another, each error made up for by the inputs to come
    awq    to the nearest, after weights that meet large activations were scaled up, with each group's largest numbers
           clipped where that spoils less

The layers are visited in order, and each sees what those before it make of the calibration rows now (with w8a8, of
inputs that are not rounded). All that is not a
linear layer of a layer stays as it is: norms, the embedding, the head.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxlean import codec, tree
from jaxlean.compress.gptq import gptq
from jaxlean.compress.smooth import awq, smoothquant, spoiled
from jaxlean.compress.walk import Batch, Inputs, Visited, check_plain, walk, with_layers
from jaxlean.errors import ConfigError, ModelError
from jaxlean.hub.compressed import Scheme
from jaxlean.hub.load import Model
from jaxlean.models.config import LayersConfig
from jaxlean.models.quantized import round_tokens
from jaxlean.models.stack import take_apart

Method = Literal["rtn", "gptq", "awq"]
_FUSED = ({"attention.query", "attention.key", "attention.value"}, {"mlp.gate", "mlp.up"})
# Factors of a group's largest value that clipping tries.
_CLIPS = tuple(1.0 - 0.05 * i for i in range(9))


SCHEMES = {
    "w8a8": Scheme(8, None, activations=True),
    "w8a16": Scheme(8, None, activations=False),
    "w4a16": Scheme(4, 128, activations=False),
}


@dataclass(frozen=True)
class How:
    """How a model is quantized.

    Args:
        scheme: what it is held in.
        method: how weights are rounded.
        alpha: of SmoothQuant; 0: activations stay as they are; None: searched for, where they are rounded.
        ignore: regexes of linear layers (`layers.3.mlp.down`, with the layer's number) that stay as they are.
        max_error: relative error of a linear layer's outputs above which it stays as it is; None: none does.
    """

    scheme: Scheme
    method: Method = "rtn"
    alpha: float | None = 0.0
    ignore: tuple[str, ...] = ()
    max_error: float | None = None

    @property
    def needs_data(self) -> bool:
        """Whether there must be calibration rows."""
        return self.method != "rtn" or self.smooths or self.max_error is not None

    @property
    def smooths(self) -> bool:
        """Whether activations are smoothed."""
        return self.scheme.activations and self.alpha != 0


class Rounded(NamedTuple):
    """What became of a linear layer."""

    layer: int
    module: str
    error: float  # root of the squared error of its outputs, relative to these; of its weights where there is no data
    kept: bool  # whether it stayed as it was


def quantize(
    model: Model, how: How, batches: Sequence[Batch] = (), *, say: Callable[[Rounded], None] = lambda rounded: None
) -> tuple[Model, list[Rounded]]:
    """Quantize a model's linear layers.

    Args:
        model: plain, with no adapter: a decoder or an encoder of text.
        how: the scheme and the method.
        batches: calibration rows, as `walk` takes them; may be empty where nothing asks for them.
        say: is told of each linear layer as it is done.

    Returns:
        (the quantized model, what became of each linear layer). A linear layer that stays wide in some layers only
        makes these layers a kind of their own (`models.config.Kind.wide`).

    Raises:
        ConfigError: calibration rows are needed and there are none, or a rule of `ignore` that finds nothing.
        ModelError: a model that is not of this kind or quantized already, or groups that do not divide its matrices.
    """
    check(model, how)
    if how.needs_data and not batches:
        raise ConfigError("there are no calibration rows", fix="data.train names them")
    kinds, found = model.config.all_kinds, list[Rounded]()
    wide: dict[int, list[str]] = {number: [] for number in range(len(kinds))}

    def visit(visited: Visited) -> tree.Tree:
        kept = {m for m in visited.inputs if _is_ignored(visited.number, m, how.ignore)}
        while True:
            chosen = tuple(sorted(visited.inputs.keys() - kept))
            leaves, errors = _layer(model.config, how, chosen, visited.params, visited.inputs)
            errors = jax.device_get(errors)
            sensitive = {m for m in chosen if how.max_error is not None and errors[m] > how.max_error}
            if not sensitive:
                break
            # others may move less now: what feeds them may have been scaled
            kept |= _together(sensitive) & visited.inputs.keys()
        for module in visited.inputs:
            rounded = Rounded(visited.number, module, float(errors.get(module, 0.0)), module in kept)
            found.append(rounded)
            say(rounded)
        wide[visited.number] = sorted(kept)
        return tree.unflatten(leaves)

    layers = walk(model, batches, visit) if batches else _without_data(model, visit)
    if not any(not rounded.kept for rounded in found):
        raise ConfigError("nothing is left to quantize", got=f"{len(found)} linear layers, all of them kept")
    quantized = with_layers(model, layers, _with_kinds(model.config, wide))
    return (
        replace(quantized, matmul="stored").with_params(quantized.params) if how.scheme.activations else quantized
    ), found


def check(model: Model, how: How) -> None:
    """Refuse what cannot be quantized, before any work. Raises: as of `quantize`."""
    check_plain(model)
    names = model.names
    modules = []
    for module, held in codec.kernels(tree.flatten(model.params["layers"])).items():
        path = f"layers.{module}"
        shape = codec.shape(held)
        if len(shape) != 3:
            raise ModelError("experts are not quantized", where=path, fix="model.quantization holds them in fewer bits")
        if any(re.search(rule, names.plain(f"{path}.kernel")) for rule in model.family.untransposed):
            raise ModelError(
                f"{model.family.model_type} keeps its matrices in modules that quantized files do not know", where=path,
                wanted="linear layers that are torch's nn.Linear in transformers",
            )  # fmt: skip
        try:
            codec.shapes(shape, how.scheme.form, group_size=how.scheme.group_size)
        except ModelError as error:
            raise ModelError(error.what, where=path, got=error.got, fix=f"quantize.group_size: {error.fix}") from None
        modules += [f"layers.{names.number(path, i)}.{_of_layer(path)}" for i in range(shape[0])]
    for rule in how.ignore:
        if not any(re.search(rule, module) for module in modules):
            raise ConfigError(
                "quantize.ignore: a rule that finds no linear layer", got=repr(rule), wanted=f"such as {modules[0]}"
            )


def encode(values: jax.Array, scales: jax.Array, scheme: Scheme) -> dict[str, jax.Array]:
    """A kernel's leaves of int8 values [in, out] and scales [groups, out]."""
    if scheme.form == "int8":
        return {"kernel_int8": values, "kernel_scale": scales[0]}
    return codec.pack_groups(values, scales, scheme.bits)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _layer(
    config: LayersConfig, how: How, chosen: tuple[str, ...], params: tree.Tree, inputs: dict[str, Inputs]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """({path: leaf} of the layer quantized, the relative error of each linear layer)."""
    scheme = how.scheme
    if how.smooths:
        product = partial(_product, scheme=scheme)
        params, inputs = smoothquant(params, inputs, config, product, alpha=how.alpha)
    if how.method == "awq":
        params, inputs = awq(params, inputs, config, partial(_nearest, scheme=scheme))
    leaves, errors = tree.flatten(params), {}
    for module in chosen:
        kernel = leaves.pop(f"{module}.kernel").astype(jnp.float32)
        gram = inputs[module].gram
        scales = codec.group_scales(kernel, scheme.bits, scheme.group_size)
        if how.method != "rtn":
            scales = _clipped(kernel, gram, scales, scheme.bits, alone=how.method == "gptq")
        if how.method == "gptq":
            values = gptq(kernel, gram, scales, scheme.bits)
        else:
            values = codec.round_to_groups(kernel, scales, scheme.bits)
        held = encode(values, scales, scheme)
        leaves |= {f"{module}.{name}": leaf for name, leaf in held.items()}
        errors[module] = _error(codec.decode(held, jnp.float32), kernel, inputs[module], scheme)
    return leaves, errors


def _error(rounded: jax.Array, kernel: jax.Array, inputs: Inputs, scheme: Scheme) -> jax.Array:
    """Root of the squared error of the outputs over the squared outputs."""
    if scheme.activations:  # only the inputs themselves tell what is lost of them
        wanted = inputs.sample @ kernel
        lost, all_of_it = jnp.square(_rounded_tokens(inputs.sample) @ rounded - wanted).sum(), jnp.square(wanted).sum()
    else:
        lost, all_of_it = spoiled(rounded - kernel, inputs.gram), spoiled(kernel, inputs.gram)
    return jnp.sqrt(lost / jnp.maximum(all_of_it, 1e-30))


def _product(x: jax.Array, kernel: jax.Array, scheme: Scheme) -> jax.Array:
    return _rounded_tokens(x) @ _nearest(kernel, kernel, scheme)


def _rounded_tokens(x: jax.Array) -> jax.Array:
    values, scale = round_tokens(x)
    return values.astype(jnp.float32) * scale[..., None]


def _nearest(kernel: jax.Array, gram: jax.Array, scheme: Scheme) -> jax.Array:
    scales = codec.group_scales(kernel, scheme.bits, scheme.group_size)
    values = codec.round_to_groups(kernel, scales, scheme.bits)
    return values.astype(jnp.float32) * codec.spread(scales, kernel.shape[0])


def _clipped(kernel: jax.Array, gram: jax.Array, scales: jax.Array, bits: int, *, alone: bool) -> jax.Array:
    """Each group's scale, made smaller where that spoils less.

    What clipping takes away has the sign of the weight, so it adds up over inputs that go together: a group's error is
    that of its part of the outputs. (`alone`: each input by itself, since GPTQ makes up for what goes together.)
    """
    (groups, out), rows = scales.shape, kernel.shape[0]
    at = jnp.arange(rows).reshape(groups, -1)
    own = jnp.diagonal(gram)[at] if alone else gram[at[:, :, None], at[:, None, :]]

    def lost(factor: jax.Array) -> jax.Array:
        smaller = scales * factor
        values = codec.round_to_groups(kernel, smaller, bits).astype(jnp.float32)
        off = (values * codec.spread(smaller, rows) - kernel).reshape(groups, -1, out)
        if alone:
            return (own[:, :, None] * jnp.square(off)).sum(axis=1)
        return jnp.einsum("gio,gij,gjo->go", off, own, off, precision="highest")

    factors = jnp.asarray(_CLIPS, jnp.float32)
    return scales * factors[jnp.argmin(jax.lax.map(lost, factors), axis=0)]


def _without_data(model: Model, visit: Callable[[Visited], tree.Tree]) -> list[tree.Tree]:
    """`walk` where nobody knows the inputs: all count alike."""
    layers = []
    kinds = model.config.all_kinds
    for number, params in enumerate(take_apart(model.params["layers"], kinds)):
        given = {
            module: _unknown(held["kernel"].shape[0]) for module, held in codec.kernels(tree.flatten(params)).items()
        }
        layers.append(visit(Visited(number, kinds[number], params, given, 1.0)))
    return layers


def _unknown(dim: int) -> Inputs:
    return Inputs(jnp.eye(dim), jnp.ones(dim), jnp.ones(dim), jnp.ones(()), jnp.eye(dim))


def _with_kinds(config: Any, wide: Mapping[int, Sequence[str]]) -> Any:
    """The config with layers of kinds of their own, where a linear layer stays wide in some layers only."""
    everywhere = set.intersection(*map(set, wide.values()))
    own = {number: tuple(m for m in modules if m not in everywhere) for number, modules in wide.items()}
    if not any(own.values()):
        return config
    return replace(config, kinds=tuple(replace(kind, wide=own[i]) for i, kind in enumerate(config.all_kinds)))


def _together(modules: set[str]) -> set[str]:
    """With those that whoever serves the model multiplies at once: vLLM loads none of which a part is wide."""
    return modules.union(*(group for group in _FUSED if modules & group))


def _is_ignored(number: int, module: str, rules: Sequence[str]) -> bool:
    return any(re.search(rule, f"layers.{number}.{module}") for rule in rules)


def _of_layer(path: str) -> str:
    """`layers.2.mlp.up` or `layers.mlp.up` -> `mlp.up`."""
    return re.sub(r"^layers\.(\d+\.)?", "", path)
