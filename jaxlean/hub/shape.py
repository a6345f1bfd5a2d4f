"""A model of another shape in the words of its family's `config.json`: fewer layers, narrower ones."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from jaxlean.errors import ModelError
from jaxlean.hub.load import Model, transformers_config

# Our fields -> what most families call them.
_NAMES = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
}
# Families that have names of their own, where transformers' table of them (`attribute_map`) is silent.
_OWN_NAMES = {("gpt2", "intermediate_size"): "n_inner", ("distilbert", "intermediate_size"): "hidden_dim"}
# Families whose models in transformers read `head_dim`; of others it is the hidden size divided by the heads.
_STATE_HEAD_DIM = frozenset(
    (
        *("cohere", "gemma", "gemma2", "gemma3_text", "glm4", "granite", "llama", "mistral", "olmo2", "olmo3", "phi3"),
        *("qwen2", "qwen3", "smollm3", "starcoder2"),
    )
)
# Lists with an entry for each layer.
_BY_LAYER = ("layer_types", "no_rope_layers")
# What stands over an encoder's layers is not its config's matter alone (`hub.task`).
_OF_HEAD = frozenset(("head", "num_labels", "pooling", "normalize"))


def reshaped(model: Model, config: Any, *, layers: Sequence[int] | None = None) -> dict[str, Any]:
    """The `config.json` of a model whose config is now `config`.

    Args:
        model: as it was.
        config: of the smaller model.
        layers: the numbers of the layers that stay; None: all.

    Returns:
        the settings, from which the family makes `config` and nothing else.

    Raises:
        ModelError: they cannot say it, or transformers would read something else from them.
    """
    family, was = model.family, model.config
    before = transformers_config(model.hf_config, model.folder)
    said = dict(model.hf_config)
    for ours, theirs in _NAMES.items():
        if getattr(config, ours) != getattr(was, ours):
            own = _OWN_NAMES.get((family.model_type, ours), before.attribute_map.get(theirs, theirs))
            if not hasattr(before, own):
                if ours == "num_kv_heads" and config.num_kv_heads == config.num_heads:
                    continue  # the family has as many keys as queries
                raise ModelError(f"{family.model_type} has no setting for it", got=theirs, where=model.folder)
            said[own] = getattr(config, ours)
    if config.hidden_size != config.num_heads * config.head_dim:
        if family.model_type in _STATE_HEAD_DIM:
            said["head_dim"] = config.head_dim
        elif config.hidden_size // config.num_heads != config.head_dim:
            raise ModelError(
                f"{family.model_type} has no setting for the size of a head: it is the hidden size over the heads",
                got=f"{config.num_heads} heads of {config.head_dim}, hidden size {config.hidden_size}",
                fix="prune its neurons (intermediate_size) or its layers",
            )  # fmt: skip
    for name in _BY_LAYER:
        each = getattr(before, name, None)
        if layers is not None and isinstance(each, Sequence) and len(each) == was.num_layers:
            said[name] = [each[number] for number in layers]
    found = family.config(transformers_config(said, model.folder))
    over = {name: getattr(config, name) for name in _OF_HEAD if hasattr(config, name)}
    other = [
        field.name
        for field in fields(config)
        if field.name not in _OF_HEAD and getattr(replace(found, **over), field.name) != getattr(config, field.name)
    ]
    if other:
        raise ModelError(
            f"config.json of {family.model_type} cannot say it: it would change what else is computed",
            where=", ".join(other), got=getattr(found, other[0]), wanted=getattr(config, other[0]),
        )  # fmt: skip
    return said
