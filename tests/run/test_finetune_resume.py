"""Interrupted anywhere and resumed, a run ends where it would have ended: the same adapter, byte for byte."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jaxlean.config import RunConfig, load
from jaxlean.errors import EXIT_PREEMPTED, Preempted, RunError
from jaxlean.run import checkpoint
from jaxlean.run import finetune as module
from jaxlean.run.checkpoint import Checkpoints
from jaxlean.run.evaluate import Evaluator
from jaxlean.run.finetune import finetune
from jaxlean.run.manifest import read_manifest
from jaxlean.run.meter import Meter
from jaxlean.run.progress import Progress

pytestmark = pytest.mark.usefixtures("small_machine")

# Eight steps of two microbatches; checkpoints at 3, 6 and 8; everything random that there is.
RUN = (
    *("train.max_steps=8", "train.gradient_accumulation_steps=2", "train.save_steps=3", "lora.lora_dropout=0.2"),
    *("eval.eval_steps=4", "data.packing=true"),
)


class Crash(BaseException):
    """The process is gone: no handler of a run knows it."""


@dataclass
class Whole:
    """An uninterrupted run."""

    file: bytes
    summary: dict[str, Any]
    lines: list[dict[str, Any]]


def result(run: Path) -> bytes:
    adapter, model = run / "adapter" / "adapter_model.safetensors", run / "model" / "model.safetensors"
    return (adapter if adapter.exists() else model).read_bytes()


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


Configure = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def configure(tiny_values, tmp_path_factory) -> Configure:
    """`configure(folder, "key=value", ...)`."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(json.dumps(tiny_values))
    return lambda folder, *overrides: load(file, [f"output_dir={folder}", *overrides])


@pytest.fixture(scope="module")
def whole(small_machine, configure, tmp_path_factory) -> Whole:
    run = tmp_path_factory.mktemp("whole") / "run"
    summary = finetune(configure(run, *RUN))
    return Whole(result(run), summary, lines(run))


def on_call(monkeypatch, owner, name: str, number: int, action: Callable[[], None]) -> None:
    """`action` before the `number`-th call of a function or method."""
    original, calls = getattr(owner, name), []

    def wrapped(*args, **options):
        calls.append(name)
        if len(calls) == number:
            action()
        return original(*args, **options)

    monkeypatch.setattr(owner, name, wrapped)


def crash() -> None:
    raise Crash


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


# (where, which call, steps that a preempted run has saved, step that a crashed one goes on from)
POINTS = {
    "loading": ((module, "batches_of", 1), None, None),
    "the evaluation before": ((Evaluator, "loss", 1), 0, None),
    "the first step": ((Meter, "add", 1), 1, None),
    "a step after which nothing is saved": ((Progress, "update", 5), 5, 3),
    "the evaluation between": ((Evaluator, "loss", 2), 4, 3),
    "a save": ((Checkpoints, "save", 2), 6, 3),
    "the last step": ((Meter, "add", 8), 8, 6),
    "the evaluation after": ((Evaluator, "loss", 3), 8, 8),
    "writing the adapter": ((module, "write_adapter", 1), 8, 8),
}


