"""Zeros that grow while a model is trained: an interrupted run ends where it would have ended, byte for byte."""

import json

import numpy as np
import pytest

from jaxlean import load, tree
from jaxlean.config import load as read
from jaxlean.run.finetune import finetune
from jaxlean.run.meter import Meter

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_machine")]

GROWING = (
    *("lora=null", "train.max_steps=6", "train.save_steps=2", "eval.before=false", "train.pruning.frequency=2"),
    *("train.pruning.final_sparsity=0.6", "train.pruning.end_step=4"),
)


class Crash(BaseException):
    """The process is gone: no handler of a run knows it."""


def test_resumed_it_is_the_same_model(tiny_yaml, tmp_path, monkeypatch):
    finetune(read(tiny_yaml, [*GROWING, f"output_dir={tmp_path / 'whole'}"]))
    add, calls = Meter.add, []

    def crashing(self, step, measured):
        calls.append(step)
        if step == 4:  # after the checkpoint of step 2, before that of step 4
            raise Crash
        return add(self, step, measured)

    config = read(tiny_yaml, [*GROWING, f"output_dir={tmp_path / 'cut'}"])
    with monkeypatch.context() as patched:
        patched.setattr(Meter, "add", crashing)
        with pytest.raises(Crash):
            finetune(config)
    finetune(config, resume=True)
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    for path, leaf in tree.flatten(load(tmp_path / "cut" / "model", "float32").params).items():
        if path.endswith(".kernel"):
            share = (np.asarray(leaf) == 0).mean(axis=(1, 2))
            np.testing.assert_allclose(share, 0.6, atol=0.5 / leaf[0].size)
    assert json.loads((tmp_path / "cut" / "summary.json").read_text())["status"] == "completed"


def test_a_base_without_zeros_is_refused(cli, tiny_yaml, tmp_path):
    code, _, err = cli("finetune", tiny_yaml, "lora=null", "train.keep_zeros=true")
    assert code == 2
    assert "have no zeros" in err
    assert not (tmp_path / "run").exists()
