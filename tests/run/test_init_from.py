"""`lora.init_from`: a run begins where the adapter on disk stands, averaged ones too; what does not fit is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.config import build
from jaxlean.errors import ConfigError, ModelError, RunError
from jaxlean.hub.adapter import read_adapter
from jaxlean.hub.adapter_file import SETTINGS, TENSORS
from jaxlean.hub.load import load
from jaxlean.run.average import average_adapters
from jaxlean.run.finetune import finetune
from jaxlean.run.init_from import with_adapter, with_start
from jaxlean.run.job import resolved

pytestmark = pytest.mark.usefixtures("small_machine")


@pytest.fixture(scope="module")
def llama(small_machine, golden):
    return load(golden / "llama_gqa", "float32")


@pytest.fixture
def party(golden, tmp_path):
    """A copy of a golden adapter of rank 8, whose files may be changed."""
    return shutil.copytree(golden / "adapters" / "llama_gqa__plain", tmp_path / "party")


def changed(folder, **settings):
    file = folder / SETTINGS
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def starting(folder, **settings):
    """The config of a run over the golden base that starts from an adapter."""
    return build({"model": {"path": "llama_gqa"}, "lora": {"init_from": str(folder)} | settings})


def begun(config, model, **how):
    """{path: leaf} of the base with the adapter."""
    how = {"trains": lora.is_adapter, "form": {}} | how
    return tree.flatten(with_adapter(with_start(config), model, model.params, **how))


def test_a_run_begins_where_a_mean_stands_and_is_resumed_from_the_same(tiny_values, tmp_path, capsys):
    values = tiny_values | {"train": tiny_values["train"] | {"max_steps": 4}}
    first = finetune(build(values | {"output_dir": str(tmp_path / "first")}))
    mean, folder = tmp_path / "mean", tmp_path / "second"
    average_adapters([tmp_path / "first"], mean, weights="tokens")  # of one, which is that one in other factors
    capsys.readouterr()
    config = build(values | {"lora": {"init_from": str(mean)}, "output_dir": str(folder)})
    second = finetune(config)
    assert f"adapter: goes on from {mean}, rank 4, alpha 8" in capsys.readouterr().out
    assert second["eval_before"]["loss"] == pytest.approx(first["eval_after"]["loss"], rel=1e-5)
    assert second["eval_before"]["loss"] < first["eval_before"]["loss"] - 0.05
    assert second["eval_after"]["loss"] < second["eval_before"]["loss"] - 0.05
    kept = json.loads((folder / "adapter" / SETTINGS).read_text())
    assert (kept["r"], kept["lora_alpha"]) == (4, 8)
    stated = yaml.safe_load((folder / "config.yaml").read_text())["lora"]
    assert {key: stated[key] for key in ("init_from", "r", "lora_alpha")} == {
        "init_from": str(mean), "r": 4, "lora_alpha": 8.0,
    }  # fmt: skip
    # as killed after step 2: its last checkpoint and what came of it are gone
    (folder / "summary.json").unlink()
    for name in ("adapter", "checkpoints/4"):
        shutil.rmtree(folder / name)
    content = (mean / TENSORS).read_bytes()
    (mean / TENSORS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RunError, match="the adapter that it started from has changed since the checkpoint") as refused:
        finetune(config, resume=True)
    assert "lora.init_from: " in refused.value.got
    assert "put back what lora.init_from named then" in refused.value.fix
    (mean / TENSORS).write_bytes(content)
    assert finetune(config, resume=True)["eval_after"] == second["eval_after"]


def test_a_head_goes_on_too(encoder, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"text": f"{w} {i}", "label": str(i % 2)} for i in range(8) for w in ("a", "the")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "task": "classify", "model": {"path": str(encoder), "dtype": "float32"},
        "data": {"train": str(file), "eval": str(file), "max_length": 16}, "report": {"tensorboard": False},
        "train": {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01, "logging_steps": 1},
    }  # fmt: skip
    first = finetune(build(values | {"lora": {"r": 2}, "output_dir": str(tmp_path / "first")}))
    on = values | {"lora": {"init_from": str(tmp_path / "first")}, "output_dir": str(tmp_path / "second"), "seed": 5}
    second = finetune(build(on))
    assert second["eval_before"] == pytest.approx(first["eval_after"], rel=1e-5)
    assert second["eval_after"]["loss"] != second["eval_before"]["loss"]
    heads = [load_file(tmp_path / name / "adapter" / TENSORS) for name in ("first", "second")]
    names = [name for name in heads[0] if "lora" not in name]
    assert names
    assert any(not np.array_equal(heads[0][name], heads[1][name]) for name in names)
    # whoever has rows of one label alone knows both from the adapter, also where the job is only planned
    one = [row for row in rows if row["label"] == "1"]
    file.write_text("".join(json.dumps(row) + "\n" for row in one))
    assert resolved(build(on)).data.labels == ["0", "1"]
    # labels stand for the head's numbers: in another order they are others
    on["data"] = values["data"] | {"labels": ["1", "0"]}
    with pytest.raises(ModelError, match=r"(?s)for other labels than data.labels.*0, 1.*1, 0"):
        with_start(build(on))


@pytest.mark.parametrize("case", ["patterns", "rslora", "one_layer", "subset", "dora"])
def test_ranks_scales_and_variants_are_those_of_the_files(golden, llama, case):
    folder = golden / "adapters" / f"llama_gqa__{case}"
    wanted = tree.flatten(read_adapter(folder, llama.names, llama.params))
    got = begun(starting(folder), llama)
    assert got.keys() == tree.flatten(llama.params).keys() | wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(got[path], leaf, err_msg=path)
    settings = with_start(starting(folder)).lora
    assert (settings.use_rslora, settings.use_dora) == (case == "rslora", case == "dora")
    # over shapes it is the same, without the base's numbers
    over = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in tree.flatten(llama.params).items()}
    config = with_start(starting(folder))
    shaped = tree.flatten(
        with_adapter(config, llama, tree.unflatten(over), trains=lora.is_adapter, form={}, shapes=True)
    )
    assert {path: x.shape for path, x in shaped.items()} == {path: x.shape for path, x in got.items()}


def test_what_was_taken_over_stays(party):
    once = with_start(starting(party))
    assert once.lora.r == json.loads((party / SETTINGS).read_text())["r"]
    assert with_start(once) == once
    assert with_start(build({})) == build({})
    same = starting(party, r=once.lora.r, lora_alpha=once.lora.lora_alpha)
    assert with_start(same).lora.r == once.lora.r


def test_settings_that_contradict_the_files(party):
    r, alpha = (json.loads((party / SETTINGS).read_text())[key] for key in ("r", "lora_alpha"))
    with pytest.raises(ConfigError) as caught:
        with_start(starting(party, r=r + 1, lora_alpha=alpha, use_dora=True))
    for text in (
        "settings that are not those of the adapter to start from", str(party), f"got:    r={r + 1}, use_dora=True",
        f"wanted: r={r}, use_dora=False", f"lora.r={r} lora.use_dora=False; or leave them out",
    ):  # fmt: skip
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": "many"}, r"(?s)none of LoRA's.*adapter_config.json.*r=many.*wanted: r, a whole number"),
        ({"lora_alpha": -1}, r"(?s)none of LoRA's.*lora_alpha=-1"),
        ({"peft_type": "IA3"}, r"(?s)starts from an adapter with LoRA matrices.*peft_type IA3.*jaxlean merge"),
        ({"trainable_token_indices": {"embed_tokens": [3]}}, r"(?s)without rows of new tokens.*\[3\]"),
    ],
)
def test_settings_that_no_run_can_start_from(party, settings, words):
    with pytest.raises(ModelError, match=words):
        with_start(starting(changed(party, **settings)))


def test_folders_without_an_adapter(party, tmp_path):
    with pytest.raises(ModelError, match=r"(?s)no such adapter folder.*nowhere.*adapter_model.safetensors"):
        with_start(starting(tmp_path / "nowhere"))
    (party / SETTINGS).write_text("{")
    with pytest.raises(ModelError, match=rf"(?s){SETTINGS}"):
        with_start(starting(party))


def test_a_damaged_file_is_named(party, llama):
    file = party / TENSORS
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ModelError, match=r"(?s)not a whole safetensors file.*adapter_model.safetensors"):
        begun(starting(party), llama)
    file.unlink()
    with pytest.raises(ModelError, match=r"(?s)an adapter file is missing.*adapter_model.safetensors"):
        begun(starting(party), llama)


def test_what_does_not_fit_the_run_is_refused(golden, party, llama):
    modules = [m.rpartition(".")[2] for m in json.loads((party / SETTINGS).read_text())["target_modules"]]
    with pytest.raises(ConfigError) as caught:
        begun(starting(party, target_modules=["q_proj"]), llama)
    for text in ("not those of the adapter to start from", str(party), "got:    layers.attention.query\n", "mlp.down"):
        assert text in str(caught.value)
    assert begun(starting(party, target_modules=modules), llama).keys() == begun(starting(party), llama).keys()
    with pytest.raises(ModelError, match=r"(?s)trained on another base.*got:    a base theirs.*wanted: llama_gqa"):
        begun(starting(changed(party, base_model_name_or_path="theirs")), llama)
    other = changed(shutil.copytree(golden / "adapters" / "gemma_mqa__plain", party.parent / "gemma"))
    with pytest.raises(ModelError, match=r"does not fit its base|the base does not have"):
        begun(starting(changed(other, base_model_name_or_path="llama_gqa")), llama)


def test_it_must_have_been_trained_in_the_same_way(party, llama):
    with pytest.raises(ConfigError) as caught:
        begun(starting(party), llama, form={"matmul": "aware", "quantization": "int8"})
    for text in ("trained over its base in another way", "got:    matmul aware, quantization int8", "wanted: as it is"):
        assert text in str(caught.value)


def test_what_the_run_would_lose_is_refused(golden):
    folder = golden / "adapters" / "bert_classify__plain"
    model = load(golden / "bert_classify", "float32", task="classify")
    config = build({"model": {"path": "bert_classify"}, "lora": {"init_from": str(folder)}})
    with pytest.raises(
        ModelError, match=r"(?s)would neither train nor write again.*classifier.scores.kernel.*jaxlean merge"
    ):
        begun(config, model)
