import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxlean.config import RunConfig, build
from jaxlean.data.columns import resolve
from jaxlean.data.labelled import NO_LABEL, LabelEncoder, first_tokens
from jaxlean.data.loader import encoded, eval_batches, train_batches
from jaxlean.data.tokenize import Counts, Tokens
from jaxlean.errors import DataError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "card", "is", "lo", "##st", "where", "my", "mo", "##ney", "?"]


@pytest.fixture(scope="module")
def bert() -> Any:
    """A WordPiece tokenizer with BERT's special tokens and token types."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"], model_max_length=12,
    )  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., RunConfig]:
    def make(task: str, rows: list[dict[str, Any]], **data: Any) -> RunConfig:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return resolve(build({"task": task, "data": {"train": str(file), "eval": str(file), **data}}))

    return make


def encode(config: RunConfig, tokenizer: Any, counts: Counts | None = None, **how: Any) -> list[Tokens | None]:
    assert config.data.train is not None
    source = config.data.train[0]
    encoder = LabelEncoder(config, tokenizer, **how)
    lines = Path(source.path).read_text().splitlines()
    make = encoder.reader(json.loads(lines[0]), source.path)
    rows = [(make(json.loads(line), f"{source.path}:{n}"), f"{source.path}:{n}") for n, line in enumerate(lines, 1)]
    return list(encoder.encode(rows, counts if counts is not None else Counts()))


def read(tokens: Tokens | None) -> list[tuple[str, int]]:
    assert tokens is not None
    return [(WORDS[i], int(label)) for i, label in zip(tokens.input_ids, tokens.more["labels"], strict=True)]


LOST = [{"text": "The card is lost", "label": "card"}, {"text": "where my money?", "label": "money"}]


def test_a_text_has_its_label_at_its_first_token(config: Callable[..., RunConfig], bert: Any) -> None:
    first, second = encode(config("classify", LOST), bert)
    none = NO_LABEL
    assert read(first) == [
        ("[CLS]", 0), ("the", none), ("card", none), ("is", none), ("lo", none), ("##st", none), ("[SEP]", none)
    ]  # fmt: skip
    assert read(second)[0] == ("[CLS]", 1)
    assert second is not None
    assert second.loss_mask.tolist() == [True, *[False] * 7][: len(second.loss_mask)]
    assert second.origin.endswith("rows.jsonl:2")


def test_two_texts_have_token_types(config: Callable[..., RunConfig], bert: Any) -> None:
    rows = [{"text": "my card", "text_pair": "is lost", "label": label} for label in "ab"]
    first, _ = encode(config("classify", rows), bert)
    assert [word for word, _ in read(first)] == ["[CLS]", "my", "card", "[SEP]", "is", "lo", "##st", "[SEP]"]
    assert first is not None
    assert first.more["token_types"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_tokenizer_that_knows_no_types_gives_zeros(config: Callable[..., RunConfig], bert: Any) -> None:
    import copy

    plain = copy.deepcopy(bert)
    plain.model_input_names = ["input_ids", "attention_mask"]
    rows = [{"text": "my card", "text_pair": "is lost", "label": label} for label in "ab"]
    first, _ = encode(config("classify", rows), plain)
    assert first is not None
    assert first.more["token_types"].tolist() == [0] * 8


def test_a_word_has_its_label_at_its_first_token(config: Callable[..., RunConfig], bert: Any) -> None:
    rows = [{"tokens": ["My", "money", "is", "lost", "?"], "tags": ["O", "B-X", "O", "O", "O"]}]
    (first,) = encode(config("tag", rows), bert)
    none = NO_LABEL
    assert read(first) == [
        ("[CLS]", none), ("my", 1), ("mo", 0), ("##ney", none), ("is", 1), ("lo", 1), ("##st", none), ("?", 1),
        ("[SEP]", none),
    ]  # fmt: skip


def test_a_token_of_two_words_has_the_firsts_label(
    config: Callable[..., RunConfig], bert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxlean.data.labelled.first_tokens", lambda words, offsets: [1, 1])
    (first,) = encode(config("tag", [{"tokens": ["my", "card"], "tags": ["a", "b"]}]), bert)
    assert read(first)[1] == ("my", 0)


def test_pairs_are_two_examples_one_after_the_other(config: Callable[..., RunConfig], bert: Any) -> None:
    rows = [{"anchor": "my card", "positive": "the card"}, {"anchor": "my money", "positive": "the money"}]
    found = encode(config("embed", rows), bert)
    assert [[word for word, _ in read(tokens)][1] for tokens in found] == ["my", "the", "my", "the"]
    assert [read(tokens)[0][1] for tokens in found] == [0, NO_LABEL, 0, NO_LABEL]


def test_rows_without_labels_say_what_stands_where(config: Callable[..., RunConfig], bert: Any) -> None:
    rows = [{"tokens": ["My", "money", "?"], "tags": ["O", "B", "O"]}]
    (first,) = encode(config("tag", rows), bert, blind=True)
    assert [label for _, label in read(first)] == [NO_LABEL, 0, 1, NO_LABEL, 2, NO_LABEL]
    (first, _) = encode(config("classify", LOST), bert, blind=True)
    assert [label for _, label in read(first) if label >= 0] == [0]


def test_what_is_too_long(config: Callable[..., RunConfig], bert: Any) -> None:
    """The tokenizer's own limit counts as well, and its last special token stays."""
    rows = [{"text": "card " * 11, "label": "a"}, {"text": "card", "label": "b"}]
    with pytest.raises(DataError, match=r"longer than data\.max_length") as error:
        encode(config("classify", rows), bert)
    assert "rows.jsonl:1" in str(error.value)
    assert "13 tokens" in str(error.value)
    assert "at most 12" in str(error.value)
    counts = Counts()
    cut, _ = encode(config("classify", rows, on_long="truncate", max_length=5), bert, counts)
    assert [word for word, _ in read(cut)] == ["[CLS]", "card", "card", "card", "[SEP]"]
    assert (counts.rows, counts.truncated, counts.longest) == (2, 1, 13)
    assert encode(config("classify", rows, on_long="drop"), bert)[0] is None
    pairs = [{"anchor": "my card", "positive": "card " * 11}, {"anchor": "my", "positive": "the"}]
    assert [made is None for made in encode(config("embed", pairs, on_long="drop"), bert)] == [True, True, False, False]


