"""Writes the text that the quickstart's base model is pre-trained on, as JSONL rows `{"text": ...}`.

    python configs/quickstart/make_corpus.py --data data/ --seed 0 --out corpus.jsonl

The file is a curriculum, to be read in order. First lines of random words, said two or three times: nothing in them can
be learned but to copy, and a small model that copies learns the rest in a fraction of the steps (without this lesson
a 3M-parameter model had not learned it after 4 million tokens of the rest). Then, shuffled, real English (WikiText-2
validation, Shakespeare, GSM8K train, Banking77 train: never their test files) and made-up records, commands and
look-ups full of values that nobody has seen before, each followed by the same values in JSON, `key: value` lines,
tables or an answer, so that it copies for a purpose and answers in the chat format. `schemas.json` holds those domains;
none of them, nor any key or label, is the quickstart's own task (`tests/configs/test_make_corpus.py` checks it).

Standard library only; as in `make_task.py` all randomness is `Random.random()`.
"""

import argparse
import csv
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

MAX_CHARS = 400  # about 180 tokens of this project's tokenizer, 266 at the very most
FILES = ("wikitext2_valid.txt", "tinyshakespeare.txt", "gsm8k_train.jsonl", "banking77_train.csv")
CHAT_SHARE = 0.65  # of the made-up documents that can be either chat or plain text
ONSETS = (
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p ph pl pr qu r s sc sh sk sl sm sn sp st "
    "str t th tr v w wh y z "
).split()
VOWELS = "a e i o u a e i o ai au ea ee ia ie io oa oo ou y".split()
CODAS = [*[""] * 12, *"b ck d f g k l ll m n nd ng nn nt p r rd rk rn rt s ss st t th x".split()]
ENDINGS = [*[""] * 4, *"a er en o is on us y ton field ham ford land ley man son wick berg".split()]
# The keys of the quickstart's task. No made-up document may use them as a key; the fine-tuning has to teach them.
TASK_KEYS = frozenset("intent slots order_id amount street city name email date time product".split())
MONTHS = "January February March April May June July August September October November December".split()
NAMES = (
    "Aaron Abigail Albert Amelia Andrew Angela Arthur Barbara Benjamin Brenda Brian Caroline Catherine Charles "
    "Charlotte Christian Christopher Colin Deborah Dennis Donald Dorothy Douglas Edgar Edward Eleanor Elizabeth "
    "Emily Eric Ernest Esther Eugene Evelyn Florence Francis Gerald Gilbert Gordon Grace Hannah Harriet Heather "
    "Helen Herbert Howard Hilda Jacob Jack Jane Janet Jason Jennifer Jeremy Jessica Joan John Jonathan Joseph "
    "Joshua Judith Katherine Kenneth Lawrence Leonard Linda Louise Lydia Malcolm Margaret Marion Martha Matthew "
    "Michael Molly Monica Nancy Nathan Nicholas Norman Oliver Pamela Patricia Patrick Philip Rachel Raymond "
    "Rebecca Richard Roger Ronald Rosemary Rupert Ruth Samuel Sandra Sharon Shirley Stella Stephen Susan Theodore "
    "Timothy Valerie Veronica Violet Virginia William "
).split()


