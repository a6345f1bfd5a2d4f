"""The command line: every verb does its work, says what it can, and starts light. Errors: test_cli_errors.py."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxlean import __version__
from jaxlean.cli import _without_compilers_chatter
from jaxlean.errors import EXIT_USER_ERROR
from jaxlean.plan.target import missing, parse

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

    def generate(model, prompts, *, max_new_tokens, stop, sampling, kv_cache_dtype):
        asked.update(prompts=prompts, max_new_tokens=max_new_tokens, stop=stop, sampling=sampling, held=kv_cache_dtype)
        return [model.tokenizer(f"answer {i}")["input_ids"] for i, _ in enumerate(prompts)]

    monkeypatch.setattr("jaxlean.run.generate.generate", generate)
    drawing = ["--temperature", "0.5", "--top-k", "3", "--top-p", "0.9", "--seed", "4"]
    code, out, err = cli("generate", tiny_base, "-p", "a", "--prompt", "b", "--max-new-tokens", "7", *drawing)
    assert code == 0, err
    assert out.splitlines() == ["answer 0", "answer 1"]
    assert (asked["max_new_tokens"], len(asked["prompts"]), len(asked["stop"])) == (7, 2, 1)
    assert asked["held"] == "auto"
    how = asked["sampling"]
    assert (how.temperature, how.top_k, how.top_p, how.seed) == (0.5, 3, 0.9, 4)


def test_plan_asks_for_what_it_is_told(cli, tiny_yaml, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr("jaxlean.plan.show.plan_and_print", lambda *given, **how: asked.update(how, given=given))
    code, _, err = cli("plan", tiny_yaml, "seed=5")
    assert (code, err) == (0, "")
    config, targets = asked.pop("given")
    assert (config.seed, targets) == (5, None)
    assert asked == {"deadline_hours": None, "max_usd": None, "json": None, "every": False, "parallel": None,
                     "limit_seconds": 300}  # fmt: skip
    limits = ["--deadline-hours", "2", "--max-usd", "1.5", "--parallel", "3", "--limit", "60"]
    code, _, err = cli("plan", tiny_yaml, "--targets", "l4:8,cpu", "--json", tmp_path / "a.json", "--all", *limits)
    assert (code, err) == (0, "")
    assert asked.pop("given")[1] == ["l4:8", "cpu"]
    assert asked == {"deadline_hours": 2, "max_usd": 1.5, "json": tmp_path / "a.json", "every": True, "parallel": 3,
                     "limit_seconds": 60}  # fmt: skip


def test_what_is_said_at_the_import_of_jax_reaches_nobody_and_later_words_do(capfd):
    with pytest.raises(RuntimeError, match="later"), _without_compilers_chatter():
        os.write(2, b"Could not find cuda drivers on your machine")
        raise RuntimeError("later")
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


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


def test_a_plan_is_made_and_run(cli, tiny_yaml, tmp_path):
    """The whole way, with the compilers that are here: that of the CPU, say."""
    told = ["model.quantization=int8", "train.remat=full", "data.eval=null", "train.max_steps=2"]
    file = tmp_path / "plan.json"
    done = python("-m", "jaxlean", "plan", tiny_yaml, *told, "--targets", "cpu,l4", "--max-usd", "9", "--json", file)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "the cheapest" in done.stdout
    values = json.loads(file.read_text())
    found = {offer["row"]["target"]: offer["row"] for offer in values["offers"]}
    assert found["cpu"]["status"] == "fits"
    assert found["l4"]["status"] == ("fits" if missing(parse("l4")) is None else "bound")
    assert (found["l4"]["status"] == "bound") == ("~ bound only: the CUDA plugin" in done.stdout)
    code, out, err = cli("finetune", tiny_yaml, *told, "--plan", file)
    assert code == 0, err
    assert ("plan: made for l4, run on 1 of CPU" in out) == (values["target"] == "l4")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["predicted_memory_bytes"] > 0


def test_ctrl_c_ends_a_plan_and_its_workers(tiny_yaml, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(PLAN_WITH_A_WORKER_THAT_WAITS)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    arguments = [sys.executable, script, tmp_path / "pid", "plan", tiny_yaml, "--targets", "l4"]
    with subprocess.Popen(
        [*map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    ) as plan:  # fmt: skip
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        worker = int((tmp_path / "pid").read_text())
        plan.send_signal(signal.SIGINT)
        out, err = plan.communicate(timeout=60)
    assert plan.returncode in (1, 130)
    assert out == ""
    assert "Traceback" not in err
    wait_for(lambda: not Path(f"/proc/{worker}/cmdline").exists() or not Path(f"/proc/{worker}/cmdline").read_bytes())


# The command line in a process whose workers write down who they are and wait, while their stdin lasts. It listens to
# Ctrl-C also where these tests run in the background, where shells have it ignored.
PLAN_WITH_A_WORKER_THAT_WAITS = """#!/usr/bin/env python
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
file = sys.argv.pop(1)
if __name__ == "__main__":
    with open(file + ".worker", "w") as script:
        print(f"#!{sys.executable} -IS", "import os, time", file=script, sep="\\n")
        print(f"open({file!r}, 'w').write(str(os.getpid()))", "time.sleep(60)", file=script, sep="\\n")
    os.chmod(file + ".worker", 0o755)
    sys.executable = file + ".worker"
    from jaxlean.cli import main
    main()
"""


def wait_for(condition):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < 60
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ([], ["finetune", "pretrain", "evaluate", "generate", "merge", "inspect", "plan", "env", "--version"]),
        (["finetune"], ["LoRA", "section.key=value", "--resume", "--overwrite", "--plan", "YAML"]),
        (["plan"], ["--targets", "h100-80gb:8", "--deadline-hours", "--max-usd", "--json", "--all", "cheapest first"]),
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
