"""A run from end to end: what it leaves, that its numbers are true, that it learns.

Interrupting and resuming it is in test_finetune_resume.py.
"""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxlean import tree
from jaxlean.config import TrainSection, build, load
from jaxlean.errors import ConfigError, DataError, RunError, UserError
from jaxlean.hub.load import load as load_model
from jaxlean.hub.load import load_tokenizer
from jaxlean.run import finetune as module
from jaxlean.run import job as jobs
from jaxlean.run.evaluate import evaluate
from jaxlean.run.finetune import finetune
from jaxlean.train.optimizer import schedule

pytestmark = pytest.mark.usefixtures("small_machine")

KEYS = {
    *("status", "steps", "tokens", "total_tokens", "seconds", "compile_seconds", "tokens_per_second"),
    *("peak_memory_bytes", "num_params", "num_trainable", "train_loss", "eval_before", "eval_after", "usd"),
    *("predicted_memory_bytes", "measured_memory_bytes", "predicted_step_seconds", "measured_step_seconds"),
    *("device_kind", "num_devices", "versions"),
}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def counted(rows: Path, tokenizer_dir: Path) -> tuple[int, int]:
    """(completion tokens with their end, all tokens) of the rows, counted without any of our code."""
    tokenizer = load_tokenizer(str(tokenizer_dir))
    learned = total = 0
    for row in map(json.loads, rows.read_text().splitlines()):
        completion = tokenizer(row["completion"])["input_ids"]
        prompt = tokenizer(f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        learned += len(completion) + 1
        total += len(prompt) + len(completion) + 1 + len(tokenizer("\n")["input_ids"])
    return learned, total


def test_a_run_leaves_everything_and_its_numbers_are_true(tiny_run, tiny_base, tiny_rows, tmp_path, capsys):
    config = tiny_run(
        *("train.max_steps=null", "train.num_train_epochs=3", "eval.exact_match=true", "eval.eval_steps=5"),
        *("report.tensorboard=true", "cost.usd_per_hour=3.6", "train.warmup_steps=3"),
    )
    base = contents(tiny_base)
    summary = finetune(config)
    run = tmp_path / "run"

    assert {entry.name for entry in run.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "adapter", "tensorboard")
    }
    assert load(run / "config.yaml") == config
    assert {entry.name for entry in (run / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert contents(tiny_base) == base, "the base is read, never written"

    assert json.loads((run / "summary.json").read_text()) == summary
    assert set(summary) >= KEYS
    assert summary["status"] == "completed"
    learned, total = counted(tiny_rows, tiny_base)
    assert (summary["tokens"], summary["total_tokens"]) == (3 * learned, 3 * total)
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    weights = load_file(tiny_base / "model.safetensors")
    assert summary["num_trainable"] == sum(x.size for x in adapter.values())
    assert summary["num_params"] == summary["num_trainable"] + sum(x.size for x in weights.values())
    assert summary["usd"] == pytest.approx(summary["seconds"] / 1000)
    assert 0 < summary["train_seconds"] + summary["compile_seconds"] < summary["seconds"]
    assert summary["tokens_per_second"] == pytest.approx(3 * total / summary["train_seconds"])
    assert summary["peak_memory_bytes"] > 10**6
    assert 10**5 < summary["predicted_memory_bytes"] < summary["peak_memory_bytes"]
    assert sum(summary["memory_by_category"].values()) == summary["predicted_memory_bytes"]
    assert 10**5 < summary["measured_memory_bytes"] < summary["peak_memory_bytes"]
    assert summary["predicted_step_seconds"] > 0
    assert (summary["device_kind"], summary["num_devices"]) == ("cpu", 1)
    assert summary["versions"]["jax"] == jax.__version__
    before, after = summary["eval_before"], summary["eval_after"]
    assert before["loss"] > np.log(2048), "a model that knows nothing"
    assert after["loss"] < before["loss"] - 0.2
    assert after["perplexity"] == pytest.approx(np.exp(after["loss"]))
    assert (before["exact_match"], after["examples"], after["tokens"]) == (0.0, 24, learned)

    steps = summary["steps"]
    written = lines(run)
    training = [line for line in written if "loss" in line]
    assert [line["step"] for line in training] == [*range(2, steps, 2), steps]
    assert training[-1]["tokens"] == summary["tokens"]
    assert training[-1]["total_tokens"] == summary["total_tokens"]
    assert training[-1]["loss"] == summary["train_loss"]
    assert training[-1]["loss"] < training[0]["loss"]
    rate = schedule(config.train, steps)
    for line in training:
        assert line["learning_rate"] == pytest.approx(float(rate(line["step"] - 1)))
        assert line["usd"] == pytest.approx(line["seconds"] / 1000)
        assert line["grad_norm"] > 0
    assert [line["step"] for line in written if "eval_loss" in line] == [0, *range(5, steps, 5), steps]
    assert sorted(int(entry.name) for entry in (run / "checkpoints").iterdir())[-1] == steps

    text = capsys.readouterr().out
    for words in ("rows 24: 24 used, 0 dropped, 0 truncated", "held-out data: rows 24", "exact match", "cost"):
        assert words in text


def test_the_adapter_on_disk_gives_what_was_measured(tiny_run, tmp_path):
    summary = finetune(tiny_run())
    found = evaluate(tiny_run(), adapter=tmp_path / "run" / "adapter")
    assert found["loss"] == pytest.approx(summary["eval_after"]["loss"], rel=1e-6)
    settings = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (4, 8.0, "LORA")
    assert settings["base_model_name_or_path"] == tiny_run().model.path


@pytest.mark.parametrize(
    "variant",
    [
        ("lora.init_lora_weights=pissa",),
        ("lora.use_dora=true", "lora.lora_dropout=0.1"),
        ("lora.use_rslora=true", "lora.loraplus_lr_ratio=4", "lora.target_modules=[q_proj, down]"),
        ("model.dtype=bfloat16", "train.remat=full"),
    ],
    ids=["pissa", "dora and dropout", "rslora and lora+", "bfloat16 and remat"],
)
def test_each_variant_of_the_adapter_gives_what_was_measured(tiny_run, tmp_path, variant):
    summary = finetune(tiny_run(*variant))
    assert summary["eval_after"]["loss"] < summary["eval_before"]["loss"]
    found = evaluate(tiny_run(*variant), adapter=tmp_path / "run" / "adapter")
    # bfloat16 keeps 8 bits of each product; PiSSA's change is spread over twice the rank
    assert found["loss"] == pytest.approx(summary["eval_after"]["loss"], rel=1e-3 if "bfloat16" in variant[0] else 1e-5)


def test_without_lora_the_whole_model_is_written(tiny_run, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}:{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    )
    config = tiny_run("lora=null", f"model.chat_template={template}", "eval.exact_match=true")
    summary = finetune(config)
    model = tmp_path / "run" / "model"
    assert not (tmp_path / "run" / "adapter").exists()
    assert summary["num_trainable"] == summary["num_params"]
    memory = summary["memory_by_category"]
    assert (memory["frozen"], memory["trained"]) == (0, 4 * summary["num_params"])
    assert memory["optimizer"] > 2 * memory["trained"], "two moments, and counts"
    # Loaded without naming the template: it went with the model.
    found = evaluate(tiny_run("lora=null", f"model.path={model}"))
    assert found["loss"] == pytest.approx(summary["eval_after"]["loss"], rel=1e-6)
    assert load_tokenizer(str(model)).chat_template == template.read_text()
    finetune(config, resume=True)  # of a run that is complete: the model is there already
    assert evaluate(tiny_run(f"model.path={model}"))["loss"] == found["loss"]


def test_save_dtype(tiny_run, tmp_path):
    finetune(tiny_run("lora=null", "model.save_dtype=bfloat16", "train.max_steps=1", "data.eval=null"))
    tensors = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {x.dtype.name for x in tensors.values()} == {"bfloat16"}
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("rules", "trains"),
    [
        (["norm"], lambda path: "norm" in path),
        ([r"^layers\.mlp\.", r"query\.kernel$"], lambda path: ".mlp." in path or "query" in path),
    ],
)
def test_only_what_the_rules_say_trains(tiny_run, tiny_base, tmp_path, rules, trains):
    summary = finetune(tiny_run("lora=null", f"train.trainable={json.dumps(rules)}", "train.max_steps=2"))
    before = tree.flatten(load_model(tiny_base, "float32").params)
    after = tree.flatten(load_model(tmp_path / "run" / "model", "float32").params)
    chosen = {path for path in before if trains(path)}
    assert {path for path in before if not np.array_equal(before[path], after[path])} == chosen
    assert summary["num_trainable"] == sum(before[path].size for path in chosen) < summary["num_params"]


def test_a_rule_that_matches_nothing_writes_nothing(tiny_run, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.trainable: a rule matched no parameter"):
        finetune(tiny_run("lora=null", "train.trainable=[norm, lastlayer]"))
    with pytest.raises(ConfigError, match=r"lora\.target_modules"):
        finetune(tiny_run("lora.target_modules=[q_prj]"))
    assert not (tmp_path / "run").exists()


def architecture(tiny_base: Path, **changes) -> str:
    wanted = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    given = json.loads((tiny_base / "config.json").read_text())
    return json.dumps({key: given[key] for key in (*wanted, "num_attention_heads", "num_key_value_heads")} | changes)


def test_pretraining_starts_from_an_architecture(tiny_run, tiny_base, tmp_path):
    start = (f"model.architecture={architecture(tiny_base)}", "model.path=null", f"model.tokenizer={tiny_base}")
    summary = finetune(tiny_run(*start, "lora=null", "data.train_on=all", "eval.before=false"))
    assert summary["eval_before"] is None
    assert summary["eval_after"]["loss"] < np.log(2048)
    model = tmp_path / "run" / "model"
    tokenizer = load_tokenizer(str(model))
    written = json.loads((model / "config.json").read_text())
    assert written["eos_token_id"] == tokenizer.eos_token_id, "the tokenizer's, not the family's default"
    assert written["architectures"] == ["LlamaForCausalLM"]
    found = evaluate(tiny_run(f"model.path={model}", "data.train_on=all"))
    assert found["loss"] == pytest.approx(summary["eval_after"]["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lora=null"], "starts from zero"),
        (["model.path=null"], "starts from zero"),
        (["lora=null", "model.path=null"], "needs a tokenizer"),
    ],
)
def test_pretraining_says_what_is_missing(tiny_run, tiny_base, overrides, words):
    with pytest.raises(ConfigError, match=words):
        finetune(tiny_run(f"model.architecture={architecture(tiny_base)}", *overrides))


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [("lora=null", "train.learning_rate=0.01"), ("lora.r=16", "lora.lora_alpha=32", "train.learning_rate=0.02")]
)
def test_it_learns_its_rows_by_heart(tiny_run, tmp_path, how):
    words = "red green blue white house train order street price water table paper".split()
    rows = [{"prompt": word, "completion": f"{words[-i]} {words[5 - i]}"} for i, word in enumerate(words)]
    file = tmp_path / "twelve.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = ("train.max_steps=100", "train.per_device_train_batch_size=4", "train.logging_steps=20")
    data = (f"data.train={file}", f"data.eval={file}", "eval.exact_match=true")
    summary = finetune(tiny_run(*data, *steps, *how, "train.save_steps=100"))
    assert summary["eval_before"]["exact_match"] == 0.0
    assert summary["eval_after"]["exact_match"] == 1.0
    assert summary["eval_after"]["loss"] < 0.1


