"""What is printed of an audit: every line that it promises can be added to the config and is one."""

import io
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from jaxlean.audit.audit import audit
from jaxlean.audit.show import audit_and_print, show
from jaxlean.config import build
from jaxlean.errors import ConfigError

pytestmark = pytest.mark.usefixtures("small_machine")


def printed(found) -> str:
    out = io.StringIO()
    show(found, Console(file=out, width=500, highlight=False, markup=False, soft_wrap=True), file=Path("mine.yaml"))
    return out.getvalue()


@pytest.fixture
def found(planned, tiny_run, tiny_rows, tmp_path):
    planned(lambda config, target: (4.0 if config.train.remat == "none" else 1.0, 1e9))
    twice = tmp_path / "twice.jsonl"
    twice.write_text(tiny_rows.read_text() * 2)
    settings = ("train.max_steps=null", "model.dtype=bfloat16", "data.eval=null", f"data.train={twice}")
    return audit(tiny_run(*settings), ["cpu", "l4:1"])


def test_cuts_come_in_their_order_with_the_line_to_add(found) -> None:
    said = printed(found)
    assert f"{found.work.num_steps} steps of 2 x 64 tokens, on cpu or l4:1" in said
    table = [line for line in said.splitlines() if "model:" in line or "train:" in line or "data:" in line]
    (remat,) = [line for line in table if line.startswith("4 ") and "train: {remat: auto}" in line]
    (rows,) = [line for line in table if line.startswith("12 ") and "data: {train: runs/curated}" in line]
    assert said.index(remat) < said.index(rows)
    assert "before it: jaxlean curate mine.yaml 'curate.steps=[exact_duplicates" in said
    for line in (remat, rows):
        values = yaml.safe_load(line[line.index(next(w for w in ("train: {", "data: {") if w in line)) :])
        build(values)


def test_what_is_said_of_all_together_is_a_config(found) -> None:
    said = printed(found)
    block = said.partition("\nall of these: ")[2].partition("\n")[2].partition("\n\n")[0]
    values = yaml.safe_load(block)
    assert values["train"] == {"remat": "auto"}
    assert values["data"] == {"train": "runs/curated"}
    build(values)


def test_nothing_is_ranked_that_was_not_planned(found) -> None:
    said = printed(found)
    heads = ["left on the table", "all of these", "planned, and not worth it here", "not planned, and so not ranked"]
    places = [said.index(head) for head in heads]
    assert places == sorted(places)
    rest = said[places[-1] :]
    for name in ("7 curriculum", "3 warm-start embeddings", "9 Bayesian", "12 choice of rows", "8 distillation"):
        assert name in rest
        assert name not in said[: places[-1]]
    assert "6 base in int8: the step is the same" in said


def test_where_it_fits_nowhere_that_is_the_first_word(planned, tiny_run) -> None:
    planned(lambda config, target: (2.0, 30e9 if config.train.remat == "none" else 10e9))
    said = printed(audit(tiny_run("train.max_steps=null", "data.eval=null"), ["l4:1"]))
    assert "as written: it runs on none: l4:1: too large by" in said
    assert "it runs" in next(line for line in said.splitlines() if "gradient checkpointing" in line)


def test_nothing_to_gain_is_said(planned, tiny_run) -> None:
    planned(lambda config, target: (2.0, 1e9))
    said = printed(audit(tiny_run("data.eval=null"), ["cpu"]))
    assert "left on the table: nothing that a plan shows to pay" in said
    assert "10 right-sized parallelism: the config's mesh and microbatch are the planner's" in said


def test_this_machine_is_the_target_where_none_is_named(planned, tiny_run, monkeypatch) -> None:
    planned(lambda config, target: (2.0, 1e9))
    monkeypatch.setattr("jaxlean.audit.show.here", lambda file: (None, 1))
    file = Path("mine.yaml")
    with pytest.raises(ConfigError, match="what to plan for") as told:
        audit_and_print(tiny_run("data.eval=null"), None, file=file)
    assert "--targets" in str(told.value)
    with pytest.raises(ConfigError, match="--targets names nothing"):
        audit_and_print(tiny_run("data.eval=null"), " , ", file=file)
    quiet = Console(file=io.StringIO())
    assert audit_and_print(tiny_run("data.eval=null"), "cpu", file=file, console=quiet).targets == ("cpu",)
