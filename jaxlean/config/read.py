"""From a YAML file and `section.key=value` overrides to a `RunConfig`; an unknown key is an error with a suggestion."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import AliasChoices, ValidationError

from jaxlean.config.curation import StepSection
from jaxlean.config.section import Section
from jaxlean.config.sections import MeshSection, RunConfig
from jaxlean.config.selection import named_places
from jaxlean.errors import ConfigError, did_you_mean
from jaxlean.redact import hidden


def load(file: str | Path | None, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file and apply `section.key=value` overrides, whose values are YAML too.

    Relative paths in the file are meant from the current folder; where nothing lies there, from the file's folder.
    `data.train=...` without `data.eval=...` drops the file's `data.eval`, which belongs to other data, and holds out
    a twentieth of what was given.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a value of the wrong type.
    """
    values: Any = {}
    file = None if file is None else Path(file)
    if file is not None:
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise ConfigError("no such config file", where=file, fix="configs/ holds examples") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("the config file cannot be read", where=file, got=error) from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{file}:{mark.line + 1}" if mark else file
            raise ConfigError("not valid YAML", where=where, got=getattr(error, "problem", error)) from None
        if not isinstance(values, dict):
            raise ConfigError("a config is a mapping of sections", where=file, got=type(values).__name__)
    return of_values(values, overrides, file=file)


def of_values(values: dict[str, Any], overrides: list[str] | None = None, *, file: Path | None = None) -> RunConfig:
    """As `load`, of what a file holds, or would hold.

    Raises:
        ConfigError: an unknown key, a value of the wrong type.
    """
    values = _canonical(values, RunConfig, where=file)
    given = {_apply(values, override): override for override in overrides or []}
    _own_held_out_rows(values, overrides or [])
    config = _checked(values, file, given)
    if file is not None:
        _find_paths(config, file.resolve().parent)
    return config


def build(values: dict[str, Any], *, where: object = None) -> RunConfig:
    """Check a nested dict and make it a `RunConfig`.

    Raises:
        ConfigError: names the first key that is unknown or holds a wrong value.
    """
    return _checked(values, where, {})


def with_values(config: RunConfig, values: Mapping[str, Any], *, where: object = None) -> RunConfig:
    """The config with other values of some settings, given by `section.key`, and checked as a whole.

    Raises:
        ConfigError: names the key that is unknown, or the value that does not fit.
    """
    changed = told(config)
    given = {_apply(changed, f"{path}={_as_yaml(value)}"): f"{path}={value}" for path, value in values.items()}
    return _checked(changed, where, given)


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("\n").removesuffix("\n...")


def dump(config: RunConfig) -> str:
    """The resolved config as YAML, every default written out; `load` reads it back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def told(config: Section) -> dict[str, Any]:
    """What was set, for JSON, without what stands at its default: `build` makes of it a config that knows the same."""
    found = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Section):
            inner = told(value)
            if inner or name in config.model_fields_set:
                found[name] = inner
        elif name in config.model_fields_set:
            found[name] = config.model_dump(mode="json", include={name})[name]
    return found


def _canonical(values: Any, section: type[Section], where: object) -> Any:
    """The same settings under our names for them, so that a file and an override may use different ones."""
    if isinstance(values, list):
        return [_canonical(value, section, where) for value in values]
    if section is StepSection and isinstance(values, str):  # so that an override finds the settings of a bare name
        return {values: {}}
    if not isinstance(values, dict):
        return values
    out: dict[Any, Any] = {}
    for key, value in values.items():
        name = _field_name(section, str(key))
        if name in out:
            raise ConfigError(f"{name} is given twice", where=where, got=key, fix="keep one of its names")
        field = section.model_fields.get(name)
        inner = _section_of(field.annotation) if field is not None else None
        out[name] = _canonical(value, inner, where) if inner is not None else value
    return out


def _field_name(section: type[Section], key: str) -> str:
    """Our name of a key that may be an alias; an unknown key stays as it is."""
    for name, field in section.model_fields.items():
        if isinstance(field.validation_alias, AliasChoices) and key in field.validation_alias.choices:
            return name
    return key


def _apply(values: dict[str, Any], override: str) -> tuple[str, ...]:
    """Set what an override says; the keys that it names, each by our name for it."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError("an override is section.key=value", got=repr(override), wanted="train.learning_rate=1e-4")
    keys: list[str] = []
    section: type[Section] | None = RunConfig
    annotation: Any = None
    for key in path.split("."):
        if section is not None and not key.isdigit():
            key = _field_name(section, key)
            field = section.model_fields.get(key)
            annotation = field.annotation if field is not None else None
            section = _section_of(annotation)
        keys.append(key)
    if section is MeshSection and text == "auto":  # beside what is said of the mesh otherwise
        keys, section, text = [*keys, "auto"], None, "true"
        annotation = bool
    value = _parse(text, annotation)
    if section is not None:
        value = _canonical(value, section, override)
    node: Any = values
    *parents, last = keys
    for depth, key in enumerate(parents):
        if isinstance(node, list):
            step = node[int(key)] if key.isdigit() and int(key) < len(node) else None
        else:
            if node.get(key) is None:  # not there, or `lora: null` in the file and lora.r=8 on the command line
                node[key] = {}
            step = node[key]
        if not isinstance(step, (dict, list)):
            raise ConfigError(
                "an override goes through a value that has no keys", got=override, where=".".join(keys[: depth + 1])
            )
        node = step
    if isinstance(node, list):
        if not last.isdigit() or int(last) >= len(node):
            raise ConfigError("no such list entry", got=override, wanted=f"an index below {len(node)}")
        node[int(last)] = value
    else:
        node[last] = value
    return tuple(keys)


