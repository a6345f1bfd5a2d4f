"""The scores of a run's steps, a file each: `evaluations/120.json`, written by whoever measured, read by training.

    {"step": 120, "token": of the snapshot, "evaluation": {"loss": 1.25, ...}, "refused": null,
     "who": "process 77 on box", "seconds": 3.1}

A file is made whole by a hard link, and the first one stays: of two that measured the same, since one was thought to be
dead, one is counted. Floats are written so that they come back bit for bit.
"""

import contextlib
import json
import math
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlean.run.metrics import to_json
from jaxlean.run.summary import Evaluation


@dataclass(frozen=True)
class Score:
    """What was found of a step.

    Args:
        step: optimizer steps done.
        token: of the snapshot that was measured; "" where training measured itself.
        evaluation: None where the snapshot was refused.
        refused: why.
        who: measured it.
        seconds: that it took.
    """

    step: int
    token: str
    evaluation: Evaluation | None
    refused: str | None = None
    who: str = "training"
    seconds: float = 0.0

    def value(self, metric: str = "loss") -> float:
        """A number of the evaluation; NaN where it is none, or not there."""
        found: Any = (self.evaluation or {}).get(metric)
        return math.nan if found is None else float(found)


def write_score(folder: Path, score: Score) -> bool:
    """Put a score into the folder, whole; False, and nothing changes, where the step has one already.

    Raises:
        OSError: as on a full disk; then nothing is left of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = _file(folder, score.step)
    part = folder / f".{score.step}.{secrets.token_hex(8)}"
    try:
        part.write_text(json.dumps(to_json(score.__dict__), allow_nan=False) + "\n", encoding="utf-8")
        try:
            os.link(part, file)
        except FileExistsError:
            return False
        except OSError:  # no hard links here (mounted buckets, SMB)
            if file.exists():
                return False
            os.replace(part, file)
        return True
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def read_score(folder: Path, step: int) -> Score | None:
    """The score of a step; None where there is none, or not a whole one."""
    try:
        said = json.loads(_file(folder, step).read_text(encoding="utf-8"))
        score = Score(**said)
    except (OSError, ValueError, TypeError):
        return None
    return score if score.step == step and isinstance(score.evaluation, dict | None) else None


def has_score(folder: Path, step: int) -> bool:
    """Whether there is a file, whatever is in it."""
    return _file(folder, step).exists()


def scored_steps(folder: Path) -> list[int]:
    """The steps that have a file, in order."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdecimal())


def remove_score(folder: Path, step: int) -> None:
    """Have the step measured anew."""
    _file(folder, step).unlink(missing_ok=True)


def _file(folder: Path, step: int) -> Path:
    return folder / f"{step}.json"