class Maker:
    """Random values and the documents around them.

    Args:
        seed: of its random numbers.
        schemas: the content of `schemas.json`.
        words: real words to mix among the made-up ones.
    """

    def __init__(self, seed: int, schemas: dict, words: list[str]):
        self.random = random.Random(seed).random
        self.schemas, self.words = schemas, words

    def pick(self, items: Sequence[Any]) -> Any:
        return items[int(self.random() * len(items))]

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return low + int(self.random() * (high - low + 1))

    def some(self, items: Iterable, low: int, high: int) -> list:
        """Between `low` and `high` different ones of `items`, in random order."""
        shuffled = [item for _, _, item in sorted((self.random(), index, item) for index, item in enumerate(items))]
        return shuffled[: self.between(low, high)]

    # --- values, by kind; made up, so that they can only be copied ---

    def pseudo(self) -> str:
        """`brantoley`: one of many millions."""
        body = "".join(self.pick(ONSETS) + self.pick(VOWELS) + self.pick(CODAS) for _ in range(self.pick([1, 1, 2, 2])))
        return body + self.pick(ENDINGS) if len(body) < 9 else body

    def word(self) -> str:
        return self.pick(self.words) if self.random() < 0.5 else self.pseudo()

    def capital(self) -> str:
        return (self.word() if self.random() < 0.3 else self.pseudo()).capitalize()

    def digits(self, low: int, high: int) -> str:
        return "".join(str(self.between(0, 9)) for _ in range(self.between(low, high)))

    def number(self) -> str:
        return str(self.between(1, 9)) + self.digits(0, 7)

    def small(self) -> str:
        return str(self.between(1, 40))

    def year(self) -> str:
        return str(self.between(1700, 2040))

    def decimal(self) -> str:
        return f"{self.between(0, 999)}.{self.digits(1, 3)}"

    def score(self) -> str:
        return f"{self.between(0, 30)}{self.pick(':-')}{self.between(0, 30)}"

    def phone(self) -> str:
        return self.pick(["+", "0", ""]) + self.pick(["-", " ", ""]).join(self.digits(2, 4) for _ in range(3))

    def code(self) -> str:
        letters = "".join(chr(65 + self.between(0, 25)) for _ in range(self.between(1, 3)))
        return self.pick(
            [
                f"{letters}-{self.digits(2, 6)}",
                f"{letters}{self.digits(1, 7)}",
                self.digits(4, 8),
                f"{self.digits(1, 3)}{letters}",
            ]
        )

    def money(self) -> str:
        sum_ = f"{self.between(1, 2000)}" + self.pick(["", f".{self.digits(2, 2)}"])
        return self.pick([f"${sum_}", f"{sum_} euros", f"{sum_} dollars", f"{sum_} francs", f"£{sum_}"])

    def clock(self) -> str:
        return f"{self.between(0, 23)}:{self.between(0, 59):02d}" + self.pick(["", "", " am", " pm"])

    def date(self) -> str:
        day, month = self.between(1, 31), self.pick(MONTHS)
        return self.pick(
            [
                f"{day} {month}",
                f"{month} {day}",
                f"{day} {month[:3]}",
                f"{month} {day}, {self.year()}",
                f"{day}/{self.between(1, 12)}",
            ]
        )

    def person(self) -> str:
        first = self.pick(NAMES) if self.random() < 0.6 else self.capital()
        return self.pick([f"{first} {self.capital()}", f"{first} {self.capital()}", f"{first} {self.capital()}", first])

    def place(self) -> str:
        return self.capital() + self.pick(["", "", "", f" {self.capital()}"])

    def road(self) -> str:
        kind = self.pick(["Street", "Road", "Avenue", "Lane", "Row", "Hill", "Gate", "Court", "Square"])
        return self.pick(
            [
                f"{self.between(1, 300)} {self.capital()} {kind}",
                f"{self.capital()} {kind} {self.between(1, 300)}",
                f"{self.capital()} {kind}",
            ]
        )

    def thing(self) -> str:
        return " ".join(self.word() for _ in range(self.pick([1, 2, 2, 3])))

    def title(self) -> str:
        return " ".join(
            self.capital() if index == 0 or self.random() < 0.4 else self.word() for index in range(self.between(1, 4))
        )

    def mail(self) -> str:
        user = self.pick(
            [
                self.pseudo(),
                f"{self.pseudo()}.{self.pseudo()}",
                f"{self.pick(NAMES).lower()}.{self.pseudo()}",
                f"{self.pseudo()}{self.digits(1, 4)}",
                f"{self.word()}_{self.pseudo()}",
            ]
        )
        return f"{user}@{self.pseudo()}.{self.pick(['com', 'org', 'net', 'edu', 'info'])}"

    def any_value(self) -> str:
        return self.value(
            self.pick("word number code money clock date person place road thing title mail phone decimal".split())
        )

    def value(self, kind: str) -> str:
        value = getattr(self, kind)()
        return value.lower() if self.random() < 0.1 else value

    # --- ways to write a set of values ---

    def layout(self, label: str, pairs: list[tuple[str, str]], outer: tuple[str, str] | None) -> str:
        """`pairs` as JSON (nested under a label where `outer` names the two keys), lines or a table."""
        if outer:
            return json.dumps({outer[0]: label, outer[1]: dict(pairs)}, ensure_ascii=False)
        way = self.random()
        if way < 0.55:
            return json.dumps(dict(pairs), ensure_ascii=False)
        if way < 0.75:
            return "\n".join(f"{key}: {value}" for key, value in pairs)
        if way < 0.85:
            return "\n".join(
                [
                    "| " + " | ".join(key for key, _ in pairs) + " |",
                    "| " + " | ".join(value for _, value in pairs) + " |",
                ]
            )
        return json.dumps([value for _, value in pairs], ensure_ascii=False)

    def outer(self) -> tuple[str, str]:
        return self.pick(["type", "kind", "event", "label", "task", "class", "what"]), self.pick(
            ["fields", "data", "args", "values", "details", "with", "items"]
        )

    def polish(self, text: str) -> str:
        """A greeting, a closing, a full stop or none."""
        opener, closer = self.pick(self.schemas["openers"]), self.pick(self.schemas["closers"])
        if text.endswith("?"):
            return opener + text
        return opener + text + closer + self.pick([".", ".", "", "!"])

    def record(self) -> tuple[str, str, list[tuple[str, str]]]:
        """A message about one record: (message, label, pairs in the schema's order)."""
        schema = self.schemas["records"][self.pick(list(self.schemas["records"]))]
        fields = list(schema["fields"])
        chosen = self.some(fields, 1, 4)
        values = {field: self.value(schema["fields"][field][0]) for field in chosen}
        clauses = [self.pick(schema["fields"][field][1:]).replace("{}", values[field]) for field in chosen]
        message = self.pick([", ", ", ", " and ", ". ", "; ", " "]).join(clauses)
        return self.polish(message), schema["label"][0], [(field, values[field]) for field in fields if field in values]

    def action(self, domain: str | None = None) -> tuple[str, str, list[tuple[str, str]]]:
        """A command or request: (message, label, pairs in the order of their keys)."""
        actions = self.schemas["actions"][domain or self.pick(list(self.schemas["actions"]))]
        label = self.pick(list(actions))
        template = self.pick(actions[label])
        kinds = dict(re.findall(r"{(\w+):(\w+)}", template))
        pairs = [(key, self.value(kind)) for key, kind in kinds.items()]
        message = template
        for key, value in pairs:
            message = message.replace(f"{{{key}:{kinds[key]}}}", value)
        message = self.polish(message)
        return message, label, sorted(pairs)

    def invented(self) -> tuple[str, str, list[tuple[str, str]]]:
        """A record whose very keys are made up: nothing about it can be known beforehand."""
        pairs = [(self.word().lower(), self.any_value()) for _ in range(self.between(1, 4))]
        pairs = list(dict(pairs).items())
        clause = self.pick(["the {} is {}", "{} is {}", "{} = {}", "its {} was {}", "with {} {}", "{}: {}"])
        message = self.pick([", ", " and ", "; ", ". "]).join(clause.format(key, value) for key, value in pairs)
        return self.polish(message), self.word().lower(), pairs

    # --- documents ---

    def extraction(self) -> str:
        """A message, then its values; sometimes the instruction names the keys, sometimes the format."""
        draw = self.random()
        message, label, pairs = self.record() if draw < 0.35 else self.action() if draw < 0.8 else self.invented()
        outer = self.outer() if self.random() < 0.6 else None
        if not outer and not pairs:
            outer = self.outer()
        names = ", ".join(key for key, _ in pairs)
        answer = self.layout(label, pairs, outer)
        if self.random() > CHAT_SHARE:
            return f"{message}\n{answer}"
        ways = [
            message,
            message,
            message,
            f"{message}\n\n{self.pick(['To JSON.', 'As data?', 'Write the fields.', 'Structure this.'])}",
        ]
        ways.append(f"{self.pick(['Find', 'Extract', 'Give me', 'List'])} {names or 'the label'}: {message}")
        if outer:
            ways.append(f"Keys {outer[0]} and {outer[1]}: {message}")
        system = self.pick(
            [None, None, None, "Turn each message into data.", "You fill in forms.", "Answer with data only."]
        )
        return chat(self.pick(ways), answer, system=system)

    def few_shot(self) -> str:
        """Two messages of one domain and their answers, then a third: the format is read from the document."""
        domain, outer = self.pick(list(self.schemas["actions"])), self.outer()
        turns = []
        for _ in range(self.between(2, 3)):
            message, label, pairs = self.action(domain)
            turns += [message, json.dumps({outer[0]: label, outer[1]: dict(pairs)}, ensure_ascii=False)]
        return chat(*turns) if self.random() < CHAT_SHARE else "\n".join(turns)

    def lookup(self) -> str:
        """Some facts of the form "the code of X is Y", then questions about them."""
        relation = self.pick(
            ["code", "colour", "owner", "number", "home", "price", "sister", "friend", "key", "room", self.word()]
        )
        kind = self.pick("word number code person place thing money".split())
        facts = [
            (self.value(self.pick(["person", "place", "thing"])), self.value(kind)) for _ in range(self.between(2, 4))
        ]
        said = " ".join(f"The {relation} of {x} is {y}." for x, y in facts)
        turns = []
        for x, y in self.some(facts, 1, 3):
            if self.random() < 0.3:
                turns += [f"Whose {relation} is {y}?", x]
            else:
                turns += [self.pick([f"What is the {relation} of {x}?", f"{relation} of {x}?", f"{x}?"]), y]
        turns[0] = f"{said} {turns[0]}"
        return chat(*turns) if self.random() < CHAT_SHARE else "\n".join(turns)

    def copying(self) -> str:
        """Say it again: a quote, a list in another order, a line repeated."""
        values = [self.any_value() for _ in range(self.between(1, 5))]
        text = self.pick([" ", ", ", "; ", "\n"]).join(values)
        way = self.random()
        if way < 0.3:
            asked, answer = f"{self.pick(['Repeat', 'Copy', 'Say again', 'Echo'])}: {text}", text
        elif way < 0.5:
            asked, answer = f"List: {text}", json.dumps(values, ensure_ascii=False)
        elif way < 0.65:
            asked, answer = f"Reverse: {', '.join(values)}", ", ".join(values[::-1])
        elif way < 0.85:
            quoted = self.pick(values)
            left, right = self.pick(["()", "[]", "<>", '""', "**"])
            shown = " ".join(f"{left}{value}{right}" if value == quoted else value for value in values)
            asked, answer = f"What is in {left}{right}? {shown}", quoted
        else:
            return "\n".join([text] * self.between(2, 3))
        return chat(asked, answer) if self.random() < CHAT_SHARE else f"{asked}\n{answer}"

    def fragment(self) -> str:
        """A word that no language has: slices of real words run together, digits, or a capitalised slice."""
        draw = self.random()
        if draw < 0.2:
            return self.digits(3, 7)
        slices = []
        for _ in range(self.between(1, 3)):
            word = self.pick(self.words)
            start = self.between(0, max(len(word) - 3, 0))
            slices.append(word[start : start + self.between(2, 5)])
        return "".join(slices).capitalize() if draw < 0.4 else "".join(slices)

    def repeated(self) -> str:
        """Random words, said two or three times."""
        words = [self.fragment() for _ in range(self.between(4, 14))]
        text = self.pick([" ", " ", ", ", "\n", "; "]).join(words)
        return self.pick([". ", "\n", " | ", " "]).join([text] * self.pick([2, 2, 3]))[:MAX_CHARS]

    def which(self) -> str:
        """One message, one question about a single field."""
        message, _, pairs = self.record() if self.random() < 0.6 else self.action()
        if not pairs:
            return self.extraction()
        key, value = self.pick(pairs)
        asked = self.pick([f"{message}\nWhat is the {key}?", f"{key}? {message}", f"Which {key}? {message}"])
        return chat(
            asked,
            self.pick(
                [
                    value,
                    json.dumps(value, ensure_ascii=False),
                    f"{key}: {value}",
                    json.dumps({key: value}, ensure_ascii=False),
                ]
            ),
        )

    def document(self) -> str:
        """One made-up document of at most MAX_CHARS."""
        draw = self.random()
        ways: list[tuple[float, Callable[[], str]]] = [
            (0.5, self.extraction),
            (0.62, self.few_shot),
            (0.76, self.lookup),
            (0.9, self.copying),
            (1.0, self.which),
        ]
        write = next(way for bound, way in ways if draw < bound)
        while len(text := write()) > MAX_CHARS:
            pass
        return text


