"""What a search is made of: a base, rows to train on, rows to compare by, and what all trials have in common.

Kept in the study, so that whoever goes on with it, the next day or on another machine, compares trials of the same
files and settings; else one loss means nothing beside another.
"""

import json
from pathlib import Path
from typing import Any

from jaxlean import fingerprint
from jaxlean.config import RunConfig, SourceSection
from jaxlean.data.loader import content_of
from jaxlean.errors import RunError
from jaxlean.hub.files import locate
from jaxlean.redact import hidden

# Of `search`: what may change from one start of a search to the next.
FREE = ("num_trials", "max_usd", "members", "isolation", "pad_ranks")
# What may differ from one machine to another: where things lie (`sources` tells whether they are the same), and prices.
_OWN = {"output_dir", "report", "compilation_cache", "cost", "distributed"}


def sources(config: RunConfig) -> dict[str, str]:
    """Setting -> what tells that which it names from others, wherever it lies.

    Raises:
        UserError: a file that is not there, or not readable.
    """
    found: dict[str, str] = {}
    searched = config.search.space.get("model.path")
    bases = [config.model.path] if searched is None else list(searched.choices or ())
    for path in bases:
        if path is not None:
            folder = locate(str(path), revision=config.model.revision)
            try:
                found["model.path"] = " ".join(filter(None, [found.get("model.path"), fingerprint.of_model(folder)]))
            except OSError as error:
                raise RunError("the files of model.path cannot be read", where=folder, got=error) from error
    for name in ("train", "eval"):
        searched = config.search.space.get(f"data.{name}")
        parts: list[SourceSection] = getattr(config.data, name) or []
        if searched is not None:
            parts = [SourceSection(path=choice) for choice in searched.choices or () if isinstance(choice, str)]
        # of what is not there, or comes over the network, nothing is known
        known = [f"{Path(part.path).name}{content}" for part in parts if (content := content_of(part))]
        if known:
            found[f"data.{name}"] = ", ".join(known)
    return found


def own_settings(config: RunConfig) -> dict[str, str]:
    """Setting -> its value as JSON, of all that every start of the search has to have alike, without secrets."""
    content = config.model_dump(mode="json", exclude=_OWN)
    del content["model"]["path"]
    for name in ("train", "eval"):
        for source in content["data"][name] or ():
            del source["path"]
    for name in (*FREE, "storage"):
        del content["search"][name]
    space = content["search"].pop("space")
    found = {f"search.space.{path}": section for path, section in space.items()} | _flat(content)
    found = dict(sorted(found.items(), key=lambda item: not item[0].startswith("search.")))  # what was asked for first
    return {path: hidden(json.dumps(value)) for path, value in found.items()}


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def check_same(before: dict[str, str], now: dict[str, str], where: object, anew: str) -> None:
    """Raises RunError, which names the first that has changed; `anew`: how to start a search of the new ones."""
    for key, known in before.items():
        if key in now and now[key] != known:
            raise RunError(
                f"what {key} names has changed since the search was started", where=where, got=f"{key}: {now[key]}",
                wanted=f"{known}, which its trials were compared by",
                fix=f"put back what was there, or start anew: {anew}",
            )  # fmt: skip


def check_settings(before: dict[str, str], now: dict[str, str], where: object, anew: str) -> None:
    """Raises RunError, which names the first setting that is another; `anew`: how to start a search with it."""
    for key in [*before, *(key for key in now if key.startswith("search.space."))]:
        if key in before and now.get(key) == before[key]:
            continue
        raise RunError(
            f"the study is of another {key}", where=where, got=now.get(key, "nothing"),
            wanted=before.get(key, "nothing"), fix=f"the same config goes on with it; else start anew: {anew}",
        )  # fmt: skip
