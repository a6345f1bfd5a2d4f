"""Which parameter is held in which dtype, and which hardware multiplies in float8."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxlean import codec
from jaxlean.errors import ConfigError
from jaxlean.xla.precision import EMULATE_FP8, RULES, check_matmul, compute_dtype, parameter_dtype


def test_auto_is_float32_on_cpu():
    assert compute_dtype("auto") == jnp.float32
    assert compute_dtype("float32") == jnp.float32
    assert compute_dtype("bfloat16") == jnp.bfloat16


@pytest.mark.parametrize(
    ("path", "trains", "wanted"),
    [
        ("layers.attention.query.kernel", False, "bfloat16"),
        ("layers.attention.query.kernel", True, "float32"),
        ("layers.attention.query.bias", False, "float32"),
        ("layers.attention.query.lora_a", True, "float32"),
        ("layers.attention.query.lora_scale", False, "float32"),
        ("layers.attention.query_norm.scale", False, "float32"),
        ("norm.scale", False, "float32"),
        ("embed.embedding", False, "bfloat16"),
        ("head.kernel", False, "bfloat16"),
    ],
)
def test_matrices_that_are_frozen_are_held_in_the_compute_dtype_all_else_in_float32(path, trains, wanted):
    assert parameter_dtype(jnp.dtype("bfloat16"), lambda asked: asked == path and trains)(path) == wanted
    assert parameter_dtype(jnp.dtype("float32"), lambda _: trains)(path) == "float32"


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_the_leaves_of_a_quantized_kernel_have_the_dtypes_of_their_format(form):
    wanted = parameter_dtype(jnp.dtype("bfloat16"), lambda path: False)
    for name, leaf in codec.shapes((2, 64, 8), form).items():
        assert wanted(f"layers.mlp.up.{name}") == leaf.dtype, name


def test_the_last_rule_takes_all():
    assert RULES[-1] == (r".*", "compute")


def device(platform, kind, capability=None):
    return SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability)


@pytest.mark.parametrize(
    ("hardware", "has"),
    [
        (device("gpu", "NVIDIA H100 80GB HBM3", "9.0"), True),
        (device("gpu", "NVIDIA L4", "8.9"), True),
        (device("gpu", "NVIDIA B200", "10.0"), True),
        (device("gpu", "NVIDIA A100-SXM4-80GB", "8.0"), False),
        (device("gpu", "AMD Instinct MI300X", "gfx942"), False),
        (device("tpu", "TPU7x"), True),
        (device("tpu", "TPU v5 lite"), False),
        (device("tpu", "TPU v6 lite"), False),
        (device("cpu", "cpu"), False),
    ],
)
def test_float8_is_refused_where_the_hardware_has_none(hardware, has, monkeypatch):
    monkeypatch.delenv(EMULATE_FP8, raising=False)
    check_matmul("int8", hardware)
    check_matmul("default", hardware)
    if has:
        check_matmul("fp8", hardware)
        return
    with pytest.raises(ConfigError) as caught:
        check_matmul("fp8", hardware)
    for words in (hardware.device_kind, "8.9", "model.matmul=int8"):
        assert words in str(caught.value)


def test_float8_is_emulated_when_asked_by_name(monkeypatch):
    monkeypatch.setenv(EMULATE_FP8, "1")
    check_matmul("fp8", jax.devices()[0])
    monkeypatch.setenv(EMULATE_FP8, "0")
    with pytest.raises(ConfigError):
        check_matmul("fp8", jax.devices()[0])
