"""Runs over a base in fewer bits, and with products in fewer bits: they learn, resume, and leave an adapter as ever."""

import json
from pathlib import Path

import jax
import pytest
from safetensors.numpy import load_file

from jaxlean.errors import ConfigError
from jaxlean.hub.load import load
from jaxlean.run.evaluate import evaluate
from jaxlean.run.finetune import finetune
from jaxlean.run.merge import load_adapted, merge
from jaxlean.run.meter import Meter
from jaxlean.xla.precision import EMULATE_FP8

pytestmark = pytest.mark.usefixtures("small_machine")


def adapter_of(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_it_learns_and_the_adapter_gives_what_was_measured(tiny_run, tiny_base, tmp_path, form, capsys):
    config = tiny_run(f"model.quantization={form}", "eval.exact_match=true")
    summary = finetune(config)
    run = tmp_path / "run"
    assert summary["eval_after"]["loss"] < summary["eval_before"]["loss"] - 0.1
    weights, adapter = (
        load_file(tiny_base / "model.safetensors"),
        load_file(run / "adapter" / "adapter_model.safetensors"),
    )
    # parameters are counted as the model's, in how many bits they may be held
    assert summary["num_trainable"] == sum(x.size for x in adapter.values())
    assert summary["num_params"] == summary["num_trainable"] + sum(x.size for x in weights.values())
    assert f"in {form} and float32" in capsys.readouterr().out
    found = evaluate(config, adapter=run / "adapter")
    assert found["loss"] == pytest.approx(summary["eval_after"]["loss"], rel=1e-6)
    wide = evaluate(tiny_run(), adapter=run / "adapter")
    assert 1e-6 < abs(wide["loss"] / found["loss"] - 1) < 0.2, "the base rounds"

    merge(run / "adapter", tmp_path / "merged")  # into the base as it was
    merged = load(tmp_path / "merged", "float32")
    want = load_adapted(load(tiny_base, "float32"), run / "adapter")
    tokens = [[5, 9, 700, 3]]
    assert abs(merged(tokens) - want(tokens)).max() < 1e-4 * abs(want(tokens)).max()


@pytest.mark.parametrize("form", ["int8", "nf4"])
@pytest.mark.slow
def test_interrupted_and_resumed_it_is_the_same_byte_for_byte(tiny_run, tmp_path, form, monkeypatch):
    asked = (f"model.quantization={form}", "eval.before=false")
    finetune(tiny_run(*asked, f"output_dir={tmp_path / 'whole'}"))
    config, add = tiny_run(*asked), Meter.add

    def crash(self, step, measured, **times):
        if step == 5:
            raise KeyboardInterrupt
        return add(self, step, measured, **times)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Meter, "add", crash)
        finetune(config)
    finetune(config, resume=True)
    assert adapter_of(tmp_path / "run") == adapter_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "variant",
    [
        ("model.quantization=nf4", "lora.use_dora=true"),
        ("model.quantization=int8", "model.dtype=bfloat16", "train.remat=full"),
        ("model.matmul=int8",),
        ("model.quantization=int8", "model.matmul=int8", "model.dtype=bfloat16"),
        ("model.quantization=nf4", "model.matmul=fp8"),
    ],
    ids=" ".join,
)
@pytest.mark.slow
def test_each_variant_gives_what_was_measured(tiny_run, tmp_path, variant, monkeypatch):
    monkeypatch.setenv(EMULATE_FP8, "1")
    summary = finetune(tiny_run(*variant))
    assert summary["eval_after"]["loss"] < summary["eval_before"]["loss"]
    found = evaluate(tiny_run(*variant), adapter=tmp_path / "run" / "adapter")
    assert found["loss"] == pytest.approx(summary["eval_after"]["loss"], rel=1e-3)


@pytest.mark.parametrize("form", ["int8", "nf4"])
@pytest.mark.slow
def test_pissa_starts_from_the_full_kernel_and_is_written_for_the_full_base(tiny_run, tmp_path, form):
    asked = ("lora.init_lora_weights=pissa",)
    summary = finetune(tiny_run(*asked, f"model.quantization={form}"))
    plain = finetune(tiny_run(*asked, f"output_dir={tmp_path / 'plain'}"))
    assert summary["eval_after"]["loss"] < summary["eval_before"]["loss"]
    assert summary["eval_before"]["loss"] == pytest.approx(plain["eval_before"]["loss"], rel=0.1)
    found = evaluate(tiny_run(), adapter=tmp_path / "run" / "adapter")
    # what the residual lost in rounding is not in the adapter
    assert found["loss"] == pytest.approx(summary["eval_after"]["loss"], rel=0.1)
    settings = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == 8


@pytest.mark.parametrize("asked", ["model.load_in_4bit=true", "model.quantization=int8"])
def test_a_quantized_base_does_not_train(tiny_run, tmp_path, asked):
    with pytest.raises(ConfigError) as caught:
        finetune(tiny_run(asked, "lora=null"))
    for words in ("a quantized matrix cannot train", "layers.attention.", "lora: section", "model.quantization=none"):
        assert words in str(caught.value)
    assert not (tmp_path / "run").exists()
    # norms may: they are not quantized
    finetune(tiny_run("model.quantization=none", "lora=null", "train.trainable=[norm]", "eval.before=false"))


def test_float8_needs_hardware_that_has_it(tiny_run, tmp_path, monkeypatch):
    monkeypatch.delenv(EMULATE_FP8, raising=False)
    with pytest.raises(ConfigError, match="the hardware has no float8 products"):
        finetune(tiny_run("model.matmul=fp8"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_a_mesh_changes_the_speed_not_the_result(tiny_run, tmp_path, monkeypatch, form):
    steps = (f"model.quantization={form}", "train.max_steps=3")
    one = finetune(tiny_run(*steps, "train.per_device_train_batch_size=8"))
    monkeypatch.setattr(jax, "devices", lambda *backend: jax.local_devices())
    mesh = ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "train.gradient_accumulation_steps=2")
    many = finetune(tiny_run(*steps, *mesh, "train.per_device_train_batch_size=1", f"output_dir={tmp_path / 'many'}"))
    assert (many["num_devices"], many["tokens"]) == (8, one["tokens"])
    for key in ("eval_before", "eval_after"):
        assert many[key]["loss"] == pytest.approx(one[key]["loss"], rel=1e-5)
