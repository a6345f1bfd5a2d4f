"""Snapshots scored by others: the numbers of `eval.mode: sync`, whatever trains and whatever dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file

from jaxlean import tree
from jaxlean.config import build, load
from jaxlean.errors import RunError
from jaxlean.run import async_evaluation as module
from jaxlean.run.async_evaluation import SCORES, watch
from jaxlean.run.evaluations import Evaluations
from jaxlean.run.finetune import finetune
from jaxlean.run.lease import Leases
from jaxlean.run.manifest import Unreadable
from jaxlean.run.score_files import read_score
from jaxlean.run.snapshots import FOLDER, LEASE, Origin, Snapshots, read_origin, snapshot_steps, write_origin

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_machine")]

ASYNC = ("eval.mode=async", "eval.evaluators=0", "eval.eval_steps=2", "eval.snapshots=9", "train.logging_steps=1")


def lines(run: Path) -> dict[int, dict[str, Any]]:
    """What was logged of the held-out rows, by step; each once."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [{k: v for k, v in line.items() if k.startswith("eval_")} | {"step": line["step"]} for line in found]
    scores = [line for line in scores if "eval_loss" in line]
    assert len({line["step"] for line in scores}) == len(scores)
    return {line.pop("step"): line for line in scores}


@contextmanager
def watching(run: Path, num: int = 1) -> Iterator[list[BaseException]]:
    """Evaluators in threads of this process: they find what it compiled."""
    run.mkdir(parents=True, exist_ok=True)
    failed: list[BaseException] = []
    ended = threading.Event()

    def go(number: int) -> None:
        watcher = module._Watcher(run)
        watcher._name = f"{watcher._name}-{number}"
        try:
            watcher.go(until=ended.is_set)
        except BaseException as error:
            failed.append(error)
        finally:
            watcher.close()

    threads = [threading.Thread(target=go, args=(number,)) for number in range(num)]
    for thread in threads:
        thread.start()
    try:
        yield failed
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def measured(monkeypatch) -> dict[int, dict[str, Any]]:
    """What training itself measures of each state that it hands over, by step."""
    found: dict[int, dict[str, Any]] = {}
    hand_over = Snapshots.hand_over
    evaluator: list[Any] = []
    base = Evaluations.hand_over_base
    frozen_too: list[Any] = []

    def of_base(self, model, result, frozen, mesh):
        evaluator.append(self._evaluator)
        frozen_too.append(frozen)
        base(self, model, result, frozen, mesh)

    def also(self, step, trainable, *, whole=False):
        found[step] = {f"eval_{k}": v for k, v in evaluator[-1].loss(trainable, frozen_too[-1]).items()}
        hand_over(self, step, trainable, whole=whole)

    monkeypatch.setattr(Evaluations, "hand_over_base", of_base)
    monkeypatch.setattr(Snapshots, "hand_over", also)
    return found


def test_scores_are_those_of_sync_and_come_with_their_steps(tiny_run, tmp_path, capsys):
    """With new tokens, whose rows are part of what trains."""
    both = ("eval.exact_match=true", "model.new_tokens=[red house, white water]")
    how = ("eval.eval_steps=2", "train.logging_steps=1", f"output_dir={tmp_path / 'sync'}")
    sync = finetune(tiny_run(*both, *how))
    run = tmp_path / "run"
    with watching(run, num=2) as failed:
        found = finetune(tiny_run(*ASYNC, *both))
    assert failed == []
    assert lines(run) == lines(tmp_path / "sync")
    assert sorted(lines(run)) == [0, 2, 4, 6]
    assert found["eval_before"] == sync["eval_before"]
    assert found["eval_after"] == sync["eval_after"]
    assert found["evaluations"] == {"mode": "async", "scored": 4, "skipped": 0, "refused": 0, "restarted": 0}
    assert found["best_step"] == min((2, 4, 6), key=lambda step: lines(run)[step]["eval_loss"])
    assert sync["evaluations"] is None
    assert (tmp_path / "sync" / "adapter" / "adapter_model.safetensors").read_bytes() == (
        run / "adapter" / "adapter_model.safetensors"
    ).read_bytes()
    assert [entry.name for entry in (run / FOLDER).iterdir()] == ["run.json"]
    assert read_origin(run / FOLDER).finished
    for step in (0, 2, 4, 6):
        score = read_score(run / SCORES, step)
        assert score.who.startswith(f"process {os.getpid()} on ")
        assert score.seconds > 0
    assert "step 4: held-out loss" in capsys.readouterr().out


