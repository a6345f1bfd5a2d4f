import importlib.util
import json
import shlex

from jaxlean.curate import report
from jaxlean.curate.curate import curate


def test_it_counts_and_shows(curated, texts, tmp_path):
    told, _, _ = curated([{"text": text} for text in texts], ["exact_duplicates", "near_duplicates"])
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == told
    assert (told["rows"], told["kept"]) == (6, 3)
    assert [(step["step"], step["rows"], step["dropped"]) for step in told["steps"]] == [
        ("reading", 6, 0), ("exact_duplicates", 6, 2), ("near_duplicates", 4, 1),
    ]  # fmt: skip
    assert told["sources"] == [{"path": str(tmp_path / "rows.jsonl"), "rows": 6, "kept": 3}]
    (example,) = told["steps"][2]["examples"]
    assert (example["text"], example["its_text"]) == (texts[2], texts[0])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "3 of 6 rows stay (50.0%)" in text
    assert "### nearly the same text: 1" in text
    assert f"    {texts[2]}" in text
    assert "![histograms](histograms.png)" in text
    assert (tmp_path / "out" / "histograms.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_are_no_pictures_but_all_else(curated, texts, tmp_path, monkeypatch):
    known = importlib.util.find_spec
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else known(name))
    curated([{"text": text} for text in texts], ["exact_duplicates"])
    assert not (tmp_path / "out" / "histograms.png").exists()
    assert "pip install 'jaxlean[curate]'" in (tmp_path / "out" / "report.md").read_text()


def test_what_is_to_be_typed_goes_through_a_shell(job, texts, tmp_path):
    """Sources that are read in two ways come out as a file each, and the report says what trains on both."""
    (tmp_path / "pairs.jsonl").write_text('{"q": "What is it?", "a": "A house."}\n')
    pairs = {"path": str(tmp_path / "pairs.jsonl"), "prompt": "{q}", "completion": "{a}"}
    sources = [{"path": str(tmp_path / "rows.jsonl")}, pairs]
    told = curate(job([{"text": text} for text in texts], ["quality"], data={"train": sources}))
    (line,) = (
        line for line in (tmp_path / "out" / "report.md").read_text().splitlines() if line.startswith("To train")
    )
    (word,) = shlex.split(line.partition("`")[2].rpartition("`")[0])
    assert json.loads(word.removeprefix("data.train=")) == told["data.train"]


def test_a_few_examples_of_many(curated):
    told, _, _ = curated([{"text": "one and the same"}] * 50, ["exact_duplicates"], curate={"examples": 2})
    examples = told["steps"][1]["examples"]
    assert [example["origin"].rpartition(":")[2] for example in examples] == ["2", "50"]


def test_columns_that_are_json_in_the_files_are_named(job, cli, tmp_path):
    from jaxlean.config import dump

    rows = [{"text": f"the row number {n} of these", "label": "1" if n % 2 else 1, "id": n} for n in range(4)]
    (tmp_path / "c.yaml").write_text(dump(job(rows, ["exact_duplicates"], task="classify")))
    code, out, err = cli("curate", tmp_path / "c.yaml")
    assert code == 0, err
    said = "columns written as JSON, since Parquet has one kind of value a column: label; jaxlean reads the values"
    assert said in out
    assert said[1:] in (tmp_path / "out" / "report.md").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["columns_as_json"] == ["label"]
