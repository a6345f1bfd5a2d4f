"""Terms that a tokenizer cuts: counted by hand, made tokens, and found again in a text and its decoding."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jaxlean.data import terms
from jaxlean.errors import ConfigError

PLAIN = (
    "the cat sat on the mat and the dog sat on the log " * 20 + "a b c d e f g h i j k l m n o p q r s t u v w x y z ("
)
TEXTS = ["my chargeback is late, chargeback", "the chargeback of the reversal", "chargebacks and a reversal"]


def bytes_bpe() -> PreTrainedTokenizerFast:
    """GPT-2's way: the space before a word belongs to it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator([PLAIN], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama 2's way: spaces are signs, and one stands before the first word."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    made.train_from_iterator([PLAIN], trainers.BpeTrainer(vocab_size=120, special_tokens=["</s>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's way: lower case, white space left out, the rest of a word marked."""
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = ["[UNK]", "[SEP]", *letters, *(f"##{x}" for x in letters), "the", "cat", "charge", "##back", ",", "("]
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[SEP]", unk_token="[UNK]")


def spaces_apart(golden) -> PreTrainedTokenizerFast:
    """The quickstart's way: spaces are tokens."""
    return AutoTokenizer.from_pretrained(golden.parent.parent / "configs" / "quickstart" / "base")


KINDS = {"bytes": bytes_bpe, "sentencepiece": sentencepiece, "wordpiece": wordpiece}


@pytest.fixture(params=[*KINDS, "quickstart"])
def tokenizer(request, golden):
    return spaces_apart(golden) if request.param == "quickstart" else KINDS[request.param]()


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_word_inside_of_a_text_becomes_one_token_and_the_text_decodes_as_before(tokenizer, tmp_path):
    text = "the chargeback, a chargeback (the cat"
    before, first = ids(tokenizer, text), len(tokenizer)
    number = len(terms.pieces(tokenizer, "chargeback"))
    assert number > 1
    grown = terms.grown(tokenizer, ["chargeback", "reversal"])
    assert len(tokenizer) == first
    after = ids(grown, text)
    assert after.count(first) == 2
    assert len(after) == len(before) - 2 * (number - 1)
    assert grown.decode(after).split() == tokenizer.decode(before).split()
    # a longer word is not cut into worse pieces than one more, a known one not at all
    assert ids(grown, "the cat sat") == ids(tokenizer, "the cat sat")
    grown.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert ids(again, text) == after
    assert terms.add(again, ["estoppel"]) == [first + 2]


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


def test_a_saving_is_counted_with_both_tokenizers():
    tokenizer = bytes_bpe()
    found = terms.saving(TEXTS, tokenizer, terms.grown(tokenizer, ["chargeback"]))
    assert found.before == sum(len(ids(tokenizer, text)) for text in TEXTS)
    assert found.before - found.after == 3 * (len(terms.pieces(tokenizer, "chargeback")) - 1)
    assert str(found).endswith(f"({found.share:.1%} fewer)")


def test_a_word_that_starts_a_known_one_is_left_out_where_it_would_cut_that():
    tokenizer = bytes_bpe()
    known = [word for word in terms.words_of(tokenizer).values() if len(word) == 3]
    assert {"cat", "the"} <= set(known)
    assert [
        term.text for term in terms.find(["a ca", "b ca", "a xx", "b xx"], tokenizer, num=9, min_count=2, min_length=2)
    ] == ["xx"]


def test_words_of_a_tokenizer_are_whole_ones():
    assert set(terms.words_of(wordpiece()).values()) == {"the", "cat", "charge"}
    found = terms.words_of(bytes_bpe())
    assert all(bytes_bpe().decode([i]) == f" {word}" for i, word in found.items())


def test_a_term_that_is_one_token_is_told_apart():
    kept, known = terms.checked(wordpiece(), [" chargeback ", "cat", ""])
    assert (kept, known) == (["chargeback"], ["cat"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "there are no new tokens"),
        (["", "  "], "there are no new tokens"),
        (["chargeback", "late", "chargeback"], "a new token is named twice"),
        (["cat", "the"], "all new tokens are tokens already"),
    ],
)
def test_terms_that_cannot_be_are_refused(given, message):
    with pytest.raises(ConfigError) as raised:
        terms.checked(wordpiece(), given, where="terms.txt")
    assert message in str(raised.value)
    assert "terms.txt" in str(raised.value)


def test_the_chat_template_stays_what_it_was(golden):
    tokenizer = spaces_apart(golden)
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