def test_words_that_are_cut_off_have_no_label(config: Callable[..., RunConfig], bert: Any) -> None:
    rows = [{"tokens": ["my", "card", "is", "lost"], "tags": ["a", "b", "a", "b"]}]
    (cut,) = encode(config("tag", rows, on_long="truncate", max_length=4), bert)
    assert read(cut) == [("[CLS]", NO_LABEL), ("my", 0), ("card", 1), ("[SEP]", NO_LABEL)]


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("classify", {"text": " ", "label": "card"}, "the column 'text' is empty"),
        ("classify", {"text": None, "label": "card"}, "the column 'text' is empty"),
        ("classify", {"text": 3, "label": "card"}, "is not text"),
        ("tag", {"tokens": ["a", "b"], "tags": ["O"]}, "2 in 'tokens', 1 in 'tags'"),
        ("tag", {"tokens": "my card", "tags": ["O"]}, "one entry a word"),
        ("embed", {"anchor": "a", "positive": ""}, "the column 'positive' is empty"),
    ],
)
def test_a_bad_row_is_named(
    config: Callable[..., RunConfig], bert: Any, task: str, row: dict[str, Any], said: str
) -> None:
    good = {
        "classify": LOST,
        "tag": [{"tokens": ["my"], "tags": ["O"]}, {"tokens": ["my"], "tags": ["B"]}],
        "embed": [{"anchor": "a", "positive": "b"}],
    }[task]
    with pytest.raises(DataError, match=said) as error:
        encode(config(task, [*good, row]), bert)
    assert f"rows.jsonl:{len(good) + 1}" in str(error.value)


