from pathlib import Path

import pyarrow.parquet

from jaxlean import config
from jaxlean.curate.curate import curate
from jaxlean.data.source import open_rows


def test_the_folder_is_a_dataset_of_the_rows_that_stay(curated, texts, tmp_path):
    _, kept, _ = curated([{"text": text} for text in texts], ["exact_duplicates"])
    rows = open_rows(config.SourceSection(path=str(tmp_path / "out")))
    assert list(rows) == kept
    assert [row["text"] for row in rows] == [texts[0], texts[2], texts[3], texts[4]]


def test_messages_survive_as_they_are(curated):
    rows = [
        {"messages": [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]}
        for i in range(5)
    ]
    _, kept, _ = curated(rows, ["exact_duplicates"])
    assert [{"messages": row["messages"]} for row in kept] == rows


def test_what_was_curated_before_keeps_its_first_origin(curated, job, texts, tmp_path):
    curated([{"text": text} for text in texts], ["exact_duplicates"])
    again = job([], ["quality"], data={"train": str(tmp_path / "out")}, output_dir=str(tmp_path / "again"))
    curate(again)
    first, second = (
        pyarrow.parquet.read_table(tmp_path / name / "train.parquet").to_pylist() for name in ("out", "again")
    )
    assert first == second
    assert first[1]["jaxlean_origin"].endswith("rows.jsonl:3")


def test_scores_of_an_earlier_run_stay(curated, job, lines, tmp_path):
    target = lines("target.jsonl", [{"text": "row 1 row 2"}])
    rows = [{"text": f"row {i}"} for i in range(10)]
    _, first, _ = curated(rows, [{"importance": {"target": str(target)}}])
    step = {"keep": {"by": "jaxlean_importance", "count": 3}}
    curate(job([], [step], data={"train": str(tmp_path / "out")}, output_dir=str(tmp_path / "again")))
    second = pyarrow.parquet.read_table(tmp_path / "again" / "train.parquet").to_pylist()
    assert len(second) == 3
    assert all(row in first for row in second)
    # made anew they are replaced
    again = {"importance": {"target": str(target)}}
    made = job([], [again], data={"train": str(tmp_path / "again" / "dropped.parquet")}, output_dir=str(tmp_path / "3"))
    curate(made)
    third = pyarrow.parquet.read_table(tmp_path / "3" / "train.parquet")
    assert [name for name in third.column_names if name.startswith("jaxlean_")].count("jaxlean_importance") == 1
    assert third.column("jaxlean_dropped_by").to_pylist() == ["keep"] * 7


def test_an_origin_that_is_a_number_is_its_text(curated):
    _, kept, _ = curated([{"text": "a", "jaxlean_origin": 5}, {"text": "b"}], ["exact_duplicates"])
    assert kept[0]["jaxlean_origin"] == "5"
    assert kept[1]["jaxlean_origin"].endswith("rows.jsonl:2")


def test_every_row_is_in_one_of_the_two_files(curated, texts):
    rows = [{"text": text, "id": i} for i, text in enumerate(texts)]
    told, kept, dropped = curated(rows, ["exact_duplicates", {"quality": {"min_words": 11}}])
    assert sorted(row["id"] for row in [*kept, *dropped]) == list(range(6))
    assert [(row["id"], row["jaxlean_dropped_by"]) for row in dropped] == [
        (1, "exact_duplicates"), (3, "quality"), (5, "exact_duplicates"),
    ]  # fmt: skip
    assert told["kept"] == 3
    assert Path(dropped[0]["jaxlean_duplicate_of"].rpartition(":")[0]).name == "rows.jsonl"
