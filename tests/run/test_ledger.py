"""The ledger as people see it: runs, sums, a bill, CSV."""

import csv
import io
from dataclasses import replace

import pytest
from rich.console import Console

from jaxlean.cost.ledger import Entry, enter
from jaxlean.errors import ConfigError, RunError
from jaxlean.run.ledger import show_ledger

ENTRY = Entry(
    run="a", started="2026-03-04T05:06:07+00:00", ended="2026-03-04T06:06:07+00:00", project="chat", person="ann",
    model="org/base", task="generate", folder="/runs/a", name='a "name", with commas', status="completed",
    device="H100", num_devices=8, seconds=3600.0, accelerator_hours=8.0, accelerator_utilization=0.75, steps=100,
    tokens=1000, flops=1e18, mfu=0.4, peak_memory_bytes=10**10, kwh=5.0, energy_source="modelled", gco2e=100.0,
    usd=24.0, price_source="table", metric="exact_match", quality_before=0.1, quality_after=0.875,
    quality_reference=None, version="0.1.0", tags=["x", "y"],
)  # fmt: skip


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "ledger.sqlite"
    enter(file, ENTRY)
    enter(file, replace(ENTRY, run="b", project="search", started="2026-04-01T00:00:00+00:00", usd=8.0, tags=[]))
    enter(
        file, replace(ENTRY, run="c", project="search", started="2026-03-01T00:00:00+00:00", usd=None, status="failed")
    )
    return file


def shown(file, **how):
    out = io.StringIO()
    show_ledger(file, console=Console(file=out, width=250), **how)
    return out.getvalue()


def test_runs_oldest_first(file):
    text = shown(file)
    assert text.index("2026-03-01") < text.index("2026-03-04 05:06") < text.index("2026-04-01")
    assert "exact_match 0.875" in text
    assert "8 x H100" in text
    assert "$24.00" in text


def test_sums_with_a_total_but_not_of_tags(file):
    text = shown(file, by="project")
    chat = next(line for line in text.splitlines() if "chat" in line)
    assert "75.0 %" in chat, "of all dollars, and of the time"
    search = next(line for line in text.splitlines() if "search" in line)
    assert "$8.00 + 1 unpriced" in search
    assert "$32.00" in next(line for line in text.splitlines() if line.startswith("all "))
    assert "all " not in shown(file, by="tag")


def test_a_bill_is_by_project_and_month(file):
    lines = [line for line in shown(file, bill=True).splitlines() if ", 2026-" in line]
    assert [line.split("  ")[0] for line in lines] == ["chat, 2026-03", "search, 2026-03", "search, 2026-04"]


def test_csv_comes_back(file, tmp_path, capsys):
    show_ledger(file, to=tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["run"] for row in rows] == ["c", "a", "b"]
    assert rows[1]["name"] == 'a "name", with commas'
    assert rows[1]["tags"] == "x y"
    show_ledger(file, by="month", to="-")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["group"]: row["usd_per_model"] for row in rows} == {"2026-03": "24.0", "2026-04": "8.0"}
    with pytest.raises(RunError, match="the CSV file cannot be written"):
        show_ledger(file, to=tmp_path / "none" / "out.csv")


def test_many_runs_are_cut_and_it_is_said(file):
    for i in range(30):
        enter(file, replace(ENTRY, run=f"r{i}"))
    assert "the last 20 of 33 runs" in shown(file)


def test_none_at_all(file):
    assert shown(file, where={"project": "nobody"}).startswith("no runs")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"by": "projct"}, "did you mean 'project'"),
        ({"by": "model", "bill": True}, "by project and month"),
        ({"since": "March"}, "--since is no date"),
    ],
)
def test_what_cannot_be_asked(file, how, words):
    with pytest.raises(ConfigError, match=words):
        show_ledger(file, **how)


def test_from_the_command_line(cli, file, tmp_path):
    code, out, err = cli("ledger", "--file", file, "--by", "tag", "--project", "chat", "--since", "2026-01-01")
    assert (code, err) == (0, "")
    assert "USD/model" in out
    code, _, err = cli("ledger", "--file", tmp_path / "none.sqlite")
    assert code == 2
    assert "no such ledger" in err
