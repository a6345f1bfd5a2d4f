"""The families that load. A new one is a file beside these and a line here."""

import contextlib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from jaxlean.errors import ModelError
from jaxlean.hub.families import (
    bert,
    clip,
    cohere,
    deepseek_v2,
    deepseek_v3,
    distilbert,
    efficientnet,
    gemma,
    gemma2,
    gemma3_text,
    glm4,
    gpt2,
    gpt_neox,
    gpt_oss,
    granite,
    llama,
    mistral,
    mixtral,
    mobilenet_v1,
    mobilenet_v2,
    modernbert,
    olmo2,
    olmo3,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    roberta,
    smollm3,
    starcoder2,
    vit,
)
from jaxlean.hub.family import Family

_MODULES = (
    llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text, phi3, olmo2, olmo3, smollm3, granite, glm4, cohere,
    starcoder2, gpt2, gpt_neox, mixtral, qwen2_moe, qwen3_moe, gpt_oss, deepseek_v2, deepseek_v3, bert, distilbert,
    roberta, modernbert, vit, clip,
)  # fmt: skip
_CONVNETS = (mobilenet_v1, mobilenet_v2, efficientnet)
_ALL = [*(module.FAMILY for module in _MODULES), *(module.FAMILY.family for module in _CONVNETS)]
FAMILIES: dict[str, Family] = {family.model_type: family for family in _ALL}


def family_of(model_type: str | None, *, where: object = None, settings: Mapping[str, Any] | None = None) -> Family:
    """The family of a `model_type`.

    Args:
        model_type: as in `config.json`.
        where: that file, for the message.
        settings: all of it, so that the message can name the family whose config is most like it.

    Raises:
        ModelError: it is not supported; lists which are.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    fix = "config.json needs a model_type"
    if model_type:
        near = nearest(model_type, settings or {})
        fix = f"nearest: {near}; " if near is not None else ""
        fix += "'Add a family' in CONTRIBUTING.md says how, in one file"
    raise ModelError(
        f"the model family {model_type!r} is not supported",
        where=where,
        wanted="one of " + ", ".join(sorted(FAMILIES)),
        fix=fix,
    )


def sees(settings: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of a model of images."""
    family = FAMILIES.get(settings.get("model_type", ""))
    return family is not None and family.classifier is not None


def nearest(model_type: str, settings: Mapping[str, Any]) -> str | None:
    """The supported family that is most like one that is not: by its name, else by the keys of its config."""
    close = get_close_matches(model_type, FAMILIES, n=1)
    if close:
        return close[0]
    from transformers import CONFIG_MAPPING

    def shared(name: str) -> float:
        own = set(CONFIG_MAPPING[name]().to_dict())
        return len(own & settings.keys()) / len(own | settings.keys())

    with _quiet():
        return max(FAMILIES, key=shared) if settings else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns of some of its own defaults, which are nothing to the user."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
