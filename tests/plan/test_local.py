"""`mesh: auto`: a mesh for the devices that are here, and a run on it."""

import json
import math

import pytest

from jaxlean.config import build
from jaxlean.errors import RunError
from jaxlean.plan.local import choose_mesh, here
from jaxlean.run.finetune import finetune
from jaxlean.xla.mesh import AXES


@pytest.fixture
def config(tiny_values, tmp_path):
    return build({**tiny_values, "output_dir": str(tmp_path / "run"), "mesh": "auto", "compilation_cache": False})


def test_the_devices_that_are_here():
    target = here(build({}))
    assert (target.name, target.num_devices, target.platform) == ("cpu:8", 8, "cpu")


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
