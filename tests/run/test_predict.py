"""Rates out of the hardware table, and seconds out of work."""

from dataclasses import replace

import jax
import pytest

from jaxlean.cost.hardware import Device, of_target
from jaxlean.run import predict
from jaxlean.run.predict import Machine, Seconds, here, of_program, rates_of, seconds
from jaxlean.xla.hlo import Program
from jaxlean.xla.remat_auto import RATES
from jaxlean.xla.work import Work

H100 = Machine(of_target("h100-80gb"), "gpu", 1)
V5E = Machine(of_target("v5e"), "tpu", 1)
CPU = Machine(of_target("cpu"), "cpu", 1)
PRODUCTS = Work({"bfloat16": 1e15})


@pytest.mark.parametrize("machine", [H100, V5E])
def test_a_card_reaches_a_share_of_its_peaks(machine):
    rates, device = rates_of(machine), machine.device
    for dtype in ("bfloat16", "int8"):
        if (peak := device.flops_per_second(dtype)) is not None:
            assert 0.4 * peak < rates.flops[dtype] < 0.95 * peak
    bandwidth = device.memory_gb_per_second * 1e9
    assert 0.5 * bandwidth < rates.product_bytes < 0.95 * bandwidth
    assert rates.elements <= bandwidth
    assert rates.kept_bytes < bandwidth / 2, "what is kept is written once and read once"
    assert rates.flops["float32"] > 0, "the rate of a dtype that the table does not know"


def test_what_is_known_of_no_card_is_half_of_an_h100():
    assert rates_of(Machine(Device(match="new", platform="gpu"), "gpu", 1)) == RATES["gpu"]
    assert rates_of(Machine(Device(match="new", platform="tpu"), "tpu", 4)) == RATES["tpu"]


def test_a_table_of_one_dtype_is_enough():
    lean = Device(match="lean", platform="gpu", tflops={"bfloat16": 100.0}, memory_gb_per_second=1000.0)
    rates = rates_of(Machine(lean, "gpu", 1))
    assert rates.flops["float32"] == rates.flops["bfloat16"] == pytest.approx(70e12)
    eighth = lean.model_copy(update={"tflops": {"bfloat16": 100.0, "float8": 200.0}})
    assert rates_of(Machine(eighth, "gpu", 1)).flops["float8_e4m3fn"] == pytest.approx(140e12)


def test_a_cpu_is_as_fast_as_it_has_cores(monkeypatch):
    monkeypatch.setattr(predict, "num_vcpus", lambda: 2)
    assert rates_of(CPU) == RATES["cpu"]
    monkeypatch.setattr(predict, "num_vcpus", lambda: 8)
    four_times = rates_of(CPU)
    assert four_times.flops["float32"] == 4 * RATES["cpu"].flops["float32"]
    assert four_times.kept_bytes == 4 * RATES["cpu"].kept_bytes


def test_seconds_from_work():
    alone = seconds(H100, PRODUCTS, 0.0, sent=0.0, collectives=0)
    assert alone.work == pytest.approx(1e15 / rates_of(H100).flops["bfloat16"])
    assert 1.0 < alone.work < 2.0
    eight = seconds(replace(H100, num_devices=8), PRODUCTS, 0.0, sent=0.0, collectives=0)
    assert eight.work == pytest.approx(alone.work / 8)
    assert (alone.exchange, eight.exchange) == (0, 0)
    kept = seconds(H100, PRODUCTS, 1e12, sent=0.0, collectives=0)
    assert kept.work - alone.work == pytest.approx(1e12 / rates_of(H100).kept_bytes)


def test_the_devices_of_a_cpu_are_threads_of_one_machine():
    one, eight = (seconds(replace(CPU, num_devices=n), PRODUCTS, 0.0, sent=0.0, collectives=0) for n in (1, 8))
    assert one.work == eight.work


@pytest.mark.parametrize("machine", [H100, V5E, CPU])
def test_what_is_sent_takes_time(machine):
    several = replace(machine, num_devices=4)
    quiet, few, many, often = (
        seconds(several, PRODUCTS, 0.0, sent=sent, collectives=collectives)
        for sent, collectives in ((0.0, 0), (1e9, 1), (1e10, 1), (1e9, 10_000))
    )
    assert quiet.exchange == 0 < few.exchange < many.exchange
    assert few.exchange < often.exchange
    assert many.total == many.work + many.exchange
    assert quiet.work == many.work


def test_a_compiler_s_cycles_are_a_second_opinion_where_they_are_slower():
    told = [
        seconds(V5E, PRODUCTS, 0.0, sent=0.0, collectives=0, cycles_seconds=cycles).work for cycles in (0.0, 1.0, 1e3)
    ]
    assert told[0] == told[1] < told[2] < 1e3


def test_the_machine_of_a_run(tmp_path):
    found = here(jax.devices())
    assert (found.platform, found.num_devices, found.device.target) == ("cpu", 8, "cpu")
    table = tmp_path / "hardware.yaml"
    table.write_text("devices:\n- {match: cpu, watts: 77}\n")
    assert here(jax.devices()[:2], str(table)).device.watts == 77

    class Unknown:
        device_kind, platform = "Chip (v2)", "gpu"

    unknown = here([Unknown(), Unknown()])
    assert (unknown.device.name, unknown.device.tflops, unknown.num_devices) == ("Chip (v2)", {}, 2)
    assert rates_of(unknown) == RATES["gpu"]


def test_seconds_add_up():
    assert Seconds(1.0, 0.25).total == 1.25


def test_a_gpu_s_small_step_takes_the_time_to_start_its_kernels():
    small = Work({"bfloat16": 1e6})
    assert of_program(H100, small, 0.0, Program(started=1000), None).work == pytest.approx(2.5e-3)
    assert of_program(V5E, small, 0.0, Program(started=1000), None).work < 1e-4
    assert of_program(H100, PRODUCTS, 0.0, Program(started=1000), None).work > 1.0
