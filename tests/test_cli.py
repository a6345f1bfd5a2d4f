"""The command line: every verb does its work, says what it can, and starts light. Errors: test_cli_errors.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlean import __version__
from jaxlean.errors import EXIT_USER_ERROR

ROOT = Path(__file__).parent.parent
HEAVY = {"jax", "flax", "optax", "orbax", "transformers", "datasets", "grain", "pydantic", "numpy", "safetensors"}

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


def test_generate_prints_a_completion_for_each_prompt(cli, tiny_base, monkeypatch):
    asked = {}

    def generate(model, prompts, *, max_new_tokens, stop, sampling):
        asked.update(prompts=prompts, max_new_tokens=max_new_tokens, stop=stop, sampling=sampling)
        return [model.tokenizer(f"answer {i}")["input_ids"] for i, _ in enumerate(prompts)]

    monkeypatch.setattr("jaxlean.run.generate.generate", generate)
    drawing = ["--temperature", "0.5", "--top-k", "3", "--top-p", "0.9", "--seed", "4"]
    code, out, err = cli("generate", tiny_base, "-p", "a", "--prompt", "b", "--max-new-tokens", "7", *drawing)
    assert code == 0, err
    assert out.splitlines() == ["answer 0", "answer 1"]
    assert (asked["max_new_tokens"], len(asked["prompts"]), len(asked["stop"])) == (7, 2, 1)
    how = asked["sampling"]
    assert (how.temperature, how.top_k, how.top_p, how.seed) == (0.5, 3, 0.9, 4)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ([], ["finetune", "pretrain", "evaluate", "generate", "merge", "inspect", "env", "--version"]),
        (["finetune"], ["LoRA", "section.key=value", "--resume", "--overwrite", "YAML"]),
        (["pretrain"], ["from zero", "model.architecture", "--resume"]),
        (["evaluate"], ["perplexity", "--adapter", "--answers"]),
        (["generate"], ["--prompt", "--temperature", "--top-k", "--top-p", "--seed", "--system", "--max-new-tokens"]),
        (["merge"], ["adapter", "--base", "--dtype"]),
        (["inspect"], ["--examples", "packing"]),
        (["env"], ["bug reports"]),
    ],
)
def test_help(cli, verb, words):
    code, out, _ = cli(*verb, "--help")
    assert code == 0
    for word in words:
        assert word in out


def test_version(cli):
    assert cli("--version")[:2] == (0, f"jaxlean {__version__}\n")


# ---- real processes


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_help_imports_nothing_heavy():
    done = python("-X", "importtime", "-m", "jaxlean", "--help")
    assert done.returncode == 0
    assert "finetune" in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported, "the list is read from -X importtime"
    assert imported.isdisjoint(HEAVY)


def test_a_process_tells_it_too(tmp_path):
    done = python("-m", "jaxlean", "finetune", tmp_path / "none.yaml")
    assert done.returncode == EXIT_USER_ERROR
    assert done.stdout == ""
    assert done.stderr.startswith("error: no such config file")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_process_tells_what_comes_after_the_imports(tiny_yaml, tmp_path):
    done = python("-m", "jaxlean", "finetune", tiny_yaml, "lora.r=100")
    assert done.returncode == EXIT_USER_ERROR
    assert "error: lora.r exceeds the matrix" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_env():
    done = python("-m", "jaxlean", "env")
    assert done.returncode == 0, done.stderr
    for word in ("jax ", "transformers", "devices", "cpu", "memory"):
        assert word in done.stdout