def test_streaming_counts_what_it_read(tiny_run, tmp_path, capsys):
    summary = finetune(tiny_run("data.streaming=true", "train.max_steps=4", "data.on_long=drop", "data.eval=null"))
    assert (summary["steps"], summary["eval_before"], summary["eval_after"]) == (4, None, None)
    training = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert summary["tokens"] == training[-1]["tokens"] > 0
    text = capsys.readouterr().out
    *_, last = [line for line in text.splitlines() if "streamed so far" in line]
    assert "rows 0:" not in last
    assert "0 dropped" in last


def test_a_share_of_the_rows_is_held_out(tiny_run):
    summary = finetune(tiny_run("data.eval=null", "data.eval_fraction=0.25", "train.max_steps=1"))
    assert summary["eval_after"]["examples"] == 6


def test_the_step_compiles_once(tiny_run, monkeypatch):
    compiled = []
    make_step = jobs.make_step

    def counting(*args, **options):
        step = make_step(*args, **options)
        compiled.append(step)
        return step

    monkeypatch.setattr(jobs, "make_step", counting)
    finetune(tiny_run("eval.eval_steps=1"))
    (step,) = compiled
    assert step._cache_size() == 0, "compiled ahead, and called as compiled"


def test_z_loss_and_label_smoothing_are_trained_on_but_not_evaluated(tiny_run, tmp_path):
    plain = finetune(tiny_run("train.max_steps=1"))
    terms = ("train.z_loss=0.1", "train.label_smoothing_factor=0.1", f"output_dir={tmp_path / 'terms'}")
    more = finetune(tiny_run("train.max_steps=1", *terms))
    assert more["train_loss"] > plain["train_loss"] + 0.1
    assert more["eval_before"] == plain["eval_before"]


