"""`jaxlean select`: what is chosen, what is written, the whole loop by its commands, and what goes wrong."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxlean.config import RunConfig, load
from jaxlean.curate import select as module
from jaxlean.curate.select import select
from jaxlean.data.files import open_file
from jaxlean.errors import ConfigError, DataError, UserError
from jaxlean.run.finetune import finetune
from jaxlean.run.predictions import predict

pytestmark = pytest.mark.usefixtures("small_machine")

COLOURS = ("order", "street", "price", "phone")


def pool_rows(labels: tuple[str, ...] = COLOURS, each: int = 6) -> list[dict[str, Any]]:
    return [{"id": f"{label} {n}", "text": f"{label} {label} number {n}"} for n in range(each) for label in labels]


def read(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".csv":
        with file.open(encoding="utf-8", newline="") as opened:
            return list(csv.DictReader(opened))
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def trained(
    select_config: Callable[..., RunConfig], lines: Callable[..., Path], tmp_path: Path
) -> tuple[RunConfig, Path]:
    """(the config of a run that knows two of the four labels, its adapter)."""
    rows = [{"text": f"{label} {label} old {n}", "label": label} for label in COLOURS[:2] for n in range(4)]
    finetune(select_config(train=str(lines("first.jsonl", rows)), lora={"lora_dropout": 0.3}))
    return load(tmp_path / "run" / "config.yaml"), tmp_path / "run" / "adapter"


def test_a_first_set_stands_for_all(select_config, lines, tmp_path):
    pool, output = lines("pool.jsonl", pool_rows()), tmp_path / "first.csv"
    said = select(select_config(), pool, output, 4)
    rows = read(output)
    assert {row["id"].split()[0] for row in rows} == set(COLOURS), "one of each kind"
    assert list(rows[0]) == ["id", "text", "label", "select_rank", "select_row", "select_score", "select_guess",
                             "select_probability"]  # fmt: skip
    assert [row["select_rank"] for row in rows] == ["1", "2", "3", "4"]
    every = pool_rows()
    for row in rows:
        assert every[int(row["select_row"]) - 1]["id"] == row["id"]
        assert float(row["select_score"]) > 0
        assert (row["label"], row["select_guess"], row["select_probability"]) == ("", "", "")
    assert "pool: 24 of 24 rows to choose from; labelled: 0" in said
    assert "4 rows by typical, 'label' to be filled in" in said
    # the same again
    again = tmp_path / "again.csv"
    select(select_config(), pool, again, 4)
    assert again.read_bytes() == output.read_bytes()


def test_what_the_model_doubts(trained, lines, tmp_path):
    """It knows orders and streets: it is asked about what it does not know, and has a guess for each."""
    config, adapter = trained
    pool, output = lines("pool.jsonl", pool_rows()), tmp_path / "second.jsonl"
    for strategy in ("margin", "entropy", "least_confidence", "uncertain_clusters"):
        said = select(config, pool, output, 4, strategy=strategy, adapter=adapter, overwrite=True)
        rows = read(output)
        if strategy == "uncertain_clusters":  # among the most uncertain, not these themselves
            select(config, pool, tmp_path / "top.jsonl", 20, strategy="margin", adapter=adapter)
            assert {row["id"] for row in rows} < {row["id"] for row in read(tmp_path / "top.jsonl")}
        else:
            assert not {row["id"].split()[0] for row in rows} & set(COLOURS[:2]), strategy
        assert {row["select_guess"] for row in rows} <= set(COLOURS[:2])
        assert all(0.5 <= row["select_probability"] <= 1 for row in rows)
        scores = [row["select_score"] for row in rows]
        assert scores == sorted(scores, reverse=True)
        if strategy != "entropy":  # of two labels, p and 1 - p
            sure = np.array([row["select_probability"] for row in rows])
            wanted = 1 - sure if strategy == "least_confidence" else 2 * (1 - sure)
            np.testing.assert_allclose(scores, wanted, atol=1e-5)
        assert all(row["label"] == "" for row in rows)
    assert "labelled: 8" in said


def test_what_is_said_of_a_row_is_what_predict_says(select_config, lines, tmp_path):
    """Of an adapter with new tokens, which the base that gives vectors does not have."""
    terms = ("chargeback", "estoppel")
    labels = (*terms, "price", "phone")
    rows = [{"text": f"{label} {label} old {n}", "label": label} for label in labels for n in range(6)]
    config = select_config(train=str(lines("train.jsonl", rows)))
    config = config.model_copy(update={"model": config.model.model_copy(update={"new_tokens": list(terms)})})
    finetune(config)
    adapter, pool = tmp_path / "run" / "adapter", lines("pool.jsonl", pool_rows(labels))
    predict(config, pool, tmp_path / "predicted.jsonl", adapter=adapter)
    wanted = read(tmp_path / "predicted.jsonl")
    assert min(row["probability"] for row in wanted) > 0.9
    for strategy in ("random", "typical", "margin", "uncertain_clusters"):
        output = tmp_path / f"{strategy}.jsonl"
        select(config, pool, output, 12, strategy=strategy, adapter=adapter)
        for row in read(output):
            same = wanted[row["select_row"] - 1]
            assert row["select_guess"] == same["prediction"], strategy
            assert row["select_probability"] == pytest.approx(same["probability"], abs=1e-4), strategy


def test_new_tokens_are_not_looked_for_where_nothing_is_trained(select_config, lines, tmp_path):
    config = select_config()
    config = config.model_copy(update={"model": config.model.model_copy(update={"new_tokens": "auto"})})
    said = select(config, lines("pool.jsonl", pool_rows()), tmp_path / "first.csv", 4)
    assert "4 rows by typical" in said


def test_bald_needs_dropout_and_differs_from_pass_to_pass(trained, lines, tmp_path):
    config, adapter = trained
    pool, output = lines("pool.jsonl", pool_rows(each=2)), tmp_path / "second.jsonl"
    select(config, pool, output, 3, strategy="bald", adapter=adapter, passes=4)
    scores = [row["select_score"] for row in read(output)]
    assert scores[0] > 0, "passes disagree"
    assert scores == sorted(scores, reverse=True)
    dry = config.model_copy(update={"lora": config.lora.model_copy(update={"lora_dropout": 0.0})})
    other = tmp_path / "third.jsonl"
    with pytest.raises(ConfigError, match=r"(?s)BALD draws models by the dropout.*lora\.lora_dropout=0\.1"):
        select(dry, pool, other, 3, strategy="bald", adapter=adapter)
    with pytest.raises(ConfigError, match="asks where passes disagree"):
        select(config, pool, other, 3, strategy="bald", adapter=adapter, passes=1)


def test_random_and_k_center_have_guesses_where_a_model_is_there(trained, lines, tmp_path):
    config, adapter = trained
    pool, output = lines("pool.jsonl", pool_rows()), tmp_path / "second.jsonl"
    select(config, pool, output, 5, strategy="k_center", adapter=adapter)
    rows = read(output)
    scores = [row["select_score"] for row in rows]
    assert scores == sorted(scores, reverse=True), "each is as far from what is there as any can be"
    assert all(row["select_guess"] in COLOURS[:2] for row in rows)
    select(config, pool, output, 5, strategy="random", overwrite=True)
    assert [row["select_score"] for row in read(output)] == [None] * 5
    assert len({row["id"] for row in read(output)}) == 5


def test_auto_goes_on_with_what_the_model_doubts(trained, lines, tmp_path, select_config):
    config, adapter = trained
    pool, output = lines("pool.jsonl", pool_rows()), tmp_path / "second.jsonl"
    assert "by uncertain_clusters" in select(config, pool, output, 3, adapter=adapter)
    few = lines("few.jsonl", [{"text": "order 1", "label": "order"}, {"text": "street 2", "label": "street"}])
    said = select(config, pool, output, 3, adapter=adapter, labelled=few, overwrite=True)
    assert "by typical (auto: until 8 rows have a label; data.train or --labelled names them)" in said
    many = [{"text": f"{label} {n}", "label": label} for label in COLOURS[:2] for n in range(4)]
    said = select(select_config(), pool, output, 3, labelled=lines("many.jsonl", many), overwrite=True)
    assert "by typical (auto: what a model doubts is not known without --adapter" in said


def test_the_loop_by_its_commands(cli, select_config, lines, tmp_path):
    """Select, fill in, train, select, fill in, train on both files."""
    from jaxlean.config import dump

    yaml, pool = tmp_path / "loop.yaml", lines("pool.jsonl", pool_rows())
    yaml.write_text(dump(select_config()))
    files: list[str] = []
    for number in range(2):
        output = tmp_path / f"chosen{number}.csv"
        given = [f"data.train=[{','.join(files)}]", "--adapter", tmp_path / "run" / "adapter"] if files else []
        code, out, err = cli("select", yaml, "--pool", pool, "-n", 6, "-o", output, *given)
        assert code == 0, err
        rows = read(output)
        for row in rows:
            row["label"] = row["id"].split()[0]
        with output.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        files.append(str(output))
        code, out, err = cli("finetune", yaml, f"data.train=[{','.join(files)}]", "--overwrite")
        assert code == 0, err
        assert "labels: 4 in 'label'" in out
    assert len({row["id"] for file in files for row in read(Path(file))}) == 12, "no row is asked for twice"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"num": 25}, r"(?s)fewer rows to choose from.*24 of 24 rows.*wanted: 25"),
        ({"num": 0}, "nothing is to be chosen"),
        ({"strategy": "margn"}, "did you mean 'margin'"),
        ({"strategy": "bald"}, "none is named"),
        ({"strategy": "margin"}, r"no label is known yet.*\n.*\n.*--strategy typical"),
        ({"output": "out.txt"}, "a .csv or .jsonl file"),
        ({"output": "gone/out.csv"}, "a folder that is not there"),
        ({"task": "generate"}, "not rows of task: generate"),
        ({"rows": [{"words": "a"}]}, "it is not clear which column holds the text"),
    ],
)
def test_wrong_input(select_config, lines, tmp_path, how, message):
    config = select_config()
    config = config.model_copy(update={"task": how.get("task", config.task)})
    pool = lines("pool.jsonl", how.get("rows", pool_rows()))
    output = tmp_path / how.get("output", "out.csv")
    with pytest.raises(UserError, match=message):
        select(config, pool, output, how.get("num", 2), strategy=how.get("strategy", "auto"))
    assert not output.exists()


def test_the_column_to_be_filled_in_may_be_there_already(select_config, lines, tmp_path):
    rows = [row | {"category": "known" if n < 20 else ""} for n, row in enumerate(pool_rows())]
    output = tmp_path / "first.csv"
    said = select(select_config(), lines("pool.jsonl", rows), output, 3)
    assert "pool: 4 of 24 rows to choose from; 20 have a label" in said
    assert "'category' to be filled in" in said
    assert [row["category"] for row in read(output)] == [""] * 3
    assert "label" not in read(output)[0]
    with pytest.raises(UserError, match=r"(?s)4 of 24 rows; 20 have a label.*data\.label_column=NAME.*'category'"):
        select(select_config(), tmp_path / "pool.jsonl", tmp_path / "other.csv", 5)


def test_held_out_rows_are_not_given_to_annotators(select_config, lines, tmp_path):
    """However they are written there; and the column to be filled in has the held-out data's name."""
    held_out = [{"text": f"  {row['text'].upper()}.", "category": row["id"].split()[0]} for row in pool_rows()[:20]]
    config, pool = select_config(eval=str(lines("held_out.jsonl", held_out))), lines("pool.jsonl", pool_rows())
    said = select(config, pool, tmp_path / "first.csv", 4)
    assert "pool: 4 of 24 rows to choose from; 20 stand in the held-out data; labelled: 0" in said
    rows = read(tmp_path / "first.csv")
    assert {row["id"] for row in rows} == {row["id"] for row in pool_rows()[20:]}
    assert "'category' to be filled in" in said
    assert [row["category"] for row in rows] == [""] * 4
    with pytest.raises(DataError, match="20 stand in the held-out data"):
        select(config, pool, tmp_path / "more.csv", 5)


