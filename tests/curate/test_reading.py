from pathlib import Path

import pytest

from jaxlean.curate import reading as module
from jaxlean.curate.columns import describe
from jaxlean.curate.curate import curate
from jaxlean.errors import DataError


@pytest.fixture
def broken(job):
    made = job([{"prompt": "a", "completion": "b"}] * 2 + [{"prompt": "c", "completion": " "}], ["exact_duplicates"])
    with Path(made.data.train[0].path).open("a") as file:
        file.write('{"prompt": \n')
    return made


def test_a_row_that_cannot_be_used_is_an_error_with_its_place(broken):
    with pytest.raises(DataError) as error:
        curate(broken)
    assert "the completion is empty" in str(error.value)
    assert "rows.jsonl:3" in str(error.value)


def test_or_it_is_dropped_with_its_reason(broken):
    broken.curate.bad_rows = "drop"
    told = curate(broken)
    assert told["steps"][0]["reasons"] == {
        "the completion is empty: the row has no token to learn": 1,
        "malformed JSON": 1,
    }
    assert told["kept"] == 1


def test_rows_at_the_start_that_cannot_be_used_are_dropped_like_others(curated):
    rows = [{"other": 1}, {"prompt": "a", "completion": ""}, {"prompt": "a", "completion": "b"}]
    told, kept, _ = curated(rows, ["exact_duplicates"], curate={"bad_rows": "drop"})
    assert (told["kept"], kept[0]["completion"]) == (1, "b")
    assert len(told["steps"][0]["reasons"]) == 2


def test_half_a_character_is_a_bad_row(job, curated):
    rows = [{"text": "a \ud83d b"}, {"text": "c", "k\ud83d": 1}, {"text": "d"}]
    with pytest.raises(DataError, match=r"half of a character(.|\n)*rows\.jsonl:1"):
        curate(job(rows, ["exact_duplicates"]))
    told, kept, dropped = curated(rows, ["exact_duplicates"], curate={"bad_rows": "drop"})
    assert [row["text"] for row in kept] == ["d"]
    assert len(dropped) == 2
    assert told["steps"][0]["dropped"] == 2


def test_long_rows_are_not_held_by_the_thousand(job, monkeypatch):
    held = []
    monkeypatch.setattr(module, "LARGE", 1000)
    monkeypatch.setattr(module, "describe", lambda rows: held.append(len(rows)) or describe(rows))
    curate(job([{"text": f"{i}", "other": "x" * 400} for i in range(10)], ["exact_duplicates"]))
    assert held == [3, 3, 3, 1]


def test_rows_that_are_too_long_go_before_anything_reads_them(curated, texts):
    rows = [{"text": text} for text in [texts[0], "x " * 500, texts[3]]]
    told, kept, dropped = curated(rows, ["near_duplicates"], curate={"max_chars": 100})
    assert len(kept) == 2
    assert told["steps"][0]["reasons"] == {"longer than curate.max_chars": 1}
    assert (dropped[0]["jaxlean_dropped_by"], dropped[0]["text"]) == ("reading", None)
    assert dropped[0]["jaxlean_origin"].endswith("rows.jsonl:2")