@pytest.mark.slow
def test_a_mesh_changes_the_speed_not_the_result(tiny_run, tmp_path, monkeypatch, small_machine):
    one = finetune(tiny_run("train.per_device_train_batch_size=8", "train.max_steps=3"))
    monkeypatch.setattr(jax, "devices", lambda *backend: jax.local_devices())
    mesh = ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "train.gradient_accumulation_steps=2")
    many = finetune(
        tiny_run(*mesh, "train.per_device_train_batch_size=1", "train.max_steps=3", f"output_dir={tmp_path / 'many'}")
    )
    assert many["num_devices"] == 8
    assert many["tokens"] == one["tokens"]
    for key in ("eval_before", "eval_after"):
        assert many[key]["loss"] == pytest.approx(one[key]["loss"], rel=1e-5)


def test_a_learning_rate_that_breaks_the_loss_stops_there(tiny_run, tmp_path):
    steps = ("train.save_steps=4", "train.max_steps=40")
    with pytest.raises(RunError) as raised:
        finetune(tiny_run("train.learning_rate=1e30", "train.max_grad_norm=null", *steps))
    for words in ("not a number at step 2", "train.learning_rate", "train.max_grad_norm"):
        assert words in str(raised.value)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("diverged", 1)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert not (tmp_path / "run" / "adapter").exists()


