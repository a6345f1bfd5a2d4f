"""A small job, and the processes that run it: twelve steps, everything random that there is, a checkpoint each four."""

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .fault import Outcome, hold

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "configs" / "quickstart" / "base"
NUM_STEPS, SAVE_STEPS, STOPPED_AT = 12, 4, 10
# A checkpoint is written while steps go on, and the next save waits for it: steps since the last but one.
MOST_LOST = 2 * SAVE_STEPS
SECONDS = 300
_ARCHITECTURE = {
    "model_type": "llama", "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True,
    "eos_token_id": None, "initializer_range": 0.6,
}  # fmt: skip
_SETTINGS = {
    "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2},
    "train": {
        "learning_rate": 0.01, "max_steps": NUM_STEPS, "per_device_train_batch_size": 2, "logging_steps": 1,
        "save_steps": SAVE_STEPS, "save_total_limit": 2,
    },
    "eval": {"eval_steps": 6, "max_new_tokens": 8},
    "report": {"tensorboard": False, "progress": False},
}  # fmt: skip
# What a run comes to, beside its files. Seconds and bytes are of the machine.
_SAME = ("status", "steps", "tokens", "total_tokens", "train_loss", "eval_before", "eval_after")


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    code: int
    out: str
    err: str
    steps: int  # that it had begun

    @property
    def resumed_at(self) -> int:
        found = re.search(r"resumed at step (\d+) of", self.out)
        return int(found[1]) if found else 0

    @property
    def said(self) -> str:
        """The first line of what it told the user."""
        return next(iter(self.err.strip().splitlines()), "")


