"""Verbs that train, from the command line."""

import json

import pytest

from jaxlean.errors import EXIT_USER_ERROR

pytestmark = pytest.mark.usefixtures("small_machine")


def test_the_verbs_one_after_the_other(cli, tiny_yaml, tiny_base, tmp_path):
    run = tmp_path / "run"
    code, out, err = cli("finetune", tiny_yaml, "train.max_steps=2")
    assert code == 0, err
    assert "adapter" in out
    code, _, err = cli("finetune", tiny_yaml, "train.max_steps=2", "--overwrite")
    assert code == 0, err
    code, out, err = cli("finetune", tiny_yaml, "train.max_steps=2", "--resume")
    assert code == 0, err
    assert "resumed at step 2 of 2" in out
    adapter, answers = run / "adapter", tmp_path / "answers.jsonl"
    code, out, err = cli("evaluate", tiny_yaml, "--adapter", adapter, "--answers", answers, "eval.max_examples=2")
    assert code == 0, err
    for word in ("loss", "perplexity", "exact_match"):
        assert word in out
    assert len(answers.read_text().splitlines()) == 2
    code, out, err = cli("generate", tiny_base, "--adapter", adapter, "-p", "red house", "--max-new-tokens", "3")
    assert code == 0, err
    code, out, err = cli("merge", adapter, tmp_path / "merged")
    assert code == 0, err
    assert str(tmp_path / "merged") in out
    assert (tmp_path / "merged" / "model.safetensors").exists()
    code, out, err = cli("inspect", tiny_yaml, "-n", "1")
    assert code == 0, err
    assert "red house" in out
    assert "24 rows" in out


def test_pretrain(cli, tiny_yaml, tiny_base, tmp_path):
    keys = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    written = json.loads((tiny_base / "config.json").read_text())
    given = {key: written[key] for key in keys}
    start = [f"model.architecture={json.dumps(given)}", f"model.tokenizer={tiny_base}", "model.path=null", "lora=null"]
    code, _, err = cli("pretrain", tiny_yaml, *start, "train.max_steps=1", "data.eval=null")
    assert code == 0, err
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_mesh_is_chosen_only_for_a_run_that_has_a_folder(cli, tiny_yaml, tmp_path, monkeypatch):
    def chosen(config):
        raise AssertionError("minutes of compiling")

    monkeypatch.setattr("jaxlean.plan.local.choose_mesh", chosen)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    code, _, err = cli("finetune", tiny_yaml, "mesh=auto")
    assert code == EXIT_USER_ERROR
    assert "already holds a run" in err
