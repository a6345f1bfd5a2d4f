"""The families that load. A new one is a file beside these and a line here."""

from jaxlean.errors import ModelError, did_you_mean
from jaxlean.hub.families import llama, mistral, qwen2, qwen3
from jaxlean.hub.family import Family

FAMILIES: dict[str, Family] = {module.FAMILY.model_type: module.FAMILY for module in (llama, mistral, qwen2, qwen3)}


def family_of(model_type: str | None, *, where: object = None) -> Family:
    """The family of a `model_type`.

    Raises:
        ModelError: it is not supported; lists which are.
    """
    if model_type not in FAMILIES:
        raise ModelError(
            f"the model family {model_type!r} is not supported",
            where=where,
            wanted="one of " + ", ".join(sorted(FAMILIES)),
            fix=(did_you_mean(model_type, FAMILIES) if model_type else "config.json needs a model_type")
            + "; CONTRIBUTING.md says how to add a family",
        )
    return FAMILIES[model_type]
