"""What sentence-transformers keeps beside a model: read in both of its styles, refused where it is more, written."""

import json

import pytest

from jaxlean.errors import ModelError
from jaxlean.hub.sentence import Sentence, read_sentence, write_sentence

KINDS = ("Transformer", "Pooling", "Normalize")


@pytest.fixture
def folder(tmp_path):
    """(what of each kind, settings of pooling, ...) -> a folder with these files."""

    def make(kinds=KINDS, pooling=None, **files):
        paths = {"Transformer": "", "Pooling": "1_Pooling"}
        modules = [
            {
                "idx": i,
                "name": str(i),
                "path": paths.get(kind, f"{i}_{kind}"),
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, kind in enumerate(kinds)
        ]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode": "mean"}))
        for name, value in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(value))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        ({"pooling_mode": "mean", "embedding_dimension": 8}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
    ],
)
def test_pooling_is_read_in_the_old_style_and_the_new(folder, pooling, mode):
    assert read_sentence(folder(pooling=pooling)) == Sentence(mode, True)


def test_normalisation_and_length_are_read(folder):
    made = folder(KINDS[:2], sentence_bert_config={"max_seq_length": 256, "do_lower_case": False})
    assert read_sentence(made) == Sentence("mean", False, 256)


def test_a_folder_without_modules_means_the_mean(tmp_path):
    assert read_sentence(tmp_path) == Sentence("mean", False, None)


@pytest.mark.parametrize(
    ("kinds", "pooling", "says"),
    [
        ((*KINDS[:2], "Dense"), None, ["Transformer, Pooling, Dense", "modules.json"]),
        (KINDS, {"pooling_mode": "max"}, ["max", "mean or cls", "1_Pooling"]),
        (KINDS, {"pooling_mode": ["cls", "mean"]}, ["cls and mean"]),
        (KINDS, {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ["mean and max"]),
    ],
)
def test_what_is_not_there_is_refused(folder, kinds, pooling, says):
    with pytest.raises(ModelError) as caught:
        read_sentence(folder(kinds, pooling))
    for words in says:
        assert words in str(caught.value)


def test_a_prompt_before_every_text_is_refused(folder):
    with pytest.raises(ModelError, match="default_prompt_name: query"):
        read_sentence(folder(config_sentence_transformers={"default_prompt_name": "query"}))


def test_files_that_are_not_json_are_named(tmp_path):
    (tmp_path / "modules.json").write_text("[{")
    with pytest.raises(ModelError, match=r"not a list of modules(.|\n)*modules\.json"):
        read_sentence(tmp_path)


@pytest.mark.parametrize("said", [Sentence("cls", True, 128), Sentence("mean", False, None)])
def test_what_is_written_is_read_again(said, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (source / "config_sentence_transformers.json").write_text('{"prompts": {"query": "q: "}}')
    write_sentence(out, said, hidden_size=8, source=source)
    assert read_sentence(out) == said
    assert json.loads((out / "1_Pooling" / "config.json").read_text())["word_embedding_dimension"] == 8
    assert "q: " in (out / "config_sentence_transformers.json").read_text()