def chat(*turns: str, system: str | None = None) -> str:
    """The turns (user, assistant, user ...) in the tokenizer's chat template."""
    said = [("system", system)] if system else []
    said += [("user" if index % 2 == 0 else "assistant", turn) for index, turn in enumerate(turns)]
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in said)


def pieces(text: str) -> Iterator[str]:
    """`text` cut between lines, or between sentences of a long line, into documents of at most MAX_CHARS."""
    held = ""
    for part in re.split(r"(?<=\n)|(?<=[.!?] )", text):
        if held and len(held) + len(part) > MAX_CHARS:
            yield held.strip()
            held = ""
        held += part
    if held.strip():
        yield held.strip()


def wikitext(text: str) -> Iterator[str]:
    """Paragraphs with ordinary spacing; sentences with a removed word (`<unk>`) are left out."""
    for line in text.split("\n"):
        line = re.sub(r" @([-,.])@ ", r"\1", line.strip())
        line = " . ".join(part for part in line.split(" . ") if "<unk>" not in part)
        line = re.sub(r" ([,.;:!?)%])", r"\1", line).replace("( ", "(")
        line = re.sub(r" ?(['\u2019]) ?(s|t|d|m|ll|re|ve)\b", r"\1\2", line)
        line = re.sub(r'" ([^"]*?) ?"', r'"\1"', line)
        if len(line) > 80:
            yield from pieces(line)


