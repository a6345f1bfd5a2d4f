"""Targets by name, and what XLA's compiler is told of a card."""

import os
import subprocess
import sys

import pytest

from jaxlean.cost.hardware import of_target, table
from jaxlean.errors import ConfigError
from jaxlean.plan.target import DEFAULT, devices_of, missing, parse, target_config


@pytest.mark.parametrize(
    ("text", "platform", "shape"),
    [
        ("h100-80gb:8", "gpu", (8,)),
        ("l4", "gpu", (1,)),
        ("v5e:2x4", "tpu", (2, 4)),
        ("v5p:2x2x1", "tpu", (2, 2, 1)),
        ("v6e", "tpu", (1, 1)),
        (" cpu ", "cpu", (1,)),
        ("cpu:8", "cpu", (8,)),
        ("h100-80gb:16", "gpu", (16,)),
    ],
)
def test_names(text, platform, shape):
    found = parse(text)
    assert (found.platform, found.shape, found.name) == (platform, shape, text.strip())
    assert found.machine.num_devices == found.num_devices


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("h100", ["no such target", "h100-80gb", "cost.hardware"]),
        ("l4:zwei", ["number", "l4:zwei"]),
        ("l4:0", ["number", "l4:0"]),
        ("v5e:8", ["grid", "v5e:2x4"]),
        ("l4:2x4", ["counted", "l4:8"]),
        ("rtx4090:16", ["at most 8", "no network between machines", "rtx4090:8", "network_gb_per_second"]),
        ("h100-80gb:12", ["holds 8", "h100-80gb:8 or h100-80gb:16"]),
    ],
)
def test_what_is_no_target(text, words):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    for word in words:
        assert word in str(caught.value)


def test_cards_beyond_a_machine_are_several_machines(tmp_path):
    two = parse("h100-80gb:16")
    assert (two.per_machine, two.machine.per_machine, two.num_devices) == (8, 8, 16)
    assert two.note.startswith("h100-80gb:16: 2 machines of 8, 50 GB/s a card between them (")
    for name in ("h100-80gb:8", "h100-80gb:1", "v5e:4x4", "cpu:8"):
        assert parse(name).per_machine == parse(name).num_devices
        assert parse(name).note == ""
    table = tmp_path / "hardware.yaml"
    table.write_text("devices:\n- {match: x, target: rtx4090, network_gb_per_second: 1.25}\n")
    assert parse("rtx4090:16", str(table)).note == (
        "rtx4090:16: 2 machines of 8, 1.25 GB/s a card between them (no source given)"
    )


def test_the_default_is_a_mix_of_at_least_eight():
    assert len(DEFAULT) >= 8
    assert {parse(name).platform for name in DEFAULT} == {"cpu", "gpu", "tpu"}


def test_a_program_may_take_less_than_the_device_has():
    assert 0.9 * 80e9 < parse("h100-80gb").capacity < of_target("h100-80gb").memory_bytes
    # "exceeds available HBM (15.75G)", libtpu says of a v5e
    assert parse("v5e:1x1").capacity == pytest.approx(15.75 * 2**30, rel=1e-3)
    assert parse("cpu").capacity > 4 * parse("cpu:8").capacity


def test_every_card_can_be_described():
    cards = [entry for entry in table(None) if entry.gpu is not None]
    assert len(cards) > 5
    for card in cards:
        text = target_config(card)
        assert text.count("{") == text.count("}") == 4
        assert f"core_count: {card.gpu.core_count}" in text
        assert "None" not in text


def test_the_host_s_devices_are_those_that_are_here():
    assert len(devices_of(parse("cpu:8"))) == 8
    assert missing(parse("cpu")) is None
    with pytest.raises(ConfigError, match="fewer devices"):
        devices_of(parse("cpu:9"))


def test_what_the_compiler_does_not_know_is_said(tmp_path):
    table = tmp_path / "hardware.yaml"
    table.write_text("devices: [{target: card, name: Card, match: Card, platform: gpu, memory_gb: 10}]\n")
    assert "the hardware table has no gpu: of it" in missing(parse("card:1", str(table)))


def test_a_chip_may_count_as_two_devices():
    assert parse("v7x:2x2x1").num_devices == 8
    assert parse("v5p:2x2x1").num_devices == 4


@pytest.mark.skipif(missing(parse("h100-80gb")) is not None, reason="pip install 'jaxlean[plan]'")
def test_the_compiler_for_cards_is_told_which_share_a_machine():
    # what it loads stays loaded: a process of its own
    told = (
        "from jaxlean.plan.target import devices_of, parse\n"
        "print([device.process_index for device in devices_of(parse('h100-80gb:16'))])"
    )
    found = subprocess.run(
        [sys.executable, "-c", told], env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    assert found.stdout.strip() == str([0] * 8 + [1] * 8), found.stderr
