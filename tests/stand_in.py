"""An encoder to test tasks with: the decoder of two layers that `tiny_base` holds, under a head of an encoder.

It sees only what lies before a token, but its pooled vector is a mean over the text, and that can be learned from.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean import tree
from jaxlean.hub import load as hub
from jaxlean.hub.head import initial_head, label_settings
from jaxlean.models.decoder import Decoder
from jaxlean.models.linear import Linear


class Encoder(Decoder):
    """A decoder with the methods of an encoder; without labels it has no classifier."""

    def __init__(self, config: Any, num_labels: int, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.classifier = (
            Linear(config.hidden_size, num_labels, bias=True, dtype=dtype, rngs=rngs) if num_labels else None
        )

    def hidden(self, tokens: jax.Array, *, token_types: jax.Array | None = None, **how: Any) -> jax.Array:
        hidden = super().hidden(tokens, **how)
        return hidden if token_types is None else hidden + 0.5 * token_types[..., None].astype(hidden.dtype)

    def pool(self, hidden: jax.Array, segments: jax.Array) -> jax.Array:
        same = (segments[:, :, None] == segments[:, None, :]).astype(jnp.float32)
        return same @ hidden.astype(jnp.float32) / same.sum(-1, keepdims=True)

    def classify(self, hidden: jax.Array, segments: jax.Array) -> jax.Array:
        return self.classifier(self.pool(hidden, segments)).astype(jnp.float32)

    def tag(self, hidden: jax.Array) -> jax.Array:
        return self.classifier(hidden).astype(jnp.float32)


def abstract(config: Any, num_labels: int, params: Any, dtype: Any) -> tuple[nnx.GraphDef, tree.Tree]:
    model = nnx.eval_shape(lambda: Encoder(config, num_labels, dtype=dtype, rngs=nnx.Rngs(0)))
    for path, module in list(nnx.iter_modules(model)):
        if isinstance(module, Linear) and params is not None:
            node = params
            for key in path:
                node = node.get(key, {})
            module.attach(node)
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


@dataclass
class Model(hub.Model):
    num_labels: int = 0

    def with_params(self, params: tree.Tree) -> "Model":
        graph, shapes = abstract(self.config, self.num_labels, params, self.dtype)
        tree.check(params, shapes)
        other = replace(self, params=params, graph=graph)
        if "tokenizer" in vars(self):
            vars(other)["tokenizer"] = self.tokenizer
        return other


def loader(plain: Any, *, shapes: bool) -> Any:
    """`hub.load` or `hub.outline` of a base with a head."""

    def load(*args: Any, task: str = "generate", labels: list[str] | None = None, seed: int = 0, **how: Any) -> Any:
        base = plain(*args, **how)
        if task == "generate":
            return base
        num = len(labels or [])
        family = replace(base.family, modules={**base.family.modules, "classifier": "classifier"})
        fields = {name: getattr(base, name) for name in hub.Model.__dataclass_fields__}
        model = Model(**fields | {"family": family, "hf_config": base.hf_config | label_settings(labels or [])})
        model.num_labels = num
        where = jax.tree.leaves(model.params)[0].sharding.mesh
        head = {}
        if num:
            spec = jax.sharding.NamedSharding(where, jax.sharding.PartitionSpec())
            wide = (model.config.hidden_size, num)
            head = {
                "classifier.kernel": jax.ShapeDtypeStruct(wide, jnp.float32, sharding=spec),
                "classifier.bias": jax.ShapeDtypeStruct((num,), jnp.float32, sharding=spec),
            }
            model.drawn = frozenset(head)
            head = head if shapes else initial_head(head, seed=seed)
        return model.with_params(tree.merge(model.params, tree.unflatten(head)))

    return load
