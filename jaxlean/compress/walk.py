"""Through a model layer by layer, with what each linear layer is given: what pruning and quantization learn from.

Layers are visited in order, and the next one sees what the changed ones make of the calibration rows, so that it can
make up for their errors (as GPTQ, arXiv 2210.17323, and SparseGPT, arXiv 2301.00774, do). In memory are the hidden
states of all rows and the statistics of one layer, never the inputs themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlean import tree
from jaxlean.adapt.quantize import dequantize
from jaxlean.errors import ModelError
from jaxlean.hub.load import Model
from jaxlean.models.config import Kind
from jaxlean.models.linear import Linear
from jaxlean.models.stack import modules, put_together, stacks, take_apart

_SAMPLE = 64  # tokens of a batch that are kept, about
Batch = Mapping[str, np.ndarray]  # int32 [rows, length]: tokens, segments, positions, perhaps token_types


class Inputs(NamedTuple):
    """What a linear layer is given, over the tokens of all rows that are no padding; float32."""

    gram: jax.Array  # [in, in], the sum of x x^T
    total: jax.Array  # [in], the sum of |x|
    largest: jax.Array  # [in], the largest |x|
    tokens: jax.Array  # []
    sample: jax.Array  # [tokens, in], some of the inputs themselves

    def __add__(self, other: "Inputs") -> "Inputs":  # type: ignore[override]
        """Of both."""
        return Inputs(
            self.gram + other.gram,
            self.total + other.total,
            jnp.maximum(self.largest, other.largest),
            self.tokens + other.tokens,
            jnp.concatenate([self.sample, other.sample]),
        )

    @property
    def norm(self) -> jax.Array:
        """[in]: the L2 norm of each feature over all tokens."""
        return jnp.sqrt(jnp.maximum(jnp.diagonal(self.gram), 0.0))


class Visited(NamedTuple):
    """A layer, and what it is given."""

    number: int
    kind: Kind
    params: tree.Tree  # of this layer alone, its kernels plain
    inputs: dict[str, Inputs]  # by the path of each linear layer, `attention.query`; some share what they are given
    similarity: float  # mean cosine between what goes into the layer and what comes out, over tokens

    def kernels(self) -> dict[str, jax.Array]:
        """Path -> kernel [in, out] of each linear layer that is given something."""
        leaves = tree.flatten(self.params)
        return {module: leaves[f"{module}.kernel"] for module in self.inputs}


def walk(
    model: Model, batches: Sequence[Batch], visit: Callable[[Visited], tree.Tree | None] = lambda visited: None
) -> list[tree.Tree]:
    """Visit every layer of a decoder or an encoder of text.

    Args:
        model: its kernels plain, no adapters beside them.
        batches: of calibration rows, all of one shape.
        visit: what becomes of a layer's parameters, of the same shapes or quantized; None: they stay.

    Returns:
        the parameters of each layer, as `visit` gave them, in order.

    Raises:
        ModelError: the model is none of one tower of layers, has an adapter or quantized kernels, or its hidden states
            are not numbers. (The experts of a mixture are no linear layers of their own, and nobody is told of them.)
    """
    check_plain(model)
    kinds = model.config.all_kinds
    layers = take_apart(model.params["layers"], kinds)
    graphs: dict[int, nnx.GraphDef] = {}
    whole = nnx.merge(model.graph, model.params)
    for stack, module in zip(stacks(kinds), modules(whole.layers, kinds), strict=True):
        graphs |= dict.fromkeys(stack.numbers, nnx.split(module)[0])
    rows = [{name: jnp.asarray(x) for name, x in batch.items()} for batch in batches]
    hidden = [_embed(model.graph, model.params, batch) for batch in rows]
    out = []
    for number, (kind, params) in enumerate(zip(kinds, layers, strict=True)):
        at = jnp.asarray(number, jnp.uint32)

        def run(own: tree.Tree, x: jax.Array, batch: dict[str, jax.Array], observed: bool) -> _Run:
            return _run(model.graph, graphs[number], observed, model.params, own, at, x, batch)  # noqa: B023

        found: dict[str, Inputs] = {}
        similarity, after = 0.0, []
        for x, batch in zip(hidden, rows, strict=True):
            y, seen, near = run(params, x, batch, True)
            found = {name: found[name] + one for name, one in seen.items()} if found else seen
            similarity += float(near) / len(rows)
            after.append(y)
        if not np.isfinite(similarity):
            raise ModelError(
                "the model's hidden states are not numbers", where=f"layer {number}", fix="its files may be broken"
            )
        changed = visit(Visited(number, kind, params, found, similarity))
        if changed is not None:
            effective = dequantize(changed, jnp.float32)
            after = [run(effective, x, batch, False)[0] for x, batch in zip(hidden, rows, strict=True)]
        out.append(params if changed is None else changed)
        hidden = after
    return out


def check_plain(model: Model) -> None:
    """Refuse what cannot be walked through. Raises: as of `walk`."""
    if list(model.config.towers()) != ["layers"] or not hasattr(nnx.merge(model.graph, model.params), "enter"):
        raise ModelError(
            f"{model.family.model_type} is compressed in another way", wanted="a decoder or an encoder of text"
        )
    for path in tree.flatten(model.params):
        name = path.rpartition(".")[2]
        if name.startswith("lora_"):
            raise ModelError("the model has an adapter", where=path, fix="merge it first")
        if name.startswith("kernel_"):
            raise ModelError("the model is quantized already", where=path, fix="start from the model as it was before")


def with_layers(model: Model, layers: Sequence[tree.Tree], config: Any | None = None) -> Model:
    """The model with other layers.

    Args:
        layers: the parameters of each, in order.
        config: of the model that results, where that is another.
    """
    config = config if config is not None else model.config
    params = {**model.params, "layers": put_together(layers, config.all_kinds)}
    return replace(model, config=config).with_params(params)


_Run = tuple[jax.Array, dict[str, Inputs], jax.Array]


@partial(jax.jit, static_argnums=0)
def _embed(graph: nnx.GraphDef, params: tree.Tree, batch: dict[str, jax.Array]) -> jax.Array:
    return nnx.merge(graph, params).enter(**batch).x


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    graph: nnx.GraphDef,
    layer_graph: nnx.GraphDef,
    observed: bool,
    params: tree.Tree,
    own: tree.Tree,
    number: jax.Array,
    x: jax.Array,
    batch: dict[str, jax.Array],
) -> _Run:
    """(what the layer gives, what its linear layers were given, mean cosine between in and out)."""
    layer, counts = nnx.merge(layer_graph, own), batch["segments"] > 0
    seen: dict[str, Inputs] = {}

    def observe(path: str, given: jax.Array) -> None:
        seen[path] = _measured(given, counts)

    for path, module in nnx.iter_modules(layer):
        if isinstance(module, Linear) and observed:
            module.observe = partial(observe, ".".join(map(str, path)))
    y, _ = nnx.merge(graph, params).enter(**batch).apply(layer, x, number, None)
    one, two = x.astype(jnp.float32), y.astype(jnp.float32)
    cosine = (one * two).sum(-1) / jnp.maximum(jnp.linalg.norm(one, axis=-1) * jnp.linalg.norm(two, axis=-1), 1e-12)
    return y, seen, jnp.where(counts, cosine, 0.0).sum() / jnp.maximum(counts.sum(), 1)


def _measured(x: jax.Array, counts: jax.Array) -> Inputs:
    wide = jnp.where(counts[..., None], x.astype(jnp.float32), 0.0).reshape(-1, x.shape[-1])
    size = jnp.abs(wide)
    # the highest precision: GPU and TPU would multiply in fewer bits, and the gram must stay positive
    gram = jnp.einsum("ni,nj->ij", wide, wide, precision="highest")
    # an odd step meets every place of the rows alike
    sample = wide[:: max(len(wide) // _SAMPLE, 1) | 1]
    return Inputs(gram, size.sum(0), size.max(0), counts.sum().astype(jnp.float32), sample)
