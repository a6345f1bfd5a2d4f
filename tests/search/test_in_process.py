"""Trials in one process: side by side they come to the same, programs change, and what cannot share one is named."""

import json

import pytest

from jaxlean.config import build, load, with_values
from jaxlean.cost.price import Price
from jaxlean.run.finetune import finetune
from jaxlean.search import in_process
from jaxlean.search.in_process import InProcess, cannot_share
from jaxlean.search.study import Study
from jaxlean.xla.mesh import make_mesh

SPACE = "search.space={train.learning_rate: {log: [1.0e-4, 0.1]}, lora.r: [2, 4], train.adam_beta2: [0.9, 0.99]}"


def rows(folder):
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, None),
        ({"lora": None}, None),
        ({"task": "classify"}, None),
        ({"data.curriculum": "length"}, None),
        ({"lora.init_lora_weights": "pissa"}, "lora.init_lora_weights: pissa"),
        ({"lora.init_from": "adapter"}, "lora.init_from"),
        ({"data.curriculum": "loss"}, "data.curriculum.difficulty: loss"),
        ({"data.streaming": True, "train.max_steps": 5}, "data.streaming"),
        ({"train.sync": "diloco", "mesh.data": 2}, "train.sync: diloco"),
        ({"distill": {"teacher": {"path": "t"}}, "lora": None}, "a teacher"),
        ({"lora": None, "train.pruning": {}}, "train.pruning"),
        ({"lora": None, "train.keep_zeros": True}, "train.keep_zeros without adapters"),
    ],
)
def test_what_cannot_share_a_program(values, why):
    assert cannot_share(with_values(build({"data": {"train": "a.jsonl"}}), values)) == why


@pytest.mark.slow
def test_a_place_goes_to_the_next_trial_without_compiling(small_machine, tiny_yaml, tmp_path):
    """Seven trials in three places: they end at different rungs, and each place is filled again."""
    config = load(
        tiny_yaml, [SPACE, "train.max_steps=4", "search.num_trials=7", "search.members=3", "search.min_steps=1"]
    )
    study, told = Study(config, tmp_path, 4), []
    mesh = make_mesh(config.mesh)
    runner = InProcess(config, study, mesh, Price(3600.0, "test"), say=lambda line: None, told=told.append)
    runner.run()
    study.close()
    assert (runner.compiled, runner.members) == (1, 3)
    assert sorted(trial.asked.number for trial in told) == list(range(7))
    assert {trial.done for trial in told} >= {1, 4}
    assert all(trial.seconds > 0 for trial in told)
    for trial in study.trials:
        assert trial.user_attrs["usd"] == pytest.approx(trial.user_attrs["seconds"]), "a dollar a second"


@pytest.mark.slow
def test_money_ends_trials_at_a_rung(small_machine, tiny_yaml, tmp_path):
    config = load(tiny_yaml, [SPACE, "train.max_steps=4", "search.min_steps=1", "search.max_usd=0.000001"])
    study = Study(config, tmp_path, 4)
    InProcess(config, study, make_mesh(config.mesh), Price(3600.0, "test"), say=lambda line: None).run()
    study.close()
    (trial,) = study.trials
    assert (trial.state.name, trial.user_attrs["too_dear"], trial.user_attrs["steps"]) == ("PRUNED", True, 1)


@pytest.mark.slow
def test_money_ends_trials_between_rungs(small_machine, tiny_yaml, tmp_path, monkeypatch):
    monkeypatch.setattr(in_process, "_COUNT_SECONDS", 0.0)
    config = load(tiny_yaml, [SPACE, "train.max_steps=50", "search.pruner=none", "search.max_usd=0.000001"])
    study = Study(config, tmp_path, 50)
    runner = InProcess(config, study, make_mesh(config.mesh), Price(3600.0, "test"), say=lambda line: None)
    runner.run()
    study.close()
    (trial,) = study.trials
    assert (trial.state.name, trial.user_attrs["too_dear"], trial.user_attrs["steps"]) == ("PRUNED", True, 1)
    assert study.setup_usd == pytest.approx(runner.setup_seconds), "a dollar a second"


