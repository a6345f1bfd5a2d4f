"""One run in two real processes of four devices each, over loopback: the numbers of one process, and every end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxlean.config import load
from jaxlean.errors import EXIT_PEER_LOST, EXIT_PREEMPTED, EXIT_USER_ERROR
from jaxlean.run import finetune as module
from jaxlean.run.finetune import finetune

pytestmark = pytest.mark.slow

STEPS = 40
# One row a device: batches of 8, however many processes hold them.
RUN = (
    *(f"train.max_steps={STEPS}", "train.per_device_train_batch_size=1", "train.logging_steps=1", "train.save_steps=5"),
    *("train.gradient_accumulation_steps=2", "eval.eval_steps=20", "lora.lora_dropout=0.1", "data.packing=false"),
    "train.learning_rate=0.001",  # gentle, so that the last bits of forty steps do not grow
)
WHOLE_MODEL = ("lora=null", "train.max_steps=3", "train.save_steps=2", "eval.exact_match=true", "eval.eval_steps=null")


@pytest.fixture(scope="module")
def config(tiny_values, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(json.dumps(tiny_values))
    return file


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory) -> Path:
    """The run of this one process, on its eight devices."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    finetune(load(config, [*RUN, f"output_dir={folder}"]))
    return folder


class Pair:
    """Two processes of one run; `own` are overrides of the second one alone."""

    def __init__(self, config: Path, compiled: Path, *arguments: str, own: tuple[str, ...] = ()):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment = os.environ | {
            "XLA_FLAGS": "",
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(Path(module.__file__).parents[2]),
            "COLUMNS": "250",
        }
        self.processes = []
        for index in range(2):
            overrides = (
                "mesh.host_devices=4",
                f"distributed.coordinator_address=127.0.0.1:{port}",
                "distributed.num_processes=2",
                f"distributed.process_id={index}",
                *(own if index else ()),
            )
            command = [sys.executable, "-m", "jaxlean", "finetune", str(config), *arguments, *overrides]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)
            self.processes.append(process)

    def signal_at(self, step: int, number: signal.Signals, index: int) -> None:
        """Once the first process has told of a step."""
        out = self.processes[0].stdout
        assert out is not None
        for line in out:
            if line.startswith(f"step {step}/"):
                self.processes[index].send_signal(number)
                return

    def end(self) -> tuple[list[int], list[str], list[str]]:
        """(exit codes, stdouts, stderrs) of both."""
        start = time.monotonic()
        outs = [process.communicate(timeout=400) for process in self.processes]
        self.seconds = time.monotonic() - start
        return [process.returncode for process in self.processes], [out for out, _ in outs], [err for _, err in outs]


def said(out: str) -> str:
    """Without what jax's collectives on CPU report to stdout, several threads at a time."""
    words = r"\[Gloo\]|Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :|\d+|\s"
    return re.sub(words, "", out)


def losses(run: Path) -> np.ndarray:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return np.asarray([line.get("loss", line.get("eval_loss")) for line in lines])


