"""LLaMA-Factory's data: names in `dataset`, looked up in `dataset_info.json` -> sources (`data.train`).

What is read: llamafactory/data/parser.py and converter.py, LLaMA-Factory 0.9.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlean.convert import reasons
from jaxlean.convert.row import Outcome
from jaxlean.convert.source import Source, names
from jaxlean.errors import ConfigError, did_you_mean

_INFO = "dataset_info.json"
_MEDIA = ("images", "videos", "audios")
_SPEAKERS = {
    "role_tag": {"from", "role"}, "content_tag": {"value", "content"}, "user_tag": {"human", "user"},
    "assistant_tag": {"gpt", "assistant"}, "system_tag": {"system"}, "observation_tag": {"observation", "tool"},
    "function_tag": {"function_call"},
}  # fmt: skip


@dataclass(frozen=True)
class Info:
    """`dataset_info.json`.

    Attributes:
        folder: where it lies; file names in it are meant from there.
        entries: by name. None: there is no such file here.
        looked: where it was looked for.
    """

    folder: Path | None
    entries: Mapping[str, Any] | None
    looked: tuple[Path, ...] = ()


def info(source: Source) -> Info:
    """The descriptions of the datasets.

    It lies in `dataset_dir` (default: `data`), from the current folder, from the config's, or one of those above it.

    Raises:
        ConfigError: it is there, and cannot be read.
    """
    wanted = str(source.get("dataset_dir", default="data"))
    if wanted == "ONLINE" or wanted.startswith("REMOTE:"):
        return Info(None, None)
    own = source.file.absolute().parent
    places = [Path(wanted), *(above / wanted for above in (source.file.parent, *own.parents[:3])), source.file.parent]
    for folder in places:
        file = folder / _INFO
        if file.is_file():
            return Info(folder, _read(file))
    return Info(None, None, tuple(dict.fromkeys(places[:2])))


def _read(file: Path) -> Mapping[str, Any]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError("the descriptions of the datasets cannot be read", where=file, got=error) from None
    if not isinstance(entries, dict):
        raise ConfigError("the descriptions of the datasets are no mapping", where=file, got=type(entries).__name__)
    return entries


def dataset(value: Any, source: Source) -> Outcome:
    """Of `dataset`."""
    return _sources(value, "data.train", source)


def held_out(value: Any, source: Source) -> Outcome:
    """Of `eval_dataset`."""
    return _sources(value, "data.eval", source)


def sources(source: Source) -> list[dict[str, Any]] | None:
    """All training data, where they are described."""
    if not source.has("dataset") or info(source).entries is None:
        return None
    found: list[dict[str, Any]] = dataset(source.get("dataset"), source).settings["data.train"]
    return found


def with_sources(value: Any, source: Source) -> Outcome:
    """Of keys that are told with the sources: `dataset_dir`, `max_samples`, `interleave_probs`."""
    return Outcome("carried", note="with the sources")


def mixes(value: Any, source: Source) -> Outcome:
    """Of `mix_strategy`."""
    if value == "concat":
        return Outcome("idle", note="every row counts alike, as by default")
    check = f"{value} ends an epoch when a source is used up; here it has as many rows as all sources together"
    return Outcome("carried", note="with the weights of interleave_probs", check=check)


def _sources(value: Any, key: str, source: Source) -> Outcome:
    known, given = info(source), names(value)
    made, checks = [], []
    shares = names(source.get("interleave_probs")) if source.has("interleave_probs") else []
    for number, name in enumerate(given):
        entry, check = _source(name, known, source)
        if len(shares) == len(given):
            entry["weight"] = float(shares[number])
        limit = source.number("max_samples")
        if limit is not None and limit >= 1:
            entry["limit"] = min(int(limit), entry.get("limit", int(limit)))
        made.append(entry)
        checks += check
    note = f"by {known.folder / _INFO}" if known.folder is not None else ""
    return Outcome("carried", {key: made}, note, "; ".join(checks))


def _source(name: str, known: Info, source: Source) -> tuple[dict[str, Any], list[str]]:
    """An entry of `data.train`, and what is to be looked at."""
    if known.entries is None:
        if source.get("dataset_dir") == "ONLINE":
            return {"path": name, "format": "alpaca"}, []
        looked = " and ".join(str(place / _INFO) for place in known.looked) or f"{source.get('dataset_dir')}"
        return {"path": name}, [
            f"no {_INFO} here ({looked}), so {name} may be no path: put its file or hub id into data.train"
        ]
    if name not in known.entries or not isinstance(known.entries[name], dict):
        where = (known.folder or Path()) / _INFO
        raise ConfigError("the dataset is not described", where=where, got=name, fix=did_you_mean(name, known.entries))
    entry, checks = known.entries[name], []
    columns = entry.get("columns") if isinstance(entry.get("columns"), dict) else {}
    if any(kind in columns for kind in _MEDIA):
        raise ConfigError(
            f"jaxlean does not do this: {reasons.IMAGES}", where=source.file, got=f"dataset: {name}",
            wanted="supervised fine-tuning on texts, prompts with completions, or conversations",
        )  # fmt: skip
    if entry.get("ranking") or "kto_tag" in columns:
        raise ConfigError(
            f"jaxlean does not do this: {reasons.PREFERENCES}", where=source.file, got=f"dataset: {name}",
            wanted="supervised fine-tuning on texts, prompts with completions, or conversations",
        )  # fmt: skip
    hub = next((entry[k] for k in ("hf_hub_url", "ms_hub_url", "script_url") if k in entry), None)
    path = str(hub) if hub is not None else str((known.folder or Path()) / str(entry.get("file_name", name)))
    made: dict[str, Any] = {"path": path}
    if hub is not None and "hf_hub_url" not in entry:
        checks.append(f"{name} is not on Hugging Face's hub: {hub}")
    made |= {"name": entry["subset"]} if entry.get("subset") else {}
    made |= {"split": entry["split"]} if entry.get("split", "train") != "train" else {}
    made |= {"limit": int(entry["num_samples"])} if entry.get("num_samples") else {}
    if entry.get("num_samples"):
        checks.append(f"{name}: num_samples are drawn at random there; limit takes the first")
    if entry.get("folder"):
        checks.append(f"{name}: the folder {entry['folder']} of the repository is not told apart")
    if source.get("stage", default="sft") == "pt":
        return _text(made, columns, name, checks)
    if entry.get("formatting", "alpaca") in ("sharegpt", "openai"):
        return _conversation(made, entry, columns, name, checks)
    return _instruction(made, columns, name, checks)


def _text(
    made: dict[str, Any], columns: Mapping[str, Any], name: str, checks: list[str]
) -> tuple[dict[str, Any], list[str]]:
    column = columns.get("prompt", "text" if columns == {} and made["path"].endswith(".txt") else "instruction")
    if column != "text":
        checks.append(f"{name}: texts are in the column {column}: call it text")
    return made | {"format": "text"}, checks


def _conversation(
    made: dict[str, Any], entry: Mapping[str, Any], columns: Mapping[str, Any], name: str, checks: list[str]
) -> tuple[dict[str, Any], list[str]]:
    column = columns.get("messages", "conversations")
    if column not in ("messages", "conversations"):
        checks.append(f"{name}: conversations are in the column {column}: call it messages")
    given = entry.get("tags")
    tags = given if isinstance(given, dict) else {}
    strange = [f"{tag}: {each}" for tag, each in tags.items() if each not in _SPEAKERS.get(tag, {each})]
    if strange:
        checks.append(f"{name}: other names than role and content, user and assistant: {', '.join(strange)}")
    if columns.get("system", "system") != "system" or columns.get("tools", "tools") != "tools":
        checks.append(f"{name}: the columns system and tools are read by these names")
    return made | {"format": "messages" if column == "messages" else "sharegpt"}, checks


def _instruction(
    made: dict[str, Any], columns: Mapping[str, Any], name: str, checks: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """Prompt, an optional query on a line of its own, response."""
    prompt, query, response = (columns.get(key) for key in ("prompt", "query", "response"))
    if columns.get("history"):
        checks.append(f"{name}: earlier turns (history) are not read; nearest: rows of messages")
    if columns.get("system", "system") != "system":
        checks.append(f"{name}: system messages in the column {columns['system']} are not read: call it system")
    if not columns or (prompt, query, response) == ("instruction", "input", "output"):
        return made | {"format": "alpaca"}, checks
    if prompt is None or response is None:
        checks.append(f"{name}: {_INFO} names no column for the prompt or the response")
        return made | {"format": "alpaca"}, checks
    if query is not None:
        checks.append(f"{name}: rows with an empty {query} keep a line end after {prompt}")
    text = f"{{{prompt}}}" + (f"\n{{{query}}}" if query is not None else "")
    return made | {"format": "template", "prompt": text, "completion": f"{{{response}}}"}, checks
