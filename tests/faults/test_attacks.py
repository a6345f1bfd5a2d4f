"""Files made to do harm: loading a model, an adapter, rows or a config runs no code of theirs and writes nowhere else.

Each attack would leave a file, `marker`, if it worked; none may. What cannot be read is refused by name.
"""

import io
import json
import pickle
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxlean.config import SourceSection
from jaxlean.config import load as load_config
from jaxlean.data.source import open_rows
from jaxlean.errors import ConfigError, DataError, ModelError, RunError, UserError
from jaxlean.hub.files import tensors_by_file
from jaxlean.hub.load import load, load_tokenizer
from jaxlean.run.finetune import finetune

pytestmark = pytest.mark.usefixtures("small_machine")


@pytest.fixture
def marker(tmp_path):
    """The file that an attack would leave."""
    file = tmp_path / "harm" / "marker"
    file.parent.mkdir()
    yield file
    assert not file.exists(), "code of the file was run, or it was written where it pleased"
    assert list(file.parent.iterdir()) == []


@pytest.fixture
def base(tiny_base, tmp_path):
    """A model to be tampered with."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


class Harm:
    """Unpickled, it makes the marker."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def pickled(marker):
    return pickle.dumps({"weight": Harm(marker)})


def set_json(file, **values):
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | values))


def code(marker, name):
    return f"open({str(marker)!r}, 'w')\nclass {name}:\n    pass\n"


def test_the_harm_is_real(tmp_path):
    pickle.loads(pickled(tmp_path / "marker"))
    assert (tmp_path / "marker").exists()


# ---- models


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickled_model_is_refused(base, marker, name):
    (base / "model.safetensors").unlink()
    (base / name).write_bytes(pickled(marker))
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        load(base, "float32")


def test_a_pickle_under_the_name_of_safetensors_is_refused(base, marker):
    (base / "model.safetensors").write_bytes(pickled(marker))
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load(base, "float32")


def test_a_pickle_beside_safetensors_is_not_looked_at(base, marker):
    (base / "pytorch_model.bin").write_bytes(pickled(marker))
    (base / "optimizer.pt").write_bytes(pickled(marker))
    load(base, "float32")


def test_a_model_s_own_code_is_not_imported(base, marker):
    set_json(
        base / "config.json",
        auto_map={"AutoConfig": "modeling_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.EvilModel"},
        trust_remote_code=True,
    )
    (base / "modeling_evil.py").write_text(code(marker, "EvilConfig") + code(marker, "EvilModel"))
    load(base, "float32")
    set_json(base / "config.json", model_type="evil")
    with pytest.raises(ModelError, match="evil"):
        load(base, "float32")
    assert "modeling_evil" not in sys.modules


@pytest.mark.parametrize("known", [True, False])
def test_a_tokenizer_s_own_code_is_not_imported(base, marker, known, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))  # a user who says yes to everything
    set_json(
        base / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast" if known else "EvilTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_evil.EvilTokenizer", "tokenization_evil.EvilTokenizer"]},
        trust_remote_code=True,
    )
    (base / "tokenization_evil.py").write_text(code(marker, "EvilTokenizer"))
    if known:
        assert load_tokenizer(str(base)).encode("red house")
        return
    with pytest.raises(ModelError, match="no tokenizer that can be read"):
        load_tokenizer(str(base))


@pytest.mark.parametrize("place", ["../harm/marker", "/etc/passwd", "..", "sub/model.safetensors", 7, "a\\..\\b"])
def test_an_index_names_files_beside_it_only(base, marker, place):
    index = base / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.embed_tokens.weight": place}}))
    with pytest.raises(ModelError, match="the index names a file that does not lie beside it") as refused:
        tensors_by_file(base)
    assert refused.value.got == place


