"""The quickstart's tokenizer: every string comes back, and a word has the same ids wherever it stands."""

import importlib.util
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

FOLDER = Path(__file__).parents[2] / "configs" / "quickstart"
TOKENIZER = Tokenizer.from_file(str(FOLDER / "base" / "tokenizer.json"))


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker, corpus = load("make_tokenizer"), load("make_corpus")


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text).ids


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_every_string_comes_back(text):
    assert TOKENIZER.decode(ids(text), skip_special_tokens=False) == text


@settings(max_examples=200, deadline=None)
# Latin and Greek, digits and signs: what newer scripts' characters are called differs between versions of Unicode.
@given(st.text(alphabet=st.characters(max_codepoint=0x3CE)))
def test_every_character_is_in_exactly_one_piece(text):
    pieces = TOKENIZER.pre_tokenizer.pre_tokenize_str(text)
    assert [start for _, (start, _) in pieces] == [0, *(end for _, (_, end) in pieces)][: len(pieces)]
    for _, (a, b) in pieces:
        assert not {"L", "N"} <= {unicodedata.category(character)[0] for character in text[a:b]}, text[a:b]


@pytest.mark.parametrize("value", ["Alice", "Korvath", "48213", "$48.20", "12 Elm Street", "ann.lee@post.net", "QX-77"])
def test_a_value_has_the_same_ids_in_a_sentence_and_in_json(value):
    def inside(before: str, after: str) -> bool:
        whole, part = ids(before + value + after), ids(value)
        return any(whole[at : at + len(part)] == part for at in range(len(whole)))

    for before, after in (
        ("it is ", " now"),
        ("", ""),
        ('{"key": "', '"}'),
        ("(", ")"),
        ("hello, ", ". "),
        ("\n", "\n"),
    ):
        assert inside(before, after), (before, value, after)


def test_digits_go_in_pairs_from_the_left():
    assert ids("90210") == ids("90") + ids("21") + ids("0")
    assert all(len(ids(f"{pair:02d}")) == 1 for pair in range(100))


def test_size_and_special_tokens():
    assert TOKENIZER.get_vocab_size() == maker.VOCAB_SIZE
    assert (FOLDER / "base" / "tokenizer.json").stat().st_size < 200_000
    marks = [maker.PAD, maker.END_OF_TEXT, maker.TURN_START, maker.TURN_END]
    assert [TOKENIZER.token_to_id(mark) for mark in marks] == [0, 1, 2, 3]


def test_transformers_loads_it_and_its_chat_template_is_the_corpus_one():
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(FOLDER / "base")
    assert (loaded.pad_token, loaded.eos_token) == (maker.PAD, maker.TURN_END)
    turns = [("system", "Be brief."), ("user", "What is it?"), ("assistant", '{"kind": "bill"}')]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert loaded.apply_chat_template(messages, tokenize=False) == corpus.chat(
        "What is it?", '{"kind": "bill"}', system="Be brief."
    )
    prompt = loaded.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_training_is_reproducible(tmp_path):
    file = tmp_path / "corpus.jsonl"
    texts = ["the lobster speaks of 12 things, " * 3, '<|im_start|>user\n{"a": "b"}<|im_end|>\n']
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for out in ("one", "two"):
        maker.main(["--corpus", str(file), "--out", str(tmp_path / out)])
    assert (tmp_path / "one/tokenizer.json").read_bytes() == (tmp_path / "two/tokenizer.json").read_bytes()
