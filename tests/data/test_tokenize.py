from typing import Any

import numpy as np
import pytest

from jaxlean.data.format import Chat, Example, Pair, Text
from jaxlean.data.tokenize import BLOCK, Counts, Encoder, Ragged, Tokens
from jaxlean.errors import DataError

CHAT = Chat(
    [{"role": "user", "content": "Where is my card?"}, {"role": "assistant", "content": "It is é☃, of course."}]
)
TEMPLATES = ["chatml", "llama3", "gemma", "marked", "thinking", "plain"]


def encode(tokenizer: Any, *examples: Example, max_length: int = 100, **options: Any) -> list[Tokens | None]:
    encoder = Encoder(tokenizer, max_length=max_length, **options)
    return list(encoder.encode(((example, f"f:{i}") for i, example in enumerate(examples, 1)), Counts()))


def only(tokenizer: Any, example: Example, **options: Any) -> Tokens:
    (tokens,) = encode(tokenizer, example, **options)
    assert tokens is not None
    assert (tokens.input_ids.dtype, tokens.loss_mask.dtype) == (np.int32, bool)
    return tokens


def learned(tokenizer: Any, tokens: Tokens) -> str:
    return tokenizer.decode(tokens.input_ids[tokens.loss_mask].tolist())


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("bos", [False, True])
def test_never_two_bos_and_always_an_end(make_tokenizer, template: str, bos: bool) -> None:
    # pad is eos here, as in many base models: the end is learned all the same.
    tokenizer = make_tokenizer(template, bos=bos)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    tokens = only(tokenizer, CHAT)
    ids = tokens.input_ids.tolist()
    assert ids.count(tokenizer.bos_token_id) == (template in ("llama3", "gemma"))
    assert tokenizer.decode(ids).startswith(tokenizer.apply_chat_template(CHAT.messages, tokenize=False))
    end = {"llama3": "<|eot|>", "gemma": "<end_of_turn>", "plain": "\n</s>"}.get(template, "<|im_end|>")
    assert learned(tokenizer, tokens).removeprefix("<think>\n\n</think>\n\n") == f"It is é☃, of course.{end}"


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_generation_prompt_is_a_prefix_of_what_was_trained(make_tokenizer, template: str) -> None:
    tokenizer = make_tokenizer(template)
    tokens = only(tokenizer, CHAT)
    prompt, wanted = Encoder(tokenizer, max_length=100).prompt(CHAT, "f:1") or ([], "")
    assert wanted == "It is é☃, of course."
    assert tokens.input_ids[: len(prompt)].tolist() == prompt
    assert not tokens.loss_mask[: len(prompt)].any()
    assert tokens.loss_mask[len(prompt)]


def test_transformers_own_mask_agrees(make_tokenizer) -> None:
    tokenizer = make_tokenizer("marked")
    chat = Chat([*CHAT.messages, *CHAT.messages])
    theirs = tokenizer.apply_chat_template(chat.messages, return_dict=True, return_assistant_tokens_mask=True)
    tokens = only(tokenizer, chat)
    assert tokens.input_ids.tolist() == theirs["input_ids"]
    extra = tokens.loss_mask & ~np.array(theirs["assistant_masks"], bool)
    assert not (np.array(theirs["assistant_masks"], bool) & ~tokens.loss_mask).any()
    # Their mask follows the template to the letter, which leaves out the ends of the turns.
    assert tokenizer.decode(tokens.input_ids[extra].tolist()) == "<|im_end|><|im_end|>"


@pytest.mark.parametrize("bos", [False, True])
def test_plain_pairs_learn_the_completion_and_eos(make_tokenizer, bos: bool) -> None:
    tokenizer = make_tokenizer(bos=bos)
    tokens = only(tokenizer, Pair("Where is my card? ", "four"))
    assert tokenizer.decode(tokens.input_ids.tolist()) == "<s>" * bos + "Where is my card? four</s>"
    assert learned(tokenizer, tokens) == "four</s>"
    spelled = only(tokenizer, Pair("<s>Where", "four</s>"))
    assert tokenizer.decode(spelled.input_ids.tolist()) == "<s>Wherefour</s>"


def test_a_token_never_straddles_prompt_and_completion(make_tokenizer) -> None:
    tokenizer = make_tokenizer(bos=True)
    joined = tokenizer("my card")["input_ids"]
    for cut in range(1, len("my card")):
        pair = Pair("my card"[:cut], "my card"[cut:])
        prompt, _ = Encoder(tokenizer, max_length=100).prompt(pair, "f:1") or ([], "")
        tokens = only(tokenizer, pair)
        assert tokens.input_ids[: len(prompt)].tolist() == prompt
        assert tokens.loss_mask.tolist() == [False] * len(prompt) + [True] * (len(tokens.loss_mask) - len(prompt))
        assert tokenizer.decode(tokens.input_ids.tolist()) == "<s>my card</s>"
    assert len(joined) == 3, "the test needs ' card' to be one token"


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_a_token_never_straddles_the_start_of_a_turn(make_tokenizer, trim_offsets: bool) -> None:
    from tokenizers import processors

    tokenizer = make_tokenizer("plain")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    # The generation prompt ends in a space, and ' card' is one token.
    chat = Chat([{"role": "user", "content": "x"}, {"role": "assistant", "content": "card"}])
    assert len(tokenizer(" card")["input_ids"]) == 1
    tokens = only(tokenizer, chat)
    prompt, _ = Encoder(tokenizer, max_length=100).prompt(chat, "f:1") or ([], "")
    assert tokens.input_ids[: len(prompt)].tolist() == prompt
    assert learned(tokenizer, tokens) == "card\n</s>"


