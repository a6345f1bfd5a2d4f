"""`mesh: auto`: a mesh for the devices that are here, and a run on it."""

import json
import math

import jax
import pytest

from jaxlean.config import build
from jaxlean.errors import RunError
from jaxlean.plan import local as module
from jaxlean.plan.local import choose_mesh, here
from jaxlean.run.finetune import finetune
from jaxlean.xla.mesh import AXES


@pytest.fixture
def config(tiny_values, tmp_path):
    return build({**tiny_values, "output_dir": str(tmp_path / "run"), "mesh": "auto", "compilation_cache": False})


def test_the_devices_that_are_here():
    target = here(build({}))
    assert (target.name, target.num_devices, target.platform) == ("cpu:8", 8, "cpu")


@pytest.mark.slow
def test_it_chooses_among_all_meshes_and_the_run_says_what_was_predicted(config, capsys):
    chosen = choose_mesh(config, most=2)
    assert not chosen.mesh.auto
    assert math.prod(getattr(chosen.mesh, axis) for axis in AXES) == 8
    printed = capsys.readouterr().out
    assert "mesh: auto, cpu:8: 16 sequences a step" in printed
    assert printed.count("chosen") == 1
    chosen.train.max_steps = 2
    chosen.data.eval = None
    summary = finetune(chosen)
    assert summary["num_devices"] == 8
    shards = chosen.mesh.data * chosen.mesh.fsdp
    train = chosen.train
    assert train.per_device_train_batch_size * train.gradient_accumulation_steps * shards == 16
    assert json.loads(json.dumps(summary))["predicted_step_seconds"] > 0


@pytest.fixture(scope="module")
def searched():
    """What a search of every mesh finds, compiled once for the tests that differ in what comes after it."""
    return []


@pytest.fixture
def every_mesh_is_near(monkeypatch, searched):
    monkeypatch.setattr(module, "NEAR", 1e9)
    monkeypatch.setattr("jaxlean.plan.search._WORTH_ANOTHER_MESH", 1e9)
    search = module.search

    def once(*arguments, **options):
        searched.extend([] if searched else search(*arguments, **options))
        return list(searched)

    monkeypatch.setattr(module, "search", once)


@pytest.mark.slow
def test_those_in_front_are_run_and_the_fastest_is_chosen(config, capsys, monkeypatch, every_mesh_is_near):
    ran = []

    def seconds(job, candidate, devices, *, length, together):
        ran.append(candidate)
        if len(ran) == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")
        return 10.0 - len(ran)

    monkeypatch.setattr(module, "trial_seconds", seconds)
    chosen = choose_mesh(config, most=2)
    assert len(ran) == len(set(ran)) == 2
    last = ran[-1]
    assert {axis: getattr(chosen.mesh, axis) for axis in AXES} == last.axes
    assert chosen.train.per_device_train_batch_size == last.microbatch
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.endswith("run: 8.000 s, chosen"))
    assert line.startswith(f"  {last.mesh_name}: ")
    assert sum(line.endswith("run: failed") for line in lines) == 1


def test_where_none_can_be_run_the_estimate_decides(config, monkeypatch, every_mesh_is_near):
    def seconds(job, candidate, devices, *, length, together):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(module, "trial_seconds", seconds)
    assert math.prod(getattr(choose_mesh(config, most=2).mesh, axis) for axis in AXES) == 8


def test_where_nothing_fits_it_says_so(config, tmp_path):
    table = tmp_path / "hardware.yaml"
    table.write_text("devices: [{target: cpu, name: CPU, match: cpu, platform: cpu, memory_gb: 0.0001}]\n")
    config.cost.hardware = str(table)
    with pytest.raises(RunError, match="no mesh that the job fits on"):
        choose_mesh(config, most=1)


def test_it_keeps_to_the_memory_of_the_config(config):
    config.train.memory_budget = 10**5
    with pytest.raises(RunError, match="no mesh that the job fits on"):
        choose_mesh(config, most=1)
