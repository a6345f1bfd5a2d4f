"""What goes wrong on the command line is told in a few lines with exit code 2, and leaves nothing half-written."""

import errno
import hashlib
import json
import os
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlean.cli import main
from jaxlean.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, Preempted

pytestmark = pytest.mark.usefixtures("small_machine")


class Case:
    """The files that a case prepares for its command."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, config: Path, base: Path):
        self.monkeypatch, self.folder, self.config, self.base = monkeypatch, folder, config, base
        self.run = folder / "run"

    def write(self, name: str, text: str) -> Path:
        (self.folder / name).write_text(text)
        return self.folder / name

    def jsonl(self, name: str, *rows: dict[str, Any]) -> Path:
        return self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def model(self, change: Callable[[Path], object]) -> Path:
        """A copy of the base with something about it changed."""
        folder = self.folder / "model"
        shutil.copytree(self.base, folder)
        change(folder)
        return folder

    def tensors(self, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
        def rewrite(folder: Path) -> None:
            tensors = load_file(folder / "model.safetensors")
            change(tensors)
            save_file(tensors, folder / "model.safetensors")

        return self.model(rewrite)

    def setting(self, file: str, **values: Any) -> Path:
        def rewrite(folder: Path) -> None:
            old = json.loads((folder / file).read_text())
            (folder / file).write_text(json.dumps(old | values))

        return self.model(rewrite)

    def adapter(self, width: int = 32) -> Path:
        """A PEFT adapter that does nothing, for a base of this width."""
        folder = self.folder / "adapter"
        folder.mkdir()
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(self.base)}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
        a, b = np.ones((2, width), np.float32), np.zeros((width, 2), np.float32)
        pairs = {name.format(layer, side): x for layer in (0, 1) for side, x in (("A", a), ("B", b))}
        save_file(pairs, folder / "adapter_model.safetensors")
        return folder


@pytest.fixture
def case(monkeypatch, tmp_path, tiny_yaml, tiny_base) -> Case:
    return Case(monkeypatch, tmp_path, tiny_yaml, tiny_base)


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder with what is in it."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def spoil_last_row(c: Case) -> Path:
    return c.write("spoilt.jsonl", '{"prompt": "a", "completion": "b"}\n\n{"prompt": "a", "completion"\n')


def old_run(c: Case) -> None:
    c.run.mkdir()
    (c.run / "config.yaml").write_text(c.config.read_text())
    (c.run / "summary.json").write_text("{}")


def file_in_the_way(c: Case) -> str:
    c.run.write_text("mine")
    return f"output_dir={c.run / 'deep'}"


def little_space(c: Case) -> str:
    c.monkeypatch.setattr(shutil, "disk_usage", lambda place: types.SimpleNamespace(free=1000))
    return "train.max_steps=1"


def messages(c: Case) -> str:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    return f"data.train={c.jsonl('chat.jsonl', row)}"


def without_template(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def small_vocabulary(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    save_file(tensors | {name: tensors[name][:64].copy()}, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"vocab_size": 64}))


def without_tokenizer(folder: Path) -> None:
    for file in [*folder.glob("tokenizer*"), *folder.glob("*.jinja")]:
        file.unlink()


NORM = "model.layers.1.input_layernorm.weight"

PLAN = {"format": 1, "target": "h100-80gb:8", "settings": {"mesh.data": 8}}

# What is wrong -> (the arguments behind `jaxlean finetune CONFIG`, words of the message: what, where, the fix).
FINETUNE: dict[str, tuple[Callable[[Case], list[Any]], list[str]]] = {
    "no model folder": (
        lambda c: [f"model.path={c.folder / 'gone'}"],
        ["no such model folder", "gone", "config.json", "Hugging Face id"],
    ),
    "no model": (lambda c: ["model.path=null"], ["model.path is not set", "model.path=<folder"]),
    "no data": (lambda c: ["data.train=null"], ["data.train is not set", "data.train=FILE"]),
    "no data file": (
        lambda c: [c.jsonl("rows.jsonl") and f"data.train={c.folder / 'row.jsonl'}"],
        ["no such file or folder", "row.jsonl", "did you mean 'rows.jsonl'?"],
    ),
    "a misspelt key": (
        lambda c: ["train.lerning_rate=1"],
        ["unknown key: train.lerning_rate", "where:  train.lerning_rate=1\n", "did you mean 'learning_rate'?"],
    ),
    "a misspelt section": (lambda c: ["trian.lr=1"], ["unknown key: trian", "did you mean 'train'?"]),
    "a wrong value": (lambda c: ["train.learning_rate=fast"], ["train.learning_rate", "number", "'fast'"]),
    "an impossible value": (lambda c: ["lora.r=0"], ["lora.r", "greater than 0"]),
    "settings that exclude each other": (lambda c: ["train.trainable=[norm]"], ["train.trainable needs lora: null"]),
    "no override": (lambda c: ["train.max_steps"], ["section.key=value", "train.max_steps"]),
    "a family that is not supported": (
        lambda c: [f"model.path={c.setting('config.json', model_type='falcon')}"],
        ["'falcon' is not supported", "config.json", "llama, mistral, ", "Add a family"],
    ),
    "a config that is not JSON": (
        lambda c: [f"model.path={c.model(lambda folder: (folder / 'config.json').write_text('{'))}"],
        ["not valid JSON", "config.json"],
    ),
    "a tensor missing": (
        lambda c: [f"model.path={c.tensors(lambda t: t.pop(NORM))}"],
        [f"a tensor is missing: {NORM}", "model"],
    ),
    "a tensor too many": (
        lambda c: [f"model.path={c.tensors(lambda t: t.update({'model.layers.1.extra.weight': t[NORM]}))}"],
        ["does not have: model.layers.1.extra.weight", "model.safetensors"],
    ),
    "a tensor of another shape": (
        lambda c: [f"model.path={c.tensors(lambda t: t.update({NORM: t[NORM][:5].copy()}))}"],
        [f"wrong shape: {NORM}", "(5,)", "(32,)", "model.safetensors"],
    ),
    "weights cut short": (
        lambda c: [f"model.path={c.model(lambda f: os.truncate(f / 'model.safetensors', 5000))}"],
        ["not a whole safetensors file", "model.safetensors", "download it again"],
    ),
    "no tokenizer": (
        lambda c: [f"model.path={c.model(without_tokenizer)}"],
        ["no tokenizer that can be read", "model.tokenizer"],
    ),
    "messages without a chat template": (
        lambda c: [messages(c), "data.eval=null", f"model.path={c.model(without_template)}"],
        ["messages need a chat template", "model.chat_template"],
    ),
    "no such chat template": (
        lambda c: ["model.chat_template=none.jinja"],
        ["the chat template cannot be read", "model.chat_template=none.jinja", "No such file"],
    ),
    "an empty dataset": (lambda c: [f"data.train={c.jsonl('empty.jsonl')}"], ["the dataset is empty", "empty.jsonl"]),
    "malformed JSON": (lambda c: [f"data.train={spoil_last_row(c)}"], ["malformed JSON", "spoilt.jsonl:3", "column"]),
    "malformed held-out JSON": (lambda c: [f"data.eval={spoil_last_row(c)}"], ["malformed JSON", "spoilt.jsonl:3"]),
    "no completion": (
        lambda c: [f"data.train={c.jsonl('a.jsonl', {'prompt': 'a', 'completion': ' '})}", "data.eval=null"],
        ["the completion is empty", "a.jsonl:1", "fill or remove the row"],
    ),
    "columns of no shape": (lambda c: [f"data.train={c.jsonl('a.jsonl', {'question': 'a'})}"], ["a.jsonl", "question"]),
    "a row too long": (
        lambda c: ["data.max_length=10"],
        ["longer than data.max_length", "rows.jsonl:1", "at most 10", "truncate or drop"],
    ),
    "a token beyond the vocabulary": (
        lambda c: [f"model.path={c.model(small_vocabulary)}"],
        ["a token id beyond the model's vocabulary", "rows.jsonl:1", "ids below 64", "tokenizer that belongs"],
    ),
    "a module that is not there": (
        lambda c: ["lora.target_modules=[q_prj]"],
        ["lora.target_modules", "'q_prj'", "did you mean 'q_proj'?"],
    ),
    "an unknown remat policy": (lambda c: ["train.remat=ful"], ["train.remat", "ful", "did you mean 'full'?"]),
    "a mesh that does not fit": (lambda c: ["mesh.tensor=3"], ["mesh", "1 devices", "-1"]),
    "an output folder with a run": (
        lambda c: [old_run(c) or "seed=1"],
        ["already holds a run", "--resume", "--overwrite", "output_dir="],
    ),
    "both flags": (lambda c: ["--resume", "--overwrite"], ["--resume and --overwrite exclude each other"]),
    "resume with another config": (
        lambda c: [old_run(c) or "seed=1", "--resume"],
        ["--resume with another seed", "run", "0, as the run was started", "--overwrite"],
    ),
    "an output folder under a file": (lambda c: [file_in_the_way(c)], ["output_dir lies under a file", "run"]),
    "an output folder that is a file": (
        lambda c: [file_in_the_way(c) and f"output_dir={c.run}"],
        ["output_dir is a file", "output_dir=..."],
    ),
    "no disk space": (lambda c: [little_space(c)], ["no disk space", "run", "MB free", "train.save_total_limit"]),
    "no hardware table": (lambda c: ["cost.hardware=none.yaml"], ["no such hardware table", "cost.hardware=none.yaml"]),
    "no plan": (
        lambda c: ["--plan", c.folder / "none.json"],
        ["no such plan", "none.json", "jaxlean plan CONFIG --json"],
    ),
    "a plan that is none": (
        lambda c: ["--plan", c.jsonl("a.json", {"a": 1})],
        ["not a plan of this jaxlean", "a.json"],
    ),
    "a plan for other devices": (
        lambda c: ["--plan", c.jsonl("a.json", PLAN)],
        ["another number of devices", "1 of CPU", "h100-80gb:8", "--targets cpu:1"],
    ),
    "wandb that is not installed": (lambda c: ["report.wandb=true"], ["pip install wandb", "report.wandb=false"]),
}


def assert_told(result: tuple[int, str, str], words: list[str]) -> None:
    code, _, err = result
    assert code == EXIT_USER_ERROR, err
    assert err.startswith("error: ")
    for word in words:
        assert word in err, err
    assert "Traceback" not in err
    assert len(err.splitlines()) < 12


@pytest.mark.parametrize("wrong", FINETUNE)
def test_finetune_tells_what_is_wrong_and_leaves_nothing(cli, case, wrong):
    prepare, words = FINETUNE[wrong]
    arguments = prepare(case)
    before = contents(case.folder)
    assert_told(cli("finetune", case.config, *arguments), words)
    assert contents(case.folder) == before


# What is wrong -> (all arguments, words).
OTHERS: dict[str, tuple[Callable[[Case], list[Any]], list[str]]] = {
    "no config file": (
        lambda c: ["finetune", c.folder / "none.yaml"],
        ["no such config file", "none.yaml", "configs/ holds examples"],
    ),
    "a config that is not YAML": (
        lambda c: ["finetune", c.write("bad.yaml", "model:\n  path: x\n train: [1\n")],
        ["not valid YAML", "bad.yaml:3"],
    ),
    "a config that is a list": (lambda c: ["inspect", c.write("bad.yaml", "- a\n")], ["mapping of sections", "list"]),
    "pretrain without an architecture": (
        lambda c: ["pretrain", c.config],
        ["model.architecture is not set", "tiny.yaml", "configs/pretrain_tiny.yaml"],
    ),
    "evaluate without held-out data": (
        lambda c: ["evaluate", c.config, "data.eval=null"],
        ["no held-out data", "data.eval", "data.eval_fraction"],
    ),
    "evaluate with an adapter that is not there": (
        lambda c: ["evaluate", c.config, "--adapter", c.folder / "none"],
        ["no such adapter folder", "none", "adapter_config.json"],
    ),
    "evaluate with an adapter of another base": (
        lambda c: ["evaluate", c.config, "--adapter", c.adapter(width=48)],
        ["does not fit its base: model.layers.0.self_attn.q_proj", "lora_A (2, 48)", "lora_A (2, 32)"],
    ),
    "evaluate with answers to nowhere": (
        lambda c: ["evaluate", c.config, "--answers", c.folder / "none" / "a.jsonl"],
        ["the file for the answers", "none"],
    ),
    "generate from nothing": (lambda c: ["generate", c.folder / "none", "-p", "a"], ["no such model folder", "none"]),
    "generate with an empty prompt": (lambda c: ["generate", c.base, "-p", " "], ["an empty prompt", "--prompt"]),
    "generate with a system message and no chat": (
        lambda c: ["generate", c.base, "-p", "a", "--system", "b", "--no-chat"],
        ["needs the chat template", "--system"],
    ),
    "generate in an unknown dtype": (
        lambda c: ["generate", c.base, "-p", "a", "--dtype", "int8"],
        ["--dtype", "int8", "auto, float32 or bfloat16"],
    ),
    "generate with a strange top_p": (
        lambda c: ["generate", c.base, "-p", "a", "--temperature", "1", "--top-p", "2"],
        ["top_p", "2.0", "at most 1"],
    ),
    "generate with top_k but greedy": (
        lambda c: ["generate", c.base, "-p", "a", "--top-k", "2"],
        ["do nothing at temperature 0", "set a temperature"],
    ),
    "merge of nothing": (lambda c: ["merge", c.folder / "none", c.folder / "out"], ["no such adapter folder", "none"]),
    "merge over something": (
        lambda c: ["merge", c.adapter(), c.jsonl("a.jsonl").parent],
        ["the output folder is not empty", "choose another"],
    ),
    "merge with another base": (
        lambda c: ["merge", c.adapter(width=48), c.folder / "out"],
        ["does not fit its base", "lora_A (2, 48)"],
    ),
    "plan for an unknown target": (
        lambda c: ["plan", c.config, "--targets", "l4,h10"],
        ["no such target", "h10", "cost.hardware"],
    ),
    "plan for a size that is none": (lambda c: ["plan", c.config, "--targets", "l4:0"], ["l4:0", "h100-80gb:8"]),
    "plan for nothing": (lambda c: ["plan", c.config, "--targets", " ,"], ["--targets names nothing", "cpu"]),
    "plan into a folder": (
        lambda c: ["plan", c.config, "--json", c.folder],
        ["the plan cannot be written there", "Is a directory", "--json names a file"],
    ),
    "plan into nowhere": (
        lambda c: ["plan", c.config, "--json", c.folder / "none" / "a.json"],
        ["the plan cannot be written there", "none/a.json", "No such file"],
    ),
    "plan without a model": (lambda c: ["plan", c.config, "model.path=null"], ["model.path is not set"]),
    "plan without the model's folder": (
        lambda c: ["plan", c.config, f"model.path={c.folder / 'gone'}"],
        ["no such model folder", "gone"],
    ),
    "plan without data": (lambda c: ["plan", c.config, "data.train=null"], ["data.train is not set"]),
    "plan with a table that is none": (
        lambda c: ["plan", c.config, "cost.hardware=none.yaml"],
        ["no such hardware table", "none.yaml"],
    ),
    "inspect without a model": (lambda c: ["inspect", c.config, "model.path=null"], ["no model", "model.tokenizer"]),
}


@pytest.mark.parametrize("wrong", OTHERS)
def test_the_other_verbs_tell_what_is_wrong_too(cli, case, wrong):
    prepare, words = OTHERS[wrong]
    arguments = prepare(case)
    before = contents(case.folder)
    assert_told(cli(*arguments), words)
    assert contents(case.folder) == before


def test_a_learning_rate_that_gives_nan(cli, case):
    overrides = ["train.learning_rate=1e30", "train.max_grad_norm=null", "data.eval=null"]
    assert_told(cli("finetune", case.config, *overrides), ["not a number at step 2", "train.learning_rate"])
    assert json.loads((case.run / "summary.json").read_text())["status"] == "diverged"
    assert not (case.run / "adapter").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/file"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_no_traceback_wherever_it_comes_from(cli, monkeypatch, error):
    def full(*arguments, **options):
        raise error

    monkeypatch.setattr("jaxlean.run.merge.merge", full)
    assert_told(cli("merge", "adapter", "out"), ["no disk space", "make room", getattr(error, "filename", None) or ""])


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    def bug(*arguments, **options):
        raise KeyError("ours")

    monkeypatch.setattr("jaxlean.run.merge.merge", bug)
    monkeypatch.setattr(sys, "argv", ["jaxlean", "merge", "adapter", "out"])
    with pytest.raises(KeyError, match="ours"):
        main()


@pytest.mark.parametrize(("saved", "words"), [(True, "--resume goes on"), (False, "starts again")])
def test_preempted_has_a_code_of_its_own(cli, case, monkeypatch, saved, words):
    def preempted(*arguments, **options):
        error = Preempted("SIGTERM")
        error.saved = saved
        raise error

    monkeypatch.setattr("jaxlean.run.finetune.finetune", preempted)
    code, _, err = cli("finetune", case.config)
    assert code == EXIT_PREEMPTED == 75
    assert "preempted (SIGTERM)" in err
    assert words in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["finetun", "a.yaml"], "No such command"),
        (["finetune"], "Missing argument"),
        (["finetune", "a.yaml", "--resum"], "No such option"),
        (["generate", "model"], "--prompt"),
        (["generate", "model", "-p", "a", "--max-new-tokens", "0"], "max-new-tokens"),
        (["plan", "a.yaml", "--deadline-hours", "-1"], "deadline-hours"),
        (["plan", "a.yaml", "--max-usd", "nan"], "max-usd"),
        (["plan", "a.yaml", "--limit", "0"], "limit"),
        (["plan", "a.yaml", "--parallel", "none"], "parallel"),
    ],
)
def test_a_command_that_does_not_parse(cli, arguments, words):
    code, _, err = cli(*arguments)
    assert code == EXIT_USER_ERROR
    assert words in err
    assert "Traceback" not in err


def test_a_process_tells_it_too(tmp_path, python):
    done = python("-m", "jaxlean", "finetune", tmp_path / "none.yaml")
    assert done.returncode == EXIT_USER_ERROR
    assert done.stdout == ""
    assert done.stderr.startswith("error: no such config file")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_process_tells_what_comes_after_the_imports(tiny_yaml, tmp_path, python):
    done = python("-m", "jaxlean", "finetune", tiny_yaml, "lora.r=100")
    assert done.returncode == EXIT_USER_ERROR
    assert "error: lora.r exceeds the matrix" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
