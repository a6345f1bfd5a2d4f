"""The devices that trials will find are asked for by a process that ends."""

import json
import subprocess
import sys
import textwrap

import jax

from jaxlean.run import devices


def test_a_process_looks(monkeypatch):
    found = devices.look()
    assert (found.platform, found.kind) == ("cpu", jax.devices()[0].device_kind)
    assert found.num >= 1
    monkeypatch.setattr(devices, "_LOOK", "raise SystemExit(1)")
    assert devices.look() is None
    monkeypatch.setattr(devices, "_LOOK", "print('[]')")
    assert devices.look() is None


def test_where_only_the_cpu_is_asked_for_nobody_looks():
    code = "import jax; from jaxlean.run import devices; jax.config.update('jax_platforms', 'cpu'); " \
           "print(devices.may_be_accelerated())"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_search_whose_trials_are_processes_leaves_the_devices_to_them(tiny_yaml, tmp_path):
    """As on a machine of two GPUs: the search computes on the CPU, as if it had as many."""
    code = """
        import json, os, sys
        from jaxlean.config import load
        from jaxlean.run import devices
        from jaxlean.search import search
        from jaxlean.run.devices import Devices
        os.environ.pop("JAX_PLATFORMS", None)
        devices.may_be_accelerated = lambda: True
        devices.look = lambda: Devices("gpu", "NVIDIA H100 80GB HBM3", 2)
        mesh, kind, reason = search._devices(load(sys.argv[1]))
        import jax
        print(json.dumps([jax.config.jax_platforms, mesh.size, mesh.devices.flat[0].platform, kind, reason]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tiny_yaml)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    platforms, size, platform, kind, reason = json.loads(done.stdout.splitlines()[-1])
    assert (platforms, size, platform, kind) == ("cpu", 2, "cpu", "NVIDIA H100 80GB HBM3")
    assert reason.startswith("a mesh of 2 devices")
