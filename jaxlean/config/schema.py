"""The config as a JSON schema, by which editors complete and check: `# yaml-language-server: $schema=...`.

Pydantic makes it of the fields; what their validators take besides (a word for a section, other names of a key) is said
here.
"""

import copy
import json
from typing import Any

from jaxlean.config import sections
from jaxlean.config.curation import StepSection
from jaxlean.config.keys import about, aliases, public
from jaxlean.config.section import Section
from jaxlean.config.sections import RunConfig

_TEXT: dict[str, Any] = {"type": "string"}
# What a section may be written as instead: a word, or a list.
_SHORT: dict[str, dict[str, Any]] = {
    "MeshSection": {"const": "auto"},
    "CurriculumSection": {"enum": ["length", "rarity", "loss", "column"]},
    "TeacherSection": _TEXT,
    "SourceSection": _TEXT,
    "DistributionSection": {"type": "array"},
    "StepSection": {"enum": list(StepSection.model_fields)},
}
# What a key takes beside its type.
_ALSO: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("RunConfig", "task"): [{"enum": list(sections.TASK_NAMES)}],
    ("TrainSection", "optim"): [{"enum": list(sections.OPTIMIZER_NAMES)}],
    ("TrainSection", "remat"): [{"type": "boolean"}],
    ("TrainSection", "memory_budget"): [_TEXT],
    ("DataSection", "train"): [{"$ref": "#/$defs/SourceSection"}],
    ("DataSection", "eval"): [{"$ref": "#/$defs/SourceSection"}],
    ("EvalSection", "metric"): [{"type": "string", "pattern": "^eval_"}],
    ("PruneSection", "pattern"): [{"type": "integer"}],
    ("CurateSection", "steps"): [{"$ref": "#/$defs/StepSection"}],
    ("SearchSection", "space"): [{"type": "object"}],
}
# Keys that validators turn into others.
_KEYS: dict[str, dict[str, dict[str, Any]]] = {
    "ModelSection": {
        "load_in_8bit": {"type": "boolean", "description": "true: quantization: int8."},
        "load_in_4bit": {"type": "boolean", "description": "true: quantization: nf4."},
    },
    "EvalSection": {
        "early_stopping_patience": {"type": "integer", "description": "stopping.patience"},
        "early_stopping_threshold": {"type": "number", "description": "stopping.min_delta"},
    },
}


def schema() -> dict[str, Any]:
    """The schema of a config (JSON Schema 2020-12)."""
    made = RunConfig.model_json_schema(by_alias=False)
    every = _sections(RunConfig)
    for name, each in (("RunConfig", made), *made["$defs"].items()):
        if name in every:
            _complete(each, every[name])
    _shorten(made)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "jaxlean config",
        **{key: value for key, value in made.items() if key not in ("title", "$defs")},
        "$defs": dict(sorted(made["$defs"].items())),
    }


def schema_text() -> str:
    """The schema as it is written to configs/schema.json."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def _sections(section: type[Section]) -> dict[str, type[Section]]:
    from jaxlean.config.keys import inner_section

    found = {section.__name__: section}
    for field in section.model_fields.values():
        inner, _ = inner_section(field.annotation)
        if inner is not None and inner.__name__ not in found:
            found |= _sections(inner)
    return found


def _complete(made: dict[str, Any], section: type[Section]) -> None:
    """Descriptions, other names of each key, and what its validator takes besides."""
    made.pop("title", None)
    if "description" in made:
        made["description"] = " ".join(made["description"].split())
    properties = {}
    for name, field in section.model_fields.items():
        own = made["properties"].pop(name)
        own.pop("title", None)
        also = copy.deepcopy(_ALSO.get((section.__name__, name)))
        if also is not None:
            kept = {key: own.pop(key) for key in ("default", "description") if key in own}
            own = kept | {"anyOf": [*(own.pop("anyOf") if set(own) == {"anyOf"} else [own]), *also]}
        own.setdefault("description", about(field))
        properties[public(name, field)] = own
        for alias in aliases(name, field):
            described = f"Another name of {public(name, field)}. {own['description']}"
            properties[alias] = copy.deepcopy(own) | {"description": described}
    made["properties"] = properties | _KEYS.get(section.__name__, {})
    # a required key may be given under another name
    required = [name for name in made.pop("required", []) if not aliases(name, section.model_fields[name])]
    if required:
        made["required"] = required


def _shorten(node: Any) -> None:
    """Wherever a section stands that has a short form, let that stand too."""
    if isinstance(node, list):
        for each in node:
            _shorten(each)
    if not isinstance(node, dict):
        return
    name = str(node.get("$ref", "")).rpartition("/")[2]
    for key, value in node.items():
        if key != "$ref":
            _shorten(value)
    if name in _SHORT:
        node["anyOf"] = [{"$ref": node.pop("$ref")}, _SHORT[name]]
