"""Trains the quickstart's tokenizer, a byte-level BPE of 2048 tokens, and writes it in Hugging Face format.

    python configs/quickstart/make_tokenizer.py --corpus corpus.jsonl --out configs/quickstart/base/

It learns from the pre-training corpus only, never from the task. It is made for copying a value out of a sentence
into JSON: a word has the same token ids after a space, after a quote, after a bracket and at the start of a line. So a
space is a token of its own (or belongs to the punctuation before it, `, `) and never to the word after it, as it
does in GPT-2's tokenizer, where `Alice` and ` Alice` share nothing. That costs about a third more tokens on plain
text, and saves a vocabulary that would hold most words twice. Digits go in pairs from the left: a number is the same
few tokens wherever it stands, and a pair is less often seen twice in one message than a digit is.
"""

import argparse
import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 2048
PAD, END_OF_TEXT, TURN_START, TURN_END = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# A run of letters; or up to two digits; or one sign that values begin with or hold; or punctuation, with single spaces
# between and after its marks (`": "` is one piece, so that JSON is short); or line ends; or other white space. Every
# character is in exactly one piece.
PIECES = r"\p{L}+|\p{N}{1,2}|[$£€#@+]|[^\s\p{L}\p{N}$£€#@+]+(?: [^\s\p{L}\p{N}$£€#@+]+)* ?|[\r\n]+|[^\S\r\n]+"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train(texts: list[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """A tokenizer trained on `texts`; ids 0-3 are the special tokens, then the 256 bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=12,
        show_progress=False,
    )
    # The chat marks are special tokens: their letters are not text to learn from.
    for mark in (TURN_START, TURN_END):
        texts = [text.replace(mark, "\n") for text in texts]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="JSONL with a `text` in each row")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "base", help="folder to write to")
    args = parser.parse_args(arguments)
    with args.corpus.open(encoding="utf-8") as file:
        tokenizer = train([json.loads(line)["text"] for line in file])
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.out / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        # A turn ends where generation in a chat must stop; documents of plain text end with `<|endoftext|>`.
        "eos_token": TURN_END,
        "bos_token": None,
        "additional_special_tokens": [END_OF_TEXT, TURN_START],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    (args.out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    print(f"{args.out / 'tokenizer.json'}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
