import pytest

from jaxlean.curate.curate import curate
from jaxlean.errors import ConfigError, DataError


def rows_of(texts):
    return [{"text": text} for text in texts]


@pytest.fixture
def held_out(texts):
    return rows_of([texts[3].upper(), "Something else altogether."])


def test_it_is_an_error_without_being_asked_for(curated, texts, held_out, tmp_path):
    with pytest.raises(DataError) as error:
        curated(rows_of(texts), ["quality"], held_out)
    message = str(error.value)
    assert "2 training rows stand in the held-out data" in message
    assert f"{tmp_path / 'rows.jsonl'}:4 is {tmp_path / 'heldout.jsonl'}:1; " in message
    assert "leakage: {action: drop}" in message


def test_it_may_be_dropped(curated, texts, held_out, tmp_path):
    told, kept, dropped = curated(rows_of(texts), [{"leakage": {"action": "drop"}}], held_out)
    assert [row["text"] for row in kept] == [texts[i] for i in (0, 1, 2, 4)]
    assert {row["jaxlean_duplicate_of"] for row in dropped} == {f"{tmp_path / 'heldout.jsonl'}:1"}
    assert told["steps"][1]["notes"] == {"held-out rows": 2, "of them in the training data": 1}


def test_other_held_out_rows_are_looked_up_when_the_job_is_done_again(job, texts):
    """In the same process, and with the same file of what is looked up."""
    step = [{"leakage": {"action": "drop"}}]
    assert curate(job(rows_of(texts), step, rows_of(["Quite something else."])))["kept"] == 6
    assert curate(job(rows_of(texts), step, rows_of([texts[2]])), overwrite=True)["kept"] == 5


def test_it_may_be_allowed(curated, texts, held_out):
    told, kept, _ = curated(rows_of(texts), [{"leakage": {"action": "keep"}}], held_out)
    assert len(kept) == 6
    assert told["steps"][1]["notes"]["training rows that were kept nevertheless"] == 2


def test_a_row_that_holds_most_of_a_held_out_one(curated, texts):
    whole = " ".join(texts)
    told, _, dropped = curated(
        rows_of([*texts, f"Well: {whole} So it is."]), [{"leakage": {"action": "drop"}}], rows_of([whole])
    )
    assert [row["text"] for row in dropped] == [f"Well: {whole} So it is."]
    assert told["steps"][1]["reasons"] == {"stands in the held-out data": 1}


def test_a_question_leaks_whatever_its_answer(curated, tmp_path):
    rows = [{"prompt": "What is two and two?", "completion": "4"}, {"prompt": "And three?", "completion": "5"}]
    held_out = [{"prompt": "what is two and two", "completion": "four"}]
    with pytest.raises(DataError, match="1 training row stands in the held-out data"):
        curated(rows, ["quality"], held_out, output_dir=str(tmp_path / "prompt"))
    _, kept, _ = curated(rows, [{"leakage": {"over": "row"}}], held_out, output_dir=str(tmp_path / "row"))
    assert len(kept) == 2


def test_without_held_out_rows_there_is_nothing_to_leak(curated, texts):
    with pytest.raises(ConfigError, match=r"no data\.eval"):
        curated(rows_of(texts), ["leakage"])
