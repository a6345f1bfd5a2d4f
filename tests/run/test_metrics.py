"""metrics.jsonl, TensorBoard and Weights & Biases."""

import errno
import json
import os
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean.config import ReportSection
from jaxlean.errors import ConfigError, RunError
from jaxlean.run import metrics
from jaxlean.run.metrics import Metrics, logged_steps, to_json

PLAIN = ReportSection(tensorboard=False)


def lines(folder):
    # Strict: NaN is not JSON.
    def refuse(name):
        raise AssertionError(f"{name} in metrics.jsonl")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_log_is_a_line_at_once(tmp_path):
    out = Metrics(tmp_path / "run", PLAIN)
    out.log(10, {"step": 10, "loss": jnp.float32(1.5), "tokens": np.int64(7), "half": jnp.bfloat16(0.5), "usd": None})
    assert lines(tmp_path / "run") == [{"step": 10, "loss": 1.5, "tokens": 7, "half": 0.5, "usd": None}]
    out.log(20, {"loss": float("nan"), "grad_norm": jnp.float32(jnp.inf), "note": "odd"})
    assert lines(tmp_path / "run")[1] == {"step": 20, "loss": None, "grad_norm": None, "note": "odd"}
    out.close()
    out.close()


def test_a_resumed_run_drops_what_it_will_write_again_and_a_torn_line(tmp_path):
    out = Metrics(tmp_path, PLAIN)
    for step in (10, 20, 30):
        out.log(step, {"loss": step})
    out.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "lo')
    out = Metrics(tmp_path, PLAIN, resume_step=20)
    out.log(30, {"loss": 31})
    out.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(10, 10), (20, 20), (30, 31)]


def test_a_new_run_starts_an_empty_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    Metrics(tmp_path, PLAIN).close()
    assert lines(tmp_path) == []
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_resume_without_a_file_is_fine(tmp_path):
    Metrics(tmp_path, PLAIN, resume_step=5).close()
    assert lines(tmp_path) == []


def test_tensorboard_only_when_asked_for(tmp_path):
    Metrics(tmp_path / "off", PLAIN).close()
    assert not (tmp_path / "off" / "tensorboard").exists()
    out = Metrics(tmp_path / "on", ReportSection(tensorboard=True))
    out.log(1, {"loss": 2.0, "note": "text is left out", "usd": None})
    out.close()
    (events,) = (tmp_path / "on" / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()
    assert b"note" not in events.read_bytes()


@pytest.mark.parametrize(("key", "module"), [("wandb", "wandb"), ("tensorboard", "tensorboardX")])
def test_asked_for_but_not_installed_is_a_config_error(tmp_path, monkeypatch, key, module):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as raised:
        Metrics(tmp_path / "run", ReportSection(**{"tensorboard": False, key: True}))
    assert f"pip install {module}" in str(raised.value)
    assert f"report.{key}=false" in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_wandb_gets_the_numbers_and_a_resumed_run_its_old_id(tmp_path, monkeypatch):
    calls = []
    fake = types.ModuleType("wandb")
    run = types.SimpleNamespace(
        log=calls.append,
        finish=lambda: calls.append("finish"),
        define_metric=lambda name, step_metric: calls.append((name, step_metric)),
    )
    starts = []
    fake.init = lambda **settings: starts.append(settings) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: object())
    report = ReportSection(tensorboard=False, wandb=True, wandb_project="p", run_name="r")
    out = Metrics(tmp_path, report, config={"seed": 1})
    out.log(3, {"loss": 1.0, "note": "x"})
    out.close()
    Metrics(tmp_path, report, resume_step=3).close()
    Metrics(tmp_path, report).close()
    assert calls[:3] == [("*", "step"), {"step": 3, "loss": 1.0}, "finish"]
    assert starts[0]["project"] == "p"
    assert starts[0]["name"] == "r"
    assert starts[0]["config"] == {"seed": 1}
    assert starts[0]["id"] == starts[1]["id"] != starts[2]["id"]


def test_a_folder_that_cannot_be_written_is_a_run_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="metrics cannot be written"):
        Metrics(tmp_path / "file", PLAIN)


def test_a_full_disk_while_logging_is_a_run_error(tmp_path, monkeypatch):
    def full(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = Metrics(tmp_path, PLAIN)
    whole, out._out = out._out, types.SimpleNamespace(write=full)
    with pytest.raises(RunError, match="disk full") as raised:
        out.log(1, {"loss": 1.0})
    assert str(tmp_path / "metrics.jsonl") in str(raised.value)
    whole.close()


def test_what_json_cannot_hold_is_refused():
    assert to_json({"a": [1, (2.0, float("inf"))], "b": np.float32(1)}) == {"a": [1, [2.0, None]], "b": 1.0}
    with pytest.raises(TypeError, match="object"):
        to_json(object())


def test_a_process_that_does_not_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Metrics(None, ReportSection(tensorboard=True))
    out.log(1, {"loss": 1.0})
    out.close()
    assert os.listdir(tmp_path) == []


def test_what_was_measured_right_before_the_end_is_not_written_twice(tmp_path):
    out = Metrics(tmp_path, PLAIN)
    out.log(2, {"loss": 1.0})
    out.log(2, {"eval_loss": 3.0})  # and killed
    out.close()
    out = Metrics(tmp_path, PLAIN, resume_step=2)
    out.log(2, {"eval_loss": 3.0})
    out.log(3, {"loss": 0.5})
    out.log(3, {"loss": 0.5})  # whatever a run measures twice itself
    out.close()
    assert lines(tmp_path) == [
        {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 3.0}, {"step": 3, "loss": 0.5}, {"step": 3, "loss": 0.5},
    ]  # fmt: skip


def test_the_steps_at_which_a_number_was_logged(tmp_path):
    out = Metrics(tmp_path, PLAIN)
    for step, values in ((1, {"loss": 1.0}), (2, {"eval_loss": 1.0}), (2, {"loss": 1.0}), (4, {"eval_loss": None})):
        out.log(step, values)
    out.close()
    assert logged_steps(tmp_path / "metrics.jsonl", "eval_loss") == {2, 4}
    assert logged_steps(tmp_path / "nothing", "eval_loss") == set()
