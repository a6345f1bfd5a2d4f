"""`jaxlean env`."""

import json
import subprocess
import sys
from importlib import metadata

import jax
import pytest

from jaxlean.config import CostSection
from jaxlean.run import environment as env
from jaxlean.run.environment import environment, print_environment, versions


def test_versions_are_those_installed():
    found = versions()
    assert found["jax"] == jax.__version__ == metadata.version("jax")
    assert set(found) == {"python", *env.PACKAGES}


def test_a_package_that_is_missing_is_said_to_be(monkeypatch):
    monkeypatch.setattr(env, "PACKAGES", ("no-such-package-at-all",))
    assert versions()["no-such-package-at-all"] == "not installed"


def test_everything_is_known_and_json_able(monkeypatch):
    monkeypatch.setenv("JAX_SOMETHING", "1")
    found = json.loads(json.dumps(environment()))
    assert found["settings"]["JAX_SOMETHING"] == "1"
    assert found["devices"][0]["kind"] == jax.devices()[0].device_kind
    assert found["devices"][0]["count"] == len(jax.devices())
    assert found["memory_bytes"] > 2**28
    assert found["num_cores"] >= 1
    assert found["cpu"]
    assert found["device_error"] is None
    assert found["price_source"]


def test_the_price_is_that_of_the_config():
    assert environment(CostSection(usd_per_hour=7.5))["usd_per_hour"] == 7.5


def test_a_device_that_does_not_start_is_reported_not_raised(monkeypatch, capsys):
    def broken():
        raise RuntimeError("driver too old")

    monkeypatch.setattr(jax, "devices", broken)
    print_environment()
    printed = capsys.readouterr().out
    assert "none: driver too old" in printed
    assert "no device" in printed


def test_the_block_has_one_line_for_each_fact(capsys):
    print_environment(CostSection(usd_per_hour=2.0))
    printed = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in printed]
    for name in ("python", "jaxlean", "jax", "orbax-checkpoint", "os", "cpu", "memory", "devices", "price", "cache"):
        assert names.count(name) == 1, name
    (price,) = [line for line in printed if line.startswith("price")]
    assert "2 USD/h: cost.usd_per_hour" in price


@pytest.mark.parametrize("module", ["metrics", "progress", "summary", "environment"])
def test_importing_it_is_light(module):
    heavy = "jax transformers datasets orbax rich tensorboardX wandb".split()
    code = f"import sys, jaxlean.run.{module}; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
