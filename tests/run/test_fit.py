"""auto in a run: the chosen step trains, a budget too small says what to cut next."""

import re

import jax
import pytest

from jaxlean.config import RunConfig
from jaxlean.config import load as load_config
from jaxlean.errors import ConfigError, RunError
from jaxlean.run import finetune as module
from jaxlean.run.finetune import finetune
from jaxlean.run.fit import cuts, say_cuts

pytestmark = pytest.mark.usefixtures("small_machine")

QUIET = ["eval.before=false", "data.eval=null", "train.max_steps=2", "train.save_steps=2"]


def test_a_run_with_auto_trains_the_step_that_was_chosen(tiny_run, capsys, monkeypatch):
    plain = finetune(tiny_run(*QUIET, "train.remat=none"), overwrite=True)
    chosen = []
    real = module.fit
    monkeypatch.setattr(module, "fit", lambda *a, **k: chosen.append(real(*a, **k)) or chosen[0])
    summary = finetune(tiny_run(*QUIET, "train.remat=auto", "train.memory_budget=1GB"), overwrite=True)
    assert summary["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-5)
    assert summary["compile_seconds"] >= chosen[0].seconds
    assert str(chosen[0]) in capsys.readouterr().out
    # resumed, it chooses as before
    resumed = finetune(tiny_run(*QUIET, "train.remat=auto", "train.memory_budget=1GB"), resume=True)
    assert resumed["steps"] == 2
    assert (chosen[1].policy, chosen[1].needed) == (chosen[0].policy, chosen[0].needed)


def test_a_budget_that_nothing_fits(tiny_run, tmp_path):
    config = tiny_run(*QUIET, "train.remat=auto", "train.memory_budget=100kB")
    with pytest.raises(RunError) as caught:
        finetune(config)
    found = str(caught.value)
    for words in (
        "does not fit into memory, by",
        "train.memory_budget",
        "next, in this order: model.quantization=int8",
    ):
        assert words in found
    assert re.search(
        r"train.per_device_train_batch_size=1 train.gradient_accumulation_steps=2 saves about [0-9.]+ [kM]B", found
    )
    assert not (tmp_path / "run").exists()  # known before anything is written


GB = 10**9


def advised(overrides, **sizes):
    config = load_config(None, ["data.max_length=512", "model.dtype=bfloat16", *overrides])
    sizes = {"trainable": GB, "optimizer": 2 * GB, "frozen": 0} | sizes
    devices, short = sizes.pop("devices", 1), sizes.pop("short", GB)
    return cuts(config, devices, 10 * GB, short, **sizes)


def test_cuts_of_a_full_fine_tune():
    found = dict(advised(["lora=null"], devices=4))
    assert list(found) == [
        "lora.r=16",
        "train.per_device_train_batch_size=4 train.gradient_accumulation_steps=2",
        "data.max_length=256",
        "train.optim=adamw_8bit",
        "mesh.fsdp=4",
    ]
    # float32 masters, gradients and two moments go, a bfloat16 base stays
    assert found["lora.r=16"] == 4 * GB - GB // 2
    # half of 6 GB of activations, but a second tree of gradients
    assert found["train.per_device_train_batch_size=4 train.gradient_accumulation_steps=2"] == 2 * GB
    assert found["data.max_length=256"] == 3 * GB
    assert found["train.optim=adamw_8bit"] == 2 * GB - GB // 2
    assert found["mesh.fsdp=4"] == 3 * GB


def test_rows_are_split_as_far_as_it_takes():
    def split(short, rows=8):
        overrides = ["lora=null", f"train.per_device_train_batch_size={rows}"]
        return next((s, saved) for s, saved in advised(overrides, short=short) if "batch_size" in s)

    # 6 GB of activations, less a second tree of gradients
    assert split(2 * GB) == ("train.per_device_train_batch_size=4 train.gradient_accumulation_steps=2", 2 * GB)
    assert split(3 * GB) == ("train.per_device_train_batch_size=2 train.gradient_accumulation_steps=4", 7 * GB // 2)
    assert split(9 * GB)[0] == "train.per_device_train_batch_size=1 train.gradient_accumulation_steps=8"
    # the rows of a step stay as many as they were
    assert split(GB, rows=9)[0] == "train.per_device_train_batch_size=3 train.gradient_accumulation_steps=3"


def test_cuts_of_an_adapter():
    found = advised([], trainable=GB // 100, optimizer=GB // 50, frozen=4 * GB)
    assert [setting for setting, _ in found][:2] == ["model.quantization=int8", "model.quantization=nf4"]
    saved = dict(found)
    assert saved["model.quantization=int8"] == pytest.approx(2 * GB, rel=0.02)
    assert saved["model.quantization=nf4"] == pytest.approx(3 * GB, rel=0.02)
    assert not [setting for setting in saved if setting.startswith(("lora", "mesh"))]
    quantized = [s for s, _ in advised(["model.quantization=int8"], frozen=4 * GB)]
    assert quantized[0] == "model.quantization=nf4"
    assert "quantization" not in str(advised(["model.quantization=nf4"], frozen=4 * GB))


def test_what_was_cut_already_is_not_named():
    found = advised(["train.per_device_train_batch_size=1", "train.optim=adamw_8bit", "mesh.fsdp=4"], devices=4)
    assert not [s for s, _ in found if "batch_size" in s or "8bit" in s or "fsdp" in s]
    again = dict(advised(["train.gradient_accumulation_steps=4"]))
    # there are two trees of gradients already
    assert again["train.per_device_train_batch_size=4 train.gradient_accumulation_steps=8"] == 3 * GB


def test_the_sentence():
    found = [("a=1", 2 * GB), ("b=2", 4 * GB), ("c=3", GB // 20)]
    said = "next, in this order: a=1 saves about 2.00 GB; b=2 saves about 4.00 GB"
    assert say_cuts(found, 3 * GB) == said + " (enough)"
    assert say_cuts(found, 5 * GB) == said + "; none of them is enough alone"
    assert say_cuts([], 1) == say_cuts([("c=3", 1)], GB) == "use a device with more memory"


def test_cuts_are_settings_that_there_are():
    """Each is given to the config as the message words it."""
    for overrides in (["lora=null"], []):
        for setting, _ in advised(overrides, frozen=GB, devices=4):
            assert isinstance(load_config(None, [*overrides, *setting.split()]), RunConfig)


def test_offload_is_refused_before_anything_is_read(tiny_run, tmp_path):
    assert jax.default_backend() == "cpu"
    with pytest.raises(ConfigError) as caught:
        finetune(tiny_run("train.remat={offload: [gate]}", "model.path=nowhere"))
    assert re.search("offload needs a device with a memory of its own", str(caught.value))
