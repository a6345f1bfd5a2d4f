import numpy as np
import pyarrow.parquet
import pytest

from jaxlean import config
from jaxlean.config import build
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.curate import curate
from jaxlean.curate.layout import data_train, parts_of

PAIR = {"prompt": "a", "completion": "b"}
TEMPLATE = {"prompt": "{q}", "completion": "{q}"}
CHAT = {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}


@pytest.fixture
def sources(lines):
    def make(*rows, **values):
        own = [{"path": str(lines(f"s{i}.jsonl", [row]))} | more for i, (row, more) in enumerate(rows)]
        return Corpus(build({"data": {"train": own}, **values}))

    return make


@pytest.mark.parametrize(
    ("rows", "alike"),
    [
        ([(PAIR, {}), (PAIR | {"id": 1}, {})], True),
        ([(PAIR, {}), ({"text": "c"}, {})], False),
        ([(PAIR, {}), (CHAT, {})], False),
        ([({"q": "a"}, TEMPLATE), ({"q": "a"}, TEMPLATE)], True),
        ([({"q": "a"}, TEMPLATE), ({"q": "a"}, TEMPLATE | {"prompt": "x {q}"})], False),
        ([(PAIR, {"system": "be kind"}), (PAIR, {})], False),
        ([(PAIR, {"weight": 1}), (PAIR, {"weight": 1})], False),
        ([({"text": "a", "prompt": "b"}, {}), ({"text": "a", "completion": "b"}, {})], False),
        ([(PAIR | {"text": "a"}, {"format": "text"}), ({"text": "a"}, {"format": "text"})], True),
    ],
)  # fmt: skip
def test_one_file_where_sources_are_read_alike(sources, rows, alike):
    names = [part.name for part in parts_of(sources(*rows))]
    assert names == (["train.parquet"] if alike else ["train_by_source/1-s0.parquet", "train_by_source/2-s1.parquet"])


def test_what_is_compared_may_be_all_that_there_is(sources):
    rows = ({"a": "x"}, {"format": "prompt_completion"}), ({"a": "y"}, {"format": "prompt_completion"})
    assert len(parts_of(sources(*rows, curate={"text_column": "a"}))) == 1


def test_labels_are_read_alike(sources):
    rows = {"text": "a", "label": "x"}
    assert len(parts_of(sources((rows, {}), (rows | {"id": 1}, {}), task="classify"))) == 1


def test_what_trains_on_the_outcome_has_the_sources_settings(sources, tmp_path):
    corpus = sources(
        (PAIR, {"weight": 2, "limit": 1}), ({"q": "a"}, {"weight": 1, "prompt": "{q}", "completion": "{q}"})
    )
    told = data_train(tmp_path, corpus, [1, 1])
    assert told == [
        {"path": f"{tmp_path}/train_by_source/1-s0.parquet", "weight": 2},
        {"path": f"{tmp_path}/train_by_source/2-s1.parquet", "weight": 1, "prompt": "{q}", "completion": "{q}"},
    ]
    assert data_train(tmp_path, corpus, [0, 1]) == told[1:]


def test_sources_of_two_shapes_train_as_they_did(lines, tmp_path, capsys):
    chat = lines("chat.jsonl", [CHAT, CHAT, CHAT | {"completion": [{"role": "assistant", "content": "c"}]}])
    text = lines("text_test.jsonl", [{"text": f"text {i // 2}"} for i in range(6)])
    out = tmp_path / "out"
    made = config.build(
        {
            "data": {"train": [str(chat), {"path": str(text), "system": "ignored"}]}, "output_dir": str(out),
            "curate": {"steps": ["exact_duplicates"], "processes": 1},
        }
    )  # fmt: skip
    told = curate(made)
    assert not (out / "train.parquet").exists()
    assert pyarrow.parquet.read_schema(out / "train_by_source" / "1-chat.parquet").names == [
        "prompt",
        "completion",
        "jaxlean_origin",
    ]
    before, after = Corpus(made), Corpus(config.build({"data": {"train": told["data.train"]}}))
    wanted = [words for i, words in enumerate(before.words(np.arange(9))) if i in (0, 2, 3, 5, 7)]
    assert list(after.words(np.arange(5))) == wanted
    said = capsys.readouterr().out
    assert f"""to train on them: 'data.train=[{{"path": "{out}/train_by_source/1-chat.parquet"}}, """ in said
    assert "to train on them" in (out / "report.md").read_text().lower()
    made.data.train = made.data.train[:1]
    curate(made, overwrite=True)
    assert not (out / "train_by_source").exists()
