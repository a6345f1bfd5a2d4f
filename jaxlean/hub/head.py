"""The head that a task puts on an encoder: which parameters it is, how it starts, and what `config.json` says of it.

A checkpoint of a bare encoder has no head, so it begins as transformers' would: small random matrices, zero biases.
Such parameters train in full, beside an adapter too, which PEFT calls `modules_to_save`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# PEFT's names of tasks (`task_type`), and the ends of transformers' class names.
PEFT_TASKS = {
    "generate": "CAUSAL_LM", "classify": "SEQ_CLS", "tag": "TOKEN_CLS", "embed": "FEATURE_EXTRACTION",
}  # fmt: skip
ARCHITECTURES = {
    "generate": "ForCausalLM", "classify": "ForSequenceClassification", "tag": "ForTokenClassification",
    "embed": "Model",
}  # fmt: skip
_HEAD = re.compile(r"(pre_)?classifier(\.|$)")


def is_head(path: str) -> bool:
    """Whether a parameter, or a module, is of a task's head: what the labels decide the shape of, and what leads to it.

    >>> is_head("classifier.dense.kernel"), is_head("layers.mlp.up.kernel")
    (True, False)
    """
    return _HEAD.match(path) is not None


def initial_head(shapes: Mapping[str, Any], *, seed: int, std: float = 0.02) -> dict[str, jax.Array]:
    """The parameters of a head that a checkpoint does not have.

    Args:
        shapes: path -> anything with a shape and perhaps a sharding, of the parameters that are missing.
        seed: draws the kernels, each from a key of its own path.
        std: of the kernels; transformers' `initializer_range`.

    Returns:
        float32 arrays: kernels normal, biases zero, scales of norms one; where their shapes say they lie.
    """
    found = {}
    for number, path in enumerate(sorted(shapes)):
        shape, where = tuple(shapes[path].shape), getattr(shapes[path], "sharding", None)
        if path.endswith(".kernel"):
            leaf = std * jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), shape, jnp.float32)
        else:
            leaf = jnp.ones(shape, jnp.float32) if path.endswith(".scale") else jnp.zeros(shape, jnp.float32)
        found[path] = leaf if where is None else jax.device_put(leaf, where)
    return found


def label_settings(labels: Sequence[str]) -> dict[str, Any]:
    """What `config.json` says of labels, in the order of their ids."""
    return {
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
    }


def known_labels(settings: Mapping[str, Any], task: str) -> list[str] | None:
    """The labels of a `config.json` whose model has a head for the task; None where it has none, or they have no names.

    Names like LABEL_0 are what transformers writes where nobody gave any.
    """
    named = settings.get("id2label") or {}
    heads = (ARCHITECTURES[task], "ForImageClassification") if task == "classify" else (ARCHITECTURES[task],)
    if not any(str(name).endswith(heads) for name in settings.get("architectures") or []):
        return None
    labels = [str(named[key]) for key in sorted(named, key=int)]
    return None if len(labels) < 2 or all(re.fullmatch(r"LABEL_\d+", name) for name in labels) else labels


def saved_modules(names: Sequence[str]) -> list[str]:
    """PEFT's `modules_to_save` for Hugging Face's names of modules: a whole head by its first name.

    >>> saved_modules(["classifier.dense", "classifier.out_proj", "bert.pooler.dense"])
    ['bert.pooler.dense', 'classifier']
    """
    return sorted({name.split(".")[0] if is_head(name) else name for name in names})