def test_a_chat_template_cannot_leave_its_sandbox(base, marker, cli, tiny_rows, tmp_path):
    escapes = [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch " + str(marker) + "') }}",
        "{{ messages.append.__self__.__class__.__base__ }}",
        "{{ (messages|attr('__class__')).__name__ }}{{ lipsum.__globals__['os'].getcwd() }}",
    ]
    for number, template in enumerate(escapes):
        (base / "chat_template.jinja").write_text(template)
        config = tmp_path / f"{number}.yaml"
        config.write_text(json.dumps({"model": {"path": str(base)}, "data": {"train": str(tiny_rows)}}))
        exit_code, out, err = cli("inspect", config, f"output_dir={tmp_path / 'run'}")
        assert exit_code == 2, out
        assert "chat template" in err
        assert "posix" not in err


def test_a_chat_template_s_name_is_no_path(base, marker):
    templates = [{"name": "default", "template": "{{ messages }}"}, {"name": "../../harm/marker", "template": "x"}]
    set_json(base / "tokenizer_config.json", chat_template=templates)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"a chat template whose name is no name|no tokenizer that can be read"):
        load_tokenizer(str(base))


# ---- adapters


def test_a_pickled_adapter_is_refused(base, marker, cli, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    set_json(
        adapter / "adapter_config.json", peft_type="LORA", base_model_name_or_path=str(base), r=4, lora_alpha=8,
        target_modules=["q_proj"], task_type="CAUSAL_LM",
    )  # fmt: skip
    (adapter / "adapter_model.bin").write_bytes(pickled(marker))
    exit_code, _, err = cli("merge", adapter, tmp_path / "out")
    assert exit_code == 2
    assert "an adapter file is missing" in err
    assert "adapter_model.bin" in err
    assert "pickles are not read" in err
    assert not (tmp_path / "out").exists()


def test_an_adapter_s_config_leads_nowhere(base, marker, cli, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for place in ("../harm", f"{marker}", "https://user:word@host/model", "a/../../b"):
        set_json(
            adapter / "adapter_config.json", peft_type="LORA", base_model_name_or_path=place, r=4, lora_alpha=8,
            target_modules=["q_proj"], auto_mapping={"base_model_class": "x", "parent_library": "os"},
        )  # fmt: skip
        exit_code, _, err = cli("merge", adapter, tmp_path / "out")
        assert exit_code == 2
        assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


# ---- rows


def settings(tiny_values, tmp_path, *overrides, **data):
    file = tmp_path / "tiny.yaml"
    values = json.loads(json.dumps(tiny_values))
    values["data"] |= data
    file.write_text(json.dumps(values))
    return load_config(file, [f"output_dir={tmp_path / 'run'}", "train.max_steps=1", *overrides])


def test_a_dataset_s_script_is_not_run(marker, tmp_path):
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(code(marker, "Builder"))
    for path in (folder, folder / "evil.py"):
        with pytest.raises(DataError):
            open_rows(SourceSection(path=str(path)))
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  script: evil.py\n---\n")
    (folder / "rows.jsonl").write_text('{"text": "red house"}\n' * 4)
    assert len(open_rows(SourceSection(path=str(folder)))) == 4


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_is_not_unpacked(tiny_values, marker, kind, tmp_path):
    archive = tmp_path / f"rows.{kind}"
    row = b'{"text": "red house"}\n'
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as out:
            out.writestr("../harm/marker", row)
            out.writestr(str(marker), row)
    else:
        with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as out:
            for name in ("../harm/marker", str(marker)):
                member = tarfile.TarInfo(name)
                member.size = len(row)
                out.addfile(member, io.BytesIO(row))
    with pytest.raises(DataError, match="an unknown kind of data file"):
        finetune(settings(tiny_values, tmp_path, train=str(archive), eval=None))
    with pytest.raises(ModelError, match="no such model folder"):
        load(archive, "float32")
    assert not (tmp_path / "run").exists()


def test_arrays_of_objects_are_refused(tiny_values, marker, tmp_path):
    file = tmp_path / "vectors.npz"
    held = np.empty(1, object)
    held[0] = Harm(marker)
    np.savez(file, words=held, vectors=held)
    new = ["model.new_tokens=[zebra]", "model.new_tokens_init=average", f"model.new_tokens_vectors={file}"]
    with pytest.raises(UserError):
        finetune(settings(tiny_values, tmp_path, *new))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["ids.npy", "logs.npy", "keys.npy", "ends.npy"])
def test_a_teacher_s_cache_of_objects_is_refused(name, marker, tmp_path):
    from jaxlean.run.manifest import write_manifest
    from jaxlean.run.teacher_cache import TeacherCache

    shard = tmp_path / "cache" / "rows-1"
    shard.mkdir(parents=True)
    for file in ("ids.npy", "logs.npy", "keys.npy", "ends.npy"):
        np.save(shard / file, np.zeros((1, 2), np.int32))
    held = np.empty(1, object)
    held[0] = Harm(marker)
    np.save(shard / name, held)
    write_manifest(shard, {"format": 1, "rows": 1})  # CRC-32 keeps nobody out
    (tmp_path / "cache" / "teacher.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(RunError, match="the cache is damaged"):
        TeacherCache(tmp_path / "cache", {}, num_ids=2, num_logs=2, vocab_size=9, dtype="float32")


# ---- configs


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!python/object/apply:os.system ['touch MARKER']",
        "seed: !!python/object/new:builtins.open [MARKER, w]",
        "model: !!python/module:MARKER",
        "output_dir: !!python/name:os.system",
    ],
)
def test_yaml_makes_no_objects(text, marker, cli, tmp_path):
    file = tmp_path / "evil.yaml"
    file.write_text(text.replace("MARKER", str(marker)) + "\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(file)
    exit_code, _, err = cli("finetune", file)
    assert exit_code == 2
    assert "not valid YAML" in err
    # an override that is no YAML is text, which no number is
    override = text.replace("MARKER", str(marker)).replace(": ", "=", 1)
    assert cli("finetune", file.with_name("gone.yaml"), override)[0] == 2


def test_the_config_of_a_run_makes_no_objects(tiny_values, marker, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"seed: !!python/object/new:builtins.open [{marker}, w]\n")
    with pytest.raises(RunError, match="the config of the run cannot be read"):
        finetune(settings(tiny_values, tmp_path), resume=True)


# ---- a run's folder


@pytest.mark.parametrize(
    "name", ["config.yaml.tmp", "metrics.jsonl.tmp", "summary.json.tmp", ".lock", ".adapter.part", "wandb"]
)
def test_a_link_in_a_new_folder_is_not_written_through(name, tiny_values, marker, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(marker)
    with pytest.raises(RunError, match=r"holds a link in the place of what is written there|cannot be locked"):
        finetune(settings(tiny_values, tmp_path))
    assert [file.name for file in run.iterdir()] == [name]


@pytest.fixture(scope="module")
def finished(small_machine, tiny_values, tmp_path_factory):
    """A folder of a run."""
    folder = tmp_path_factory.mktemp("finished")
    finetune(settings(tiny_values, folder))
    return folder / "run"


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "adapter", "wandb_id", "checkpoints/7"])
def test_a_link_in_a_run_that_goes_on_is_not_written_through(name, finished, tiny_values, tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(finished, run)
    outside.mkdir()
    (outside / ".writing-1").mkdir()
    (outside / "mine").touch()
    if (run / name).is_dir():
        shutil.rmtree(run / name)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside)
    with pytest.raises(RunError, match="holds a link") as refused:
        finetune(settings(tiny_values, tmp_path), resume=True)
    assert str(run / name) in str(refused.value)
    assert f"it points to {outside}" in str(refused.value)
    if name == "checkpoints":  # replaced, the link goes and not what it names
        finetune(settings(tiny_values, tmp_path), overwrite=True)
        assert not (run / name).is_symlink()
    assert sorted(file.name for file in outside.iterdir()) == [".writing-1", "mine"]
