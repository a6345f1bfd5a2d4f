"""How much of the rows says what others say."""

import importlib.util
import json

import pytest

from jaxlean.audit.duplicates import duplicates
from jaxlean.config import build
from jaxlean.errors import DataError

WORDS = ["a house with a red door", "the train to the sea", "two orders of bread", "green streets in spring"]


def job(file, **more):
    return build({"model": {"path": "unread"}, "data": {"train": str(file)}, **more})


@pytest.fixture
def rows(tmp_path):
    def write(*rows):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write


def test_equal_rows_are_counted_by_what_they_say(rows) -> None:
    said = [{"prompt": text, "completion": text.upper()} for text in WORDS]
    found = duplicates(job(rows(*said, said[0], {"prompt": f"  {WORDS[0]}!", "completion": WORDS[0].upper()})))
    assert (found.rows, found.out) == (6, 2)
    sizes = [2 * len(text) + 1 for text in WORDS]
    assert found.share == pytest.approx(2 * sizes[0] / (sum(sizes) + 2 * sizes[0]), abs=0.03)
    assert found.of_all
    assert found.steps[0] == "exact_duplicates"


@pytest.mark.skipif(importlib.util.find_spec("rensa") is None, reason="pip install 'jaxlean[curate]' brings it")
def test_nearly_equal_rows_are_too(rows) -> None:
    long = " ".join(WORDS) + " and much more that was to be said of it"
    found = duplicates(job(rows({"text": long}, {"text": long.replace("spring", "winter")}, {"text": WORDS[1]})))
    assert found.steps == ("exact_duplicates", "near_duplicates")
    assert found.out == 1


def test_rows_that_differ_stay_and_many_are_looked_at_in_part(rows) -> None:
    file = rows(*({"text": text} for text in WORDS))
    assert duplicates(job(file)).out == 0
    part = duplicates(job(file), most=2)
    assert (part.rows, part.of_all) == (2, False)


def test_rows_that_cannot_be_read_are_told(rows) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        duplicates(job(rows({"colour": 1})))
