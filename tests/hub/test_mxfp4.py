"""MXFP4 tensors: decoded number by number as the format's specification has it, and read in the place of wide ones."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlean import tree
from jaxlean.hub import mxfp4
from jaxlean.hub.load import load
from jaxlean.xla.mesh import make_mesh


def by_the_book(code: int, exponent: int) -> float:
    """OCP Microscaling Formats 1.0, 5.3.3: sign, two bits of exponent with bias 1, one of mantissa."""
    sign, power, mantissa = -1.0 if code & 8 else 1.0, (code >> 1) & 3, code & 1
    number = mantissa / 2 if power == 0 else (1 + mantissa / 2) * 2.0 ** (power - 1)
    return sign * number * 2.0 ** (exponent - 127)


def draw(rng, experts, dim_in, dim_out):
    blocks = rng.integers(0, 256, (experts, dim_out, dim_in // 32, 16), dtype=np.uint8)
    return blocks, rng.integers(120, 130, (experts, dim_out, dim_in // 32), dtype=np.uint8)


def test_every_number_is_the_specification_s():
    blocks, scales = draw(np.random.default_rng(0), 2, 64, 5)
    got = mxfp4.decode(blocks, scales)
    assert got.shape == (2, 64, 5)
    for expert, dim_in, dim_out in np.ndindex(got.shape):
        byte = int(blocks[expert, dim_out, dim_in // 32, dim_in % 32 // 2])
        code = byte >> 4 if dim_in % 2 else byte & 15
        assert got[expert, dim_in, dim_out] == by_the_book(code, int(scales[expert, dim_out, dim_in // 32]))


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_packed_experts_load_as_wide_ones(checkpoint, quantization):
    folder = checkpoint("gptoss_plain")
    rng = np.random.default_rng(1)
    packed, wide = {}, {}
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.experts.gate_up_proj"
        blocks, scales = draw(rng, 4, 32, 24)
        packed |= {name + "_blocks": blocks, name + "_scales": scales}
        wide[name] = np.ascontiguousarray(mxfp4.decode(blocks, scales))  # safetensors writes what lies in memory
    folder.change(lambda tensors: tensors.update(wide))
    mesh = make_mesh(devices=jax.devices()[:1])
    want = load(folder.folder, "float32", mesh, quantization=quantization)
    save_file({n: x for n, x in load_file(folder.file).items() if n not in wide} | packed, folder.file)
    folder.configure(quantization_config={"quant_method": "mxfp4"})
    assert "quantization_config" in json.loads((folder.folder / "config.json").read_text())
    got = tree.flatten(load(folder.folder, "float32", mesh, quantization=quantization).params)
    for path, leaf in tree.flatten(want.params).items():
        np.testing.assert_array_equal(got[path], leaf, err_msg=path)
