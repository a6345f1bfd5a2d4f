"""What a cut saves is what the plan says, on the cheapest target that it fits on."""

import pytest

from jaxlean.audit.audit import audit, check_targets
from jaxlean.audit.proposals import Proposal
from jaxlean.errors import ConfigError
from jaxlean.plan.offer import price_of
from jaxlean.plan.search import search
from jaxlean.plan.target import parse

pytestmark = pytest.mark.usefixtures("small_machine")

WHOLE = ("train.max_steps=null", "model.dtype=bfloat16", "data.eval=null")

KEPT = Proposal(4, "gradient checkpointing", {"train.remat": "dots"})


def by_name(findings):
    return {each.proposal.name: each for each in findings}


def test_what_saves_most_is_first_and_its_dollars_are_the_plans(planned, tiny_run) -> None:
    def step(config, target):
        return (20.0 if config.train.remat == "none" else 1.0) * (0.5 if config.data.packing else 1.0), 1e9

    asked = planned(step)
    found = audit(tiny_run(*WHOLE, "data.packing=false"), ["cpu"])
    rate = price_of(parse("cpu"), None)[0]
    assert found.cost.usd == pytest.approx(20.0 * found.work.num_steps / 3600 * rate)
    remat, packing = found.pays[:2]
    assert (remat.proposal.number, remat.proposal.name) == (4, "gradient checkpointing")
    assert remat.saves_usd == pytest.approx(19.0 * found.work.num_steps / 3600 * rate)
    assert packing.proposal.name == "packing"
    assert packing.cost.offer.row.step_seconds == 10.0
    # fewer and longer sequences: the steps are counted anew from the rows
    assert packing.cost.hours * 3600 / 10.0 < found.work.num_steps
    assert remat.saves_usd > packing.saves_usd > 0
    # savings do not add up: all that pay are planned once more
    assert asked[-1].variant == "all together"
    assert found.together.settings == {"train.remat": "auto", "data.packing": True}
    assert found.together.cost.offer.row.step_seconds == 0.5
    assert {"LoRA", "loss in chunks"} <= {name for _, name in found.in_force}
    assert {each.saves_usd for each in by_name(found.others).values() if each.proposal.number == 6} == {0.0}


def test_less_memory_pays_where_a_cheaper_card_then_does(planned, tiny_run) -> None:
    def step(config, target):
        return (1.0 if target.startswith("h100") else 4.0), (10e9 if config.model.quantization == "nf4" else 30e9)

    planned(step)
    found = audit(tiny_run(*WHOLE), ["h100-80gb:1", "l4:1"])
    assert found.cost.offer.row.target == "h100-80gb:1"
    nf4 = by_name(found.pays)["base in nf4"]
    assert nf4.cost.offer.row.target == "l4:1"
    hour = {name: price_of(parse(name), None)[0] for name in ("h100-80gb:1", "l4:1")}
    steps = found.work.num_steps / 3600
    assert nf4.saves_usd == pytest.approx(steps * (hour["h100-80gb:1"] - 4 * hour["l4:1"]))
    assert not nf4.close
    assert "base in int8" in by_name(found.others)


def test_of_cuts_that_exclude_each_other_one_is_taken(planned, tiny_run) -> None:
    planned(lambda config, target: ({"none": 3.0, "int8": 2.0, "nf4": 1.0}[config.model.quantization], 1e9))
    found = audit(tiny_run(*WHOLE), ["cpu"])
    assert "base in nf4" in by_name(found.pays)
    assert "saves less than base in nf4" in by_name(found.others)["base in int8"].note


def test_a_config_that_fits_nowhere_says_by_how_much_and_what_makes_it_run(planned, tiny_run) -> None:
    planned(lambda config, target: (2.0, 30e9 if config.train.remat == "none" else 10e9))
    found = audit(tiny_run(*WHOLE), ["l4:1"])
    assert found.cost is None
    assert "l4:1: too large by" in found.why
    (remat,) = found.pays
    assert remat.proposal.name == "gradient checkpointing"
    assert remat.saves_usd is None
    assert remat.cost.usd > 0
    assert "too large" in by_name(found.others)["base in int8"].note


def test_estimates_that_are_too_near_to_tell_are_marked(planned, tiny_run) -> None:
    planned(lambda config, target: (1.0 if config.train.remat == "none" else 0.95, 1e9))
    found = audit(tiny_run(*WHOLE), ["cpu"])
    assert by_name(found.pays)["gradient checkpointing"].close


