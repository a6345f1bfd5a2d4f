"""Writes the quickstart's task: a customer's message -> a JSON object with its intent and slots.

    python configs/quickstart/make_task.py --seed 0 --train 6000 --heldout 300 --out configs/quickstart/

`wordings.json` beside this script holds two worlds, `train` and `heldout`: their sentence frames, greetings and
slot values are different. A message is a frame (an alternative is picked in each `[a|b]`, a `<phrase>` is filled
in, then each `{slot}`) with a greeting, a closing, and now and then a slip: no capitals, no full stop, a typo.
Every value stands in the message letter for letter, so the answer can be copied out of it.

Standard library only. Random choices use nothing but `Random.random()`, the one method whose sequence Python
promises to keep, so a seed gives the same bytes on every version.
"""

import argparse
import json
import random
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# The slots of each intent, in the order in which they stand in the answer.
SLOTS = {
    "cancel_order": ("order_id",),
    "track_order": ("order_id",),
    "request_refund": ("order_id", "amount"),
    "change_address": ("street", "city"),
    "update_email": ("name", "email"),
    "book_appointment": ("city", "date", "time"),
    "report_damage": ("product", "order_id"),
    "check_stock": ("product", "city"),
    "reschedule_delivery": ("order_id", "date"),
    "talk_to_human": ("name",),
}
MONTHS = "January February March April May June July August September October November December".split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
TYPO_RATE, LOWER_RATE = 0.06, 0.15
MAX_TRIES = 200


class World:
    """One side of the split: its wordings, its values, its random numbers.

    Args:
        name: `train` or `heldout`; also decides which numbers, dates and times it may use.
        wordings: that side's part of `wordings.json`.
        seed: of its random numbers.
    """

    def __init__(self, name: str, wordings: dict, seed: int):
        self.name, self.wordings, self.values = name, wordings, wordings["values"]
        self.random = random.Random(seed).random

    def pick(self, items: Sequence[Any]) -> Any:
        return items[int(self.random() * len(items))]

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return low + int(self.random() * (high - low + 1))

    def mine(self, draw: Callable[[], tuple]) -> tuple:
        """Draws until the thing drawn belongs to this side: a fifth of all numbers, dates and times is held out."""
        while True:
            drawn = draw()
            key = " ".join(str(part) for part in drawn)
            if (zlib.crc32(key.encode()) % 5 == 0) == (self.name == "heldout"):
                return drawn

    def made_up(self) -> str:
        """A word that is in no dictionary, so that values cannot be known by heart: `Korvel`."""
        return "".join(self.pick(self.values["syllables"]) for _ in range(self.between(2, 3))).capitalize()

    def often(self, key: str, made_up: float) -> str:
        return self.made_up() if self.random() < made_up else self.pick(self.values[key])

    # One method per slot, called by the slot's name.

    def order_id(self) -> str:
        length = self.between(4, 7)
        (number,) = self.mine(lambda: (self.between(10 ** (length - 1), 10**length - 1),))
        letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
        prefix = self.pick(["", "", self.pick(letters) + self.pick(letters) + "-", self.pick(letters)])
        return f"{prefix}{number}"

    def amount(self) -> str:
        (whole,) = self.mine(lambda: (self.between(5, 999),))
        cents = self.pick(["", f".{self.between(0, 99):02d}"])
        return self.pick([f"${whole}{cents}", f"{whole}{cents} euros", f"{whole}{cents} dollars"])

    def date(self) -> str:
        day, month = self.mine(lambda: (self.between(1, 28), self.pick(MONTHS)))
        date = self.pick([f"{day} {month}", f"{month} {day}", f"{day} {month[:3]}"])
        return f"{self.pick(WEEKDAYS)} {date}" if self.random() < 0.2 else date

    def time(self) -> str:
        hour, minute = self.mine(lambda: (self.between(8, 19), self.pick(range(0, 60, 5))))
        if self.random() < 0.5:
            return f"{hour}:{minute:02d}"
        return f"{(hour - 1) % 12 + 1}:{minute:02d} {'am' if hour < 12 else 'pm'}"

    def name_of_person(self) -> str:
        return f"{self.pick(self.values['first_names'])} {self.often('surnames', made_up=0.4)}"

    def email(self) -> str:
        first, last = self.name_of_person().lower().split()
        user = self.pick([f"{first}.{last}", f"{first}{self.between(10, 99)}", f"{first}_{last}", last])
        host = self.pick([self.pick(self.values["mail_hosts"]), f"{self.made_up().lower()}.com"])
        return f"{user}@{host}"

    def street(self) -> str:
        name = self.often("street_names", made_up=0.3)
        return f"{self.between(1, 250)} {name} {self.pick(self.values['street_types'])}"

    def city(self) -> str:
        return self.often("cities", made_up=0.25)

    def product(self) -> str:
        thing = self.pick(self.values["things"])
        adjective = self.pick(self.values["adjectives"])
        brand = self.often("brands", made_up=0.5)
        # What kind of thing it is, both sides share; which one, they do not. The bare kind is only ever trained on.
        named = [f"{adjective} {thing}", f"{adjective} {thing}", f"{brand} {thing}", f"{brand} {thing}"]
        return self.pick(named if self.name == "heldout" else [*named, thing])

    def value(self, slot: str) -> str:
        return self.name_of_person() if slot == "name" else getattr(self, slot)()

    def frame(self, intent: str) -> str:
        """A frame of `intent` with its alternatives chosen and its phrases filled in; slots are still open."""
        text = self.pick(self.wordings["intents"][intent])
        text = re.sub(r"<(\w+)>", lambda m: self.pick(self.wordings["phrases"][m[1]]), text)
        return re.sub(r"\[([^]]*)\]", lambda m: self.pick(m[1].split("|")), text)

    def typo(self, text: str) -> str:
        """One slip of the fingers in one longer word outside the slots: a letter lost, doubled or swapped."""
        words = list(re.finditer(r"(?<![{\w])[a-z]{5,}(?![}\w])", text))
        if not words:
            return text
        at = self.pick(words).start() + self.between(1, 3)
        letter, after = text[at], text[at + 1]
        return text[:at] + self.pick([after, letter * 2 + after, after + letter]) + text[at + 2 :]

    def row(self, intent: str) -> dict:
        """One example: `{"prompt": message, "completion": JSON}`."""
        frame = self.frame(intent)
        if self.random() < TYPO_RATE:
            frame = self.typo(frame)
        opener, closer = self.pick(self.wordings["openers"]), self.pick(self.wordings["closers"])
        frame = frame.rstrip(",")
        if frame.endswith("?"):
            closer = closer.lstrip(".,")
            closer = " " + closer.strip().capitalize() if closer else ""
        if not opener or opener.endswith((". ", "! ")):
            frame = frame if frame.startswith("{") else frame[0].upper() + frame[1:]
        message = opener + frame + closer
        if not message.endswith("?"):
            message += self.pick([".", ".", "", "", "!"])
        lower = self.random() < LOWER_RATE
        values = {}
        for slot in re.findall(r"{(\w+)}", message):
            values[slot] = self.value(slot).lower() if lower else self.value(slot)
        message = re.sub(r"{(\w+)}", lambda m: values[m[1]], message.lower() if lower else message)
        slots = {slot: values[slot] for slot in SLOTS[intent] if slot in values}
        return {"prompt": message, "completion": json.dumps({"intent": intent, "slots": slots}, ensure_ascii=False)}


