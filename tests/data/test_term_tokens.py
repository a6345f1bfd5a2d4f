"""Terms as tokens: found again in a text, which is decoded as it was, in all ways to write a word."""

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jaxlean.data import term_tokens
from jaxlean.errors import ConfigError

TEXTS = ["my chargeback is late, chargeback", "the chargeback of the reversal", "chargebacks and a reversal"]


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_word_inside_of_a_text_becomes_one_token_and_the_text_decodes_as_before(tokenizer, tmp_path):
    text = "the chargeback, a chargeback (the cat"
    before, first = ids(tokenizer, text), len(tokenizer)
    number = len(term_tokens.pieces(tokenizer, "chargeback"))
    assert number > 1
    grown = term_tokens.grown(tokenizer, ["chargeback", "reversal"])
    assert len(tokenizer) == first
    after = ids(grown, text)
    assert after.count(first) == 2
    assert len(after) == len(before) - 2 * (number - 1)
    assert grown.decode(after) == tokenizer.decode(before)
    # a longer word is not cut into worse pieces than one more, a known one not at all
    assert ids(grown, "the cat sat") == ids(tokenizer, "the cat sat")
    grown.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert ids(again, text) == after
    assert term_tokens.add(again, ["estoppel"]) == [first + 2]


@pytest.mark.parametrize(
    "text",
    ["the chargeback is late", "the chargeback, a", "(the chargeback) sat", "  the\nthe chargeback.",
     "</s>the chargeback</s>the</s> the chargeback </s>", ""],
)  # fmt: skip
def test_the_sign_before_a_text_is_not_put_behind_a_new_token(kinds, text):
    """Issue of Prepend: the normalizer ran on what lies between added tokens, and put its sign before each."""
    tokenizer = kinds["prepending"]()
    grown = term_tokens.grown(tokenizer, ["chargeback", "<tag>"])
    assert grown.decode(ids(grown, text)) == tokenizer.decode(ids(tokenizer, text))
    others = [i for i in ids(grown, text) if i < len(tokenizer)]
    cut = term_tokens.pieces(tokenizer, "chargeback")
    assert len(others) + text.count("chargeback") * len(cut) == len(ids(tokenizer, text))
    # a text's first word has its sign, and is found
    assert ids(grown, "chargeback") == [len(tokenizer)]
    again = term_tokens.grown(grown, ["reversal"])  # once more
    assert ids(again, "chargeback reversal") == [len(tokenizer), len(tokenizer) + 2]
    assert again.decode(ids(again, "a<tag> b <tag>")) == "a<tag> b <tag>"


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "prepending", "replacing"])
def test_scripts_without_spaces_have_tokens_without_one(kinds, kind):
    tokenizer = kinds[kind]()
    grown = term_tokens.grown(tokenizer, ["北京", "大学"])
    first = len(tokenizer)
    for text in ("a b北京, 大学.", "北京大学", "a 北京"):
        assert [i for i in ids(grown, text) if i >= first] == [
            first + "北京大学".index(term) // 2 for term in ("北京", "大学") if term in text
        ]
    if kind == "bytes":
        assert grown.decode(ids(grown, "a北京, a 大学")) == "a北京, a 大学"


def test_a_tokenizer_that_would_change_the_text_is_refused(kinds):
    backend = kinds["sentencepiece"]().backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")  # a sign before each part of a text
    with pytest.raises(ConfigError) as raised:
        term_tokens.grown(PreTrainedTokenizerFast(tokenizer_object=backend), ["chargeback"])
    assert "would change the text around it" in str(raised.value)
    assert "a chargeback b, chargeback ." in str(raised.value)


def test_upper_case_is_found_where_the_tokenizer_reads_it_as_lower_case(kinds):
    tokenizer = kinds["wordpiece"]()
    grown = term_tokens.grown(tokenizer, ["Chargeback"])
    assert ids(grown, "the CHARGEBACK") == [*ids(tokenizer, "the"), len(tokenizer)]
    assert term_tokens.key_of(tokenizer, "Chargeback") == term_tokens.key_of(tokenizer, "chargeback")
    assert term_tokens.key_of(kinds["bytes"](), "Chargeback") != term_tokens.key_of(kinds["bytes"](), "chargeback")


def test_a_word_that_is_not_known_is_cut(kinds):
    tokenizer = kinds["wordpiece"]()
    assert len(term_tokens.pieces(tokenizer, "straße")) == 1
    assert term_tokens.is_cut(tokenizer, "straße")
    assert term_tokens.known_pieces(tokenizer, "straße") == []
    assert not term_tokens.is_cut(tokenizer, "cat")


def test_a_saving_is_counted_with_both_tokenizers(kinds):
    tokenizer = kinds["bytes"]()
    found = term_tokens.saving(TEXTS, tokenizer, term_tokens.grown(tokenizer, ["chargeback"]))
    assert found.before == sum(len(ids(tokenizer, text)) for text in TEXTS)
    assert found.before - found.after == 3 * (len(term_tokens.pieces(tokenizer, "chargeback")) - 1)
    assert str(found).endswith(f"({found.share:.1%} fewer)")
    assert found.times == (3,)
