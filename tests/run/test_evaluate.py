"""The held-out numbers: loss as numpy computes it, exact match as one would count it, each row once."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.config import LoraSection
from jaxlean.data.term_tokens import grown
from jaxlean.data.tokenize import Ragged, Tokens
from jaxlean.errors import ConfigError, DataError, ModelError, RunError
from jaxlean.hub.adapter import write_adapter
from jaxlean.hub.load import Model, load
from jaxlean.run import evaluate as module
from jaxlean.run.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("small_machine")


@pytest.fixture(scope="module")
def adapter(small_machine, tiny_base, tmp_path_factory) -> Path:
    """An adapter that changes something."""
    model, config = load(tiny_base, "float32"), LoraSection(r=3, lora_alpha=6)
    modules = lora.targets(model.params, "all-linear")
    leaves = tree.flatten(lora.add(model.params, modules, config, jax.random.key(0)))
    moved = {
        path: 0.1 * jax.random.normal(jax.random.key(i), leaf.shape) if path.endswith("lora_b") else leaf
        for i, (path, leaf) in enumerate(leaves.items())
        if ".lora_" in path
    }
    folder = tmp_path_factory.mktemp("evaluate") / "adapter"
    write_adapter(folder, model.names, tree.unflatten(moved), config, base=str(tiny_base))
    return folder


def by_hand(model: Model, rows: list[dict]) -> tuple[float, int]:
    """Mean cross entropy of the completions and their end-of-turn tokens, row by row in float64, and their number."""
    total, number = 0.0, 0
    for row in rows:
        head = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        prompt = model.tokenizer(head)["input_ids"]
        wanted = model.tokenizer(row["completion"] + "<|im_end|>")["input_ids"]
        ids = np.zeros((1, 64), np.int32)
        ids[0, : len(prompt) + len(wanted)] = prompt + wanted
        logits = np.asarray(model(ids)[0], np.float64)
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        total -= sum(logits[len(prompt) + i - 1, token] for i, token in enumerate(wanted))
        number += len(wanted)
    return total / number, number


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_loss_is_what_numpy_computes(tiny_run, tiny_rows, tiny_base, capsys):
    loss, number = by_hand(load(tiny_base, "float32"), rows_of(tiny_rows))
    for layout in (["data.packing=true"], ["data.packing=false", "eval.per_device_eval_batch_size=5"]):
        found = evaluate(tiny_run(*layout))
        assert found["loss"] == pytest.approx(loss, rel=1e-6)
        assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
        assert (found["examples"], found["tokens"]) == (24, number)
        size = sum(len(row["completion"].encode()) for row in rows_of(tiny_rows))
        assert found["bits_per_byte"] == pytest.approx(loss * number / size / math.log(2.0), rel=1e-6)
        assert "exact_match" not in found
    said = capsys.readouterr().out
    assert f"{found['loss']:,.4f}" in said
    assert "rows 24: 24 used, 0 dropped" in said


def test_bytes_are_the_same_however_a_text_is_cut(tiny_run, tiny_base):
    tokenizer = load(tiny_base, "float32").tokenizer
    text = "the red chargeback, ein Haus für € 5"
    parts = []
    for one in (tokenizer, grown(tokenizer, ["chargeback", "Haus"])):
        ids = np.array(one(text + "<|im_end|>", add_special_tokens=False)["input_ids"], np.int32)
        learned = np.ones(len(ids), bool)
        parts.append(len(ids))
        assert module.num_bytes(Ragged.of([Tokens(ids, learned, "a")] * 3), one) == 3 * len(text.encode())
    assert parts[1] < parts[0]
    assert module.num_bytes(None, tokenizer) == 0


def test_with_an_adapter(tiny_run, tiny_rows, tiny_base, adapter):
    plain = evaluate(tiny_run())["loss"]
    found = evaluate(tiny_run(), adapter=adapter)["loss"]
    assert abs(found - plain) > 0.01
    model = load(tiny_base, "float32")
    assert found == pytest.approx(by_hand(module.load_adapted(model, adapter), rows_of(tiny_rows))[0], rel=1e-6)


def test_the_host_is_split_before_there_is_a_mesh(tiny_run, monkeypatch):
    called, make_mesh = [], module.make_mesh
    monkeypatch.setattr(module, "split_host", called.append)
    monkeypatch.setattr(module, "make_mesh", lambda section: called.append("a mesh") or make_mesh(section))
    evaluate(tiny_run("mesh.host_devices=2", "eval.max_examples=1"))
    assert called == [2, "a mesh"]


def test_rows_left_out_are_told(tiny_run, capsys):
    found = evaluate(tiny_run("data.max_length=17", "data.on_long=drop"))
    assert 0 < found["examples"] < 24
    assert f"rows 24: {found['examples']} used, {24 - found['examples']} dropped" in capsys.readouterr().out


def test_only_the_first_rows(tiny_run, tiny_rows, tiny_base):
    found = evaluate(tiny_run("eval.max_examples=5"))
    loss, number = by_hand(load(tiny_base, "float32"), rows_of(tiny_rows)[:5])
    assert (found["examples"], found["tokens"]) == (5, number)
    assert found["loss"] == pytest.approx(loss, rel=1e-6)


def test_a_held_out_share_is_the_one_that_training_leaves_out(tiny_run):
    found = evaluate(tiny_run("data.eval=null", "data.eval_fraction=0.25"))
    assert found["examples"] == 6


def say(texts: list[str]):
    """A stand-in for generation that says these."""

    def generate(model, prompts, *, max_new_tokens, stop, batch_size, kv_cache_dtype):
        assert len(prompts) == len(texts)
        return [model.tokenizer(text)["input_ids"] for text in texts]

    return generate


def test_exact_match_and_the_answers(tiny_run, tiny_rows, tmp_path, monkeypatch):
    wanted = [row["completion"] for row in rows_of(tiny_rows)]
    answers = tmp_path / "answers.jsonl"
    # Blanks around an answer count for nothing; a part of it is not it, nor is another case.
    changed = [f" {wanted[0]}\n", wanted[1], wanted[2].upper(), wanted[3].split()[0], wanted[4] + " and more", ""]
    said = [*changed, *wanted[6:]]
    monkeypatch.setattr(module, "generate", say(said))
    found = evaluate(tiny_run("eval.exact_match=true"), answers=answers)
    assert found["exact_match"] == pytest.approx(20 / 24)
    written = rows_of(answers)
    assert [row["wanted"] for row in written] == wanted
    assert [row["generated"] for row in written] == [text.strip() for text in said]


def test_the_model_is_asked_as_it_was_trained(tiny_run, tiny_rows, tiny_base, monkeypatch):
    asked = {}

    def generate(model, prompts, **options):
        asked.update(options, prompts=[model.tokenizer.decode(prompt) for prompt in prompts])
        return [[] for _ in prompts]

    monkeypatch.setattr(module, "generate", generate)
    evaluate(tiny_run("eval.exact_match=true"))
    assert asked["prompts"][1] == (
        f"<|im_start|>user\n{rows_of(tiny_rows)[1]['prompt']}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert asked["max_new_tokens"] == 8
    assert asked["stop"] == [load(tiny_base).tokenizer.eos_token_id]


def test_answers_of_the_model_itself(tiny_run, tiny_base, adapter, tmp_path):
    """No stand-in: what it says is what generation gives, with the adapter."""
    answers = tmp_path / "answers.jsonl"
    found = evaluate(tiny_run("eval.max_examples=3"), adapter=adapter, answers=answers)
    assert found["exact_match"] == 0.0
    model = module.load_adapted(load(tiny_base, "float32"), adapter)
    row = rows_of(answers)[2]
    prompt = model.tokenizer("<|im_start|>user\nred order<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    stop = [model.tokenizer.eos_token_id]
    (tokens,) = module.generate(model, [prompt], max_new_tokens=8, stop=stop)
    assert row["generated"] == model.tokenizer.decode(tokens, skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["model.path=null"], ConfigError, r"model\.path is not set"),
        (["data.eval=null"], ConfigError, "no held-out data"),
        (["model.chat_template=missing.jinja"], ConfigError, "chat template cannot be read"),
        (["data.max_length=3", "data.on_long=drop"], DataError, "no held-out row is left"),
    ],
)
def test_what_cannot_be_measured(tiny_run, overrides, error, words):
    with pytest.raises(error, match=words):
        evaluate(tiny_run(*overrides))


def test_rows_without_a_completion_have_no_exact_match(tiny_run, tmp_path):
    file = tmp_path / "plain.jsonl"
    file.write_text('{"text": "The train is late."}\n')
    with pytest.raises(DataError, match="no held-out row has a prompt and a completion"):
        evaluate(tiny_run(f"data.eval={file}", "eval.exact_match=true"))


def test_answers_that_cannot_be_written_are_told_before_anything_is_loaded(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load", None)
    for place in (tmp_path / "nowhere" / "answers.jsonl", tmp_path):
        with pytest.raises(RunError, match="the file for the answers"):
            evaluate(tiny_run(), answers=place)


def test_an_adapter_of_another_base(tiny_run, tmp_path, adapter):
    with pytest.raises(ModelError, match="no such adapter folder"):
        evaluate(tiny_run(), adapter=tmp_path / "none")


def test_a_mesh_that_is_to_be_chosen_is_all_copies(tiny_run):
    assert evaluate(tiny_run("mesh=auto"))["loss"] == pytest.approx(evaluate(tiny_run())["loss"])
