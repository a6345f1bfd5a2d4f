"""What a step found: rows to leave out, each with its reason, scores of all rows; in files, whole or not at all."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Found:
    """The answer of a step.

    Attributes:
        rows: [n] int64, ascending: the rows to leave out.
        codes: [n] int16: of each, its reason among `reasons`.
        reasons: names, as the report shows them.
        of: [n] int64 or None: the row that each is a duplicate of; -1 where there is none.
        beside: the corpus whose rows `of` counts.
        value: [n] float32 or None: the number that decided (a similarity, a ratio).
        scores: name -> [rows of the corpus] float32; NaN where there is none. Become columns of what is written.
        notes: what else the report should say: name -> number or sentence.
    """

    rows: np.ndarray
    codes: np.ndarray
    reasons: tuple[str, ...]
    of: np.ndarray | None = None
    beside: Literal["train", "eval"] = "train"
    value: np.ndarray | None = None
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert len(self.rows) == len(self.codes)
        assert (np.diff(self.rows) > 0).all(), "rows ascend, each once"

    def counts(self) -> dict[str, int]:
        """Rows by reason."""
        return dict(zip(self.reasons, np.bincount(self.codes, minlength=len(self.reasons)).tolist(), strict=True))


def one_reason(rows: np.ndarray, reason: str, **more: Any) -> Found:
    """Rows that are all left out for the same reason.

    Args:
        rows: [n], ascending.
        reason: its name.
        more: other fields of `Found`.
    """
    return Found(np.asarray(rows, np.int64), np.zeros(len(rows), np.int16), (reason,), **more)


def no_rows(scores: Mapping[str, np.ndarray], **more: Any) -> Found:
    """Scores alone: no row is left out.

    Args:
        scores: as of `Found`.
        more: other fields of `Found`.
    """
    return Found(np.zeros(0, np.int64), np.zeros(0, np.int16), (), scores=scores, **more)


def save(found: Found, folder: Path, seconds: float) -> None:
    """Write it, the file that says it is whole last."""
    arrays = {"rows": found.rows, "codes": found.codes}
    arrays |= {name: array for name, array in (("of", found.of), ("value", found.value)) if array is not None}
    arrays |= {f"score:{name}": np.asarray(array, np.float32) for name, array in found.scores.items()}
    write_arrays(folder / "found.npz", arrays)
    told = {"reasons": found.reasons, "beside": found.beside, "notes": dict(found.notes), "seconds": seconds}
    write_text(folder / "found.json", json.dumps(told, ensure_ascii=False))


def restore(folder: Path) -> tuple[Found, float] | None:
    """(what was found, the seconds it took), or None where the step has not ended."""
    if not (folder / "found.json").exists():
        return None
    told = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    with np.load(folder / "found.npz") as arrays:
        scores = {name.removeprefix("score:"): arrays[name] for name in arrays if name.startswith("score:")}
        of, value = arrays.get("of"), arrays.get("value")
        found = Found(
            arrays["rows"], arrays["codes"], tuple(told["reasons"]), of, told["beside"], value, scores, told["notes"]
        )
    return found, float(told["seconds"])


def write_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An .npz that is there whole or not at all."""
    partial = file.with_name(f".{file.name}.part")
    with partial.open("wb") as opened:
        np.savez(opened, **arrays)  # type: ignore[arg-type]
    os.replace(partial, file)


def write_text(file: Path, text: str) -> None:
    """A text that is there whole or not at all."""
    partial = file.with_name(f".{file.name}.part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)
