"""What is said of a search: its numbers add up, and what it writes is whole."""

import json
from pathlib import Path

import optuna
import pytest
import yaml
from rich.console import Console

from jaxlean.config import build, load
from jaxlean.errors import RunError
from jaxlean.search import report
from jaxlean.search.space import distributions

SPACE = {"train.learning_rate": {"log": [1e-5, 1e-1]}, "lora.target_modules": ["all-linear", ["q_proj"]]}
HERE = {"compiled": 1, "members": 1, "isolation": "program", "trials_here": 4, "seconds_here": 9.0, "storage": "x"}


@pytest.fixture(scope="module")
def config():
    return build({"search": {"space": SPACE}, "data": {"train": "a.jsonl", "eval": "b.jsonl"}, "output_dir": "runs/s"})


@pytest.fixture(scope="module")
def rows(config):
    """A trial that came to its end, one given up, one that broke, one that was not started."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    told = [
        ([0.5], {"steps": 27, "seconds": 10.0, "usd": 0.02, "quality": {"loss": 0.5}}),
        (None, {"steps": 3, "seconds": 1.0, "usd": 0.002, "quality": {"loss": 2.0}}),
        (None, {"steps": 9, "seconds": 3.0, "usd": 0.006, "quality": {}, "diverged": True}),
        (None, {"refused": "does not fit: a step takes 90 GB of 80 GB"}),
    ]
    for values, notes in told:
        trial = study.ask(distributions(config.search.space))
        if "refused" not in notes:
            trial.report(2.0, 3)
        for name, value in notes.items():
            trial.set_user_attr(name, value)
        state = optuna.trial.TrialState.COMPLETE if values else optuna.trial.TrialState.PRUNED
        study.tell(trial, values, state)
    return [report.row_of(trial, config.search) for trial in study.trials]


@pytest.fixture
def summary(config, rows):
    return report.summarise(config, rows, [0], num_steps=27, of_worker=dict(HERE))


def test_a_row_says_what_a_trial_came_to(rows):
    assert [row["state"] for row in rows] == ["complete", "pruned", "diverged", "refused"]
    assert rows[0]["values"] == {"loss": 0.5}
    assert rows[0]["rungs"] == {"3": 2.0}
    assert rows[0]["params"]["lora.target_modules"] in ("all-linear", ["q_proj"]), "as the config has it"
    assert rows[3]["refused"].startswith("does not fit")


def test_the_summary_adds_up(summary):
    # the one that broke would not have gone on, whatever the rule
    assert (summary["trials"], summary["steps"], summary["steps_without_pruning"]) == (3, 39, 63)
    assert summary["steps_saved"] == 24
    assert summary["usd"] == pytest.approx(0.028)
    assert summary["usd_saved"] == pytest.approx(0.028 * 24 / 39)
    assert summary["random_trials_of_this_budget"] == pytest.approx(39 / 27)
    assert summary["states"] == {"complete": 1, "diverged": 1, "pruned": 1, "refused": 1}
    assert summary["compiles_per_trial"] == 0.25


def test_what_was_lost_was_paid_too(config, rows):
    lost = rows[0] | {"number": 4, "state": "fail", "values": {}, "steps": 10, "seconds": 4.0, "usd": 0.01}
    found = report.summarise(config, [*rows, lost], [0], num_steps=27, of_worker=dict(HERE), setup_usd=0.1)
    assert (found["trials"], found["steps"], found["steps_saved"]) == (3, 49, 24)
    assert (found["usd"], found["usd_setup"]) == (pytest.approx(0.138), 0.1)


def test_trials_of_other_lengths(config, rows):
    longer = [rows[0], rows[1] | {"num_steps": 100}]
    found = report.summarise(config, longer, [0], num_steps=27, of_worker=dict(HERE))
    assert (found["steps_saved"], found["steps_without_pruning"]) == (97, 127)


def test_a_price_that_is_not_known_is_not_nothing(config, rows):
    unknown = [row | {"usd": None} if row["number"] == 1 else row for row in rows]
    found = report.summarise(config, unknown, [0], num_steps=27, of_worker=dict(HERE))
    assert (found["usd"], found["usd_saved"]) == (None, None)


def test_a_line_a_trial(rows):
    said = report.line_of(rows[0], 27, 0.4, "loss")
    assert said.startswith("trial 0: done, loss 0.5000 (best 0.4000), 10.0 s, $0.02")
    assert "learning_rate=" in said
    assert report.line_of(rows[1], 27, None, "loss").startswith("trial 1: pruned at step 3, loss 2.0000, 1.00 s")
    assert report.line_of(rows[2], 27, None, "loss").startswith("trial 2: diverged at step 9, not a number")
    dear = rows[2] | {"state": "too dear"}
    assert report.line_of(dear, 27, None, "loss").startswith("trial 2: too dear at step 9, not measured yet")


def test_what_is_written(config, rows, summary, tmp_path):
    (tmp_path / "best-7.yaml").write_text("of an earlier start")
    (tmp_path / "best-mine.yaml").write_text("what somebody made of it")
    report.write_all(tmp_path, config, rows, summary, picture=True)
    assert {file.name for file in tmp_path.iterdir()} == {
        "trials.jsonl", "summary.json", "best.yaml", "best-mine.yaml", "search.png"
    }  # fmt: skip
    assert [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()] == rows
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 39
    text = (tmp_path / "best.yaml").read_text()
    assert text.startswith(f"# jaxlean finetune {tmp_path}/best.yaml\n# Trial 0 of a search: loss 0.5000.\n")
    best = load(tmp_path / "best.yaml")
    assert best.train.learning_rate == rows[0]["params"]["train.learning_rate"]
    assert best.output_dir == str(tmp_path / "best")
    assert yaml.safe_load(text)["search"]["space"] == {}


def test_of_several_best_each_has_a_file(config, rows, tmp_path):
    summary = report.summarise(config, rows, [0, 0], num_steps=27, of_worker=dict(HERE))
    report.write_all(tmp_path, config, rows, summary, picture=False)
    assert {file.name for file in tmp_path.iterdir()} == {"trials.jsonl", "summary.json", "best-0.yaml", "best-1.yaml"}


def test_the_table(summary, rows, capsys):
    report.print_table(summary, rows, Console(width=200))
    said = capsys.readouterr().out
    for words in (
        "0*",
        "39 of 63: pruning saved 38.1 %",
        "1.4 whole trials",
        "0.25 (1 in this process)",
        "$0.017",
        "$0.028",
    ):
        assert words in said


def test_a_folder_that_cannot_be_written_is_said():
    with pytest.raises(RunError, match="the search's report cannot be written"):
        report.write(Path("/proc/nowhere/summary.json"), "{}")
