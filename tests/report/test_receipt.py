"""The receipt in a report is receipt.json: its numbers, its sources, its words."""

import io

import pytest
from rich.console import Console

from jaxlean.receipt import receipt as writer
from jaxlean.receipt.show import show
from jaxlean.report.read import RECEIPT_FORMAT, read
from jaxlean.report.receipt import missing, receipts

MINUS = "\N{MINUS SIGN}"


def test_it_reads_what_is_written():
    assert RECEIPT_FORMAT == writer.FORMAT


def test_every_amount_stands_there_with_its_share_and_its_source(made, told):
    (found,) = receipts(read([made("a", receipt=told)]))
    assert found.sentence == told["total"]["sentence"]
    assert found.measures == ["memory of a step", "FLOPs of a step", "time", "energy", "cost"]
    assert [cut.name for cut in found.cuts] == [
        "1. open weights",
        "2. LoRA",
        "5. loss in chunks",
        "packing",
        "together",
    ]
    lora = found.cuts[1]
    assert (lora.settings, lora.without) == ("lora.r=8", "lora=null")
    assert [(saving.change, saving.without, saving.with_cut, saving.source) for saving in lora.savings] == [
        (f"{MINUS}75 %", "4.0 MiB", "1.0 MiB", "compiled"),
        ("+25 %", "2 TFLOP", "2.5 TFLOP", "compiled"),
        (f"{MINUS}33 %", "1 min 30 s", "1 min 00 s", "timed"),
        (f"{MINUS}33 %", "0.9 Wh", "0.6 Wh", "timed, at the run's power"),
        (f"{MINUS}33 %", "$0.0030", "$0.0020", "timed"),
    ]
    assert found.made == "made 2026-01-02 04:00 UTC, on 1 x cpu, each program timed in 3 turns"


def test_nothing_is_said_of_what_was_not_measured(made, told):
    (found,) = receipts(read([made("a", receipt=told)]))
    weights, _, chunks, packing, _ = found.cuts
    assert weights.savings == [None] * 5
    assert weights.note == "nothing is claimed"
    assert chunks.savings[0].change == "0 %"
    assert packing.savings[:2] == [None, None]
    told["cuts"] = told["cuts"][2:3]
    (of_memory,) = receipts(read([made("b", receipt=told)]))
    assert of_memory.measures == ["memory of a step"]


def test_the_last_row_is_the_run_without_any(made, told):
    (found,) = receipts(read([made("a", receipt=told)]))
    whole = found.cuts[-1]
    assert whole.whole
    assert whole.note == "LoRA, loss in chunks, packing"
    assert [saving and (saving.change, saving.without) for saving in whole.savings] == [
        (f"{MINUS}75 %", "4.0 MiB"), None, (f"{MINUS}67 %", "3 min 00 s"), (f"{MINUS}67 %", "1.8 Wh"),
        (f"{MINUS}67 %", "$0.0060"),
    ]  # fmt: skip
    told["total"]["cuts"] = ["LoRA"]
    (of_one,) = receipts(read([made("b", receipt=told)]))
    assert not of_one.cuts[-1].whole, "which its own row is already"


def test_the_shares_are_those_that_the_command_prints(made, told):
    out = io.StringIO()
    show(told, Console(file=out, width=120))
    printed = next(line for line in out.getvalue().splitlines() if " LoRA " in line)
    (found,) = receipts(read([made("a", receipt=told)]))
    memory, flops, seconds, *_ = (saving.change.replace(" ", "") for saving in found.cuts[1].savings)
    assert [share for share in printed.split() if share.endswith("%")] == [
        memory.replace(MINUS, ""), flops, seconds.replace(MINUS, ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("receipt", "summary", "words"),
    [
        (None, {}, "No receipt yet: it is measured"),
        (None, None, "No receipt yet: once the run has ended"),
        (None, {"measured_step_seconds": None}, "No receipt yet: once the run has ended"),
        ("told", {"ended": "2026-01-03T00:00:00Z"}, "Went on after its receipt was made"),
        ("told", {}, None),
    ],
)
def test_a_run_without_a_receipt_of_all_of_it_says_what_makes_one(made, told, receipt, summary, words):
    (run,) = read([made("a b", receipt=receipt and told, summary=summary)])
    found = missing([run])
    if words is None:
        assert found == []
        return
    ((name, said, command),) = found
    assert name == "a b"
    assert words in said
    assert command == f"jaxlean receipt '{run.folder}'"


def test_a_receipt_that_somebody_has_been_at_is_no_reason_to_fail(made, told):
    told["cuts"] = ["x", {"cut": "odd", "memory_bytes": {"with": "many", "without": 3}, "settings": 5}]
    told["total"], told["made"], told["calibration"] = "none", "soon", None
    (found,) = receipts(read([made("a", receipt=told)]))
    assert [(cut.name, cut.savings) for cut in found.cuts] == [("odd", [])]
    told["cuts"] = {}
    assert receipts(read([made("b", receipt=told)])) == []