def skeleton(row: dict) -> str:
    """The message without its values, capitals and punctuation: what two rows of one wording have in common."""
    text = row["prompt"]
    for slot, value in sorted(json.loads(row["completion"])["slots"].items(), key=lambda item: -len(item[1])):
        text = text.replace(value, f" {slot.upper()} ")
    return " ".join(re.findall(r"[a-z_]+", text.lower()))


def side(wordings: dict, name: str) -> dict:
    """What one side draws from: its own frames and values, and what both share."""
    shared, own = wordings["shared"], wordings[name]
    return shared | own | {"values": shared["values"] | own["values"]}


def make(world: World, count: int, taken: set[str]) -> list[dict]:
    """`count` rows, the intents in equal shares and shuffled; no message twice, none whose message is in `taken`."""
    rows = []
    for index in range(count):
        intent = list(SLOTS)[index % len(SLOTS)]
        for _ in range(MAX_TRIES):
            row = world.row(intent)
            if row["prompt"].lower() not in taken:
                break
        else:
            raise SystemExit(f"{world.name}: no new message for {intent} in {MAX_TRIES} tries; ask for fewer rows")
        taken.add(row["prompt"].lower())
        rows.append((world.random(), row))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def write(rows: list[dict], file: Path) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=10_000, help="rows to train on")
    parser.add_argument("--heldout", type=int, default=300, help="rows to measure on")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the two files")
    args = parser.parse_args(arguments)
    wordings = json.loads((Path(__file__).parent / "wordings.json").read_text(encoding="utf-8"))
    taken: set[str] = set()
    # Held-out rows come first and with a seed of their own: asking for more training rows does not change them.
    for offset, name, count in ((1, "heldout", args.heldout), (0, "train", args.train)):
        rows = make(World(name, side(wordings, name), 2 * args.seed + offset), count, taken)
        write(rows, args.out / f"{name}.jsonl")
        print(f"{args.out / name}.jsonl: {len(rows)} rows, {len({skeleton(row) for row in rows})} wordings")


if __name__ == "__main__":
    main()
