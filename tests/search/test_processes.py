"""Trials as processes: what they measure is reported, who is given up is told to end, what breaks harms no other."""

import json
import sys
import textwrap
from types import SimpleNamespace

import pytest

from jaxlean.config import load, with_values
from jaxlean.cost.price import Price
from jaxlean.search import processes
from jaxlean.search.processes import Processes
from jaxlean.search.study import Study

SPACE = {"train.learning_rate": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
# Trains as quick as it can write: its loss is its learning rate, and falls.
STAND_IN = """
    import json, os, signal, sys, time, yaml
    from pathlib import Path
    config = yaml.safe_load(Path(sys.argv[1]).read_text())
    folder, rate = Path(config["output_dir"]), config["train"]["learning_rate"]
    signal.signal(signal.SIGTERM, lambda *_: (folder.joinpath("told").touch(), sys.exit(75)))
    assert config["eval"]["eval_steps"] in (1, 9) and not config["eval"]["before"]
    assert config["eval"]["stopping"] is None and not config["eval"]["load_best"]
    if rate == 0.3:
        print("error: the base is gone\\n  fix: another", flush=True)
        sys.exit(2)
    with folder.joinpath("metrics.jsonl").open("w") as out:
        for step in range(1, 10):
            out.write(json.dumps({"step": step, "loss": 1.0}) + "\\n")
            out.write(json.dumps({"step": step, "eval_loss": rate + 1 / step}) + "\\n")
            out.flush()
            if step in (1, 3):
                time.sleep(1.0 if rate == 0.4 else 0.4)
            if rate == 0.2 and step == 5:
                (folder / "summary.json").write_text(json.dumps({"steps": 5, "status": "diverged"}))
                sys.exit(2)
            if rate == 0.5 and step == 5:
                print("it is killed", flush=True)
                os.kill(os.getpid(), 9)
            if rate == 0.6 and step == 5:
                time.sleep(60)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 100)
    (folder / "checkpoints").mkdir()
    found = {"steps": 9, "eval_after": {"loss": rate}, "predicted_memory_bytes": 1000}
    (folder / "summary.json").write_text(json.dumps(found))
"""


@pytest.fixture
def run(tiny_yaml, tmp_path, monkeypatch):
    """Runs trials of these learning rates in turn; gives the study and what was said."""
    script = tmp_path / "stand_in.py"
    script.write_text(textwrap.dedent(STAND_IN))
    monkeypatch.setattr(processes, "_command", lambda file: [sys.executable, str(script), str(file)])

    def ran(rates, **settings):
        config = load(tiny_yaml)
        section = {"space": SPACE, "num_trials": len(rates), **settings}
        ends = {"eval.stopping": {"patience": 1}, "eval.load_best": True, "eval.eval_steps": 3}
        config = with_values(config, {"search": section, "train.max_steps": 9, **ends})
        study = Study(config, tmp_path, 9)
        for rate in rates:
            study._study.enqueue_trial({"train.learning_rate": rate})
        said, told = [], []
        runner = Processes(
            config, study, Price(3600.0, "test"), tmp_path / "trials", say=said.append,
            told=lambda trial: told.append(trial.asked.number),
        )  # fmt: skip
        runner.run()
        study.close()
        return SimpleNamespace(trials=study.trials, said=said, told=told, folder=tmp_path / "trials")

    return ran


def test_trials_are_told_apart(run):
    found = run([0.1, 0.4, 0.2], pruner="asha")
    first, second, third = found.trials
    assert (first.state.name, first.values) == ("COMPLETE", [0.1])
    assert first.intermediate_values == {1: 1.1, 3: pytest.approx(0.1 + 1 / 3)}
    assert first.user_attrs["steps"] == 9
    assert first.user_attrs["seconds"] > 0.5
    assert first.user_attrs["usd"] == pytest.approx(first.user_attrs["seconds"]), "a dollar a second"
    assert second.state.name == "PRUNED", "worse at the first rung"
    assert (found.folder / "0001" / "told").exists(), "it was told to end, and could save"
    assert second.user_attrs["steps"] < 9
    assert third.state.name == "PRUNED"
    assert found.told == [0, 1, 2]
    assert not (found.folder / "0000" / "checkpoints").exists()
    assert (found.folder / "0000" / "adapter").exists()


def test_one_that_breaks_is_no_result_and_one_that_cannot_start_does_not_count(run):
    found = run([0.2, 0.3, 0.1], pruner="none")
    broken, refused, good = found.trials[:3]
    assert (broken.state.name, broken.user_attrs["diverged"]) == ("PRUNED", True)
    assert refused.user_attrs["refused"] == "the base is gone"
    assert "trial 1: not started: the base is gone" in found.said[0]
    assert (good.state.name, good.values) == ("COMPLETE", [0.1])
    assert len(found.trials) == 4, "another is drawn for the one that could not start"


def test_one_that_is_killed_is_no_result_and_is_tried_again_but_not_for_ever(run):
    found = run([0.5], pruner="none", sampler="random")
    lost = [trial for trial in found.trials if trial.params["train.learning_rate"] == 0.5]
    assert [trial.state.name for trial in lost[:3]] == ["FAIL"] * 3
    assert [trial.user_attrs.get("lost", 0) for trial in lost[:3]] == [0, 1, 2]
    assert all(trial.user_attrs["usd"] > 0 and trial.user_attrs["steps"] == 5 for trial in lost[:3])
    assert "trial 0: its process ended, signal SIGKILL: it is killed" in found.said
    assert found.trials[-1].state.name in ("COMPLETE", "PRUNED")


def test_money_ends_a_trial_wherever_it_is(run, monkeypatch):
    monkeypatch.setattr(processes, "_COUNT_SECONDS", 0.1)
    found = run([0.6], pruner="none", max_usd=2.0)
    (trial,) = found.trials
    assert (trial.state.name, trial.user_attrs["too_dear"]) == ("PRUNED", True)
    assert 2.0 <= trial.user_attrs["usd"] < 6.0, "a dollar a second"
    assert (found.folder / "0000" / "told").exists()


def test_what_else_is_measured(run):
    found = run([0.1], objectives=["loss", "bytes", "memory_bytes", "seconds"])
    (trial,) = found.trials
    assert trial.values[:3] == [0.1, 100, 1000]
    assert trial.values[3] == trial.user_attrs["seconds"]


@pytest.mark.slow
def test_finetune_itself(cli, tiny_yaml, tmp_path):
    out = tmp_path / "out"
    code, said, err = cli(
        "search", tiny_yaml, "search.space={train.learning_rate: [0.01, 0.02]}", "search.num_trials=1",
        "lora.init_lora_weights=pissa", "train.max_steps=2", "search.sampler=random", f"output_dir={out}",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "each trial is a process, for lora.init_lora_weights: pissa" in said
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["compiled"], summary["compiles_per_trial"], summary["isolation"]) == (1, 1.0, "process")
    assert summary["states"] == {"complete": 1}
