"""What all verbs have in common: help that answers at once, the version, a quiet start."""

import os

import pytest

from jaxlean import __version__
from jaxlean.cli.app import without_compilers_chatter

HEAVY = {"jax", "flax", "optax", "orbax", "transformers", "datasets", "grain", "pydantic", "numpy", "safetensors"}


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


def test_what_is_said_at_the_import_of_jax_reaches_nobody_and_later_words_do(capfd):
    with pytest.raises(RuntimeError, match="later"), without_compilers_chatter():
        os.write(2, b"Could not find cuda drivers on your machine")
        raise RuntimeError("later")
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_help_imports_nothing_heavy(python):
    done = python("-X", "importtime", "-m", "jaxlean", "--help")
    assert done.returncode == 0
    assert "finetune" in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported, "the list is read from -X importtime"
    assert imported.isdisjoint(HEAVY)
