"""What a search is made of: a base, rows to train on, rows to compare by.

Kept in the study, so that whoever goes on with it, the next day or on another machine, compares trials of the same
files; else one loss means nothing beside another.
"""

from pathlib import Path

from jaxlean import fingerprint
from jaxlean.config import RunConfig, SourceSection
from jaxlean.data.loader import content_of
from jaxlean.errors import RunError
from jaxlean.hub.files import locate


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


def check_same(before: dict[str, str], now: dict[str, str], where: object, anew: str) -> None:
    """Raises RunError, which names the first that has changed; `anew`: how to start a search of the new ones."""
    for key, known in before.items():
        if key in now and now[key] != known:
            raise RunError(
                f"what {key} names has changed since the search was started", where=where, got=f"{key}: {now[key]}",
                wanted=f"{known}, which its trials were compared by",
                fix=f"put back what was there, or start anew: {anew}",
            )  # fmt: skip
