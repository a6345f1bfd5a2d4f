"""The table of a plan: what each cell says, what a narrow screen leaves out, and what the file holds."""

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from jaxlean.config import load
from jaxlean.errors import ConfigError
from jaxlean.plan import show as module
from jaxlean.plan.candidate import Candidate
from jaxlean.plan.offer import JobSize, offer, ranked
from jaxlean.plan.plan import Plan
from jaxlean.plan.search import Row
from jaxlean.plan.show import plan_and_print, summary, table
from jaxlean.plan.target import parse

WORK = JobSize(num_steps=1800, rows=8, length=1000, tokens=123_456)
ONE = Candidate((1, 1, 1, 1, 1), 8, 1, "bfloat16", "none", "full")
HEAD = ["target", "mesh", "base", "remat", "rows", "memory, GB", "s/step", "tokens/s", "hours", "USD", "spot", "kWh"]
BOUND = "bound only: libtpu is not installed (pip install 'jaxlean[plan]')"


@pytest.fixture(autouse=True)
def _no_catalog(monkeypatch):
    monkeypatch.setattr("jaxlean.plan.offer.cheapest", lambda name: None)
    monkeypatch.delenv("COLUMNS", raising=False)


def row(target, status="fits", candidate=ONE, memory=10e9, seconds=1.0, note=""):
    return Row(target, status, candidate, memory, 80 * 10**9, seconds, 0.0, 1e15, note)


ROWS = [
    row("l4", note="attention: block stands in"),
    row("l4", candidate=replace(ONE, microbatch=2, accumulation=4, remat=("query", "gate")), seconds=1.25),
    row("v5e:1x1", "bound", replace(ONE, quantization="nf4"), 5e9, 0.012, BOUND),
    row("h100-80gb:8", "too large", replace(ONE, mesh=(1, 4, 1, 1, 2)), 95.5e9, 0.1),
    Row("v6e:2x2", "failed", ONE, capacity=31 * 10**9, note="the compiler failed: [why]"),
    Row("v5e:2x4", "failed", note="the compiler's process ended (signal SIGSEGV)"),
    Row("cpu", "nothing", capacity=4 * 10**9, note="no mesh of these devices divides the job"),
]


def made(rows=ROWS, **limits):
    offers = [offer(each, parse(each.target), WORK, None) for each in rows]
    return Plan(WORK, ranked(offers, **limits), load(None))


def printed(plan, width=None, **how):
    out = io.StringIO()
    Console(file=out, width=width or 10_000).print(table(plan, width=width, **how))
    return out.getvalue()


def cells(text):
    lines = [line for line in text.splitlines() if line.strip() and "─" not in line]
    return [re.split(r"\s{2,}", line.strip()) for line in lines]


def test_what_each_cell_says():
    head, *rows = cells(printed(made()))
    assert head == HEAD
    assert {each[0]: each[1:] for each in rows} == {
        "l4": ["one device", "bfloat16", "full", "8", "10.00 / 80.00", "1.00", "8,000", "0.5", "0.355", "0.16", "0.036",
               "49x dearer, 83x slower"],
        "v5e:1x1": ["one device", "nf4", "full", "8", "~5.00 / 80.00", "~0.012", "~666,667", "~0.006", "~0.0072",
                    "-", "~0.00102", "the cheapest"],
        "h100-80gb:8": ["fsdp=4 tensor=2", "bfloat16", "full", "8", "95.50 / 80.00", "0.1", "80,000", "0.05", "1.20",
                        "0.54", "0.28", "does not fit by 15.50 GB"],
        "v6e:2x2": ["one device", "bfloat16", "full", "8", "- / 31.00", *["-"] * 6, "the compiler failed: [why]"],
        "v5e:2x4": [*["-"] * 11, "the compiler's process ended (signal SIGSEGV)"],
        "cpu": [*["-"] * 4, "- / 4.00", *["-"] * 6, "no mesh of these devices divides the job"],
    }  # fmt: skip


