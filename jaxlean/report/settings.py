"""What differs between the configs of runs, or between one and the defaults."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from jaxlean.config import RunConfig
from jaxlean.report.read import Run

# Each run has its own folder: that is its name, and no difference.
_NAMES = ("output_dir",)
MISSING = "-"
# Characters of a number that somebody wrote.
_LONG = 10
# A section in which nothing is set.
_DEFAULTS = "defaults"


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(`section.key`, its value in each run) of the keys that differ.

    A section that one run has and another has not is one row, with what is not at its default. A key that the config of
    another version lacks counts as its default.
    """
    flat = [flatten(run.config) for run in runs]
    found = []
    for key in dict.fromkeys(key for config in flat for key in config):
        if key in _NAMES or any(config.get(above) == "null" for config in flat for above in _above(key)):
            continue
        values = [config.get(key, default_of(key)) for config in flat]
        if any(value == "null" for value in values):
            values = [_brief(run, key) or value for run, value in zip(runs, values, strict=True)]
        if len(set(values)) > 1:
            found.append((key, [shorter(value) for value in values]))
    return found


def changed(run: Run) -> list[tuple[str, str, str]]:
    """(`section.key`, value, default) of the keys that are not at their default."""
    found = [(key, value, default_of(key)) for key, value in flatten(run.config).items() if key not in _NAMES]
    return [(key, shorter(value), default) for key, value, default in found if value != default]


def shorter(value: str) -> str:
    """A number that a search has drawn, in six digits.

    >>> shorter("0.00047999999999999996"), shorter("0.003"), shorter("12345678901")
    ('0.00048', '0.003', '12345678901')
    """
    if len(value) <= _LONG or value.isdecimal():
        return value
    try:
        return f"{float(value):.6g}"
    except ValueError:
        return value


def flatten(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """A config as `section.key` -> the value as one writes it on the command line.

    >>> flatten({"seed": 0, "lora": None, "data": {"train": [{"path": "a.jsonl"}], "labels": ["x", "y"]}})
    {'seed': '0', 'lora': 'null', 'data.train.path': 'a.jsonl', 'data.labels': '["x", "y"]'}
    """
    found: dict[str, str] = {}
    for key, value in values.items():
        path = f"{before}{key}"
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{path}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for place, item in enumerate(value):
                found |= flatten(item, f"{path}." if len(value) == 1 else f"{path}.{place}.")
        else:
            found[path] = _text(value)
    return found


def default_of(key: str) -> str:
    """The default of a `section.key`, a list's number left out; "-" where there is none.

    >>> [default_of(key) for key in ("lora", "lora.r", "eval.stopping.min_delta", "data.train.1.split", "no.no")]
    ['defaults', '16', '0.0', 'train', '-']
    """
    section: type[BaseModel] | None = RunConfig
    *above, last = (part for part in key.split(".") if not part.isdigit())
    for part in above:
        known = section.model_fields.get(part) if section is not None else None
        section = _section(known.annotation) if known is not None else None
    known = section.model_fields.get(last) if section is not None else None
    if known is None or known.is_required():
        return MISSING
    default = known.get_default(call_default_factory=True)
    return _DEFAULTS if isinstance(default, BaseModel) else _text(to_jsonable_python(default))


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section in an annotation, which may be one or null, or a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _section(inner)) is not None), None)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _above(key: str) -> list[str]:
    """
    >>> _above("a.b.c")
    ['a', 'a.b']
    """
    parts = key.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _brief(run: Run, key: str) -> str:
    """A section that is there, in short: what is not at its default."""
    section = run.setting(key)
    if not isinstance(section, Mapping) or not section:
        return ""
    own = {path: value for path, value in flatten(section).items() if value != default_of(f"{key}.{path}")}
    return ", ".join(f"{path}={value}" for path, value in own.items()) or _DEFAULTS
