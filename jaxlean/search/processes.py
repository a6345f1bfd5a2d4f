"""Trials as processes: each is a `jaxlean finetune` of its own, ended by SIGTERM where it is given up.

For what cannot share a program (several devices, a teacher, PiSSA), and where a trial must not be able to harm others.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxlean import config as settings
from jaxlean.config import RunConfig
from jaxlean.cost.price import Price
from jaxlean.errors import UserError
from jaxlean.run.folder import remove
from jaxlean.search.space import configured
from jaxlean.search.study import Study

_POLL_SECONDS = 0.2
# Between two looks at what has been spent, where there is a limit.
_COUNT_SECONDS = 5.0
_END_SECONDS = 120.0


@dataclass
class Finetune:
    """A trial's process.

    Args:
        asked: Optuna's trial.
        folder: its output_dir.
    """

    asked: Any
    folder: Path
    quality: dict[str, Any] = field(default_factory=dict)
    done: int = 0
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.perf_counter() - self.started


@dataclass
class Processes:
    """Runs the trials of a study one after the other; several of these processes are several workers.

    Args:
        config: the search's.
        study: where trials come from.
        price: of the devices that a trial finds.
        folder: of the trials' runs.
        say: prints a line.
        told: is given each trial when it ends.
        settle: raises what asks the process to end and was not heard.

    Attributes:
        compiled: trials that were started, each of which compiles its own step.
    """

    config: RunConfig
    study: Study
    price: Price
    folder: Path
    say: Callable[[str], None]
    told: Callable[[Any], None] = lambda trial: None
    settle: Callable[[], None] = lambda: None
    compiled: int = 0
    members: int = 1
    setup_seconds: float = 0.0  # each trial's own
    _trial: Finetune | None = None

    def run(self) -> None:
        """Until the study has enough."""
        while (asked := self.study.ask()) is not None:
            self._trial = None
            try:
                self._run(asked)
            except BaseException:
                self.study.leave([(asked, {} if self._trial is None else self._spent(self._trial))])
                raise

    def _run(self, asked: Any) -> None:
        folder = self.folder / f"{asked.number:04d}"
        try:
            config = configured(self.config, asked.params)
        except UserError as error:
            self.study.refuse(asked, str(error).splitlines()[0])
            self.say(f"trial {asked.number}: not started: {error}")
            return
        num_steps = config.train.max_steps or self.study.num_steps
        # every rung is a multiple of the first; it is the search that ends a trial, and its last state that counts
        measured = {
            "mode": "sync", "before": False, "eval_steps": self.study.rungs[0], "stopping": None, "load_best": False,
            "shots": None,
        }  # fmt: skip
        config = config.model_copy(update={
            "output_dir": str(folder),
            "search": settings.SearchSection(),
            "eval": config.eval.model_copy(update=measured),
            "train": config.train.model_copy(update={"save_steps": num_steps * 2}),
        })  # fmt: skip
        trial = self._trial = Finetune(asked, folder)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder.with_suffix(".yaml")
        file.write_text(settings.dump(config), encoding="utf-8")
        self.compiled += 1
        with (folder.with_suffix(".log")).open("w") as log:
            process = subprocess.Popen(_command(file), stdout=log, stderr=subprocess.STDOUT, env=_environment())
            try:
                given_up = self._watch(trial, process)
            finally:
                _end(process)
        summary = _json(folder / "summary.json")
        notes = self._spent(trial) | {"num_steps": num_steps}
        for name in ("checkpoints", "tensorboard"):
            if (folder / name).exists():
                remove(folder / name)
        code, diverged = process.returncode, summary.get("status") == "diverged"
        if code and not given_up and not diverged:
            said = (folder.with_suffix(".log")).read_text(errors="replace")
            complaint = said.partition("error: ")[2]
            if code == 2 and not trial.done:
                self.study.refuse(asked, complaint.splitlines()[0] if complaint else "it did not start")
                self.say(f"trial {asked.number}: not started: {complaint}")
                return
            # killed, told to end, out of memory, a full disk: nothing that its settings came to
            self.study.leave([(asked, notes | {"steps": trial.done})], lost=True)
            lines = (complaint or said).strip().splitlines() or [""]
            self.say(f"trial {asked.number}: its process ended, {_code(code)}: {lines[0 if complaint else -1]}")
            return
        ended = code == 0 and not given_up
        trial.quality = summary.get("eval_after") or trial.quality if ended else trial.quality
        trial.done = summary.get("steps") or trial.done
        found = dict(trial.quality) | notes | {
            "bytes": _result_bytes(folder), "memory_bytes": summary.get("predicted_memory_bytes"),
        }  # fmt: skip
        values = [math.nan if found.get(n) is None else float(found[n]) for n in self.config.search.objectives]
        self.study.finish(
            asked, values if ended else None, steps=trial.done, quality=trial.quality, diverged=diverged,
            too_dear=given_up == "too dear", **notes,
        )  # fmt: skip
        self.told(trial)

    def _spent(self, trial: Finetune) -> dict[str, Any]:
        seconds = trial.seconds
        return {"seconds": seconds, "usd": self.price.usd(seconds)}

    def _watch(self, trial: Finetune, process: "subprocess.Popen[bytes]") -> str:
        """Report what the run measures; why it was given up, if it was."""
        counted = time.monotonic()
        seen, objective = 0, self.config.search.objectives[0]
        while True:
            ended = process.poll() is not None
            for line in _lines(trial.folder / "metrics.jsonl")[seen:]:
                seen += 1
                trial.done = max(trial.done, line["step"])
                quality = {key.removeprefix("eval_"): value for key, value in line.items() if key.startswith("eval_")}
                if "loss" not in quality or line["step"] not in self.study.rungs[:-1]:
                    continue
                trial.quality = quality
                value = quality.get(objective)
                if len(self.config.search.objectives) > 1 or value is None:
                    pass  # nothing is given up
                elif not self.study.report(trial.asked, line["step"], value):
                    return "pruned"
            if ended:
                return ""
            if self.config.search.max_usd is not None and time.monotonic() - counted > _COUNT_SECONDS:
                counted = time.monotonic()
                self.study.note(trial.asked, usd=self.price.usd(trial.seconds))
                if self.study.too_dear() is not None:
                    return "too dear"
            self.settle()
            time.sleep(_POLL_SECONDS)


def _command(file: Path) -> list[str]:
    return [sys.executable, "-m", "jaxlean", "finetune", str(file), "--overwrite", "--parent", str(os.getpid())]


def _code(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"


def _environment() -> dict[str, str]:
    """That the trial finds the same jaxlean."""
    package = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; the last may be half written."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError:
        return []
    return [json.loads(line) for line in text.split("\n")[:-1]]


def _json(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _result_bytes(folder: Path) -> int | None:
    files = [*folder.glob("adapter/*.safetensors"), *folder.glob("model/*.safetensors")]
    return sum(file.stat().st_size for file in files) or None
