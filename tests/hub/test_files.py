"""Where the files are, and what is said when they are not there or not whole."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxlean.errors import ModelError
from jaxlean.hub.files import locate, read_json, tensors_by_file, write_tensors


def message(function, *args):
    with pytest.raises(ModelError) as caught:
        function(*args)
    return str(caught.value)


def test_a_folder_is_itself(tmp_path, monkeypatch):
    assert locate(str(tmp_path)) == tmp_path
    (tmp_path / "organisation" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("organisation/name").resolve() == tmp_path / "organisation" / "name"  # it goes before the hub's
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/organisation") == tmp_path / "organisation"


@pytest.mark.parametrize("path", ["./missing", "a/b/c", "/nowhere/at/all", "~/missing/x"])
def test_a_path_that_is_no_folder(path):
    text = message(locate, path)
    assert "no such model folder" in text
    assert path.removeprefix("./").removeprefix("~/") in text
    assert "a Hugging Face id" in text


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.gguf").touch()
    assert "no such model folder" in message(locate, str(tmp_path / "model.gguf"))


def test_an_id_that_cannot_be_reached():
    # the tests run with HF_HUB_OFFLINE and an empty cache
    text = message(locate, "nobody/no-such-model")
    assert "'nobody/no-such-model' is neither a folder here nor reachable" in text
    assert "hf auth login" in text


def test_an_id_asks_for_what_is_needed_only(monkeypatch, tmp_path):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert locate("a/b", revision="v1") == tmp_path
    assert (asked["name"], asked["revision"]) == ("a/b", "v1")
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in asked["allow_patterns"])


def test_json_that_is_missing_broken_or_of_another_kind(tmp_path):
    file = tmp_path / "config.json"
    missing = message(read_json, file)
    assert "a model file is missing" in missing
    assert str(file) in missing
    for text in ("{", '{"a": 1,}', "\x80"):
        file.write_text(text, encoding="latin-1")
        assert "not valid JSON" in message(read_json, file)
    file.write_text("[1]")
    assert "not a JSON object" in message(read_json, file)
    file.unlink()
    file.mkdir()
    assert "cannot be read" in message(read_json, file)


def test_one_file(golden):
    found = tensors_by_file(golden / "llama_gqa")
    assert found["lm_head.weight"] == golden / "llama_gqa" / "model.safetensors"
    assert len(found) == 2 * 9 + 3


def test_shards_and_their_index(checkpoint, golden):
    copy = checkpoint("llama_gqa")
    files = copy.shard(3)
    found = tensors_by_file(copy.folder)
    assert set(found) == set(tensors_by_file(golden / "llama_gqa"))
    assert set(found.values()) == set(files)


def test_an_index_goes_before_a_single_file(checkpoint):
    copy = checkpoint("llama_gqa")
    shutil.copy(copy.file, copy.folder / "spare")
    files = copy.shard(2)
    (copy.folder / "spare").rename(copy.file)
    assert set(tensors_by_file(copy.folder).values()) == set(files)


def test_no_weights_at_all(checkpoint):
    copy = checkpoint("llama_gqa")
    copy.file.unlink()
    text = message(tensors_by_file, copy.folder)
    assert "no model.safetensors and no model.safetensors.index.json" in text
    assert "got:" not in text
    assert "fix:" not in text


def test_weights_in_another_format_are_named(checkpoint):
    copy = checkpoint("llama_gqa")
    copy.file.rename(copy.folder / "pytorch_model.bin")
    text = message(tensors_by_file, copy.folder)
    assert "pytorch_model.bin" in text
    assert "save_pretrained writes safetensors" in text


def test_a_shard_that_is_missing_is_named(checkpoint):
    copy = checkpoint("llama_gqa")
    files = copy.shard(3)
    files[1].unlink()
    text = message(tensors_by_file, copy.folder)
    assert "a file that the index names is missing" in text
    assert files[1].name in text


def test_an_index_that_is_wrong(checkpoint):
    copy = checkpoint("llama_gqa")
    files = copy.shard(3)
    index = copy.folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"] = dict.fromkeys(values["weight_map"], files[0].name)
    index.write_text(json.dumps(values))
    text = message(tensors_by_file, copy.folder)
    assert "the index places model." in text
    assert files[0].name in text
    index.write_text("{}")
    assert "the index holds no weight_map" in message(tensors_by_file, copy.folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_cut_short(checkpoint, keep):
    copy = checkpoint("llama_gqa")
    whole = copy.file.read_bytes()
    copy.file.write_bytes(whole[:keep])
    text = message(tensors_by_file, copy.folder)
    assert "not a whole safetensors file" in text
    assert str(copy.file) in text
    assert "download it again" in text


def test_a_shard_cut_short_is_the_one_named(checkpoint):
    copy = checkpoint("llama_gqa")
    files = copy.shard(3)
    files[2].write_bytes(files[2].read_bytes()[:-7])
    assert files[2].name in message(tensors_by_file, copy.folder)


def test_tensors_may_be_read_by_whom_other_files_may(tmp_path):
    plain, written = tmp_path / "plain", tmp_path / "x.safetensors"
    plain.touch()
    write_tensors(written, {"x": np.arange(3.0)})
    assert written.stat().st_mode == plain.stat().st_mode
    np.testing.assert_array_equal(load_file(written)["x"], [0, 1, 2])
