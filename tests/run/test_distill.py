"""Distillation from end to end: what is learned is what the formula says, asked at every step or once."""

import json

import numpy as np
import pytest

from jaxlean.config import build
from jaxlean.config import load as load_config
from jaxlean.errors import ConfigError, DataError, ModelError, RunError
from jaxlean.hub.load import load
from jaxlean.hub.write import write_model
from jaxlean.run import distill as module
from jaxlean.run.evaluate import evaluate
from jaxlean.run.finetune import finetune
from jaxlean.run.student import shallower
from jaxlean.run.teacher import Teacher

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_machine")]


@pytest.fixture
def distil(tiny_values, tiny_base, tmp_path):
    """`distil("distill.alpha=1")`: the config of a run whose student is the first layer of `tiny_base`."""
    values = {name: value for name, value in tiny_values.items() if name != "lora"}
    values["model"] = {"dtype": "float32"}
    values["distill"] = {"teacher": str(tiny_base), "student": {"layers": [0]}, "top_k": 8}
    file = tmp_path / "distill.yaml"
    file.write_text(json.dumps(values | {"output_dir": str(tmp_path / "run")}))
    return lambda *overrides: load_config(file, list(overrides))


def losses(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in found if "loss" in line]


def softmax(x):
    powers = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_a_run_learns_from_its_teacher_and_says_how_good_that_is(distil, tiny_base, tmp_path, capsys):
    summary = finetune(distil("cost.usd_per_hour=1"))
    run = tmp_path / "run"
    assert {entry.name for entry in run.iterdir()} == {
        "config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "model"
    }  # fmt: skip
    teacher = evaluate(distil(f"model.path={tiny_base}"))
    assert summary["eval_teacher"]["loss"] == pytest.approx(teacher["loss"], rel=1e-6)
    assert json.loads((run / "summary.json").read_text())["eval_teacher"] == summary["eval_teacher"]
    student = load(run / "model", "float32")
    assert student.config.num_layers == 1
    assert student.tokenizer.get_vocab() == load(tiny_base).tokenizer.get_vocab()
    found = evaluate(distil(f"model.path={run / 'model'}"))
    assert found["loss"] == pytest.approx(summary["eval_after"]["loss"], rel=1e-5)
    said = losses(run)
    assert said[-1] < said[0]
    out = capsys.readouterr().out
    assert "teacher" in out
    assert "the 8 likeliest tokens of each place, asked at every step" in out


def test_at_the_first_step_it_is_the_kl_of_numpy(distil, tiny_base, tmp_path):
    config = distil(
        "distill.alpha=1", "distill.top_k=2048", "distill.precision=float32", "train.max_steps=1", "data.eval=null"
    )
    loss = finetune(config)["train_loss"]
    teacher = load(tiny_base, "float32")
    student = shallower(teacher, [0])
    batches = module_batches(config, teacher)
    batch = batches[0]
    total, num = 0.0, 0
    p, q = (
        softmax(np.asarray(model(batch["tokens"], positions=batch["positions"], segments=batch["segments"])))
        for model in (teacher, student)
    )
    for row, at in zip(*np.nonzero(batch["loss_mask"][:, 1:]), strict=True):
        total += (p[row, at] * (np.log(p[row, at]) - np.log(q[row, at]))).sum()
        num += 1
    assert loss == pytest.approx(total / num, rel=1e-4)


def module_batches(config, model):
    from jaxlean.data.loader import train_batches

    steps = train_batches(config, model.tokenizer, rows_per_step=2).steps
    assert steps is not None
    return steps


