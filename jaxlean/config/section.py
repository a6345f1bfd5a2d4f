"""What every part of the config is: unknown keys are errors, and other projects' names are known."""

from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def named(default: Any, description: str, *aliases: str, **constraints: Any) -> Any:
    """A field that is also accepted under other projects' names for it (its own stays valid: `populate_by_name`)."""
    return Field(default, description=description, validation_alias=AliasChoices(*aliases), **constraints)


class Section(BaseModel):
    """A part of the config. Unknown keys are errors, and a value is checked again when it is assigned."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, validate_assignment=True, protected_namespaces=())
