"""Small tokenizers, made on the spot: byte-level BPE under several chat templates."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start|>{{ m['role'] }}<|end|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Marks what the assistant says, but stops before the end-of-turn token.
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3: the last assistant turn opens with an empty <think> block that earlier turns do not have.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# No special token anywhere.
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# Changes what the assistant said as soon as another turn follows.
REWRITING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] if loop.last or m['role'] != 'assistant' else '(left out)' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "marked": MARKED,
    "thinking": THINKING,
    "plain": PLAIN,
    "rewriting": REWRITING,
}
TURNS = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>", "<start_of_turn>", "<end_of_turn>"]
SPECIAL = ["<s>", "</s>", *TURNS]
WORDS = ["What is two plus two? It is four, of course.", "Where is my card? I am still waiting on my new card."]


def build(template: str | None = None, *, bos: bool = False, eos: str | None = "</s>", pad: str | None = None) -> Any:
    """A byte-level BPE tokenizer. `bos`: it puts <s> before every text. `template`: a name in TEMPLATES."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(WORDS * 4, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token=eos,
        pad_token=pad or eos,
        additional_special_tokens=TURNS,
    )
    tokenizer.chat_template = TEMPLATES[template] if template else None
    return tokenizer


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    return build


# ---- tokenizers by how they write words

WORDS_PLAIN = (
    "the cat sat on the mat and the dog sat on the log " * 20
    + 'a b c d e f g h i j k l m n o p q r s t u v w x y z ( , . "'
)


def bytes_bpe() -> PreTrainedTokenizerFast:
    """GPT-2's way: the space before a word belongs to it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator([WORDS_PLAIN], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama 2's way: spaces are signs, and one stands before the first word."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    made.train_from_iterator(
        [WORDS_PLAIN], trainers.BpeTrainer(vocab_size=120, special_tokens=["</s>"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def prepending() -> PreTrainedTokenizerFast:
    """The published form of Mistral, Mixtral and Phi-3: the normalizer makes signs of spaces, and puts one first."""
    made = sentencepiece().backend_tokenizer
    made.pre_tokenizer = None
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def replacing() -> PreTrainedTokenizerFast:
    """Gemma's way: the normalizer makes signs of spaces, and puts none before a text."""
    made = prepending().backend_tokenizer
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
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


@pytest.fixture
def spaces_apart(golden) -> PreTrainedTokenizerFast:
    """The quickstart's way: spaces are tokens."""
    return AutoTokenizer.from_pretrained(golden.parent.parent / "configs" / "quickstart" / "base")


KINDS = {
    "bytes": bytes_bpe,
    "sentencepiece": sentencepiece,
    "prepending": prepending,
    "replacing": replacing,
    "wordpiece": wordpiece,
}


@pytest.fixture
def kinds() -> dict[str, Callable[[], PreTrainedTokenizerFast]]:
    return KINDS


@pytest.fixture(params=[*KINDS, "quickstart"])
def tokenizer(request) -> PreTrainedTokenizerFast:
    return request.getfixturevalue("spaces_apart") if request.param == "quickstart" else KINDS[request.param]()
