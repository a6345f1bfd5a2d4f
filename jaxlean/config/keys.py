"""Every key of a config: its path, type, default, other names and meaning, as the fields say them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AliasChoices
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from jaxlean.config.section import Section
from jaxlean.config.sections import RunConfig
from jaxlean.errors import ConfigError, did_you_mean

_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", Any: "any"}
_BOUNDS = (("gt", "above"), ("ge", "from"), ("lt", "below"), ("le", "to"))


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        path: `train.remat`; of the entries of a list `data.train[].path`, of a mapping's values `search.space{}.log`.
        type: in words.
        default: as YAML; nothing where there is none.
        aliases: other names.
        about: what it means.
        section: name of the section that it holds; nothing where it is a setting.
    """

    path: str
    type: str
    default: str
    aliases: tuple[str, ...]
    about: str
    section: str = ""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2].rstrip("[]{}")


def every(section: type[Section] = RunConfig, prefix: str = "") -> Iterator[Key]:
    """All keys of a section, a section's own before its keys."""
    for name, field in section.model_fields.items():
        inner, mark = inner_section(field.annotation)
        path = f"{prefix}{public(name, field)}"
        yield Key(
            path, type_of(field) if inner is None else _kind(field, mark), _default(field), aliases(name, field),
            about(field), "" if inner is None else inner.__name__,
        )  # fmt: skip
        if inner is not None:
            yield from every(inner, f"{path}{mark}.")


def find(wanted: str) -> list[Key]:
    """The keys that a path, an alias or a bare name means; of a section, with the keys in it.

    Raises:
        ConfigError: there is none.
    """
    known = list(every())
    plain = _plain(wanted)
    for key in known:
        if _plain(key.path) == plain:
            return [key, *(other for other in known if _plain(other.path).startswith(f"{plain}."))]
    parent, _, last = plain.rpartition(".")
    named = [
        key
        for key in known
        if last in (key.name, *key.aliases) and (not parent or _plain(key.path).rpartition(".")[0].endswith(parent))
    ]
    if named:
        return named
    names = {key.name for key in known if not parent or _plain(key.path).startswith(f"{parent}.")}
    raise ConfigError("no such key", got=wanted, fix=did_you_mean(last, names or {_plain(key.path) for key in known}))


def _plain(path: str) -> str:
    """A path without the marks of lists, or the number of an entry."""
    return re.sub(r"\[\]|\{\}|\.\d+(?=\.|$)", "", path)


def about(field: FieldInfo) -> str:
    """What a key means; of a section, where nothing else is said, what the section is."""
    inner, _ = inner_section(field.annotation)
    if field.description:
        return field.description
    text = (inner.__doc__ or "") if inner is not None else ""
    return " ".join(text.split())


def aliases(name: str, field: FieldInfo) -> tuple[str, ...]:
    """Other names of a key."""
    if not isinstance(field.validation_alias, AliasChoices):
        return ()
    own = public(name, field)
    return tuple(str(choice) for choice in field.validation_alias.choices if choice != own)


def public(name: str, field: FieldInfo) -> str:
    """A key as users write it: `int`, which Python's field calls `int_`."""
    return name.rstrip("_")


def inner_section(annotation: Any) -> tuple[type[Section] | None, str]:
    """The section that a field holds, and `[]` or `{}` where it holds several."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, ""
    mark = {list: "[]", dict: "{}"}.get(get_origin(annotation), "")
    for part in get_args(annotation):
        inner, deeper = inner_section(part)
        if inner is not None:
            return inner, mark or deeper
    return None, ""


def type_of(field: FieldInfo) -> str:
    """The type of a key in words, with its bounds."""
    words = _words(field.annotation)
    bounds = {name: word for meta in field.metadata for name, word in _bounds(meta)}
    number = re.match("whole number|number", words)
    return words if number is None else " ".join([number[0], *bounds.values()]) + words[number.end() :]


def _bounds(meta: Any) -> Iterator[tuple[str, str]]:
    for name, word in _BOUNDS:
        value = getattr(meta, name, None)
        if value is not None:
            yield name, f"{word} {value:g}"
    for inner in getattr(meta, "metadata", None) or ():
        yield from _bounds(inner)


def _words(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation]
    if annotation is NoneType:
        return "null"
    if origin is Annotated:
        bounds = {name: word for meta in parts[1:] for name, word in _bounds(meta)}
        return " ".join([_words(parts[0]), *bounds.values()])
    if origin is Literal:
        return " | ".join(str(part) for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in parts))
    if origin is tuple:
        return f"[{', '.join(_words(part) for part in parts)}]"
    if origin is list:
        return f"list of {_words(parts[0])}"
    if origin is dict:
        return f"mapping of {_words(parts[0])} to {_words(parts[1])}"
    return getattr(annotation, "__name__", str(annotation))


def _kind(field: FieldInfo, mark: str) -> str:
    word = {"[]": "list of sections", "{}": "mapping to sections"}.get(mark, "section")
    return f"{word} or null" if NoneType in get_args(field.annotation) else word


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or isinstance(value, Section):
        return ""
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) and value >= 1e-4 else str(value)