def test_an_error_of_the_data_in_the_middle_of_a_stream(tiny_run, tiny_rows, tmp_path):
    rows = tmp_path / "spoilt.jsonl"
    rows.write_text(tiny_rows.read_text() * 4 + '{"prompt": "a"')
    stream = ("data.eval=null", "data.streaming=true", "data.packing=false", "data.shuffle=false")
    with pytest.raises(DataError, match=rf"{rows}:97"):
        finetune(tiny_run(f"data.train={rows}", *stream, "train.max_steps=60"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("data", "model", "words"),
    [
        ({}, {}, r"data\.train is not set"),
        ({"train": "rows.jsonl"}, {}, r"model\.path is not set"),
        ({"train": "rows.jsonl"}, {"path": "x", "chat_template": "no.jinja"}, r"model\.chat_template=no"),
    ],
)
def test_what_a_run_needs(data, model, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        finetune(build({"data": data, "model": model, "report": {"tensorboard": False}}))
    assert list(tmp_path.iterdir()) == []


def test_defaults_save_ten_times(tiny_run, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(module.Checkpoints, "save", lambda self, step, *rest, **options: saved.append(step))
    finetune(tiny_run("train.save_steps=null", "train.max_steps=20", "data.eval=null"))
    assert saved == list(range(2, 21, 2))
    assert TrainSection().save_steps is None
