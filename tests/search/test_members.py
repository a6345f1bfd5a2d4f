"""How many members: what fits, and only where it gains."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxlean.config import RunConfig
from jaxlean.cost.hardware import Device
from jaxlean.run.predict import Machine
from jaxlean.search import members
from jaxlean.search.members import Members, advise
from jaxlean.xla.mesh import make_mesh

MB = 10**6
GPU = Device(
    match="x", name="x", platform="gpu", tflops={"float32": 60.0, "bfloat16": 900.0}, memory_gb_per_second=3000.0
)


class Step:
    """A step of as many kernels as layers, over one frozen matrix."""

    def __init__(self, number=1, *, rows=8, layers=200, needed=4 * MB, budget=1000 * MB):
        self.frozen = {"w": jnp.ones((512, 512))}
        self.needed, self.budget = needed, budget

        def one(x, w):
            for _ in range(layers):
                x = jnp.tanh(x @ w)
            return x

        self._step = jax.jit(one if number == 1 else jax.vmap(one, in_axes=(0, None)))
        shape = (rows, 512) if number == 1 else (number, rows, 512)
        self._arguments = (jax.ShapeDtypeStruct(shape, jnp.float32), self.frozen["w"])
        # a GPU's program starts a kernel a layer
        self.compiled = SimpleNamespace(as_text=lambda: "")
        self.layers = layers

    def trace(self):
        return self._step.trace(*self._arguments)


@pytest.fixture
def advice(monkeypatch):
    def found(platform, **how):
        device = GPU if platform == "gpu" else Device(match="cpu", name="cpu", platform="cpu")
        monkeypatch.setattr(members, "here", lambda devices, file: Machine(device, platform, 1))
        one = Step(**how)
        read = members.hlo.read("")
        monkeypatch.setattr(members.hlo, "read", lambda text: replace(read, started=one.layers))
        return advise(one, lambda number: Step(number, **how), make_mesh(devices=jax.devices()[:1]), RunConfig())

    return found


def test_a_gpu_that_waits_for_its_kernels_takes_many(advice):
    found = advice("gpu")
    assert found.chosen >= 8
    seconds = {number: each for number, each, _ in found.rows}
    assert seconds[8] < seconds[1] / 4
    assert "times as many steps as one by one" in str(found)


def test_a_gpu_that_computes_all_the_time_takes_one(advice):
    found = advice("gpu", rows=65536, layers=2)
    assert found.chosen == 1
    assert "the device is busy with one" in str(found)


def test_a_cpu_takes_one(advice):
    assert advice("cpu", rows=4096, layers=4).chosen == 1


def test_no_more_than_fit(advice):
    # the base is 1 MB, and each member 3 more
    found = advice("gpu", budget=14 * MB)
    assert found.chosen == 4
    assert [needed for _, _, needed in found.rows] == pytest.approx([4 * MB, 7 * MB, 13 * MB, 25 * MB], rel=0.02)
    alone = advice("gpu", budget=5 * MB)
    assert alone.chosen == 1
    assert "no room for more" in str(alone)


def test_it_says_what_it_reckoned():
    said = str(Members(4, ((1, 0.01, 4 * MB), (2, 0.005, 7 * MB), (4, 0.0025, 13 * MB)), 20 * MB))
    assert said.startswith("members: 4 (4.0 times as many steps as one by one); a step of 1: 10.0 ms each, 4.0 MB")