class Job:
    """The job's files, in a folder of its own, and its runs.

    Args:
        folder: is made.
        compiled: where compiled programs are kept.
    """

    def __init__(self, folder: Path, compiled: Path):
        self.folder, self.compiled = folder, compiled
        self._numbers, self._stopping = itertools.count(1), threading.Lock()
        self.base, self.config = folder / "base", folder / "job.yaml"
        self.train, self.eval = folder / "train.jsonl", folder / "eval.jsonl"
        folder.mkdir(parents=True)
        rows = [
            {"prompt": f"{colour} {thing} {i}", "completion": f"{thing} is {colour}, number {i}"}
            for i, colour in enumerate(("red", "green", "blue", "white"))
            for thing in ("house", "train", "order", "street", "price", "water")
        ]
        for file, part in ((self.train, rows), (self.eval, rows[::3])):
            file.write_text("".join(json.dumps(row) + "\n" for row in part))
        sources = {"model": {"path": str(self.base), "dtype": "float32"}}
        sources["data"] = {"train": str(self.train), "eval": str(self.eval), "max_length": 64, "packing": True}
        self.config.write_text(json.dumps(sources | _SETTINGS, indent=1))
        self.whole: Path = folder / "whole"

    def make(self) -> None:
        """The base, and the undisturbed run that all others are compared with."""
        program = (
            "import json, sys\nfrom jaxlean.hub.load import initial\nfrom jaxlean.hub.write import write_model\n"
            "from pathlib import Path\nwrite_model("
            "initial(json.loads(sys.argv[1]), 'float32', tokenizer=sys.argv[2]), Path(sys.argv[3]))"
        )
        arguments = [json.dumps(_ARCHITECTURE), str(TOKENIZER), str(self.base)]
        subprocess.run([sys.executable, "-c", program, *arguments], env=self._environment(), check=True)
        ended = self.run("finetune", self.whole)
        hold(ended.code == 0, f"the undisturbed run failed: {ended.err}")

    def copy(self) -> "Job":
        """The same files in another folder, to be altered; its runs are compared with the same whole one."""
        other = object.__new__(Job)
        other.__dict__ |= self.__dict__
        other.folder = self.folder / f"copy-{next(self._numbers)}"
        other.folder.mkdir()
        for name in ("base", "train", "eval", "config"):
            source: Path = getattr(self, name)
            setattr(other, name, other.folder / source.name)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, other.folder / source.name)
        other.config.write_text(self.config.read_text().replace(f"{self.folder}/", f"{other.folder}/"))
        return other

    def configured(self, **sections: Any) -> "Job":
        """The same job with other sections in its config."""
        other = object.__new__(Job)
        other.__dict__ |= self.__dict__
        other.config = self.new("config").with_suffix(".yaml")
        other.config.write_text(json.dumps(json.loads(self.config.read_text()) | sections))
        return other

    def new(self, name: str = "run") -> Path:
        """A name for a folder."""
        return self.folder / f"{name}-{next(self._numbers)}"

    # ---- processes

    def start(
        self,
        verb: str,
        output: Path | None,
        *arguments: object,
        plan: Mapping[str, Any] | None = None,
        before: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        limits: Callable[[], None] | None = None,
        terminal: int | None = None,
    ) -> "Running":
        """`jaxlean VERB config.yaml ARGUMENTS output_dir=OUTPUT` in a process of its own.

        Args:
            plan: of `inject.py`.
            before: words before the command (`setpriv ...`).
            environment: beside ours.
            limits: called in the new process before it begins.
            terminal: to which it writes.
        """
        notes = self.new("notes")
        notes.mkdir()
        notes.chmod(0o777)
        given = [] if output is None else [str(self.config), f"output_dir={output}"]
        command = [*before, sys.executable, str(Path(__file__).with_name("inject.py")), verb, *given]
        process = subprocess.Popen(
            [*command, *map(str, arguments)], stdout=subprocess.PIPE if terminal is None else terminal,
            stderr=subprocess.PIPE if terminal is None else terminal, text=True,
            env=self._environment() | {"FAULT_PLAN": json.dumps({"notes": str(notes), **(plan or {})})}
            | dict(environment or {}), preexec_fn=limits, start_new_session=True, cwd=self.folder,
        )  # fmt: skip
        return Running(process, notes)

    def run(self, verb: str, output: Path | None, *arguments: object, **how: Any) -> Ended:
        return self.start(verb, output, *arguments, **how).end()

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX", "XLA", "FAULT"))}
        return kept | {
            "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "COLUMNS": "250",
            "JAX_COMPILATION_CACHE_DIR": str(self.compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAXLEAN_HOME": str(self.compiled.parent / "home"),
        }  # fmt: skip

    # ---- what is promised

    def resumed(self, run: Path, before: Ended | int, *arguments: object, **how: Any) -> Outcome:
        """Gone on with to its end, the run comes to what the undisturbed one came to.

        Args:
            before: the process that was disturbed, or the steps that it had done.
        """
        ended = self.run("finetune", run, "--resume", *arguments, **how)
        hold(ended.code == 0, f"--resume: exit code {ended.code}: {ended.err[-2000:]}")
        self.same(run)
        steps = before.steps if isinstance(before, Ended) else before
        lost = steps - ended.resumed_at
        hold(0 <= lost <= MOST_LOST, f"{lost} steps were lost")
        return Outcome(lost, True, before.said if isinstance(before, Ended) else ended.said)

    def same(self, run: Path, *, without: int | None = None) -> None:
        """Bytes of the adapter, the numbers of the summary, every line of the metrics once.

        Args:
            without: a step of which no held-out loss is wanted.
        """
        files = [folder / "adapter" / "adapter_model.safetensors" for folder in (run, self.whole)]
        hold(files[0].exists(), "there is no adapter")
        hold(files[0].read_bytes() == files[1].read_bytes(), "the adapter differs from that of the undisturbed run")
        one, other = (json.loads((folder / "summary.json").read_text()) for folder in (run, self.whole))
        for key in _SAME:
            hold(one[key] == other[key], f"{key}: {one[key]} instead of {other[key]}")
        one, other = (_lines(folder / "metrics.jsonl") for folder in (run, self.whole))
        other = [line for line in other if line[0] != without or line[3] < 0]
        hold(one == other, f"metrics.jsonl: {one} instead of {other}")
        left = [file.name for file in run.iterdir() if file.name.startswith(".") or file.suffix == ".tmp"]
        hold(not left, f"left behind: {left}")

    def refused(self, ended: Ended, words: str) -> Outcome:
        """It ended with a message and exit code 2, and no traceback."""
        hold(ended.code == 2, f"exit code {ended.code}: {ended.err[-2000:]}")
        hold(re.search(words, ended.err), f"it does not say {words!r}: {ended.err[-2000:]}")
        hold("Traceback" not in ended.err, f"a traceback: {ended.err[:3000]}")
        return Outcome(said=ended.said)

    def stopped(self) -> Path:
        """A run that SIGTERM stopped after `STOPPED_AT` steps, copied anew for each caller."""
        kept = self.folder / "stopped"
        with self._stopping:  # once, whoever of the runner's threads asks first
            if not kept.exists():
                running = self.start("finetune", kept, plan={"at": "the tenth step", "do": "SIGTERM"})
                hold(running.end().code == 75, "SIGTERM")
        run = self.new()
        shutil.copytree(kept, run)
        return run


class Running:
    """A process under way."""

    def __init__(self, process: "subprocess.Popen[str]", notes: Path):
        self.process, self.notes = process, notes

    def until_acted(self) -> None:
        """Wait for the planned moment."""
        self._wait((self.notes / "acted").exists)

    def until_stopped(self) -> None:
        """Wait until SIGSTOP has stopped it."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        self._wait(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def go(self) -> None:
        """It waits after having told (`tell`); let it go on."""
        (self.notes / "go").touch()

    @property
    def steps(self) -> int:
        with contextlib.suppress(OSError):
            return int((self.notes / "steps").read_text().rpartition("\n")[0].rpartition("\n")[2] or 0)
        return 0

    def _wait(self, there: Callable[[], bool]) -> None:
        end = time.monotonic() + SECONDS
        while not there():
            hold(self.process.poll() is None, f"it ended before the moment came: {self.process.returncode}")
            hold(time.monotonic() < end, "the moment never came")
            time.sleep(0.005)

    def end(self) -> Ended:
        try:
            out, err = self.process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            hold(False, f"it hung: {out[-1000:]} {err[-1000:]}")
        return Ended(self.process.returncode, out, err, self.steps)


def _lines(file: Path) -> list[tuple[Any, ...]]:
    """(step, loss, tokens, held-out loss) of every line, none of which is there twice."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(
        (line["step"], line.get("loss", -1.0), line.get("tokens", -1), line.get("eval_loss", -1.0)) for line in lines
    )


def lives(pid: int) -> bool:
    """Whether a process runs; one that nobody has taken note of yet has ended all the same."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def newest(run: Path) -> Path:
    """Its newest checkpoint."""
    steps = [int(folder.name) for folder in (run / "checkpoints").iterdir() if folder.name.isdecimal()]
    return run / "checkpoints" / str(max(steps))


def files(folder: Path) -> Iterator[Path]:
    """Every file in it, in order."""
    yield from sorted(file for file in folder.rglob("*") if file.is_file())