@pytest.mark.parametrize(("key", "what"), [("train", "labelled yet"), ("eval", "held out")])
def test_data_of_the_config_that_are_not_there(select_config, lines, tmp_path, key, what):
    config = select_config(**{key: "gone.csv"})
    with pytest.raises(
        DataError, match=rf"(?s)data\.{key} names a file.*gone\.csv.*data\.{key}=null, where nothing is {what}"
    ):
        select(config, lines("pool.jsonl", pool_rows()), tmp_path / "first.csv", 4)


def test_nothing_that_is_there_is_replaced(cli, select_config, lines, tmp_path):
    """Not the pool, not what was annotated; another file only by --overwrite."""
    from jaxlean.config import dump

    yaml, pool = tmp_path / "c.yaml", lines("pool.jsonl", pool_rows())
    annotated = lines("first.jsonl", [{"text": "order 1", "label": "order"}, {"text": "street 2", "label": "street"}])
    yaml.write_text(dump(select_config()))
    for output, given, why in (
        (pool, ["--overwrite"], "the chosen rows would replace the pool"),
        (annotated, ["--overwrite", "--labelled", annotated], "the chosen rows would replace rows that have labels"),
        (annotated, ["--overwrite", f"data.train={annotated}"], "the chosen rows would replace rows that have labels"),
        (annotated, ["--overwrite", f"data.eval={annotated}"], "the chosen rows would replace rows that have labels"),
        (annotated, [], "is there already, and may have been annotated"),
    ):
        before = output.read_bytes()
        code, _, err = cli("select", yaml, "--pool", pool, "-n", 4, "-o", output, *given)
        assert code == 2
        assert why in err
        assert output.read_bytes() == before
    folder = tmp_path / "pool"
    folder.mkdir()
    part = pool.rename(folder / "part.jsonl")
    with pytest.raises(UserError, match="would replace the pool"):
        select(select_config(), folder, part, 4, overwrite=True)
    code, _, err = cli("select", yaml, "--pool", part, "-n", 4, "-o", annotated, "--overwrite")
    assert code == 0, err
    assert len(read(annotated)) == 4