def test_text_learns_all_but_the_first_token(make_tokenizer) -> None:
    tokenizer = make_tokenizer(bos=True)
    tokens = only(tokenizer, Text("my card"))
    assert tokenizer.decode(tokens.input_ids.tolist()) == "<s>my card</s>"
    assert tokens.loss_mask.tolist() == [False] + [True] * (len(tokens.input_ids) - 1)
    assert Encoder(tokenizer, max_length=9).prompt(Text("my card"), "f:1") is None


def test_train_on_all(make_tokenizer) -> None:
    tokens = only(make_tokenizer("chatml"), CHAT, train_on="all")
    assert tokens.loss_mask.tolist() == [False] + [True] * (len(tokens.input_ids) - 1)


def test_too_long_is_never_silent(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    short, long = Pair("my", " card"), Pair("my card", " card" * 20)
    with pytest.raises(DataError, match=r"f:2(.|\n)*23 tokens(.|\n)*at most 10(.|\n)*data\.on_long"):
        encode(tokenizer, short, long, max_length=10)
    counts = Counts()
    block = [(short, "f:1"), (long, "f:2"), (short, "f:3")]
    first, none, last = Encoder(tokenizer, max_length=10, on_long="drop").encode(block, counts)
    assert none is None
    assert first is not None
    assert last is not None
    assert counts == Counts(rows=3, dropped=1, truncated=0, longest=23)
    counts = Counts()
    _, cut, _ = Encoder(tokenizer, max_length=10, on_long="truncate").encode(block, counts)
    assert cut is not None
    assert len(cut.input_ids) == 10
    assert tokenizer.eos_token_id not in cut.input_ids, "a cut is no end, and is not learned as one"
    assert counts == Counts(rows=3, dropped=0, truncated=1, longest=23)


def test_truncation_that_leaves_nothing_to_learn(make_tokenizer) -> None:
    with pytest.raises(DataError, match=r"no loss token left after truncation(.|\n)*f:1"):
        encode(make_tokenizer(), Pair(" card" * 20, "four"), max_length=10, on_long="truncate")


def test_a_token_beyond_the_vocabulary(make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    highest = int(max(only(tokenizer, CHAT).input_ids))
    assert only(tokenizer, CHAT, vocab_size=highest + 1)
    with pytest.raises(DataError, match=rf"f:1(.|\n)*{highest} \((.|\n)*below {highest}"):
        encode(tokenizer, CHAT, vocab_size=highest)


def test_rows_and_tokenizers_with_nothing_to_learn(make_tokenizer) -> None:
    with pytest.raises(DataError, match=r"text is empty(.|\n)*f:1"):
        encode(make_tokenizer(), Text(""))
    with pytest.raises(DataError, match=r"no EOS token(.|\n)*f:1"):
        encode(make_tokenizer(eos=None, pad="<s>"), Text("card"))
    with pytest.raises(DataError, match="chat template, and the tokenizer has none"):
        encode(make_tokenizer(), CHAT)


def test_order_is_kept_across_kinds_and_blocks(make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    examples: list[Example] = [(Text(f"{i}"), Pair("n", f"{i}"), CHAT)[i % 3] for i in range(BLOCK + 20)]
    together = encode(tokenizer, *examples)
    assert len(together) == len(examples)
    for i in (0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1):
        alone, tokens = only(tokenizer, examples[i]), together[i]
        assert tokens is not None
        assert tokens.origin == f"f:{i + 1}"
        assert tokens.input_ids.tolist() == alone.input_ids.tolist()
        assert tokens.loss_mask.tolist() == alone.loss_mask.tolist()


def test_ragged() -> None:
    examples = [Tokens(np.arange(n, dtype=np.int32), np.arange(n) % 2 == 1) for n in (3, 1, 0, 5)]
    ragged = Ragged.join([Ragged.of(examples[:2]), Ragged.of([]), Ragged.of(examples[2:])])
    assert ragged.lengths.tolist() == [3, 1, 0, 5]
    for i, example in enumerate(examples):
        ids, mask = ragged[i]
        assert ids.tolist() == example.input_ids.tolist()
        assert mask.tolist() == example.loss_mask.tolist()
    assert (ragged.input_ids.dtype, ragged.loss_mask.dtype) == (np.int32, bool)
