"""What rows mean for a job: hours, dollars, their order, and why the others lost."""

from dataclasses import replace

import pytest

from jaxlean.cost import skypilot
from jaxlean.plan import offer as module
from jaxlean.plan.candidate import Candidate
from jaxlean.plan.offer import JobSize, Offer, offer, price_of, ranked
from jaxlean.plan.search import Row
from jaxlean.plan.target import parse

WORK = JobSize(num_steps=1800, rows=8, length=1000, tokens=10**6)
CANDIDATE = Candidate((1, 1, 1, 1, 1), 8, 1, "bfloat16", "none", "full")


@pytest.fixture(autouse=True)
def _no_catalog(monkeypatch):
    monkeypatch.setattr(module, "cheapest", lambda name: None)


def offered(target, seconds, status="fits", memory=10e9, **more):
    found = parse(target)
    row = Row(found.name, status, CANDIDATE, memory, found.capacity, seconds, 0.0, 1e15, **more)
    return offer(row, found, WORK, None)


def test_hours_dollars_and_energy():
    found = offered("h100-80gb:8", 2.0)
    assert found.hours == 1.0
    assert found.tokens_per_second == 4000
    assert (found.usd, found.usd_spot) == (pytest.approx(24.0), pytest.approx(10.8))
    assert found.kwh == pytest.approx(5.6)
    assert found.runs
    nothing = offer(Row("l4:1", "failed", note="it broke"), parse("l4:1"), WORK, None)
    assert nothing.usd is None
    assert not nothing.runs


def test_several_machines_cost_all_of_their_cards_and_say_so():
    found = offered("h100-80gb:16", 2.0, note="a stand-in")
    assert (found.num_devices, found.usd, found.kwh) == (16, pytest.approx(48.0), pytest.approx(11.2))
    first, second = found.row.note.splitlines()
    assert first == "a stand-in"
    assert "h100-80gb:16: 2 machines of 8, 50 GB/s" in second
    assert offered("h100-80gb:8", 2.0).row.note == ""


def test_the_cheapest_first_and_each_other_with_its_reason():
    offers = [
        offered("h100-80gb:1", 0.5),  # 0.75 USD
        offered("l4:1", 1.0),  # 0.355 USD
        offered("h100-80gb:8", 0.1, "too large", memory=100e9),
        offered("b200:1", 0.1),  # no price
        offer(Row("v5e:1x1", "failed", CANDIDATE, note="the compiler failed: why"), parse("v5e:1x1"), WORK, None),
    ]
    found = ranked(offers)
    assert [(each.row.target, each.why) for each in found] == [
        ("l4:1", ""),
        ("h100-80gb:1", "2.1x dearer, 2x faster"),
        ("b200:1", "no price, 10x faster"),
        ("h100-80gb:8", "does not fit by 21.85 GB"),
        ("v5e:1x1", "the compiler failed: why"),
    ]


def test_a_deadline_and_a_limit_refuse():
    offers = [offered("l4:1", 1.0), offered("h100-80gb:1", 0.5)]
    slow, first = sorted(ranked(offers, deadline_hours=0.3), key=lambda o: o.why == "")
    assert (first.row.target, slow.why) == ("h100-80gb:1", "0.2 h over the deadline")
    dear = ranked(offers, max_usd=0.5)[-1]
    assert (dear.row.target, dear.why) == ("h100-80gb:1", "$0.25 over the limit")
    assert all(each.why for each in ranked(offers, max_usd=0.1))


def test_ranking_changes_nothing_else():
    offers = [offered("l4:1", 1.0), offered("h100-80gb:1", 0.5)]
    assert {replace(each, why="") for each in ranked(offers)} == set(offers)


def test_how_much_worse_is_said_in_two_digits_or_whole():
    best = offered("l4:1", 1.0)
    for seconds, said in (
        (1.25, "1.2x slower"),
        (12.6, "13x slower"),
        (99.6, "100x slower"),
        (12345.6, "12,346x slower"),
    ):
        assert ranked([best, offered("h100-80gb:1", seconds)])[1].why.endswith(said)


def test_whose_price(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "cheapest", lambda name: skypilot.Listing(1.0, 0.25, f"catalog of {name}"))
    assert price_of(parse("l4:8"), None) == (8.0, 2.0, "catalog of L4")
    table = tmp_path / "hardware.yaml"
    table.write_text("devices:\n- {match: NVIDIA L4, target: l4, usd_per_hour: 0.5, source: our contract}\n")
    assert price_of(parse("l4:2", str(table)), str(table)) == (1.0, 0.64, "our contract")
    assert price_of(parse("h100-80gb", str(table)), str(table))[2] == "catalog of H100"


def test_what_has_no_price_is_not_within_a_limit():
    known, unknown = made("l4", 1.0, usd=5.0), made("v7x:2x2x1", 0.5, usd=None)
    assert [found.row.target for found in ranked([unknown, known])] == ["l4", "v7x:2x2x1"]
    first, second = ranked([unknown, known], max_usd=9.0)
    assert (first.row.target, first.why) == ("l4", "")
    assert "no price" in second.why
    (alone,) = ranked([unknown], max_usd=9.0)
    assert alone.why, "nothing wins"


def made(target, hours, usd):
    row = Row(target, "fits", Candidate((1, 1, 1, 1, 1), 1, 1, "bfloat16", "none", "none"), 1e9, 10**10, 1.0)
    return Offer(row, 1, 100.0, hours, usd, None, None, "")
