"""Zeros that grow while a model is trained: an interrupted run ends where it would have ended, byte for byte."""

import json

import numpy as np
import pytest

from jaxlean import load, tree
from jaxlean.config import load as read
from jaxlean.hub.adapter import read_adapter
from jaxlean.hub.write import write_model
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

    def crashing(self, step, measured, **times):
        calls.append(step)
        if step == 4:  # after the checkpoint of step 2, before that of step 4
            raise Crash
        return add(self, step, measured, **times)

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


def test_adapters_leave_the_zeros(cli, tiny_yaml, tiny_base, tmp_path):
    base = load(tiny_base, "float32")
    half = tree.map_with_path(
        lambda path, x: np.where(np.abs(x) < np.median(np.abs(x)), 0, x) if path.endswith(".kernel") else x, base.params
    )
    write_model(base.with_params(half), tmp_path / "half")
    how = (f"model.path={tmp_path / 'half'}", "train.keep_zeros=true", "train.learning_rate=0.03")
    code, out, err = cli("finetune", tiny_yaml, *how)
    assert code == 0, err
    assert "zeros: 50.0% of the matrices, which stay zero" in out
    adapter, after = tmp_path / "run" / "adapter", json.loads((tmp_path / "run" / "summary.json").read_text())
    assert after["eval_after"]["loss"] < after["eval_before"]["loss"] - 0.05

    code, _, err = cli("merge", adapter, tmp_path / "merged")
    assert code == 0, err
    merged = tree.flatten(load(tmp_path / "merged", "float32").params)
    beside = tree.flatten(read_adapter(adapter, base.names, base.params))
    for path, leaf in tree.flatten(half).items():
        if path.endswith(".kernel"):
            a, b, scale = (
                np.asarray(beside[path.replace("kernel", f"lora_{x}")], np.float64) for x in ("a", "b", "scale")
            )
            want = leaf + np.where(leaf == 0, 0, scale[:, None, None] * (a @ b))
            np.testing.assert_allclose(merged[path], want, rtol=1e-4, atol=1e-6)
            assert (merged[path] != leaf).mean() > 0.4
    # what is measured of the merged model, and of the base with its adapter, is what the run measured
    for model in (f"model.path={tmp_path / 'merged'}", f"model.path={tmp_path / 'half'}"):
        code, out, _ = cli("evaluate", tiny_yaml, model, *([] if "merged" in model else ["--adapter", adapter]))
        assert code == 0
        assert float(out.split("loss ")[-1].split()[0]) == pytest.approx(after["eval_after"]["loss"], abs=1e-4)
    code, _, err = cli("export", tmp_path / "run", tmp_path / "peft", "--format", "peft")
    assert code == 2
    assert "PEFT would add the adapter to its base" in err
    assert not (tmp_path / "peft").exists()