def test_what_pissa_leaves_of_a_base_is_handed_over(tiny_run, measured, tmp_path):
    run = tmp_path / "run"
    asked = ("lora.init_lora_weights=pissa", "model.quantization=int8", "train.max_steps=2")
    with watching(run) as failed:
        summary = finetune(tiny_run(*ASYNC, *asked))
    assert failed == []
    assert summary["evaluations"]["scored"] == 2
    assert lines(run) == measured
    assert not (run / FOLDER / "frozen").exists()  # it was for those who measure


def test_a_student_trains_whole(tiny_values, tiny_base, measured, tmp_path):
    """Nothing of it is in files: what does not train is handed over."""
    values = {name: value for name, value in tiny_values.items() if name not in ("lora", "model")}
    values["eval"] = {"mode": "async", "evaluators": 0, "eval_steps": 2, "snapshots": 9}
    values["train"] = values["train"] | {"max_steps": 2, "trainable": ["mlp", "norm"]}
    values["distill"] = {"teacher": str(tiny_base), "student": {"layers": [0]}, "top_k": 8}
    run = tmp_path / "student"
    with watching(run) as failed:
        finetune(build(values | {"output_dir": str(run)}))
    assert failed == []
    assert lines(run) == measured
    assert sorted(measured) == [0, 2]


def test_a_classifier(encoder, measured, tmp_path):
    rows = [{"text": f"{word} house", "label": label} for word, label in (("red", "a"), ("green", "b")) * 6]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    config = build(
        {
            "task": "classify", "model": {"path": str(encoder), "dtype": "float32"}, "output_dir": str(run),
            "data": {"train": str(file), "eval": str(file), "max_length": 16},
            "lora": {"r": 2}, "report": {"tensorboard": False},
            "train": {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1},
            "eval": {"mode": "async", "evaluators": 0, "eval_steps": 2, "snapshots": 9, "metric": "accuracy"},
        }
    )  # fmt: skip
    with watching(run) as failed:
        finetune(config)
    assert failed == []
    assert lines(run) == measured
    assert "eval_macro_f1" in measured[2]


@pytest.fixture(scope="module")
def alone(small_machine, tiny_values, tmp_path_factory) -> Path:
    """A run that nobody has watched."""
    run = tmp_path_factory.mktemp("alone") / "run"
    file = run.with_name("tiny.yaml")
    file.write_text(json.dumps(tiny_values))
    finetune(load(file, [f"output_dir={run}", *ASYNC, "eval.snapshots=1", "train.max_steps=8"]))
    return run


@pytest.fixture
def going_on(alone, tmp_path) -> Path:
    """A copy of its folder, as while it trains."""
    run = tmp_path / "copy"
    shutil.copytree(alone, run)
    write_origin(run / FOLDER, replace(read_origin(run / FOLDER), finished=False))
    return run


def until(what: Callable[[], bool], failed: list[BaseException]) -> None:
    end = time.monotonic() + 240
    while not what():
        assert time.monotonic() < end
        assert failed == []
        time.sleep(0.05)


def test_where_nobody_scores_training_does_not_wait_and_measures_its_result(alone):
    found = json.loads((alone / "summary.json").read_text())
    assert sorted(lines(alone)) == [8]
    assert found["eval_before"] is None
    assert found["eval_after"]["loss"] == lines(alone)[8]["eval_loss"]
    assert found["evaluations"] == {"mode": "async", "scored": 1, "skipped": 2, "refused": 0, "restarted": 0}
    assert found["seconds"] < 600  # eval.wait_seconds
    assert snapshot_steps(alone / FOLDER) == [0, 6]


