"""The ledger: rows that are written anew, sums that add up, files that are none."""

import sqlite3
import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlean.cost import ledger
from jaxlean.cost.ledger import Entry, default_file, enter, entries, file_of, sums
from jaxlean.errors import RunError

ENTRY = Entry(
    run="a", started="2026-03-04T05:06:07+00:00", ended="2026-03-04T06:06:07+00:00", project="chat", person="ann",
    model="org/base", task="generate", folder="/runs/a", name=None, status="completed", device="H100", num_devices=8,
    seconds=3600.0, accelerator_hours=8.0, accelerator_utilization=0.75, steps=100, tokens=1000, flops=1e18, mfu=0.4,
    peak_memory_bytes=10**10, kwh=5.0, energy_source="modelled", gco2e=100.0, usd=24.0, price_source="table",
    metric="loss", quality_before=2.0, quality_after=1.0, quality_reference=None, version="0.1.0", tags=["x", "y"],
)  # fmt: skip


@pytest.fixture
def file(tmp_path):
    return tmp_path / "deep" / "ledger.sqlite"


def test_a_row_comes_back_as_it_was(file):
    enter(file, ENTRY)
    assert entries(file) == [ENTRY]


def test_a_resumed_run_is_the_same_row_and_keeps_its_start(file):
    enter(file, replace(ENTRY, status="preempted", usd=3.0))
    enter(file, replace(ENTRY, started="2027-01-01T00:00:00+00:00"))
    assert entries(file) == [ENTRY]


def test_rows_are_chosen_by_date_and_group(file):
    old = replace(ENTRY, run="b", started="2025-12-31T00:00:00+00:00", project="other", tags=[])
    for entry in (ENTRY, old):
        enter(file, entry)
    assert [entry.run for entry in entries(file)] == ["b", "a"]
    assert [entry.run for entry in entries(file, since="2026-01-01")] == ["a"]
    assert [entry.run for entry in entries(file, where={"project": "other"})] == ["b"]
    assert [entry.run for entry in entries(file, where={"tag": "x", "project": "chat"})] == ["a"]
    assert entries(file, where={"month": "2026-04"}) == []


def test_sums_are_the_figures_that_teams_account_by(file):
    enter(file, ENTRY)
    enter(
        file, replace(ENTRY, run="b", status="failed", usd=6.0, kwh=1.0, accelerator_utilization=0.25, seconds=1200.0)
    )
    enter(file, replace(ENTRY, run="c", project="other", usd=None, kwh=None, gco2e=None, accelerator_utilization=None))
    chat, other = sums(file, "project")
    assert (chat.group, chat.runs, chat.completed) == ("chat", 2, 1)
    assert (chat.usd, chat.usd_unfinished, chat.usd_per_model, chat.share) == (30.0, 6.0, 30.0, 1.0)
    assert (chat.kwh, chat.kwh_per_model) == (6.0, 6.0)
    assert chat.hours == pytest.approx(4 / 3)
    assert chat.accelerator_utilization == pytest.approx((0.75 * 3600 + 0.25 * 1200) / 4800)
    assert (other.usd, other.usd_per_model, other.kwh_per_model, other.unpriced) == (None, None, None, 1)
    assert other.accelerator_utilization is None


def test_a_run_counts_under_each_of_its_tags_and_under_none(file):
    enter(file, ENTRY)
    enter(file, replace(ENTRY, run="b", tags=["y"], usd=1.0))
    enter(file, replace(ENTRY, run="c", tags=[], usd=5.0))
    assert {s.group: (s.runs, s.usd) for s in sums(file, "tag")} == {"x": (1, 24.0), "y": (2, 25.0), "-": (1, 5.0)}
    assert {s.group: s.usd for s in sums(file, "project", where={"tag": "y"})} == {"chat": 25.0}
    assert {s.group: s.share for s in sums(file, "tag")}["x"] == pytest.approx(24 / 30)


@pytest.mark.parametrize("by", ledger.GROUPS)
@settings(max_examples=10)
@given(rows=st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from("mn"), st.floats(0, 10) | st.none()), min_size=1))
def test_groups_add_up_to_all(tmp_path_factory, by, rows):
    file = tmp_path_factory.mktemp("ledger") / "a.sqlite"
    for i, (project, model, usd) in enumerate(rows):
        enter(file, replace(ENTRY, run=str(i), project=project, model=model, usd=usd, tags=[project], person=model))
    found = sums(file, by)
    assert sum(s.runs for s in found) == len(rows)
    assert sum(s.usd or 0 for s in found) == pytest.approx(sum(usd or 0 for *_, usd in rows))
    assert sum(s.unpriced for s in found) == sum(usd is None for *_, usd in rows)


def test_many_may_write_at_once(file):
    threads = [threading.Thread(target=enter, args=(file, replace(ENTRY, run=str(i)))) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entries(file)) == 12


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_file() == file_of(True) == tmp_path / "jaxlean" / "ledger.sqlite"
    assert file_of(False) is None
    assert file_of(str(tmp_path / "mine.sqlite")) == tmp_path / "mine.sqlite"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/ann")
    assert default_file().is_absolute()


def test_files_that_are_none(file, tmp_path):
    def told(file, words):
        for use in (lambda: entries(file), lambda: enter(file, ENTRY)):
            with pytest.raises(RunError) as error:
                use()
            for word in (*words, str(file)):
                assert word in str(error.value)

    with pytest.raises(RunError, match="no such ledger"):
        entries(file)
    text = tmp_path / "text.sqlite"
    text.write_text("this is no database, and long enough to be read as one" * 10)
    told(text, ["the ledger cannot be used", "cost.ledger"])
    assert text.read_text().startswith("this is no database"), "it is left as it was"
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE songs (name)")
    connection.close()
    told(other, ["not a ledger", "a file that jaxlean made"])
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    told(newer, ["not a ledger of this jaxlean", "version 99", "version 1"])
    with pytest.raises(RunError, match="cannot be used"):
        enter(text / "inside", ENTRY)
