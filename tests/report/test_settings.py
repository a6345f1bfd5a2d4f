"""Configs side by side: what differs, and what is not at its default."""

import json
from pathlib import Path

import pytest

from jaxlean.config.evaluation import StoppingSection
from jaxlean.config.sections import ReportSection, TrainSection
from jaxlean.report.read import Run
from jaxlean.report.settings import changed, default_of, differences


def run(name="a", **config):
    return Run(Path(name), name, "completed", None, {"output_dir": f"runs/{name}"} | config)


def test_what_is_alike_and_the_folder_are_no_difference():
    same = {"seed": 0, "train": {"learning_rate": 0.003, "max_steps": 10}}
    assert differences([run("a", **same), run("b", **same)]) == []
    other = {"seed": 0, "train": {"learning_rate": 0.0005, "max_steps": 10}}
    assert differences([run("a", **same), run("b", **other)]) == [("train.learning_rate", ["0.003", "0.0005"])]


def test_a_section_that_only_one_run_has_is_one_row():
    found = differences([run("a", lora=None), run("b", lora={"r": 4, "lora_alpha": 8.0, "lora_dropout": 0.0})])
    assert found == [("lora", ["null", "r=4, lora_alpha=8.0"])]
    assert differences([run("a", lora=None), run("b", lora={"r": 16})]) == [("lora", ["null", "defaults"])]


def test_a_key_that_an_older_version_did_not_write_has_its_default():
    old, new = {"learning_rate": 0.1}, {"learning_rate": 0.1, "remat": "none"}
    assert differences([run("a", train=old), run("b", train=new)]) == []
    found = differences([run("a", train=old), run("b", train=new | {"remat": "full"})])
    assert found == [("train.remat", ["none", "full"])]


def test_sources_are_compared_one_by_one():
    one, two = {"train": [{"path": "a"}]}, {"train": [{"path": "a"}, {"path": "b", "weight": 2.0}]}
    assert dict(differences([run("a", data=one), run("b", data=two)])) == {
        "data.train.path": ["a", "-"], "data.train.0.path": ["-", "a"], "data.train.1.path": ["-", "b"],
        "data.train.1.weight": ["null", "2.0"],
    }  # fmt: skip


def test_what_is_not_at_its_default():
    found = changed(run(seed=3, model={"path": "org/base"}, train={"learning_rate": 0.00047999999999999996}))
    assert found == [("seed", "3", "0"), ("model.path", "org/base", "null"),
                     ("train.learning_rate", "0.00048", "0.0002")]  # fmt: skip


@pytest.mark.parametrize("key", ["train.learning_rate", "eval.stopping.min_delta", "report.tensorboard"])
def test_defaults_are_those_of_the_config(key):
    section, _, name = key.rpartition(".")
    fields = {"train": TrainSection, "eval.stopping": StoppingSection, "report": ReportSection}[section].model_fields
    assert default_of(key) == json.dumps(fields[name].default)
