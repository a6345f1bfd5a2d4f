"""From a config to a module: its graph and the shapes of its parameters, without a byte of memory."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax.numpy as jnp
from flax import nnx

from jaxlean import tree
from jaxlean.models.attention import Backend
from jaxlean.models.latent_attention import LatentAttention
from jaxlean.models.linear import Linear
from jaxlean.models.new_tokens import NewTokens
from jaxlean.models.quantized import Matmul, Matmuls
from jaxlean.models.self_attention import Attention


class ModelConfig(Protocol):
    """What every model's config can do."""

    def build(self, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        """The module, its parameters drawn."""


def abstract(
    config: ModelConfig,
    params: Mapping[str, Any] | None = None,
    *,
    dtype: Any = jnp.float32,
    matmul: Matmuls = "default",
    attention: Backend = "plain",
) -> tuple[nnx.GraphDef, tree.Tree]:
    """The model's graph and its parameters' shapes.

    Args:
        config: the model's shape.
        params: a parameter tree; the adapters that stand in it (`lora_a`, ...) and the forms that its kernels have are
            attached to the linear layers at whose place they stand, rows of new tokens to the model.
        dtype: compute dtype.
        matmul: how the kernels of all linear layers but the head are multiplied (`models.quantized`).
        attention: the back end of attention (`models.attention.choose`).

    Returns:
        (graph for `nnx.merge(graph, params)`, nested dict of `jax.ShapeDtypeStruct`).
    """
    model = nnx.eval_shape(lambda: config.build(dtype=dtype, rngs=nnx.Rngs(0)))
    for path, module in list(nnx.iter_modules(model)):
        if isinstance(module, Attention | LatentAttention):
            module.backend = attention
        if isinstance(module, Linear):
            if params is not None:
                node: Any = params
                for key in path:
                    node = node.get(str(key), {}) if isinstance(node, Mapping) else {}
                module.attach(node, where=".".join(map(str, path)))
            if path[0] not in ("head", "classifier"):
                module.matmul = _of_layer(matmul, module)
    if params is not None and "new_tokens" in params and hasattr(model, "new_tokens"):
        model.new_tokens = NewTokens(params["new_tokens"])
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def _of_layer(matmul: Matmuls, layer: Linear) -> Matmul:
    if matmul == "stored":
        return "default" if layer.kernel_int8 is None else "w8a8"
    if matmul in ("aware", "aware_w8a8") and layer.kernel is not None:
        return "default"  # one that stayed wide
    if matmul == "sparse" and layer.lora_a is None:
        return "default"
    return matmul
