"""A config file of another project, as it stands there: keys and values, before anybody knows what they mean."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jaxlean.errors import ConfigError

# YAML 1.1 reads 2e-5 as text; people write it for a number.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


@dataclass(frozen=True)
class Source:
    """What a file says.

    Attributes:
        file: where it was read.
        values: key -> value, without those that are empty; `section.key` for the keys of a section.
        empty: keys without a value.
    """

    file: Path
    values: Mapping[str, Any]
    empty: tuple[str, ...] = ()

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value of the first of these keys that is there."""
        return next((self.values[key] for key in keys if key in self.values), default)

    def on(self, *keys: str) -> bool:
        """Whether the first of these keys that is there is true."""
        return truth(self.get(*keys))

    def number(self, *keys: str) -> float | None:
        """The first of these keys that is there, if it is a number."""
        value = self.get(*keys)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def has(self, *keys: str) -> bool:
        """Whether one of these keys has a value."""
        return any(key in self.values for key in keys)


def read(file: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file.

    Raises:
        ConfigError: no such file, not text, neither YAML nor JSON, empty, or no mapping.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError("no such config file", where=file) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the config file cannot be read", where=file, got=error) from None
    try:
        values = json.loads(text) if file.suffix.lower() == ".json" and text.strip() else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        raise ConfigError("not valid JSON", where=f"{file}:{error.lineno}", got=error.msg) from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        raise ConfigError("not valid YAML", where=where, got=getattr(error, "problem", error)) from None
    if values is None:
        raise ConfigError("the config file is empty", where=file)
    if not isinstance(values, dict):
        raise ConfigError("a config is a mapping of keys", where=file, got=type(values).__name__)
    return {str(key): value for key, value in values.items()}


def flat(file: Path, values: Mapping[str, Any], sections: Sequence[str] = ()) -> Source:
    """The keys of a mapping, those of its sections as `section.key`.

    Args:
        file: where it was read.
        values: as of `read`.
        sections: keys whose values are mappings of keys; as a text they may hold one in JSON, as Trainer allows.
    """
    found: dict[str, Any] = {}
    empty = []
    for key, value in values.items():
        if key in sections and isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except json.JSONDecodeError:
                pass
        inner = value if key in sections and isinstance(value, Mapping) else None
        for name, each in {f"{key}.{name}": each for name, each in inner.items()}.items() if inner else [(key, value)]:
            if each is None or each == "" or (inner is not None and not inner):
                empty.append(name)
            else:
                found[name] = _number(each)
    return Source(file, found, tuple(empty))


def truth(value: Any) -> bool:
    """Whether a value is true, in any way that YAML and command lines write it.

    >>> [truth(value) for value in (True, "true", "on", 1, False, "no", None)]
    [True, True, True, True, False, False, False]
    """
    return value.strip().lower() in ("true", "yes", "on", "1") if isinstance(value, str) else bool(value)


def names(value: Any) -> list[str]:
    """A list of names, given as one or as a text with commas.

    >>> names("q_proj, v_proj"), names(["q_proj"])
    (['q_proj', 'v_proj'], ['q_proj'])
    """
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    return [str(part).strip() for part in parts if str(part).strip()]


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value.strip()) else value