@pytest.mark.slow
def test_a_base_that_is_drawn_is_drawn_for_each_trial(small_machine, tiny_yaml, tmp_path):
    """Its seed is searched, and several trials are asked for side by side: one base at a time, each its own."""
    values = {
        "model": {"new_tokens": ["zoological"], "new_tokens_init": "random"}, "train.max_steps": 1,
        "search": {"space": {"seed": [1, 2]}, "members": 2, "num_trials": 2, "sampler": "random", "pruner": "none"},
    }  # fmt: skip
    config = load(tiny_yaml)
    model = config.model.model_dump(mode="json", exclude_unset=True) | values.pop("model")
    config = with_values(config, values | {"model": model, "train.learning_rate": 1e-9})
    study = Study(config, tmp_path, 1)
    for seed in (1, 2):
        study._study.enqueue_trial({"seed": seed})
    InProcess(config, study, make_mesh(config.mesh), Price(None, "test"), say=lambda line: None).run()
    study.close()
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
    for trial in study.trials:
        own = with_values(config, {"seed": trial.params["seed"], "output_dir": str(tmp_path / str(trial.number))})
        assert finetune(own)["eval_after"]["loss"] == pytest.approx(trial.value, rel=2e-4)


@pytest.mark.slow
def test_members_side_by_side_find_the_same(small_machine, tiny_yaml, cli, tmp_path):
    """Trials drawn by lot are the same trials, and come to the same."""
    losses = []
    for members in (1, 3):
        out = tmp_path / str(members)
        random = ("search.sampler=random", "search.pruner=none", "search.num_trials=4", f"search.members={members}")
        code, _, err = cli("search", tiny_yaml, SPACE, "train.max_steps=4", *random, f"output_dir={out}")
        assert (code, err) == (0, "")
        summary = json.loads((out / "summary.json").read_text())
        assert (summary["compiled"], summary["members"]) == (1, members)
        losses.append({json.dumps(row["params"]): row["values"]["loss"] for row in rows(out)})
    assert len(losses[0]) == 4
    assert losses[0].keys() == losses[1].keys()
    for params, loss in losses[0].items():
        assert losses[1][params] == pytest.approx(loss, rel=1e-4)


@pytest.mark.slow
def test_ranks_with_a_program_each_find_the_same(small_machine, tiny_yaml, cli, tmp_path):
    found = {}
    for pad in ("true", "false"):
        out = tmp_path / pad
        code, _, err = cli(
            "search", tiny_yaml, "search.space={lora.r: [2, 4], lora.lora_alpha: [4, 8]}", "search.num_trials=4",
            "search.sampler=random", "search.pruner=none", "search.members=1", f"search.pad_ranks={pad}",
            "train.max_steps=3", f"output_dir={out}",
        )  # fmt: skip
        assert (code, err) == (0, "")
        compiled = json.loads((out / "summary.json").read_text())["compiled"]
        found[pad] = ([row["params"] for row in rows(out)], [row["values"]["loss"] for row in rows(out)], compiled)
    assert {params["lora.r"] for params in found["true"][0]} == {2, 4}
    assert found["true"][0] == found["false"][0]
    assert found["false"][1] == pytest.approx(found["true"][1], rel=1e-5)
    assert (found["true"][2], found["false"][2]) == (1, 2)


@pytest.mark.slow
def test_programs_of_several_shapes_and_what_does_not_fit(small_machine, tiny_yaml, cli, tmp_path):
    space = "search.space={train.per_device_train_batch_size: [1, 2], train.learning_rate: {log: [0.001, 0.1]}}"
    code, _, err = cli(
        "search", tiny_yaml, space, "train.max_steps=2", "search.num_trials=4", "search.sampler=random", "seed=4",
        f"output_dir={tmp_path / 'a'}",
    )  # fmt: skip
    assert (code, err) == (0, "")
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    sizes = {row["params"]["train.per_device_train_batch_size"] for row in rows(tmp_path / "a")}
    assert summary["compiled"] == len(sizes) == 2
    code, _, err = cli(
        "search", tiny_yaml, space, "train.max_steps=2", "search.num_trials=1", "train.memory_budget=1000",
        f"output_dir={tmp_path / 'b'}",
    )  # fmt: skip
    assert code == 2
    assert "hardly any trial of this space can be started" in err
    assert "does not fit: a step takes" in err
