from pathlib import Path

import pytest

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


def test_rows_that_are_too_long_go_before_anything_reads_them(curated, texts):
    rows = [{"text": text} for text in [texts[0], "x " * 500, texts[3]]]
    told, kept, dropped = curated(rows, ["near_duplicates"], curate={"max_chars": 100})
    assert len(kept) == 2
    assert told["steps"][0]["reasons"] == {"longer than curate.max_chars": 1}
    assert (dropped[0]["jaxlean_dropped_by"], dropped[0]["text"]) == ("reading", None)
    assert dropped[0]["jaxlean_origin"].endswith("rows.jsonl:2")