def test_one_row_a_target_or_all_that_were_looked_at():
    assert len(cells(printed(made()))) == 1 + 6
    every = cells(printed(made(), every=True))
    assert len(every) == 1 + 7
    assert ["keeps 2", "2 x 4"] in [each[3:5] for each in every]


@pytest.mark.parametrize("width", [72, 80, 100, 120, 140])
def test_a_narrow_screen_leaves_columns_out_and_cuts_nothing(width):
    text = printed(made(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    head, *_ = cells(text)
    assert {"target", "memory, GB", "hours", "USD"} <= set(head)
    assert head == [name for name in HEAD if name in head], "in their order"
    (caption,) = [line for line in text.splitlines() if line.startswith("too narrow for: ")]
    assert set(head) | set(caption.strip().removeprefix("too narrow for: ").split(", ")) == set(HEAD)
    for name in ("v5e:1x1", "h100-80gb:8", "~5.00 / 80.00", "95.50 / 80.00"):
        assert name in text


@pytest.mark.parametrize("width", [90, 110, 130, 150])
def test_a_setting_is_whole_on_its_line(width):
    setting = "train.gradient_accumulation_steps=8"
    large = replace(ROWS[3], as_written=True, remedy=f"{setting} does: 3.86 GB, 1.29 s a step")
    text = printed(made([*ROWS, large]), width)
    assert setting in text
    assert max(map(len, text.splitlines())) <= width


def test_a_wide_screen_has_them_all():
    assert "too narrow" not in printed(made(), 200)
    assert cells(printed(made(), 200))[0] == HEAD
    assert cells(printed(made([])))[0] == HEAD


def test_below_the_table_stands_what_its_figures_are():
    lines = summary(made()).splitlines()
    assert lines[:3] == [
        "1,800 steps of 8 x 1,000 tokens; of an epoch's tokens 123,456 carry loss",
        "attention: block stands in",
        f"~ {BOUND}",
    ]
    sources = {line.partition(":")[0] for line in lines[3:]}
    assert sources == {"price of l4", "price of v5e", "price of h100-80gb"}
    assert summary(made(deadline_hours=0)).startswith("no target runs the job as asked")


@pytest.fixture
def planned(monkeypatch):
    asked = []

    def plan(config, names, *, watch, **how):
        asked.append((names, how))
        for name in names:
            watch(name, "compiling")
        return made()

    monkeypatch.setattr(module, "plan", plan)
    return asked


def test_it_prints_as_wide_as_it_is_where_nobody_looks_and_writes_the_file(planned, tmp_path, capsys):
    file = tmp_path / "plan.json"
    plan_and_print(load(None), [" l4", "", "v5e:1x1 "], json=file, max_usd=3.0)
    assert planned == [(["l4", "v5e:1x1"], {"max_usd": 3.0})]
    out, err = capsys.readouterr()
    assert err == ""
    head, *rows = cells(out)
    assert head == HEAD
    assert ["v5e:2x4", *["-"] * 11, "the compiler's process ended (signal SIGSEGV)"] in rows
    assert BOUND in out
    assert "the compiler failed: [why]" in out
    values = json.loads(file.read_text())
    assert values["target"] == "v5e:1x1"
    assert values["settings"]["model.quantization"] == "nf4"
    assert [each["row"]["status"] for each in values["offers"]] == [each.row.status for each in made().offers]


def test_a_screen_s_width_is_heeded(planned, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    plan_and_print(load(None), None, every=True)
    assert planned[0][0] == list(module.DEFAULT)
    out = capsys.readouterr().out
    assert "too narrow for: kWh" in out
    assert len(cells(out.partition("too narrow")[0])) > 1 + 7 - 1


@pytest.mark.parametrize("targets", [[], [""], [" ", ""]])
def test_no_targets(planned, targets):
    with pytest.raises(ConfigError, match="--targets names nothing"):
        plan_and_print(load(None), targets)
    assert planned == []


def test_a_file_that_cannot_be_written_is_told_before_the_work(planned, tmp_path):
    with pytest.raises(ConfigError, match="the plan cannot be written there"):
        plan_and_print(load(None), ["l4"], json=tmp_path)
    assert planned == []
