"""A run's folder as the report shows it: whatever is there, of a run that ended, is going, or was cut off.

`config.yaml` makes a folder a run's; everything else may be missing, torn or older than this version.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from jaxlean.errors import RunError
from jaxlean.redact import hidden
from jaxlean.run.folder import SEARCH
from jaxlean.run.lock import FolderLock

_RUN = "RUN is the output_dir of finetune, pretrain or distill"
# The receipt's own number, of the format that this version reads.
RECEIPT_FORMAT = 1
# What the summary of an earlier process says that still holds of a run which went on after it.
_LASTING = (
    *("eval_before", "eval_few_shot", "eval_teacher", "num_params", "num_trainable", "device_kind", "num_devices"),
    *("versions", "predicted_memory_bytes", "memory_by_category", "predicted_step_seconds", "energy_source"),
)
_FEW_SHOT = "eval_few_shot_"
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run's folder holds.

    Attributes:
        folder: as the user named it.
        name: the end of its path, as long as it takes to tell it from the others.
        status: of the summary; "running" while a process has the folder; "unfinished" where nothing says how it ended.
        ended: when; of a run without a summary, when it last wrote a line.
        config: of config.yaml.
        summary: keys of `jaxlean.run.summary.Summary`; empty where there is none.
        lines: of metrics.jsonl, those of training, by step.
        evaluations: `step` and what was measured at it, without `eval_`, by step.
        receipt: of receipt.json.
        unread: what could not be read, a sentence each.
    """

    folder: Path
    name: str
    status: str
    ended: datetime | None
    config: Mapping[str, Any]
    summary: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[Line] = ()
    evaluations: Sequence[Line] = ()
    receipt: Mapping[str, Any] | None = None
    unread: Sequence[str] = ()

    def last(self, key: str, in_line: str | None = None) -> float | None:
        """A number of the summary; where it says none, of the last line that does (which may call it otherwise)."""
        found = number(self.summary.get(key))
        if found is not None:
            return found
        values = (number(line.get(in_line or key)) for line in reversed(self.lines))
        return next((value for value in values if value is not None), None)

    @property
    def steps(self) -> int | None:
        """Done, as far as is known."""
        found = number(self.summary.get("steps"))
        return int(found) if found is not None else self.lines[-1]["step"] if self.lines else None

    def setting(self, path: str) -> Any:
        """Of the config, by `section.key`; None where it has none."""
        value: Any = self.config
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def read(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders, in their order; a folder that is named twice counts once.

    Raises:
        RunError: a folder holds no run, or its config cannot be read.
    """
    once: dict[Path, Path] = {}
    for folder in folders:
        once.setdefault(folder.resolve(), folder)
    return [_run(folder, name) for folder, name in zip(once.values(), names([*once]), strict=True)]


def number(value: Any) -> float | None:
    """What stands in a file as a number, where it is one and finite."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else None


def names(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as few as tell them apart.

    >>> names([Path("/a/x/run"), Path("/a/y/run"), Path("/a/other")])
    ['x/run', 'y/run', 'other']
    """
    parts = [folder.resolve().parts for folder in folders]
    found = []
    for own in parts:
        ends = (own[-length:] for length in range(1, len(own) + 1))
        end = next(end for end in ends if end == own or sum(each[-len(end) :] == end for each in parts) == 1)
        found.append("/".join(end).replace("//", "/"))
    return found


def _run(folder: Path, name: str) -> Run:
    config = _config(folder)
    unread: list[str] = []
    summary = _hidden(_object(folder / "summary.json", unread))
    lines, evaluations = _metrics(folder / "metrics.jsonl", unread)
    receipt = _receipt(folder / "receipt.json", unread)
    going = _is_written(folder)
    steps = number(summary.get("steps"))
    # beyond what the summary counts, another process went on
    sound = (line["step"] for line in reversed(lines) if number(line["loss"]) is not None)
    if going or (steps is not None and next(sound, 0) > steps):
        summary = {key: summary[key] for key in _LASTING if key in summary}
    status = "running" if going else str(summary.get("status") or "unfinished")
    return Run(
        folder=Path(hidden(str(folder))), name=hidden(name), status=status, ended=_ended(folder, summary),
        config=_hidden(config), summary=summary, lines=lines, evaluations=evaluations, receipt=_hidden(receipt),
        unread=_hidden(unread),
    )  # fmt: skip


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.yaml"
    if not folder.is_dir():
        what = "this is a file, no run" if folder.exists() else "there is no such run"
        raise RunError(what, where=folder, wanted="a run's folder", fix=_RUN)
    if (folder / SEARCH).exists():
        raise RunError(
            "this folder holds a search, and its trials are no runs", where=folder,
            fix="search.png and trials.jsonl in it show them; of `jaxlean finetune best.yaml` there is a run to report",
        )  # fmt: skip
    if not file.exists():
        raise RunError("this folder holds no run", where=folder, wanted="config.yaml, which every run writes", fix=_RUN)
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError("the config of the run cannot be read", where=file, got=error) from error
    if not isinstance(values, dict):
        raise RunError("the config of the run cannot be read", where=file, got=values, wanted="what a run wrote there")
    return values


def _object(file: Path, unread: list[str]) -> dict[str, Any]:
    """A JSON object; empty where there is none to be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        unread.append(f"{file.name} cannot be read: {error}")
        return {}
    if not isinstance(found, dict):
        unread.append(f"{file.name} holds no object")
        return {}
    return found


def _metrics(file: Path, unread: list[str]) -> tuple[list[Line], list[Line]]:
    """(training lines, evaluations), each by step, of a step the last one that was written."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return [], []
    except OSError as error:
        unread.append(f"{file.name} cannot be read: {error}")
        return [], []
    lines: dict[int, dict[str, Any]] = {}
    evaluations: dict[int, dict[str, Any]] = {}
    *whole, rest = text.split("\n")
    bad = 0
    for place, said in enumerate([*whole, rest]):
        if not said.strip():
            continue
        try:
            line = json.loads(said)
            step = int(line["step"])
        except (ValueError, KeyError, TypeError, OverflowError):
            # the end of a run that was killed, or is writing it just now
            bad += place < len(whole)
            continue
        if "loss" in line:
            lines[step] = line | {"step": step}
        found = {
            key.removeprefix("eval_"): value for key, value in line.items()
            if key.startswith("eval_") and not key.startswith(_FEW_SHOT)
        }  # fmt: skip
        if found:
            evaluations[step] = evaluations.get(step, {}) | found | {"step": step}
    if bad:
        which, are = ("a line", "is") if bad == 1 else (f"{bad:,} lines", "are")
        unread.append(f"{which} of {file.name} cannot be read, and {are} left out")
    return [lines[step] for step in sorted(lines)], [evaluations[step] for step in sorted(evaluations)]


def _receipt(file: Path, unread: list[str]) -> dict[str, Any] | None:
    found = _object(file, unread)
    if not found:
        return None
    if found.get("format") != RECEIPT_FORMAT:
        unread.append(f"{file.name} is of format {found.get('format')}; this version reads {RECEIPT_FORMAT}")
        return None
    return found


def _hidden(value: Any) -> Any:
    """Without secrets, which are looked for before they are written as HTML: escaped they look otherwise."""
    if isinstance(value, str):
        return hidden(value)
    if isinstance(value, Mapping):
        return {_hidden(key): _hidden(item) for key, item in value.items()}
    return [_hidden(item) for item in value] if isinstance(value, list) else value


def _ended(folder: Path, summary: Mapping[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(summary["ended"]).astimezone(UTC)
    except (KeyError, TypeError, ValueError):  # of an earlier version
        pass
    for name in (*(["summary.json"] if summary.get("status") else []), "metrics.jsonl", "config.yaml"):
        if (folder / name).exists():
            return datetime.fromtimestamp((folder / name).stat().st_mtime, UTC)
    return None


def _is_written(folder: Path) -> bool:
    """Whether a process has the folder."""
    try:
        FolderLock(folder).check()
    except RunError as error:
        return error.__cause__ is None  # else the file system has no locks, and nothing is known
    return False