def test_labels_are_those_of_the_adapter(trained, select_config, lines, tmp_path):
    """Not those of the rows beside it; and others than those that the config names are refused."""
    _, adapter = trained
    pool, output = lines("pool.jsonl", pool_rows()), tmp_path / "second.csv"
    select(select_config(), pool, output, 4, strategy="margin", adapter=adapter)
    assert {row["select_guess"] for row in read(output)} <= set(COLOURS[:2])
    other, refused = tmp_path / "third.csv", [{"text": "a", "label": "w"}, {"text": "b", "label": "order"}]
    with pytest.raises(UserError, match=r"(?s)trained for other labels.*2 labels: order, street.*2 labels: w, z"):
        select(select_config(labels=["w", "z"]), pool, other, 4, adapter=adapter)
    with pytest.raises(UserError, match=r"(?s)a label in the column 'label' that the model does not have.*l:1.*'w'"):
        select(select_config(), pool, other, 4, adapter=adapter, labelled=lines("l.jsonl", refused))
    (adapter / "config.json").unlink()
    with pytest.raises(UserError, match=r"(?s)the adapter does not say what its labels are.*data\.labels="):
        select(select_config(), pool, other, 4, strategy="margin", adapter=adapter)
    select(select_config(labels=["order", "street"]), pool, other, 4, strategy="margin", adapter=adapter)
    assert other.read_bytes() == output.read_bytes()