def test_the_newest_first_and_what_is_cut_short_is_refused(going_on, capsys):
    """And what an evaluator had begun when it died is scored by the next: its lease is of a process that is gone."""
    lease = Leases(beat_seconds=1e9).take(going_on / FOLDER / "0" / LEASE)
    lease.file.write_text(lease.file.read_text().replace(f'"pid": {os.getpid()}', '"pid": 999999999'))
    file = going_on / FOLDER / "6" / "arrays.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with watching(going_on) as failed:
        until(lambda: read_score(going_on / SCORES, 0) is not None, failed)
    assert not lease.held()
    refused, scored = read_score(going_on / SCORES, 6), read_score(going_on / SCORES, 0)
    assert refused.evaluation is None
    assert refused.refused.startswith("arrays.safetensors has ")
    assert scored.evaluation["loss"] > lines(going_on)[8]["eval_loss"]
    out = capsys.readouterr().out
    assert out.index("step 6: refused: arrays.safetensors has ") < out.index("step 0: loss ")


def test_a_snapshot_of_another_run_is_refused(going_on):
    arrays = load_file(going_on / FOLDER / "6" / "arrays.safetensors")
    shutil.rmtree(going_on / FOLDER / "6")
    snapshots = Snapshots(going_on / FOLDER, waiting=1, scored=lambda step: False, resume_step=8)
    path, leaf = next(iter(arrays.items()))
    snapshots.hand_over(6, tree.unflatten({**arrays, path: leaf[..., :1]}))
    snapshots.close()
    with watching(going_on) as failed:
        until(lambda: read_score(going_on / SCORES, 6) is not None, failed)
    assert read_score(going_on / SCORES, 6).refused.startswith(f"it is of another run: {path} is ")


def test_one_that_lost_its_lease_drops_what_it_found(going_on, capsys):
    watcher = module._Watcher(going_on)
    lease = watcher._leases.take(going_on / FOLDER / "6" / LEASE)

    def taken_over(trainable, *, whole):
        lease.file.rename(lease.file.with_name("evaluation.2.lease"))
        return {"loss": 1.0}

    watcher._scorer = taken_over
    assert watcher._score(6, lease)
    assert read_score(going_on / SCORES, 6) is None
    assert "somebody else has it" in capsys.readouterr().out


def test_a_full_disk_makes_an_evaluator_wait(going_on, monkeypatch, capsys):
    watcher, write, tried = module._Watcher(going_on), module.write_score, []

    def full(folder, score):
        tried.append(score)
        if len(tried) < 3:
            raise OSError(28, "No space left on device")
        return write(folder, score)

    monkeypatch.setattr(module, "write_score", full)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.001)
    watcher._scorer = lambda trainable, whole: {"loss": 1.0}
    watcher._score(6, watcher._leases.take(going_on / FOLDER / "6" / LEASE))
    assert read_score(going_on / SCORES, 6).evaluation == {"loss": 1.0}
    assert "the score of step 6 cannot be written, and is kept until it can: [Errno 28]" in capsys.readouterr().out


ORIGIN = Origin("a1", "cpu", {"data": 1}, 1, "float32", "/somewhere", False)


@pytest.fixture
def watcher(tmp_path, monkeypatch) -> Iterator[module._Watcher]:
    """One whose scores are made up, in a folder with the snapshots of steps 10 and 20."""
    snapshots = Snapshots(tmp_path / FOLDER, waiting=9, scored=lambda step: False)
    for step in (10, 20):
        snapshots.hand_over(step, {"w": jnp.float32(step)})
        snapshots.settle()
    snapshots.close()
    write_origin(tmp_path / FOLDER, ORIGIN)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.001)
    watcher = module._Watcher(tmp_path)
    watcher._scorer, watcher._of = lambda trainable, whole: {"loss": float(trainable["w"])}, ORIGIN
    yield watcher
    watcher.close()


def test_a_snapshot_that_cannot_be_read_now_is_left_for_later(watcher, tmp_path, monkeypatch, capsys):
    read, tried = module.read_snapshot, []

    def away(folder, name):
        tried.append(name)
        if name == "20" and tried.count(name) < 3:
            raise Unreadable("complete.json is not readable ([Errno 116] Stale file handle)")
        return read(folder, name)

    monkeypatch.setattr(module, "read_snapshot", away)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 600.0)
    assert watcher._one(), "the older one is scored meanwhile"
    assert not watcher._one()
    assert tried == ["20", "10"], "not before its time"
    for _ in range(2):
        watcher._later[20] = 0.0
        watcher._one()
    assert tried == ["20", "10", "20", "20"]
    assert read_score(tmp_path / SCORES, 20).evaluation == {"loss": 20.0}
    said = "the snapshot of step 20 cannot be read now, and is looked at again: complete.json is not readable"
    assert capsys.readouterr().out.count(said) == 1