def test_lora_in_two_processes_stopped_killed_and_resumed(config, compiled_dir, alone, tmp_path):
    run = tmp_path / "run"
    start: Callable[..., Pair] = lambda *more: Pair(config, compiled_dir, *RUN, f"output_dir={run}", *more)  # noqa: E731

    # one is told to leave: both stop after the same step and save it
    pair = start()
    pair.signal_at(6, signal.SIGTERM, 1)
    codes, outs, errors = pair.end()
    assert codes == [EXIT_PREEMPTED] * 2, errors
    assert said(outs[1]) == "", "only the first prints"
    for error in errors:
        assert "preempted (SIGTERM): the same command with --resume goes on" in error
        assert "Traceback" not in error
    summary = json.loads((run / "summary.json").read_text())
    stopped = summary["steps"]
    assert summary["status"] == "preempted"
    assert summary["num_devices"] == 8
    assert 6 <= stopped < STEPS
    assert (run / "checkpoints" / str(stopped) / "complete.json").exists()

    # one is killed: the other says so and ends
    pair = start("--resume")
    pair.signal_at(stopped + 6, signal.SIGKILL, 1)
    codes, outs, errors = pair.end()
    assert codes == [EXIT_PEER_LOST, -signal.SIGKILL], errors
    assert pair.seconds < 60
    assert f"process 1 of 2, on {socket.gethostname()}, is gone" in errors[0]
    assert "start all processes again with --resume; the last checkpoint is that of step" in errors[0]

    # the first one is killed, which takes jax's own service along
    pair = start("--resume")
    pair.signal_at(stopped + 8, signal.SIGKILL, 0)
    codes, outs, errors = pair.end()
    assert codes == [-signal.SIGKILL, EXIT_PEER_LOST], errors
    assert pair.seconds < 60
    assert f"process 0 of 2, on {socket.gethostname()}, is gone" in errors[1]

    pair = start("--resume")
    codes, outs, errors = pair.end()
    assert codes == [0, 0], errors
    assert "resumed at step" in outs[0]
    assert said(outs[1]) == ""
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-5)
    found, wanted = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, alone))
    for name, tensor in wanted.items():
        np.testing.assert_allclose(found[name], tensor, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_whole_model_split_across_processes(config, compiled_dir, tmp_path):
    mesh = ("mesh.data=1", "mesh.fsdp=8")
    arguments = [argument for argument in RUN if not argument.startswith("lora")] + [*WHOLE_MODEL, *mesh]
    pair = Pair(config, compiled_dir, *arguments, f"output_dir={tmp_path / 'pair'}")
    summary = finetune(load(config, [*arguments, f"output_dir={tmp_path / 'alone'}"]))
    codes, _, errors = pair.end()
    assert codes == [0, 0], errors
    np.testing.assert_allclose(losses(tmp_path / "pair"), losses(tmp_path / "alone"), rtol=1e-5)
    found, wanted = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("pair", "alone"))
    for name, tensor in wanted.items():
        np.testing.assert_allclose(found[name], tensor, rtol=1e-4, atol=1e-5, err_msg=name)
    measured = json.loads((tmp_path / "pair" / "summary.json").read_text())
    assert measured["eval_after"]["exact_match"] == summary["eval_after"]["exact_match"]
    assert measured["tokens"] == summary["tokens"]

    # one process of eight devices goes on with what two wrote, on another mesh
    resumed = [*arguments, "mesh.fsdp=4", "mesh.data=2", f"output_dir={tmp_path / 'pair'}"]
    assert finetune(load(config, resumed), resume=True)["status"] == "completed"


def test_replicas_in_two_processes_exchange_what_they_would_in_one(config, compiled_dir, tmp_path):
    rounds = ("mesh.data=8", "train.sync=diloco", "train.diloco.every=3", "train.max_steps=8", "eval.eval_steps=null")
    arguments = [*RUN, *rounds, "train.save_steps=4"]
    pair = Pair(config, compiled_dir, *arguments, f"output_dir={tmp_path / 'pair'}")
    summary = finetune(load(config, [*arguments, f"output_dir={tmp_path / 'alone'}"]))
    codes, _, errors = pair.end()
    assert codes == [0, 0], errors
    np.testing.assert_allclose(losses(tmp_path / "pair"), losses(tmp_path / "alone"), rtol=1e-5)
    measured = json.loads((tmp_path / "pair" / "summary.json").read_text())
    assert measured["tokens"] == summary["tokens"], "of all replicas, also of the other process's"
    assert measured["eval_after"]["loss"] == pytest.approx(summary["eval_after"]["loss"], rel=1e-5)


def test_an_error_of_one_is_the_error_of_all(config, compiled_dir, tmp_path):
    missing = tmp_path / "missing.jsonl"
    run = tmp_path / "run"
    pair = Pair(config, compiled_dir, *RUN, f"output_dir={run}", own=(f"data.train={missing}", "data.eval=null"))
    codes, _, errors = pair.end()
    assert codes == [EXIT_USER_ERROR] * 2, errors
    assert f"process 1 of 2, on {socket.gethostname()}, ended: " in errors[0]
    for error in errors:
        assert str(missing) in error
        assert "Traceback" not in error
    assert not run.exists()


def test_a_curriculum_by_the_bases_losses_killed_and_resumed(config, compiled_dir, tmp_path):
    how = ("data.curriculum=loss", "train.max_steps=8", "train.per_device_train_batch_size=1", "train.save_steps=3",
           "train.logging_steps=1", "data.packing=false", "eval.before=false", "train.learning_rate=0.001")  # fmt: skip
    finetune(load(config, [*how, f"output_dir={tmp_path / 'alone'}"]))
    run = tmp_path / "run"
    pair = Pair(config, compiled_dir, *how, f"output_dir={run}")
    pair.signal_at(5, signal.SIGKILL, 0)
    codes, _, errors = pair.end()
    assert codes == [-signal.SIGKILL, EXIT_PEER_LOST], errors
    measured = (run / "base_losses.npz").read_bytes()
    codes, outs, errors = Pair(config, compiled_dir, *how, f"output_dir={run}", "--resume").end()
    assert codes == [0, 0], errors
    assert "resumed at step " in outs[0]
    assert "the base's loss of" not in outs[0], "they are read, not measured again"
    assert (run / "base_losses.npz").read_bytes() == measured
    np.testing.assert_allclose(losses(run), losses(tmp_path / "alone"), rtol=1e-4)
