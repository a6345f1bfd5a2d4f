"""Bits of other projects."""

import pytest

from jaxlean.convert import precision


@pytest.mark.parametrize(
    ("keys", "kind", "settings"),
    [
        ({"bf16": True}, "carried", {"model.dtype": "bfloat16"}),
        ({"bf16": "full"}, "carried", {"model.dtype": "bfloat16"}),
        ({"bf16": "auto"}, "idle", {}),
        ({"bf16": False}, "carried", {"model.dtype": "float32"}),
        ({"bf16": False, "fp16": True}, "idle", {}),
    ],
)
def test_bf16(source, keys, kind, settings) -> None:
    outcome = precision.bf16(keys["bf16"], source(**keys))
    assert (outcome.kind, dict(outcome.settings)) == (kind, settings)


def test_fp16_is_bfloat16_here(source) -> None:
    outcome = precision.fp16(True, source(fp16=True))
    assert outcome.settings == {"model.dtype": "bfloat16"}
    assert "no loss is scaled" in outcome.note
    assert precision.fp16(False, source()).kind == "idle"
    assert precision.fp16(True, source(bf16="auto")).kind == "idle"


@pytest.mark.parametrize(
    ("what", "settings"),
    [
        (precision.pure_bf16, {"model.dtype": "bfloat16"}),
        (precision.float32, {"model.dtype": "float32"}),
        (precision.fp8, {"model.matmul": "fp8"}),
        (precision.in_8bit, {"model.quantization": "int8"}),
        (precision.in_4bit, {"model.quantization": "nf4"}),
    ],
)
def test_switches(source, what, settings) -> None:
    assert what(True, source()).settings == settings
    assert what("true", source()).settings == settings
    assert what(False, source()).kind == "idle"


@pytest.mark.parametrize(
    ("bits", "kind", "ours"), [(4, "carried", "nf4"), (8, "carried", "int8"), (3, "missing", "nf4")]
)
def test_bits_of_the_base(source, bits, kind, ours) -> None:
    outcome = precision.quantization_bit(bits, source())
    assert (outcome.kind, outcome.settings) == (kind, {"model.quantization": ours})


def test_four_bits_are_nf4(source) -> None:
    assert precision.four_bits("nf4", source()).kind == "idle"
    assert precision.four_bits("fp4", source()).kind == "missing"


@pytest.mark.parametrize(
    ("value", "kind", "remat"),
    [
        (True, "carried", "full"),
        (False, "carried", "none"),
        ("unsloth", "missing", "full"),
        ("true", "carried", "full"),
    ],
)
def test_recomputed_activations(source, value, kind, remat) -> None:
    outcome = precision.checkpointing(value, source())
    assert (outcome.kind, outcome.settings) == (kind, {"train.remat": remat})


def test_attention_is_chosen_by_the_hardware(source) -> None:
    assert precision.attention("flash_attention_2", source()).kind == "idle"
