"""What a run comes to: figures that follow from a meter's totals, and its row in the ledger."""

import json

import pytest

from jaxlean.config import build, load
from jaxlean.cost import ledger
from jaxlean.cost.budget import Used
from jaxlean.cost.hardware import of_kind
from jaxlean.errors import BudgetReached
from jaxlean.run import account as module
from jaxlean.run.account import Account
from jaxlean.run.finetune import finetune
from jaxlean.run.meter import Meter
from jaxlean.run.predict import Machine

H100 = "NVIDIA H100 80GB HBM3"


def make(platform="gpu", kind=H100, num_devices=8, **cost):
    config = build({"model": {"path": "org/base"}, "cost": cost, "output_dir": "runs/a"})
    return Account(config, Machine(of_kind(kind), platform, num_devices), kind)


TOTALS = {"seconds": 7200.0, "kwh": 3.0, "flops_per_step": 1e15, "measured_step_seconds": 0.5}


def test_hours_flops_emissions_and_every_price():
    found = make(region="DE", usd_per_kwh=0.3, usd_per_hour=10.0).figures(TOTALS, 100)
    assert found["accelerator_hours"] == 16
    assert found["flops"] == 1e17
    assert found["gco2e"] == 3 * 381
    assert found["usd_by_price"] == pytest.approx({"on_demand": 48.0, "spot": 21.6, "own": 20.0, "electricity": 0.9})
    assert found["price_source"] == "cost.usd_per_hour"
    assert found["mfu"] is None, "nobody said which FLOPs are useful"


def test_the_useful_share_of_the_peak():
    account = make()
    account.flops_per_step = 0.4 * 8 * 989e12 * 0.5
    assert account.figures(TOTALS, 1)["mfu"] == pytest.approx(0.4)


def test_a_cpu_is_one_machine_and_has_no_peak():
    account = make("cpu", "cpu", 8)
    account.flops_per_step = 1e9
    found = account.figures(TOTALS | {"kwh": None}, 1)
    assert (found["accelerator_hours"], found["mfu"], found["gco2e"]) == (2, None, None)


@pytest.mark.parametrize(
    ("summary", "quality"),
    [
        ({"eval_after": {"loss": 1.0}, "eval_before": {"loss": 2.0}}, ("loss", 2.0, 1.0, None)),
        ({"eval_after": {"loss": 1.0, "exact_match": 0.9}, "eval_before": {"loss": 2.0, "exact_match": None}},
         ("exact_match", None, 0.9, None)),
        ({"eval_after": {"accuracy": 0.8, "loss": 1.0}, "eval_teacher": {"accuracy": 0.9}},
         ("accuracy", None, 0.8, 0.9)),
        ({}, (None, None, None, None)),
    ],
)  # fmt: skip
def test_quality_is_told_by_the_first_metric_that_there_is(summary, quality):
    assert module._quality(summary) == quality


def test_a_ledger_that_cannot_be_written_is_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    make(ledger=str(tmp_path / "file" / "inside")).enter({"status": "completed"}, said.append)
    assert "ledger: this run is not entered" in said[0]
    make(ledger=False).enter({"status": "completed"}, said.append)
    assert len(said) == 1


@pytest.fixture
def book(tmp_path):
    return tmp_path / "ledger.sqlite"


def test_a_run_that_comes_to_its_limit_is_saved_and_goes_on(cli, tiny_yaml, tmp_path, monkeypatch, book, small_machine):
    run = tmp_path / "run"
    told = [f"cost.ledger={book}", "cost.project=chat", "cost.tags=[nightly]", "cost.region=SE"]
    code, _, err = cli("finetune", tiny_yaml, *told, "cost.max_usd=1e-12")
    assert code == 3
    assert "stopped (" in err
    assert "cost.max_usd=1e-12" in err
    assert "--resume with a higher limit goes on" in err
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("budget", 0)

    monkeypatch.setattr(Meter, "used", lambda meter: Used(None, None, float(len(meter._done))))
    with pytest.raises(BudgetReached, match="max_hours=2"):
        finetune(load(tiny_yaml, [*told, "cost.max_hours=2"]), resume=True)
    stopped = json.loads((run / "summary.json").read_text())
    assert stopped["status"] == "budget"
    assert 1 <= stopped["steps"] < 6
    monkeypatch.undo()
    summary = finetune(load(tiny_yaml, told), resume=True)
    assert (summary["status"], summary["steps"]) == ("completed", 6)
    assert sum(summary["phases"].values()) == pytest.approx(summary["seconds"])
    assert summary["gco2e"] == pytest.approx(summary["kwh"] * 41)
    (row,) = ledger.entries(book)
    assert (row.status, row.project, row.tags, row.steps) == ("completed", "chat", ["nightly"], 6)
    assert row.usd == pytest.approx(summary["usd"])
    assert row.quality_after == summary["eval_after"]["loss"]

    whole = finetune(load(tiny_yaml, [*told, f"output_dir={tmp_path / 'whole'}"]))
    assert whole["eval_after"]["loss"] == summary["eval_after"]["loss"]
    files = [folder / "adapter" / "adapter_model.safetensors" for folder in (run, tmp_path / "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
