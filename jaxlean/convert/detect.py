"""Whose config a file is: told by the keys that only one project has."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlean.config import RunConfig
from jaxlean.convert import axolotl, llama_factory, trl, unsloth
from jaxlean.convert.formats import Format
from jaxlean.convert.source import read
from jaxlean.errors import ConfigError, did_you_mean

FORMATS: tuple[Format, ...] = (axolotl.FORMAT, llama_factory.FORMAT, trl.FORMAT, unsloth.FORMAT)
# So many times as many own keys as the runner-up has decide; and so few keys may be a chance.
_CLEAR, _FEW = 4, 2


@dataclass(frozen=True)
class Guess:
    """Whose a file is.

    Attributes:
        format: of the project.
        by: the keys that tell.
        sure: enough of them, and none of another project's.
    """

    format: Format
    by: tuple[str, ...]
    sure: bool


def by_name(name: str) -> Format:
    """A format by its `--from` name. Raises: ConfigError."""
    every = {each.name: each for each in FORMATS}
    if name not in every:
        raise ConfigError("--from names no format", got=name, wanted=", ".join(every), fix=did_you_mean(name, every))
    return every[name]


def detect(file: Path, values: Mapping[str, Any]) -> Guess:
    """Whose the mapping in a file is.

    Raises:
        ConfigError: nobody's, jaxlean's own, or that of two projects alike.
    """
    if is_ours(values):
        raise ConfigError("this is a config of jaxlean", where=file, fix=f"jaxlean finetune {file}")
    own = {each.name: _own(each, file, values) for each in FORMATS}
    ranked = sorted(FORMATS, key=lambda each: -len(own[each.name]))
    first, second = ranked[0], ranked[1]
    most, next_most = len(own[first.name]), len(own[second.name])
    if most and most >= _CLEAR * next_most:
        return Guess(first, own[first.name], sure=most >= _FEW and next_most == 0)
    if most:
        found = "; ".join(f"{each.title}: {', '.join(own[each.name][:6])}" for each in ranked if own[each.name])
        raise ConfigError(
            "the config may be of several projects", where=file, got=found,
            fix=f"say which: --from {' or --from '.join(each.name for each in ranked if own[each.name])}",
        )  # fmt: skip
    shared = tuple(key for key, value in trl.FORMAT.read(file, values).values.items() if trl.FORMAT.row(key))
    if len(shared) > _FEW and 2 * len(shared) >= len(values):
        return Guess(trl.FORMAT, shared, sure=len(shared) > 2 * _FEW)
    raise ConfigError(
        "not a config that is known", where=file, got=f"keys {', '.join(list(values)[:8]) or 'none'}",
        wanted="one of " + ", ".join(each.title for each in FORMATS),
        fix=f"--from {', '.join(each.name for each in FORMATS)} says which",
    )  # fmt: skip


def hint(file: Path) -> str | None:
    """What to do with another project's config that was given to jaxlean; None where it is not surely one."""
    try:
        guess = detect(file, read(file))
    except ConfigError:
        return None
    if not guess.sure:
        return None
    article = "an" if guess.format.title[0] in "AEIOU" else "a"
    return f"looks like {article} {guess.format.title} config: jaxlean convert {file}"


def is_ours(values: Mapping[str, Any]) -> bool:
    """Whether a mapping is a config of jaxlean's, though perhaps not a right one; Unsloth's sections are like it."""
    sections = {key for key, value in values.items() if isinstance(value, Mapping)} & set(RunConfig.model_fields)
    if sections - {"data", "lora"}:
        return True
    return bool(sections) and set(values) <= set(RunConfig.model_fields) and not isinstance(values.get("model"), str)


def _own(each: Format, file: Path, values: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of a file that this project alone has."""
    mine = each.read(file, values)
    found = []
    for key in (*mine.values, *mine.empty):
        top = key.partition(".")[0]
        rivals = [other for other in FORMATS if other is not each]
        shared = any(rival.row(name) is not None for rival in rivals for name in (key, top))
        if each.row(key) is not None and not shared:
            found.append(key)
    return tuple(found)
