"""The worker itself, in a process of its own: findings alone on stdout, and no life after who asked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlean.config import load
from jaxlean.plan.candidate import Candidate
from jaxlean.plan.search import Row

ROOT = Path(__file__).parents[2]


@pytest.fixture
def worker(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with subprocess.Popen(
        [sys.executable, "-m", "jaxlean.plan.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        yield process
        process.kill()


def job(file, target, **changes):
    config = load(file, ["model.quantization=int8", "train.remat=full"])  # what is set is not varied: one trace
    told = {
        "target": target,
        "config": config.model_dump(mode="json"),
        "length": 64,
        "hardware": None,
        "most": 1,
        "ways": "all",
    }
    return json.dumps(told | {"skip": []} | changes) + "\n"


def test_a_target_is_planned_in_lines_of_json(worker, tiny_yaml):
    worker.stdin.write(job(tiny_yaml, "cpu"))
    worker.stdin.flush()
    starting, found, done = map(json.loads, worker.stdout)
    assert worker.wait(60) == 0
    assert done == {"done": True}
    row = Row.from_dict(found["row"])
    assert row.candidate == Candidate.from_dict(starting["starting"])
    assert (row.target, row.status) == ("cpu", "fits")
    assert 0 < row.memory < row.capacity


def test_it_leaves_when_nobody_listens_any_more(worker, tiny_yaml):
    worker.stdin.write(job(tiny_yaml, "cpu", most=10**6))
    worker.stdin.close()
    assert worker.wait(60) == 1
    assert '"done"' not in worker.stdout.read()