def real_documents(data: Path) -> Iterator[str]:
    """The documents from the four published files in `data`."""
    for name in FILES:
        if not (data / name).is_file():
            raise SystemExit(
                f"make_corpus: {data / name} is missing\n  wanted: a folder with {', '.join(FILES)} (--data)"
            )
    yield from wikitext((data / FILES[0]).read_text(encoding="utf-8"))
    yield from pieces((data / FILES[1]).read_text(encoding="utf-8"))
    for index, line in enumerate((data / FILES[2]).read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        question, answer = row["question"], re.sub(r"<<[^>]*>>", "", row["answer"])
        if index % 2 == 0 and len(question) + len(answer) < MAX_CHARS:
            yield chat(question, answer)
        else:
            yield from pieces(f"{question}\n{answer}")
    with (data / FILES[3]).open(encoding="utf-8", newline="") as file:
        yield from pieces("\n".join(" ".join(row["text"].split()) for row in csv.DictReader(file)))


def real_words(documents: list[str]) -> list[str]:
    """The lower-case words of the real text but TASK_KEYS, each once, in a fixed order."""
    return sorted({word for text in documents for word in re.findall(r"\b[a-z]{3,10}\b", text)} - TASK_KEYS)


def make(data: Path, seed: int, copy_docs: int, real_docs: int, synthetic_docs: int) -> list[str]:
    """All documents: the copying lesson first, then real and made-up ones and some more copying, shuffled."""
    schemas = json.loads((Path(__file__).parent / "schemas.json").read_text(encoding="utf-8"))
    real = list(real_documents(data))
    maker = Maker(seed, schemas, real_words(real))
    lesson = [maker.repeated() for _ in range(copy_docs)]
    rest = maker.some(real, real_docs, real_docs)
    rest += [maker.document() for _ in range(synthetic_docs)]
    rest += [maker.repeated() for _ in range(copy_docs // 4)]
    return lesson + maker.some(rest, len(rest), len(rest))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with " + ", ".join(FILES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--copy-docs", type=int, default=20_000, help="documents of the copying lesson")
    parser.add_argument("--real-docs", type=int, default=8_000, help="how many of the real documents")
    parser.add_argument("--synthetic-docs", type=int, default=36_000, help="made-up documents")
    parser.add_argument("--out", type=Path, required=True, help="the JSONL file to write")
    args = parser.parse_args(arguments)
    documents = make(args.data, args.seed, args.copy_docs, args.real_docs, args.synthetic_docs)
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
    args.out.write_text("".join(lines), encoding="utf-8", newline="\n")
    print(f"{args.out}: {len(documents)} documents, {sum(map(len, documents))} characters")


if __name__ == "__main__":
    main()