def test_a_cut_that_cannot_be_planned_is_told_and_harms_no_other(planned, tiny_run) -> None:
    planned(lambda config, target: (-1.0 if config.model.quantization == "int8" else 1.0, 1e9))
    found = audit(tiny_run(*WHOLE), ["cpu"])
    assert "the compiler failed: a bug" in by_name(found.others)["base in int8"].note
    assert by_name(found.others)["base in nf4"].cost is not None


def test_rows_twice_are_steps_that_need_not_be(planned, tiny_run, tiny_rows, tmp_path) -> None:
    planned(lambda config, target: (1.0, 1e9))
    twice = tmp_path / "twice.jsonl"
    twice.write_text(tiny_rows.read_text() * 2)
    job = tiny_run(*WHOLE, f"data.train={twice}")
    found = audit(job, ["cpu"])
    same = by_name(found.pays)["duplicate rows"]
    assert same.proposal.number == 12
    assert same.how == "counted"
    assert same.saves_usd == pytest.approx(found.cost.usd / 2, rel=0.2)  # a few of the rows themselves are near
    assert "jaxlean curate CONFIG" in same.note
    told = audit(tiny_run("model.dtype=bfloat16", "data.eval=null"), ["cpu"])
    assert "train.max_steps says" in {each.name: each.why for each in told.unplanned}["duplicate rows"]


@pytest.mark.parametrize(
    ("settings", "rate"),
    [(["cost.usd_per_hour=7"], 7.0), (["cost.pricing=electricity", "cost.usd_per_kwh=0.5"], 0.5 * 0.072)],
)
def test_dollars_are_the_users_own_where_the_config_has_them(planned, tiny_run, settings, rate) -> None:
    planned(lambda config, target: (3600.0, 1e9))
    found = audit(tiny_run(*WHOLE, *settings), ["l4:1"], here=True)
    assert found.cost.usd == pytest.approx(found.work.num_steps * rate, rel=0.01)
    assert "spot price" not in by_name(found.pays)


def test_spot_is_the_same_seconds_at_another_price(planned, tiny_run) -> None:
    planned(lambda config, target: (1.0, 1e9))
    spot = by_name(audit(tiny_run(*WHOLE), ["l4:1"]).pays)["spot price"]
    demand, price, _ = price_of(parse("l4:1"), None)
    assert spot.saves_usd == pytest.approx(spot.cost.offer.usd * (1 - price / demand))
    assert spot.settings == {"cost.pricing": "spot"}
    paid = audit(tiny_run(*WHOLE, "cost.pricing=spot"), ["l4:1"])
    assert paid.cost.usd == paid.cost.offer.usd_spot
    assert "spot price" not in by_name(paid.pays)


def test_targets_that_are_none_are_told(tiny_run) -> None:
    with pytest.raises(ConfigError, match="--targets names nothing"):
        check_targets([])
    with pytest.raises(ConfigError, match="h1000"):
        audit(tiny_run(*WHOLE), ["h1000"])


@pytest.mark.slow
def test_the_step_with_a_cut_is_the_one_that_is_compiled(tiny_run, monkeypatch) -> None:
    """No stand-in: what is said of a cut is what the planner says of the config that has it."""

    def run(jobs, **how):
        from jaxlean.config import build

        for job in jobs:
            for row in search(build(job.config), parse(job.target), length=job.length, ways=job.ways, most=1):
                yield type(row)(**{**vars(row), "variant": job.variant})

    monkeypatch.setattr("jaxlean.audit.audit.run", run)
    monkeypatch.setattr("jaxlean.audit.audit.proposals", lambda job, dtypes, spreads: [KEPT])
    config = tiny_run(*WHOLE, "train.remat=full", "model.quantization=nf4")
    found = audit(config, ["cpu"])
    kept = by_name((*found.pays, *found.others))["gradient checkpointing"]
    changed = tiny_run(*WHOLE, "train.remat=dots", "model.quantization=nf4")
    (row,) = search(changed, parse("cpu"), length=found.work.length, ways="own", most=1)
    assert kept.cost.offer.row.candidate == row.candidate
    assert kept.cost.offer.row.memory == row.memory
    assert kept.saves_hours == pytest.approx(
        (found.cost.offer.row.step_seconds - row.step_seconds) * found.work.num_steps / 3600, rel=1e-6
    )
    assert found.cost.offer.row.candidate.remat == "full"