def _parse(text: str, annotation: Any) -> Any:
    """The value of an override: YAML, but a setting that is text stays text (`data.prompt={text}`)."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if isinstance(value, bool) and bool in kinds:
        return value
    texts = (str, list, dict) if any(get_origin(kind) is dict for kind in kinds) else (str, list)
    if str in kinds and value is not None and not isinstance(value, texts):
        return text
    if isinstance(value, str) and str not in kinds:
        # YAML 1.1 reads 1e-4 as text; people write it for a number.
        try:
            return float(value)
        except ValueError:
            pass
    return value


def _own_held_out_rows(values: dict[str, Any], overrides: list[str]) -> None:
    """Training data given on the command line does not keep the file's held-out rows, which belong to other data.

    Where the command names none of its own, a twentieth of the given data is held out instead.
    """
    given = {override.partition("=")[0] for override in overrides}
    data = values.get("data")
    if "data.train" not in given or any(key.startswith("data.eval") for key in given):
        return
    if isinstance(data, dict) and data.get("eval") is not None:
        del data["eval"]
        data.setdefault("eval_fraction", 0.05)


def _checked(values: dict[str, Any], where: object, given: Mapping[tuple[str, ...], str]) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise _explain(error, where, given) from None


def _explain(error: ValidationError, where: object, given: Mapping[tuple[str, ...], str]) -> ConfigError:
    """The first of pydantic's findings, in our form; a key that is misspelt before one that is therefore missing.

    Args:
        error: what pydantic found.
        where: the file.
        given: keys -> the override that set them, which is then where the error is.
    """
    every = error.errors()
    first = next((one for one in every if one["type"] == "extra_forbidden"), every[0])
    location = _location(first["loc"], unknown=first["type"] == "extra_forbidden")
    key = ".".join(str(part) for part in location) or "the config"
    path = tuple(str(part) for part in first["loc"])
    own = [text for keys, text in given.items() if path[: len(keys)] == keys]
    where = hidden(own[-1]) if own else where
    if first["type"] == "extra_forbidden":
        known = _keys_at(location[:-1])
        return ConfigError(f"unknown key: {key}", where=where, fix=did_you_mean(str(location[-1]), known))
    message = first["msg"].removeprefix("Value error, ")
    got = None if first["type"] == "value_error" else hidden(repr(first.get("input")))
    fix = None
    if first["type"] == "literal_error" and isinstance(first.get("input"), str):
        fix = did_you_mean(first["input"], re.findall("'([^']*)'", first["ctx"]["expected"]))
    return ConfigError(f"{key}: {message}", where=where, got=got, fix=fix)


def _location(parts: tuple[int | str, ...], *, unknown: bool) -> list[Any]:
    """Where an error is, as a user would write it: pydantic also names the member of a union it tried."""
    location: list[Any] = []
    for number, part in enumerate(parts):
        last_and_unknown = unknown and number == len(parts) - 1
        if not isinstance(part, int) and not last_and_unknown and part not in _keys_at(location):
            break
        location.append(part)
    return location


def _keys_at(location: list[Any]) -> list[str]:
    """The keys of the section at a location in the config."""
    section: Any = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part)
        if field is None:
            return []
        section = _section_of(field.annotation)
        if section is None:
            return []
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) is dict:  # its keys are names of the user's
        return None
    for inner in getattr(annotation, "__args__", ()):
        found = _section_of(inner)
        if found is not None:
            return found
    return None


def _find_paths(config: RunConfig, folder: Path) -> None:
    """Point relative paths that exist only beside the config file there."""

    def found(path: str | None) -> str | None:
        if path is None or Path(path).exists() or Path(path).is_absolute():
            return path
        beside = folder / path
        return str(beside) if beside.exists() else path

    model = config.model
    model.path, model.tokenizer, model.chat_template = (
        found(model.path),
        found(model.tokenizer),
        found(model.chat_template),
    )
    model.new_tokens_vectors = found(model.new_tokens_vectors)
    if isinstance(model.new_tokens, str) and model.new_tokens != "auto":
        model.new_tokens = found(model.new_tokens)
    moved: dict[str, str] = {}
    for source in [*(config.data.train or []), *(config.data.eval or [])]:
        moved[source.path] = found(source.path) or source.path
        source.path = moved[source.path]
    for step in config.curate.steps:
        for section, name in named_places(step.settings):
            setattr(section, name, found(getattr(section, name)))
        if step.keep is not None and step.keep.mix is not None:  # names sources as they were named
            step.keep.mix = {moved.get(path, path): weight for path, weight in step.keep.mix.items()}
    if config.distill is not None:
        teacher = config.distill.teacher
        teacher.path, teacher.adapter = found(teacher.path) or teacher.path, found(teacher.adapter)
    if config.lora is not None:
        config.lora.init_from = found(config.lora.init_from)
    config.cost.hardware, config.cost.regions = found(config.cost.hardware), found(config.cost.regions)
    if config.cost.forecast is not None and "://" not in config.cost.forecast:
        config.cost.forecast = found(config.cost.forecast)