def test_what_was_said_once_teaches_as_what_is_asked_for(distil, tmp_path, monkeypatch, capsys):
    finetune(distil())
    asked = losses(tmp_path / "run")
    cached = ("distill.cache=" + str(tmp_path / "said"), "distill.cache_shard=10")
    first = finetune(distil(*cached, f"output_dir={tmp_path / 'one'}"))
    np.testing.assert_allclose(losses(tmp_path / "one"), asked, rtol=2e-5)
    assert len(list((tmp_path / "said").glob("rows-*"))) == 3
    assert "asked about 24 of 24 rows" in capsys.readouterr().out

    # another seed, other packing and a student of another size: nobody looks at the teacher's weights
    monkeypatch.setattr(Teacher, "model", property(lambda self: pytest.fail("the teacher is not needed")))
    other = finetune(
        distil(
            *cached, f"output_dir={tmp_path / 'two'}", "seed=5", "data.packing=false", "distill.student.layers=[0,1]"
        )
    )
    assert other["eval_teacher"] == first["eval_teacher"]
    assert "all 12 rows are in" in capsys.readouterr().out
    with pytest.raises(RunError, match=r"of another teacher(?s:.)*: temperature"):
        finetune(distil(*cached, f"output_dir={tmp_path / 'three'}", "distill.temperature=2"))
    assert not (tmp_path / "three").exists()


def test_a_resumed_run_is_the_same_run(distil, tmp_path, monkeypatch):
    finetune(distil("train.gradient_accumulation_steps=2", "train.per_device_train_batch_size=1"))
    whole = losses(tmp_path / "run")
    config = distil(
        "train.gradient_accumulation_steps=2", "train.per_device_train_batch_size=1", f"output_dir={tmp_path / 'cut'}"
    )

    class Cut(Exception):
        pass

    ask, calls = module.Lessons.on_devices, []

    def cut(self, *arguments):
        calls.append(1)
        if len(calls) == 5:
            raise Cut
        return ask(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module.Lessons, "on_devices", cut)
        with pytest.raises(Cut):
            finetune(config)
    summary = finetune(config, resume=True)
    np.testing.assert_allclose(losses(tmp_path / "cut"), whole, rtol=1e-6)
    assert summary["eval_teacher"]["loss"] > 0


def test_a_pruned_model_is_healed_with_an_adapter_and_its_original(distil, tiny_base, tmp_path):
    write_model(shallower(load(tiny_base, "float32"), [1]), tmp_path / "pruned")
    config = distil(
        "distill.student=null", f"model.path={tmp_path / 'pruned'}", "lora.r=4", "distill.divergence=jsd",
        "distill.alpha=1",
    )  # fmt: skip
    summary = finetune(config)
    said = losses(tmp_path / "run")
    assert said[-1] < said[0]
    assert summary["num_trainable"] < summary["num_params"] / 4
    found = evaluate(config, adapter=tmp_path / "run" / "adapter")
    assert found["loss"] == pytest.approx(summary["eval_after"]["loss"], rel=1e-5)


def test_a_classifier_s_student_learns_how_likely_each_label_is(encoder, tmp_path):
    rows = [{"text": f"{thing} {n} {thing}", "label": thing} for thing in ("order", "street", "price") for n in "abcd"]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "task": "classify", "data": {"train": str(file), "eval": str(file), "max_length": 32},
        "train": {"max_steps": 16, "learning_rate": 0.01, "per_device_train_batch_size": 2, "logging_steps": 8},
        "eval": {"before": False}, "report": {"tensorboard": False},
    }  # fmt: skip
    dtype = {"dtype": "float32"}
    finetune(build(values | {"model": {"path": str(encoder), **dtype}, "output_dir": str(tmp_path / "teacher")}))
    untaught = {"distill": {"teacher": str(encoder), "student": {"layers": [0]}}, "model": dtype}
    with pytest.raises(ModelError, match="the teacher has no head for task: classify"):
        finetune(build(values | untaught | {"output_dir": str(tmp_path / "none")}))
    teacher = {"path": str(encoder), "adapter": str(tmp_path / "teacher" / "adapter")}
    section = {"teacher": teacher, "student": {"layers": [0]}, "temperature": 2.0}
    found = []
    for name, more in (("asked", {}), ("kept", {"cache": str(tmp_path / "said")})):
        run = values | {"distill": section | more, "model": dtype, "output_dir": str(tmp_path / name)}
        found.append(finetune(build(run)))
    assert found[0]["train_loss"] == pytest.approx(found[1]["train_loss"], rel=1e-4)
    assert found[0]["eval_teacher"]["accuracy"] == found[0]["eval_after"]["accuracy"] == 1.0
    student = load(tmp_path / "kept" / "model", "float32")
    assert student.hf_config["id2label"] == {"0": "order", "1": "price", "2": "street"}
    assert student.config.num_layers == 1


