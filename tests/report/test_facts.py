"""What is said of a run in words."""

import pytest

from jaxlean.report import facts
from jaxlean.report.read import read


def one(made, name="a", **options):
    (found,) = read([made(name, **options)])
    return found


def shown(run):
    return {figure.label: (f"{figure.value} {figure.unit}".strip(), figure.detail) for figure in facts.figures(run)}


def test_the_figures_at_the_head_of_a_run(made):
    energy = {"kwh": 0.002, "energy_source": "measured: GPU by NVML", "gco2e": 0.8, "gco2e_source": "DE: 400"}
    assert shown(one(made, summary=energy)) == {
        "held-out loss": ("5.25 → 0.0136", "nats per token"),
        "exact match": ("0.0 → 93.7 %", ""),
        "time": ("23.0 s", "8.00 s in steps"),
        "cost": ("$0.010", "cpu"),
        "energy": ("2 Wh measured", "0.8 g CO2e"),
        "peak memory": ("954 MiB", "97.7 KiB a step, predicted"),
        "tokens per second": ("1,000", "8,000 tokens in 40 steps"),
    }


def test_what_is_not_known_says_so(made):
    none = {"eval_before": None, "eval_after": None, "usd": None, "peak_memory_bytes": None}
    lines = [{"step": 1, "loss": 2.0}]
    found = shown(one(made, summary=none, lines=lines))
    assert found["training loss"] == ("0.06", "nats per token; held-out: not measured")
    assert found["cost"] == ("-", "price unknown: cost.usd_per_hour")
    assert found["peak memory"][0] == "-"
    assert "energy" not in found


def test_of_a_run_that_came_to_no_end_the_last_evaluation_counts(made):
    run = one(made, summary=None, steps=60)
    label, (value, detail) = next(iter(shown(run).items()))
    assert label == "held-out loss"
    assert value.startswith("5.06 → ")
    assert detail == "nats per token, at step 60"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("completed", "completed"),
        ("preempted", "preempted: --resume goes on with it"),
        ("budget", "stopped at its budget"),
        ("diverged", "diverged: a loss or gradient was not a number"),
        ("something new", "something new"),
    ],
)
def test_how_it_ended(made, status, words):
    assert facts.status(one(made, summary={"status": status})) == words


def test_early_stopping_says_why(made):
    stopped = {"step": 1200, "rule": "patience", "message": "2 evaluations were no better"}
    run = one(made, summary={"stopped_early": stopped})
    assert facts.status(run) == "stopped early at step 1,200: 2 evaluations were no better"


def test_a_run_that_was_cut_off_says_that_nothing_says_how(made):
    assert facts.status(one(made, summary=None)) == "unfinished: nothing says how it ended"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "LoRA of rank 8 on org/base"),
        ({"lora": None}, "Fine-tuning of all of org/base"),
        ({"lora": None, "train": {"trainable": ["head"]}}, "Fine-tuning of parts of org/base"),
        ({"model": {"path": None, "architecture": {"model_type": "llama"}}}, "A llama from zero"),
        ({"distill": {"teacher": {"path": "org/large"}}}, "Distillation of org/large into org/base"),
    ],
)
def test_what_was_trained(made, config, words):
    assert facts.what(one(made, config=config)) == words


def test_on_what(made):
    several = {"train": [{"path": "a"}, {"path": "b"}, {"path": "c"}, {"path": "d"}]}
    assert facts.data(one(made, config={"data": several})) == "a, b and 2 more"
    assert facts.data(one(made, "b", config={"data": {"train": "plain.csv"}})) == "plain.csv"
    assert facts.data(one(made, "c", config={"data": {}})) == "no data that the config names"


def test_several_runs_have_the_same_columns_and_gaps_where_one_lacks_a_figure(made):
    runs = [one(made, "a", summary={"kwh": 0.002, "energy_source": "modelled: x"}), one(made, "b")]
    labels, rows = facts.compared(runs)
    assert labels == ["held-out loss", "exact match", "time", "cost", "energy", "peak memory", "tokens per second"]
    assert rows[0][labels.index("energy")].unit == "modelled"
    assert rows[1][labels.index("energy")] is None


def test_quality_before_and_after(made):
    heads, rows = facts.qualities(one(made))
    assert heads == ["held-out", "before", "after"]
    assert {name: values for name, *values in rows} == {
        "loss": ["5.25", "0.0136"], "perplexity": ["191", "1.01"], "exact match": ["0.0 %", "93.7 %"],
        "examples": ["300", "300"], "tokens": ["8,000", "8,000"],
    }  # fmt: skip
    heads, rows = facts.qualities(one(made, "b", summary=None))
    assert heads == ["held-out", "before", "at step 40"], "of a run that came to no end"
    assert rows[0][0] == "loss"
    assert facts.qualities(one(made, "c", summary=None, lines=[]))[1] == []


@pytest.mark.parametrize(
    ("task", "unit"), [("classify", "row"), ("tag", "word"), ("embed", "pair"), ("generate", "token")]
)
def test_a_loss_is_in_the_unit_of_its_task(made, task, unit):
    assert facts.loss_unit(one(made, config={"task": task})) == f"nats per {unit}"
