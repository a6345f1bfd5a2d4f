"""A run goes on with the base, the held-out rows and the teacher that it was started with."""

import json
import shutil
from pathlib import Path

import pytest

from jaxlean.config import load
from jaxlean.errors import Preempted, RunError
from jaxlean.run.checkpoint import Checkpoints
from jaxlean.run.finetune import finetune
from jaxlean.run.provenance import check_same

pytestmark = pytest.mark.usefixtures("small_machine")


@pytest.fixture
def begun(tiny_values, tmp_path, monkeypatch):
    """`begun(resume=True)` goes on with a run that was stopped after two steps; its files are in `tmp_path`."""
    for name in ("train", "eval"):
        shutil.copy(tiny_values["data"]["train"], tmp_path / f"{name}.jsonl")
    shutil.copytree(tiny_values["model"]["path"], tmp_path / "base")
    values = json.loads(json.dumps(tiny_values))
    values["model"]["path"] = str(tmp_path / "base")
    values["data"] |= {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl")}
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(values))
    config = load(file, [f"output_dir={tmp_path / 'run'}", "train.max_steps=3", "train.save_steps=1"])
    save = Checkpoints.save

    def stop(checkpoints, step, *arguments, **options):
        save(checkpoints, step, *arguments, **options)
        if step == 2:
            raise Preempted("here")

    with monkeypatch.context() as patched, pytest.raises(Preempted):
        patched.setattr(Checkpoints, "save", stop)
        finetune(config)
    return lambda: finetune(config, resume=True)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def test_what_has_changed_is_named(begun, tmp_path):
    rows = (tmp_path / "eval.jsonl").read_text()
    edit(tmp_path / "eval.jsonl", "red house", "blue house")
    with pytest.raises(RunError, match="the held-out rows have changed since the checkpoint") as refused:
        begun()
    assert "data.eval: 24 rows (" in refused.value.got
    assert "put back what data.eval named then" in refused.value.fix
    (tmp_path / "eval.jsonl").write_text(rows)
    flip(tmp_path / "base" / "model.safetensors")
    with pytest.raises(RunError, match="the base model has changed since the checkpoint") as refused:
        begun()
    assert "model.path: " in refused.value.got
    flip(tmp_path / "base" / "model.safetensors")
    edit(tmp_path / "train.jsonl", "red house", "blue house")
    with pytest.raises(RunError, match="the data or the batch size changed since the checkpoint"):
        begun()
    assert (tmp_path / "run" / "checkpoints" / "2" / "complete.json").exists()
    edit(tmp_path / "train.jsonl", "blue house", "red house")
    assert begun()["status"] == "completed"


def test_what_a_checkpoint_does_not_tell_is_not_compared(tmp_path):
    check_same({}, {"model.path": "a"}, tmp_path)
    check_same({"distill.teacher.path": "a"}, {}, tmp_path)
    with pytest.raises(RunError, match="the teacher has changed"):
        check_same({"distill.teacher.path": "a"}, {"distill.teacher.path": "b"}, tmp_path)
    with pytest.raises(RunError, match="the adapter that it started from has changed"):
        check_same({"lora.init_from": "a"}, {"lora.init_from": "b"}, tmp_path)