def test_there_is_one_student(distil, tiny_base, tmp_path):
    with pytest.raises(ConfigError, match=r"there are two students(?s:.)*model.path and distill.student"):
        finetune(distil(f"model.path={tiny_base}"))
    with pytest.raises(ConfigError, match="there is no student"):
        finetune(distil("distill.student=null"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("match", ["distill.match.attention=1", "distill.match.hidden_loss=mse"])
def test_hidden_states_and_attention_are_learned_too(distil, tmp_path, match):
    # the student's only layer is the teacher's first; it is to become like its last
    summary = finetune(distil(match, "distill.match.layers={0: 1}", "train.logging_steps=1", "train.remat=full"))
    said = losses(tmp_path / "run")
    assert said[-1] < said[0]
    assert summary["status"] == "completed"


def test_layers_to_match_that_are_not_there_are_refused(distil, tmp_path):
    with pytest.raises(ConfigError, match=r"the teacher has no such layer(?s:.)*got: +2"):
        finetune(distil("distill.match.layers={0: 2}"))
    with pytest.raises(ConfigError, match=r"the student has no such layer(?s:.)*got: +1"):
        finetune(distil("distill.match.layers={1: 1}"))
    with pytest.raises(ConfigError, match="needs the running teacher"):
        distil("distill.match.hidden=1", "distill.cache=x")
    assert not (tmp_path / "run").exists()


def test_on_policy_the_student_writes_and_the_teacher_judges(distil, tmp_path, monkeypatch):
    how = ("distill.on_policy=0.5", "distill.alpha=1", "distill.on_policy_max_new_tokens=6", "data.eval=null")
    batches, ask = [], Teacher.says

    def noted(self, batch):
        batches.append(batch)
        return ask(self, batch)

    monkeypatch.setattr(Teacher, "says", noted)
    cached = (*how, f"distill.cache={tmp_path / 'said'}")
    finetune(distil(*cached))
    written = [batch for batch in batches if batch["segments"].max() == 1]
    assert 0 < len(written) < 6, "some steps, not all"
    tokenizer = load(distil().distill.teacher.path, "float32").tokenizer
    for tokens, mask in zip(written[0]["tokens"][0], written[0]["loss_mask"][0], strict=True):
        start = int(np.flatnonzero(mask)[0])
        assert tokenizer.decode(tokens[:start]).endswith("<|im_start|>assistant\n"), "a prompt of the rows"
        assert 1 <= mask.sum() <= 7
    # the same again, and on from the middle
    whole = losses(tmp_path / "run")
    first = [batch["tokens"] for batch in written]
    batches.clear()
    finetune(distil(*cached, f"output_dir={tmp_path / 'again'}"))
    assert losses(tmp_path / "again") == whole
    second = [batch["tokens"] for batch in batches if batch["segments"].max() == 1]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_on_policy_needs_prompts(distil, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"some text {i}"}) + "\n" for i in range(4)))
    with pytest.raises(DataError, match=r"completes prompts, and a row has none(?s:.)*row 1"):
        finetune(distil("distill.on_policy=1", "distill.alpha=1", f"data.train={texts}", "data.eval=null"))
    with pytest.raises(ConfigError, match="needs task: generate, alpha: 1"):
        distil("distill.on_policy=1")
    assert not (tmp_path / "run").exists()