def test_what_does_not_train_is_read_when_it_can_be(watcher, tmp_path, monkeypatch, capsys):
    begun, scorer = [], watcher._scorer

    def begin(self, origin):
        begun.append(origin)
        if len(begun) < 3:
            raise Unreadable("arrays.safetensors is not readable ([Errno 5] Input/output error)")
        self._scorer = scorer

    monkeypatch.setattr(module._Watcher, "_begin", begin)
    watcher._scorer = None
    watcher.go(until=lambda: len(begun) > 3 or watcher.num == 2)
    assert read_score(tmp_path / SCORES, 10).evaluation == {"loss": 10.0}
    assert capsys.readouterr().out.count("what does not train cannot be read now") == 1


def test_an_evaluator_outlives_a_full_disk(watcher, tmp_path, monkeypatch):
    """Neither the lease that says that it is alive has room, nor a line in its log."""
    tried = []

    def full(*arguments, **_):
        tried.append(arguments)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(watcher._leases, "take", full)
        patched.setattr("builtins.print", full)
        watcher.go(until=lambda: len(tried) > 9)
    assert watcher._own is None
    watcher.go(until=lambda: watcher.num == 2)
    assert watcher._own.held()
    assert read_score(tmp_path / SCORES, 20).evaluation == {"loss": 20.0}


def test_a_folder_that_cannot_be_watched(alone, tmp_path, cli):
    with pytest.raises(RunError, match="there is no such folder to watch"):
        watch(tmp_path / "nothing")
    code, _, err = cli("evaluate", "config.yaml", "--watch", tmp_path)
    assert code == 2
    assert "--watch takes its config from the run's folder" in err
    code, _, err = cli("evaluate")
    assert code == 2
    assert "needs a config file, or --watch RUN_DIR" in err
    with pytest.raises(RunError, match="the run is finished: there is nothing to score"):
        watch(alone)
    (tmp_path / "config.yaml").write_text("eval: {mode: sync}")
    with pytest.raises(RunError, match="the run hands no snapshots over"):
        watch(tmp_path)


# ---- real processes


def test_an_evaluator_of_its_own_is_killed_and_replaced(tiny_yaml, compiled_dir, tmp_path):
    """Training, an evaluator that it starts, kill -9, another one; all leave at the end."""
    run = tmp_path / "run"
    environment = os.environ | {
        "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(compiled_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(Path(module.__file__).parents[2]),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "jaxlean", "finetune", str(tiny_yaml), *ASYNC, "eval.evaluators=1", "eval.nice=0",
        "train.max_steps=2",
    ]  # fmt: skip
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as training:
        pids: Callable[[], list[int]] = lambda: [  # noqa: E731
            int(file.name.split("-")[-1].split(".")[0]) for file in (run / FOLDER).glob("evaluator-*.1.lease")
        ]
        end = time.monotonic() + 240
        while not (run / FOLDER).is_dir() or not pids():
            assert time.monotonic() < end
            assert training.poll() is None
            time.sleep(0.02)
        (first,) = pids()
        os.kill(first, signal.SIGKILL)
        out = training.communicate(timeout=240)[0].decode()
    assert training.returncode == 0, out
    assert [file.name for file in (run / FOLDER).iterdir()] == ["run.json"]
    assert "evaluator 1 was ended by signal 9, and is started again" in out
    summary = json.loads((run / "summary.json").read_text())
    assert summary["evaluations"] == {"mode": "async", "scored": 2, "skipped": 0, "refused": 0, "restarted": 1}
    assert sorted(lines(run)) == [0, 2]
    for step in (0, 2):
        assert f"process {first} " not in read_score(run / SCORES, step).who
    with pytest.raises(ProcessLookupError):
        os.kill(int(read_score(run / SCORES, 2).who.split()[1]), 0)