def assert_same_run(run: Path, summary: dict[str, Any], whole: Whole) -> None:
    assert result(run) == whole.file
    assert summary["status"] == "completed"
    for key in ("steps", "tokens", "total_tokens", "eval_before", "eval_after"):
        assert summary[key] == whole.summary[key], key
    for kind in ("loss", "eval_loss"):
        got = {line["step"]: line.get("tokens") for line in lines(run) if kind in line}
        assert got == {line["step"]: line.get("tokens") for line in whole.lines if kind in line}


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_sigterm_saves_and_the_resumed_run_ends_in_the_same_place(point, configure, whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    place, saved, _ = POINTS[point]
    with monkeypatch.context() as patched, pytest.raises(Preempted, match="SIGTERM") as preempted:
        on_call(patched, *place, terminate)
        finetune(configure(run, *RUN))
    assert preempted.value.saved == (saved is not None)
    if saved is None:
        assert not run.exists()
    else:
        assert summary_of(run)["status"] == "preempted"
        assert summary_of(run)["steps"] == saved
        assert (run / "checkpoints" / str(saved) / "complete.json").exists()
        assert not (run / "adapter").exists()
    assert_same_run(run, finetune(configure(run, *RUN), resume=True), whole)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_loses_only_what_came_after_the_checkpoint(point, configure, whole, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    place, _, saved = POINTS[point]
    with monkeypatch.context() as patched, pytest.raises(Crash):
        on_call(patched, *place, crash)
        finetune(configure(run, *RUN))
    capsys.readouterr()
    summary = finetune(configure(run, *RUN), resume=True)
    said = capsys.readouterr().out
    if run.exists() and saved is not None:
        assert f"resumed at step {saved} of 8" in said
    else:
        assert "starting at step 0" in said
    assert_same_run(run, summary, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        ("data.streaming=true", "data.packing=true"),
        ("data.streaming=true", "data.packing=false"),
        ("data.packing=false", "lora.use_dora=true", "train.optim=muon"),
        ("lora.init_lora_weights=pissa", "train.optim=adafactor"),
        ("lora=null", "train.trainable=[mlp, norm]", "train.optim=lion", "train.num_train_epochs=3"),
        ("data.train=[{path: ROWS, weight: 3}, {path: ROWS, weight: 1, limit: 5}]", "data.eval=null"),
        ("lora=null", "train.optim=adamw_8bit"),
        ("train.momentum_dtype=bfloat16",),
    ],
    ids=[
        *("stream packed", "stream", "dora muon", "pissa adafactor", "whole model", "mixed sources", "adamw 8bit"),
        "momentum bfloat16",
    ],
)
def test_every_kind_of_run_resumes(variant, configure, tiny_rows, tmp_path, monkeypatch):
    overrides = [*RUN, *(text.replace("ROWS", str(tiny_rows)) for text in variant)]
    if "lora=null" in overrides:
        overrides.remove("lora.lora_dropout=0.2")
    finetune(configure(tmp_path / "whole", *overrides))
    run = tmp_path / "run"
    for place, action, kind in (((Meter, "add", 3), terminate, Preempted), ((Meter, "add", 2), crash, Crash)):
        with monkeypatch.context() as patched, pytest.raises(kind):
            on_call(patched, *place, action)
            finetune(configure(run, *overrides), resume=True)
    summary = finetune(configure(run, *overrides), resume=True)
    assert result(run) == result(tmp_path / "whole")
    assert summary["tokens"] == summary_of(tmp_path / "whole")["tokens"]


def test_a_checkpoint_cut_short_is_skipped_for_the_one_before(configure, whole, tmp_path, monkeypatch, caplog, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(Preempted):
        on_call(patched, Meter, "add", 7, terminate)
        finetune(configure(run, *RUN))
    assert sorted(entry.name for entry in (run / "checkpoints").iterdir()) == ["6", "7"]
    newest = run / "checkpoints" / "7"
    largest = max((file for file in newest.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-10])
    summary = finetune(configure(run, *RUN), resume=True)
    assert f"{newest} is damaged and is skipped" in caplog.text
    assert "resumed at step 6 of 8" in capsys.readouterr().out
    assert_same_run(run, summary, whole)


def test_a_lora_checkpoint_holds_no_frozen_weight(configure, tiny_base, tmp_path):
    run = tmp_path / "run"
    finetune(configure(run, "train.max_steps=1", "data.eval=null"))
    leaves = read_manifest(run / "checkpoints" / "1")["leaves"]
    trained = [path for path in leaves if path.startswith("trainable.")]
    assert trained
    assert all(path.endswith((".lora_a", ".lora_b")) for path in trained)
    assert not [path for path in leaves if "kernel" in path or "embedding" in path or "norm" in path]
    size = sum(4 * math.prod(shape) for shape, _ in leaves.values())
    adapter = (run / "adapter" / "adapter_model.safetensors").stat().st_size
    assert size == pytest.approx(3 * adapter, rel=0.3), "the adapter and Adam's two moments"
    assert size < 0.2 * (tiny_base / "model.safetensors").stat().st_size


@pytest.mark.slow
def test_a_run_that_broke_goes_on_from_its_last_good_checkpoint(configure, whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(Preempted):
        on_call(patched, Meter, "add", 4, terminate)
        finetune(configure(run, *RUN))
    with pytest.raises(RunError, match="not a number at step 6"):
        finetune(configure(run, *RUN, "train.learning_rate=1e30"), resume=True)
    assert summary_of(run)["status"] == "diverged"
    assert summary_of(run)["steps"] == 5
    assert not (run / "adapter").exists()
    assert sorted(entry.name for entry in (run / "checkpoints").iterdir()) == ["3", "4"]
    assert_same_run(run, finetune(configure(run, *RUN), resume=True), whole)


def test_a_disk_that_fills_up_is_told_and_the_run_goes_on_later(configure, whole, tmp_path, monkeypatch):
    run = tmp_path / "run"

    write, written = checkpoint._write_arrays, []

    def full(folder, host):  # it writes in the background, whenever that gets its turn: the second one finds no room
        written.append(folder)
        if len(written) > 1:
            raise OSError(28, "No space left on device")
        write(folder, host)

    with monkeypatch.context() as patched, pytest.raises(RunError, match="no disk space"):
        patched.setattr(checkpoint, "_write_arrays", full)
        finetune(configure(run, *RUN))
    assert summary_of(run)["status"] == "failed"
    assert [entry.name for entry in (run / "checkpoints").iterdir()] == ["3"]
    assert not (run / "adapter").exists()
    assert_same_run(run, finetune(configure(run, *RUN), resume=True), whole)


def test_a_full_disk_while_leaving_is_a_failure_not_a_preemption(configure, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def full(folder, host):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(RunError, match="no disk space"):
        patched.setattr("jaxlean.run.checkpoint._write_arrays", full)
        on_call(patched, Meter, "add", 2, terminate)
        finetune(configure(run, *RUN))
    assert summary_of(run)["status"] == "failed"


# ---- real processes


def start(folder: Path, compiled: Path, config: Path, *arguments: str) -> subprocess.Popen[str]:
    """`jaxlean finetune` in a process of its own, on one device, with a line for every step."""
    environment = os.environ | {
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(Path(module.__file__).parents[2]),
    }
    overrides = [*RUN, f"output_dir={folder}", "train.max_steps=30", "train.logging_steps=1", "eval.eval_steps=null"]
    command = [sys.executable, "-m", "jaxlean", "finetune", str(config), *overrides, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def interrupt(process: subprocess.Popen[str], number: signal.Signals, *, step: int, later: float = 0.0) -> str:
    """Send a signal once the process has told of a step, some seconds later; returns what it wrote to stderr."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"step {step}/"):
            time.sleep(later)
            process.send_signal(number)
            break
    _, stderr = process.communicate(timeout=400)
    return stderr


@pytest.fixture(scope="module")
def whole_process(compiled_dir, tiny_values, tmp_path_factory) -> tuple[Path, Path]:
    """The config, and the folder of an uninterrupted run in a process of its own."""
    folder = tmp_path_factory.mktemp("process")
    config = folder / "tiny.yaml"
    config.write_text(json.dumps(tiny_values))
    process = start(folder / "whole", compiled_dir, config)
    _, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    return config, folder / "whole"


@pytest.mark.slow
def test_killed_again_and_again(whole_process, compiled_dir, tmp_path):
    config, whole = whole_process
    run, draw, reached = tmp_path / "run", random.Random(0), 0
    for _ in range(3):
        process = start(run, compiled_dir, config, "--resume")
        reached += draw.randint(2, 8)
        interrupt(process, signal.SIGKILL, step=reached, later=draw.uniform(0.0, 0.03))
        assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
        assert not (run / "adapter").exists()
    process = start(run, compiled_dir, config, "--resume")
    stdout, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    assert "resumed at step" in stdout
    assert result(run) == result(whole)


@pytest.mark.slow
def test_sigterm_to_a_process(whole_process, compiled_dir, tmp_path):
    config, whole = whole_process
    run = tmp_path / "run"
    process = start(run, compiled_dir, config)
    stderr = interrupt(process, signal.SIGTERM, step=5)
    assert process.returncode == EXIT_PREEMPTED
    assert "preempted (SIGTERM)" in stderr
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    saved = summary_of(run)
    assert saved["status"] == "preempted"
    assert saved["steps"] >= 5
    assert (run / "checkpoints" / str(saved["steps"]) / "complete.json").exists()
    process = start(run, compiled_dir, config, "--resume")
    stdout, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    assert f"resumed at step {saved['steps']} of 30" in stdout
    assert result(run) == result(whole)
