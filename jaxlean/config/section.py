"""What every part of the config is: unknown keys are errors, and other projects' names are known."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from jaxlean.redact import secret_in

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def named(default: Any, description: str, *aliases: str, **constraints: Any) -> Any:
    """A field that is also accepted under other projects' names for it (its own stays valid: `populate_by_name`)."""
    return Field(default, description=description, validation_alias=AliasChoices(*aliases), **constraints)


class Section(BaseModel):
    """A part of the config. Unknown keys are errors, and a value is checked again when it is assigned."""

    model_config = ConfigDict(
        extra="forbid", populate_by_name=True, validate_assignment=True, protected_namespaces=(),
        hide_input_in_errors=True,  # it may be a secret
    )  # fmt: skip

    @model_validator(mode="after")
    def _holds_no_secret(self) -> "Section":
        """A config is written into config.yaml, shown by Weights & Biases, and handed on."""
        for name in type(self).model_fields:
            kind = next(filter(None, map(secret_in, _texts(getattr(self, name)))), None)
            if kind is not None:
                raise ValueError(
                    f"{name} holds {kind}, which does not belong into a config: it is written to config.yaml. Let the "
                    "environment hold it, and name it there: https://${USER}:${PASSWORD}@host/rows.jsonl"
                )
        return self


def _texts(value: Any) -> Iterator[str]:
    """The text in a value; sections look after themselves."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (*_texts(key), *_texts(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
