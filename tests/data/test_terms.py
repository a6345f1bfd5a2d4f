"""Terms that a tokenizer cuts: counted by hand, ranked, and looked through before they become tokens."""

import json

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from jaxlean.data import terms
from jaxlean.errors import ConfigError

TEXTS = ["my chargeback is late, chargeback", "the chargeback of the reversal", "chargebacks and a reversal"]


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_terms_are_found_by_what_they_would_save(tokenizer):
    found = terms.find(TEXTS, tokenizer, num=10, min_count=2, min_length=4)
    number = {term.text: term for term in found}
    assert set(number) == {"chargeback", "reversal"}
    # the first text's second one and the third's are no whole word after a space, in any tokenizer: 3 of "chargeback"
    assert (number["chargeback"].times, number["reversal"].times) == (3, 2)
    for term in found:
        assert term.pieces == len(terms.pieces(tokenizer, term.text))
        assert term.saved == term.times * (term.pieces - 1)
    assert [term.saved for term in found] == sorted((term.saved for term in found), reverse=True)
    assert terms.find(TEXTS, tokenizer, num=1, min_count=2)[0] == found[0]
    assert terms.find(TEXTS, tokenizer, num=10, min_count=4) == []
    assert {term.text for term in terms.find(TEXTS, tokenizer, num=10, min_count=2, min_length=9)} == {"chargeback"}


def test_vowel_signs_and_accents_belong_to_their_letters(kinds):
    texts = ["नगरपालिका के अस्पताल में चिकित्सक", "et le cafe\u0301 noir"] * 6
    found = {term.text for term in terms.find(texts, kinds["bytes"](), num=10)}
    assert found == {"अस्पताल", "चिकित्सक", "cafe\u0301", "noir"}  # the first word of a text has no space before it


def test_a_word_that_starts_a_known_one_is_left_out_where_it_would_cut_that(kinds):
    tokenizer = kinds["bytes"]()
    known = [word for word in terms.words_of(tokenizer).values() if len(word) == 3]
    assert {"cat", "the"} <= set(known)
    assert [
        term.text for term in terms.find(["a ca", "b ca", "a xx", "b xx"], tokenizer, num=9, min_count=2, min_length=2)
    ] == ["xx"]


def test_words_of_a_tokenizer_are_whole_ones(kinds):
    assert set(terms.words_of(kinds["wordpiece"]()).values()) == {"the", "cat", "charge"}
    found = terms.words_of(kinds["bytes"]())
    assert all(kinds["bytes"]().decode([i]) == f" {word}" for i, word in found.items())


def test_a_term_that_is_one_token_is_told_apart(kinds):
    assert terms.checked(kinds["wordpiece"](), [" chargeback ", "cat", ""]) == (["chargeback"], ["cat"], [])


def test_a_listed_term_that_would_cut_a_known_word_is_told_apart(kinds):
    tokenizer = kinds["bytes"]()
    assert terms.checked(tokenizer, ["chargeback", "ca"]) == (["chargeback"], [], ["ca"])
    with pytest.raises(ConfigError) as raised:
        terms.checked(tokenizer, ["ca"])
    assert "all new tokens start words that are tokens already" in str(raised.value)


def test_words_that_are_not_known_are_found_first(kinds):
    texts = ["die straße ist charge", "eine straße hat charge charges", "charges"]
    found = terms.find(texts, kinds["wordpiece"](), num=9, min_count=2)
    assert [(term.text, term.times, term.pieces, term.unknown) for term in found] == [
        ("straße", 2, 1, True),
        ("charges", 2, 2, False),
    ]
    assert (found[0].saved, found[0].cost) == (0, 2 * 5)
    assert terms.checked(kinds["wordpiece"](), ["straße", "cat"]).kept == ["straße"]


def test_a_token_that_is_never_cut_to_is_no_new_one(kinds):
    made = json.loads(kinds["wordpiece"]().backend_tokenizer.to_str())
    made["model"]["vocab"] |= {name: len(made["model"]["vocab"]) + i for i, name in enumerate(["[unused1]", "top-up"])}
    backend = Tokenizer.from_str(json.dumps(made))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]", unk_token="[UNK]")
    with pytest.raises(ConfigError) as raised:
        terms.checked(tokenizer, ["chargeback", "[unused1]", "top-up"])
    assert "'[unused1]', 'top-up'" in str(raised.value)
    assert "never cuts a text into" in str(raised.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "there are no new tokens"),
        (["", "  "], "there are no new tokens"),
        (["chargeback", "late", "chargeback"], "a new token is named twice"),
        (["Chargeback", "late", "chargeback"], "a new token is named twice, as the tokenizer reads it"),
        (["cat", "the"], "all new tokens are tokens already"),
    ],
)
def test_terms_that_cannot_be_are_refused(kinds, given, message):
    with pytest.raises(ConfigError) as raised:
        terms.checked(kinds["wordpiece"](), given, where="terms.txt")
    assert message in str(raised.value)
    assert "terms.txt" in str(raised.value)


def test_the_chat_template_stays_what_it_was(spaces_apart):
    tokenizer = spaces_apart
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|im_start|>' +", "'<|im_start|>estoppel: ' +")
    assert terms.in_template(tokenizer, ["chargeback", "estoppel"]) == {"estoppel"}
    with pytest.raises(ConfigError) as raised:
        terms.checked(tokenizer, ["chargeback", "estoppel"])
    assert "stands in the chat template" in str(raised.value)
    assert "'estoppel'" in str(raised.value)
    texts = ["an estoppel of a chargeback"] * 5
    assert [term.text for term in terms.find(texts, tokenizer, num=9)] == ["chargeback"]


def test_terms_are_read_from_lines_or_json(tmp_path):
    (tmp_path / "a.txt").write_text("chargeback\ntop up\n")
    (tmp_path / "a.json").write_text(json.dumps(["chargeback", "top up"]))
    assert terms.read_terms(tmp_path / "a.txt") == terms.read_terms(tmp_path / "a.json") == ["chargeback", "top up"]
    for name in ("a.txt", "a.json"):  # as editors on Windows write them
        text = (tmp_path / name).read_text().replace("\n", "\r\n")
        (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
        assert terms.read_terms(tmp_path / name) == ["chargeback", "top up"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("none.txt", None, "cannot be read"), ("a.json", "[1", "not JSON"), ("a.json", '{"a": 1}', "no list of texts")],
)
def test_a_file_that_holds_no_terms_is_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as raised:
        terms.read_terms(tmp_path / name)
    assert message in str(raised.value)
    assert name in str(raised.value)