def test_a_label_of_other_data_is_named(config: Callable[..., RunConfig], bert: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("text,label\nmy card,crad\n")
    settings = config("classify", LOST, eval=str(other))
    with pytest.raises(DataError, match="that the model does not have") as error:
        eval_batches(settings, bert, rows=2)
    assert "other.csv:2" in str(error.value)
    assert "did you mean 'card'?" in str(error.value)


def test_a_token_beyond_the_vocabulary(config: Callable[..., RunConfig], bert: Any) -> None:
    with pytest.raises(DataError, match="beyond the model's vocabulary"):
        encode(config("classify", LOST), bert, vocab_size=5)


def test_first_tokens_of_byte_level_tokenizers() -> None:
    """Whose tokens begin at the blank before a word, or are that blank, or reach over two words."""
    words = ["a", "bc", "d"]  # "a bc d"
    assert first_tokens(words, [(0, 0), (0, 1), (1, 3), (3, 4), (4, 6), (0, 0)]) == [1, 2, 4]
    assert first_tokens(words, [(0, 1), (1, 2), (2, 4), (4, 5), (5, 6)]) == [0, 2, 4]
    assert first_tokens(words, [(0, 1), (1, 4)]) == [0, 1, None]
    assert first_tokens(["a", "\u200b", "b"], [(0, 1), (4, 5)]) == [0, None, 1]


# ---- the batches


def test_texts_are_packed_with_their_labels(config: Callable[..., RunConfig], bert: Any) -> None:
    batches = train_batches(config("classify", LOST * 4, max_length=32), bert, rows_per_step=1)
    batch = next(batches)
    assert sorted(batch) == ["labels", "positions", "segments", "tokens"]
    assert batches.stats.tokens == batches.stats.examples == 8
    starts = batch["labels"] >= 0
    np.testing.assert_array_equal(starts, (batch["positions"] == 0) & (batch["segments"] > 0))
    assert (batch["tokens"][starts] == 2).all()
    assert batch["segments"].max() == 4
    assert (batch["labels"][batch["segments"] == 0] == NO_LABEL).all()


def test_pairs_lie_in_two_rows_of_one_batch(config: Callable[..., RunConfig], bert: Any) -> None:
    rows = [{"anchor": f"my {word}", "positive": f"the {word}"} for word in ("card", "money", "lost")]
    settings = config("embed", rows)
    batches = train_batches(settings, bert, rows_per_step=4)
    assert (batches.num_steps, batches.length) == (2, 64)
    assert batches.stats.examples == batches.stats.tokens == 3
    met = []
    for batch in batches:
        for anchor, positive in zip(batch["tokens"][0::2], batch["tokens"][1::2], strict=True):
            if anchor.any():
                assert (anchor[1], positive[1]) == (WORDS.index("my"), WORDS.index("the"))
                np.testing.assert_array_equal(anchor[2:], positive[2:])
                met.append(int(anchor[2]))
        np.testing.assert_array_equal(
            batch["labels"][:, 0] == 0, [True, False] * 2 if len(met) == 2 else [True, *[False] * 3]
        )
    assert sorted(met) == sorted(WORDS.index(word) for word in ("card", "mo", "lo"))
    held = eval_batches(settings, bert, rows=2)
    assert (len(held), held.stats.examples) == (3, 3)


def test_a_curriculum_of_pairs_and_of_labels(config: Callable[..., RunConfig], bert: Any) -> None:
    def count(word: str, texts: np.ndarray) -> list[int]:
        return (texts == WORDS.index(word)).sum(axis=1).tolist()

    rows = [{"anchor": "my" + " card" * n, "positive": "the" + " my" * (n % 3), "grade": -n} for n in range(8)]
    opened = {"start": 0.25, "until": 1.0, "floor": 0.0, "pacing": "step", "phases": 4}
    for section, easiest in (
        ({"difficulty": "length"}, range(5)),
        ({"difficulty": "column", "column": "grade"}, (5, 6, 7)),
    ):
        batches = train_batches(config("embed", rows, curriculum=section | opened), bert, rows_per_step=4)
        first = next(batches)["tokens"]
        words = count("card", first[0::2])
        assert set(words) <= set(easiest), "by the length of both texts, or by their grade"
        assert count("my", first[1::2]) == [n % 3 for n in words], "pairs stay together"
        seen = words + [n for batch in batches for n in count("card", batch["tokens"][0::2])]
        assert sorted(seen) == list(range(8))
    graded = [{"text": "card " * (1 + n), "label": "ab"[n % 2], "grade": -n} for n in range(8)]
    settings = config(
        "classify", graded, curriculum={"difficulty": "column", "column": "grade"} | opened, packing=False
    )
    assert min(count("card", next(train_batches(settings, bert, rows_per_step=2))["tokens"])) >= 6


def test_a_part_is_held_out_of_pairs(config: Callable[..., RunConfig], bert: Any) -> None:
    rows = [{"anchor": "my card", "positive": "the card"}] * 10
    settings = config("embed", rows, eval=None, eval_fraction=0.2)
    assert train_batches(settings, bert, rows_per_step=2).stats.examples == 8
    assert eval_batches(settings, bert, rows=2).stats.examples == 2


def test_rows_can_be_looked_at_in_full(config: Callable[..., RunConfig], bert: Any) -> None:
    settings = config("classify", [{"text": "card " * 40, "label": "a"}, {"text": "card", "label": "b"}])
    assert settings.data.train is not None
    found = list(encoded(settings, settings.data.train[0], bert, Counts(), 10))
    assert [len(tokens.input_ids) for tokens in found] == [42, 3]
