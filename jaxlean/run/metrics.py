"""Numbers of a run while it goes: metrics.jsonl always, TensorBoard and Weights & Biases where asked for.

One line of metrics.jsonl is one JSON object with `step` and whatever was logged at it. JSON has no NaN: a number that
is not finite is written as null.
"""

import contextlib
import importlib.util
import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from jaxlean.config import ReportSection
from jaxlean.errors import ConfigError, RunError


def check_installed(report: ReportSection) -> None:
    """What the config asks for can be imported; call it before anything costly.

    Raises:
        ConfigError: names what to install, or the key to turn off.
    """
    for asked, module, key in (
        (report.tensorboard, "tensorboardX", "report.tensorboard"),
        (report.wandb, "wandb", "report.wandb"),
    ):
        if asked and importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"{key} is on, but {module} is not installed", where=key, fix=f"pip install {module}, or {key}=false"
            )


def to_json(value: Any) -> Any:
    """A value as strict JSON holds it: array scalars become numbers, numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, os.PathLike):
        return str(value)
    if hasattr(value, "item"):  # numpy and jax scalars; bfloat16's item is a float
        value = value.item()
        return to_json(value) if not isinstance(value, float) else (value if math.isfinite(value) else None)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(f"a metric cannot be a {type(value).__name__}")


class Metrics:
    """Where the numbers of a run go.

    Args:
        output_dir: the run's folder: metrics.jsonl, tensorboard/. None: nothing is written (another process does).
        report: what else is written.
        resume_step: the step a resumed run goes on from: later lines, which it will write again, are dropped, and so
            is a line that a killed process left unfinished. None: a new run, the file starts empty.
        config: the resolved config, shown by Weights & Biases.

    Raises:
        ConfigError: as `check_installed`.
        RunError: metrics.jsonl cannot be written.
    """

    def __init__(
        self,
        output_dir: Path | None,
        report: ReportSection,
        *,
        resume_step: int | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        check_installed(report)
        self._tensorboard: Any = None
        self._wandb: Any = None
        self._out: TextIO | None = None
        self._known: set[tuple[int, frozenset[str]]] = set()
        if output_dir is None:
            return
        self._file = output_dir / "metrics.jsonl"
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            kept = [] if resume_step is None else _lines_until(self._file, resume_step)
            # an evaluation at that step comes again, if it was killed right after it
            self._known = {_what(line) for line in map(json.loads, kept) if line["step"] == resume_step}
            partial = self._file.with_suffix(".jsonl.tmp")
            partial.write_text("".join(kept), encoding="utf-8")
            os.replace(partial, self._file)
            self._out = self._file.open("a", encoding="utf-8")
        except OSError as error:
            raise RunError("metrics cannot be written", where=self._file, got=error) from error
        if report.tensorboard:
            from tensorboardX import SummaryWriter

            purge = None if resume_step is None else resume_step + 1
            self._tensorboard = SummaryWriter(str(output_dir / "tensorboard"), purge_step=purge)
        if report.wandb:
            import wandb

            self._wandb = wandb.init(
                project=report.wandb_project,
                name=report.run_name,
                dir=str(output_dir),
                id=_wandb_id(output_dir, new=resume_step is None),
                resume="allow",
                config=dict(config or {}),
            )
            # W&B's own step may only grow; a number that was ready late belongs to an earlier step of ours.
            self._wandb.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write what was measured at a step; once, where a run resumed at that step has measured it before.

        Args:
            step: optimizer steps done.
            values: names -> numbers (Python, numpy or jax scalars; None where not known) or text. Reading a jax scalar
                waits for it: hand over numbers of a step that is done.

        Raises:
            RunError: metrics.jsonl cannot be written, as on a full disk.
        """
        if self._out is None:
            return
        plain = {name: to_json(value) for name, value in values.items() if name != "step"}
        if _what({"step": step, **plain}) in self._known:
            return
        try:
            self._out.write(json.dumps({"step": step, **plain}) + "\n")
            self._out.flush()
        except OSError as error:
            raise RunError("metrics cannot be written", where=self._file, got=error, fix="is the disk full?") from error
        numbers = {k: v for k, v in plain.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log({"step": step, **numbers})

    def close(self) -> None:
        """Flush and close everything; a second call does nothing."""
        if self._out is not None:
            self._out.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._tensorboard = self._wandb = None


def _what(line: Mapping[str, Any]) -> tuple[int, frozenset[str]]:
    """What a line tells: of which step, and what."""
    return line["step"], frozenset(line)


def _lines_until(file: Path, step: int) -> list[str]:
    """The whole lines of the file whose step is not past `step`."""
    if not file.exists():
        return []
    kept = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # cut off by a kill
    return kept


def last_told(file: Path, name: str) -> dict[str, Any] | None:
    """The last whole line that tells of a number; None where there is none."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError):  # cut off by a kill
            found = json.loads(line)
            if isinstance(found, dict) and found.get(name) is not None:
                return found
    return None


def logged_steps(file: Path, name: str) -> set[int]:
    """The steps at which a number was logged; none where there is no file."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {said["step"] for said in map(json.loads, filter(None, lines)) if name in said}


def _wandb_id(output_dir: Path, *, new: bool) -> str:
    """The id under which a resumed run goes on in the same W&B run; it lies in the run's folder."""
    file = output_dir / "wandb_id"
    if new or not file.exists():
        file.write_text(uuid.uuid4().hex, encoding="utf-8")
    return file.read_text(encoding="utf-8")
