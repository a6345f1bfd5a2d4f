"""Exchanges between machines: what limits them, and how long they take."""

from types import SimpleNamespace

import pytest

from jaxlean.cost.hardware import Device
from jaxlean.run.predict import Machine, exchange, exchanges, here, of_program
from jaxlean.xla.groups import Sent
from jaxlean.xla.hlo import Collective, Program
from jaxlean.xla.work import Work

# 100 and 10 GB/s, of which 80 % are reached; half of an exchange hides behind computing.
CARD = Device(
    match="x", platform="gpu", tflops={"bfloat16": 100}, memory_gb_per_second=1000, link_gb_per_second=100,
    network_gb_per_second=10, network_microseconds=20, max_devices=4,
)  # fmt: skip
TWO = Machine(CARD, "gpu", 8, 4)
ALL, HALVES, PAIRS = (tuple(range(8)),), ((0, 1, 2, 3), (4, 5, 6, 7)), ((0, 4), (1, 5), (2, 6), (3, 7))


def test_a_ring_goes_as_fast_as_its_slowest_hop():
    each = [(Sent(700.0, 100.0, 1), 2.0), (Sent(2000.0, 100.0, 1), 1.0), (Sent(50.0), 4.0)]
    # 700 bytes of link or 100 of a network ten times slower: the network; 2,000: the link
    assert exchanges(TWO, each) == {"sent": 2200.0, "collectives": 7.0, "across": 200.0, "crossings": 3.0}


def test_seconds_of_both():
    assert exchange(TWO, 80e9, 0) == pytest.approx(0.5)
    assert exchange(TWO, 0, 0, across=8e9) == pytest.approx(0.5)
    # a step over the network: 20 us, and in the machine behind it what a collective costs: 15 us
    assert exchange(TWO, 0, 1, crossings=2) == pytest.approx(0.5 * (15e-6 + 2 * 35e-6))


@pytest.mark.parametrize(("groups", "rate"), [(ALL, 4 * 10e9), (HALVES, 100e9), (PAIRS, 10e9)])
def test_a_program_of_two_machines(groups, rate):
    size = 8e9
    program = Program([Collective("all-gather", size, len(groups[0]), 3, groups=groups)])
    found = of_program(TWO, Work({}, 0, 0), 0.0, program, None).exchange
    assert found == pytest.approx(0.5 * 3 * size / (0.8 * rate), rel=1e-3)
    # of one machine, the same program is as fast as its link
    one = of_program(Machine(CARD, "gpu", 8), Work({}, 0, 0), 0.0, program, None).exchange
    assert one == pytest.approx(0.5 * 3 * size / (0.8 * 100e9), rel=1e-3)


def test_a_network_that_the_table_does_not_know_is_slow():
    unknown = Machine(CARD.model_copy(update={"network_gb_per_second": None}), "gpu", 8, 4)
    assert exchange(unknown, 0, 0, across=8e9) == pytest.approx(exchange(TWO, 0, 0, across=8e9) * 10 / 3.125)


def test_the_machines_of_a_run():
    def devices(slices, kind="NVIDIA L4", platform="gpu"):
        return [SimpleNamespace(device_kind=kind, platform=platform, slice_index=i) for i in slices]

    assert here(devices([0] * 8)).per_machine == 8
    assert here(devices([0] * 16)).per_machine == 8  # as many as a machine holds, by the table
    assert here(devices([0, 0, 1, 1])).per_machine == 2  # as jax knows
    assert here(devices([0] * 16, "TPU v5 lite", "tpu")).per_machine == 16
    assert here([SimpleNamespace(device_kind="cpu", platform="cpu")] * 4).per_machine == 4