def test_a_model_without_a_head_for_the_labels(select_config, lines, tmp_path):
    train = lines("train.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    with pytest.raises(UserError, match=r"(?s)this one has no head for these labels.*--adapter FOLDER"):
        select(select_config(train=str(train)), lines("pool.jsonl", pool_rows()), tmp_path / "out.csv", 2,
               strategy="entropy")  # fmt: skip


def test_vectors_that_are_not_numbers(select_config, lines, tmp_path, monkeypatch):
    def broken(examples: Any, *args: Any, **how: Any) -> np.ndarray:
        found = np.ones((len(examples), 4), np.float32)
        found[2] = np.nan
        return found

    monkeypatch.setattr(module, "vectors_of", broken)
    with pytest.raises(DataError, match=r"(?s)a vector that is not a number.*pool\.jsonl:3"):
        select(select_config(), lines("pool.jsonl", pool_rows()), tmp_path / "out.csv", 2)
    assert list(tmp_path.glob("out*")) == []


def test_a_text_of_several_lines_is_one_cell(select_config, lines, tmp_path):
    """However its lines end: what annotators fill in is read again."""
    rows = [{"text": f"order{end}number {n}"} for n, end in enumerate(("\r", "\n", "\r\n", ", ", '"'))]
    select(select_config(), lines("pool.jsonl", rows), tmp_path / "chosen.csv", 5)
    found = list(open_file(tmp_path / "chosen.csv"))
    assert sorted(row["text"] for row in found) == sorted(row["text"] for row in rows)
